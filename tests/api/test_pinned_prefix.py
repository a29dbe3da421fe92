"""What a conversation was given stays, whichever process serves it and whatever was learned or failed meanwhile.

The provider binds its reasoning to the very prefix it followed, and to the account, and refuses it behind any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import delete, select

from orqen_ray.api.app import create_app
from orqen_ray.encoders.protocol import Opening
from orqen_ray.formats.registry import FORMATS
from orqen_ray.pins import Pin
from orqen_ray.policy import ToolUse
from orqen_ray.store.database import Database
from orqen_ray.store.tables import PINS
from orqen_ray.store.tool_use import ToolUses
from orqen_ray.tools.tool_set import tool_set_of
from tests.api.lab import Lab, lab_gateway
from tests.conformance.asking import DONE, MORE_TOOLS
from tests.conformance.asks import with_turn
from tests.conformance.binding import breaks
from tests.conformance.credentials import ENVIRONMENT
from tests.conformance.lab import PATIENT, few_tools_key, provider_rows
from tests.conformance.talks import opening
from tests.conformance.toolset import KEPT, LEFT_OUT, sixty_tools
from tests.conformance.upstream import ConformanceUpstream, conformance_upstream

MODEL = "bound-anthropic/bound-asks-late"
Between = Callable[[int], Awaitable[None]]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConformanceUpstream]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with conformance_upstream() as upstream:
        yield upstream


async def replica(stack: AsyncExitStack, tmp_path: Path, provider: ConformanceUpstream, **settings: Any) -> Lab:
    """A process of a gateway whose processes share what is in `tmp_path`."""
    settings = {**PATIENT, **settings}
    rows = provider_rows(provider.url)
    lab = await stack.enter_async_context(lab_gateway(tmp_path, providers=rows, **settings))
    if isinstance(lab.service.embedder, Opening):
        await lab.service.embedder.opened()
    return lab


async def few_tools(stack: AsyncExitStack, labs: Sequence[Lab]) -> list[httpx.AsyncClient]:
    """A client of each, all with one key that gets so few tools that much is left out."""
    secret = await few_tools_key(labs[0].service.database, 1)
    return [await stack.enter_async_context(client(lab, secret)) for lab in labs]


def client(lab: Lab, secret: str) -> httpx.AsyncClient:
    headers = {"x-api-key": secret, "anthropic-version": "2023-06-01"}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(lab.service)), base_url="http://gateway", headers=headers
    )


async def nothing(turn: int) -> None:
    pass


async def stored(lab: Lab, messages: int, restores: int) -> None:
    """Wait for the pin, which is written behind the answer: models and people take longer than that."""
    for _ in range(1000):
        found = [(pin.sent_messages, len(pin.restores)) for pin in await pins(lab)]
        if (messages, restores) in found:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{(messages, restores)} is not among {found}: {await pins(lab)}")


async def pins(lab: Lab) -> list[Pin]:
    async with lab.service.database.begin() as connection:
        rows = await connection.execute(select(PINS.c.pin))
        return [msgspec.msgpack.decode(row, type=Pin) for row in rows.scalars()]


async def converse(clients: Sequence[httpx.AsyncClient], between: Between = nothing) -> list[str]:
    """What was called in a whole conversation, whose turns go to one client after another, and at last was said."""
    body: Any = opening("anthropic", MODEL, thinks=True)
    found = []
    for turn in range(6):
        answer = await clients[turn % len(clients)].post("/v1/messages", json=body)
        assert answer.status_code == 200, answer.text
        blocks = answer.json()["content"]
        calls = [block for block in blocks if block["type"] == "tool_use"]
        found += [block["name"] for block in calls] or [block["text"] for block in blocks if block["type"] == "text"]
        if not calls:
            break
        body = with_turn("anthropic", body, {"role": "assistant", "content": blocks}, calls[0]["id"])
        await between(turn)
    return found


def check(provider: ConformanceUpstream) -> None:
    assert [each.refused for each in provider.requests if each.refused] == []
    assert breaks(provider.requests) == []


async def test_processes_take_turns(tmp_path: Path, provider: ConformanceUpstream) -> None:
    """The second one restores a tool, and the first one, whose own memory of the pin is older, has it, too."""
    async with AsyncExitStack() as stack:
        labs = [await replica(stack, tmp_path, provider) for _ in range(2)]
        called = await converse(await few_tools(stack, labs), lambda turn: stored(labs[0], 2 * turn + 1, min(turn, 1)))
    assert called == [KEPT, LEFT_OUT, LEFT_OUT, DONE]
    assert len(provider.requests) == 5 and MORE_TOOLS in provider.requests[0].seen.tools
    check(provider)


async def test_a_process_that_starts_anew_goes_on_whatever_was_learned_meanwhile(
    tmp_path: Path, provider: ConformanceUpstream
) -> None:
    async with AsyncExitStack() as stack:
        labs = [await replica(stack, tmp_path, provider)]
        clients = await few_tools(stack, labs)

        async def restart(turn: int) -> None:
            if turn == 1:
                await learn(labs[0].service.database, LEFT_OUT)
                secret = clients[0].headers["x-api-key"]
                await stack.pop_all().aclose()
                labs[:] = [await replica(stack, tmp_path, provider)]
                clients[:] = [await stack.enter_async_context(client(labs[0], secret))]

        called = await converse(clients, restart)
        check(provider)
        assert await converse(clients) == called == [KEPT, LEFT_OUT, LEFT_OUT, DONE]
        assert not [each.refused for each in provider.requests if each.refused]
        await stored(labs[0], 7, 1)
        assert len({pin.snapshot for pin in await pins(labs[0])}) == 2, "a new conversation gets what was learned"


async def learn(database: Database, name: str) -> None:
    """Have seen a hundred conversations with the sixty tools that called this one."""
    asked = FORMATS["anthropic_messages"].read_request(opening("anthropic", MODEL), None)
    use = ToolUse(conversations=100.0, called={name: 100.0}, calls=400.0, per_minute=1.0)
    await ToolUses(database).add({tool_set_of(asked.tools).fingerprint: use})


async def test_a_decision_that_came_late_stays(tmp_path: Path, provider: ConformanceUpstream) -> None:
    """Nothing is left out of a conversation whose first turn could not wait for the encoder."""
    async with AsyncExitStack() as stack:
        hasty = {"optimization": {"holdout_ratio": 0, "budget_ms": 0.001}, "encoders": {"timeout_ms": 0.001}}
        labs = [await replica(stack, tmp_path, provider, **hasty), await replica(stack, tmp_path, provider)]
        called = await converse(await few_tools(stack, labs), lambda turn: stored(labs[0], 2 * turn + 1, 0))
    assert called == [KEPT, LEFT_OUT, LEFT_OUT, DONE]
    assert [each.seen.tools.keys() for each in provider.requests] == [sixty_tools().keys()] * 4
    check(provider)


async def test_a_conversation_survives_the_loss_of_its_pin(tmp_path: Path, provider: ConformanceUpstream) -> None:
    """Other tools are sent then, which the provider refuses behind its reasoning; it is sent again without that."""
    async with AsyncExitStack() as stack:
        labs = [await replica(stack, tmp_path, provider) for _ in range(2)]
        clients = await few_tools(stack, labs)

        async def lose(turn: int) -> None:
            if turn == 1:
                await stored(labs[0], 3, 1)
                async with labs[0].service.database.begin(write=True) as connection:
                    await connection.execute(delete(PINS))
                serving[:] = clients[1:]

        serving = clients[:1]
        assert await converse(serving, lose) == [KEPT, LEFT_OUT, LEFT_OUT, DONE]
    assert any("bound to a different conversation" in each.refused for each in provider.requests)
