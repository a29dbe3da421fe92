"""The judge is judged: a seal holds behind the very prefix that it was made for, and behind no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.asks import ASKS
from tests.conformance.binding import Prefix, opened
from tests.conformance.scenarios import SIGNATURE, THOUGHT, Refused


def conversation(sdk: str) -> dict[str, Any]:
    """A second turn, the reasoning of the first one sealed."""
    body: dict[str, Any] = copy.deepcopy(ASKS[sdk]("cache", "m"))
    signature = Prefix.of(body).seal("one")
    thought: dict[str, Any] = {"type": "thinking", "thinking": THOUGHT, "signature": signature}
    if sdk == "boto3":
        thought = {"reasoningContent": {"reasoningText": {"text": THOUGHT, "signature": signature}}}
    body["messages"] += [{"role": "assistant", "content": [thought]}, {"role": "user", "content": "And now?"}]
    return body


def _tool(body: dict[str, Any]) -> dict[str, Any]:
    """The first tool's definition, in either vendor's words."""
    tool: dict[str, Any] = body["tools"][0] if "tools" in body else body["toolConfig"]["tools"][0]["toolSpec"]
    return tool


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "system": lambda body: body["system"][0].update(text="You are terse."),
    "tools": lambda body: _tool(body).update(description="The weather."),
    "messages": lambda body: body["messages"][0]["content"][0].update(text="What is 7 × 7?"),
}


@pytest.mark.parametrize("sdk", ["anthropic", "boto3"])
def test_a_seal_holds_behind_its_own_prefix_whatever_is_marked(sdk: str) -> None:
    body = conversation(sdk)
    for message in body["messages"]:
        for block in message["content"]:
            if isinstance(block, dict):
                block.pop("cache_control", None)
    assert SIGNATURE in str(opened(body, "one"))


@pytest.mark.parametrize("sdk", ["anthropic", "boto3"])
@pytest.mark.parametrize("part", CHANGES)
def test_a_seal_breaks_with_any_part_of_the_prefix(sdk: str, part: str) -> None:
    body = conversation(sdk)
    CHANGES[part](body)
    with pytest.raises(Refused, match=rf"messages\.1\.content\.0: Invalid `signature`.*Changed: {part}\."):
        opened(body, "one")


@pytest.mark.parametrize("sdk", ["anthropic", "boto3"])
def test_a_seal_of_another_account_or_of_nobody_is_refused(sdk: str) -> None:
    body = conversation(sdk)
    with pytest.raises(Refused, match="Changed: account"):
        opened(body, "two")
    message = body["messages"][1]["content"][0]
    message.get("reasoningContent", {}).get("reasoningText", message)["signature"] = SIGNATURE
    with pytest.raises(Refused, match="not one of ours"):
        opened(body, "one")
