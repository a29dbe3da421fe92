"""A conversation as an application has it: it asks, does what the model calls, sends the results back, and so on."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.asking import DONE, LOOK
from tests.conformance.asks import ASKS, Body, with_tools, with_turn, with_words
from tests.conformance.lab import Lab
from tests.conformance.sdks import Got, Sdk
from tests.conformance.toolset import REQUEST, sixty_tools
from tests.conformance.upstream import Received

_MAX_TURNS = 8


@dataclass(slots=True, kw_only=True)
class Talk:
    """`turns` is what the caller got, `received` what the provider got for it, oldest first."""

    turns: list[Got] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    @property
    def called(self) -> list[str]:
        return [name for got in self.turns for _, name, _ in got.calls]


def opening(sdk: str, model: str, *, thinks: bool = False, tools: Mapping[str, Any] | None = None) -> Body:
    """The first request of a conversation like no other."""
    words = f"{REQUEST} (Reference {secrets.token_hex(4)})"
    body = with_tools(sdk, ASKS[sdk]("plain", model), tools or sixty_tools())
    if thinks:
        thinking = {"thinking": {"type": "adaptive"}}
        body |= {"additionalModelRequestFields": thinking} if sdk == "boto3" else thinking
    said = {"role": "user", "content": [{"text": words}] if sdk == "boto3" else words}
    return {**body, "messages": [*body["messages"][:-1], said]}


def talk(lab: Lab, sdk: Sdk, body: Body, *, streams: bool) -> Talk:
    """Go on until the model is done, or says that it cannot."""
    done = Talk()
    before = len(lab.upstream.requests)
    for _ in range(_MAX_TURNS):
        got = sdk.stream(body) if streams else sdk.ask(body)
        done.turns.append(got)
        if got.calls:
            [(call_id, _, _)] = got.calls
            body = with_turn(sdk.name, body, got.turn, call_id)
        elif got.text == LOOK.strip() or got.text == LOOK:
            body = with_words(sdk.name, body, got.turn, "Go on.")
        else:
            break
    assert got.text == DONE or len(done.turns) < _MAX_TURNS, got
    done.received = lab.upstream.requests[before:]
    return done
