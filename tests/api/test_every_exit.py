"""Callers that leave at every single step of a request: nothing stays open, and each request is counted once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orqen_ray.errors import UpstreamUnavailable
from orqen_ray.types import Call, UpstreamReply
from tests.api.lab import lab_gateway
from tests.api.test_edges import ASK, CHAT, Caller, secret_of
from tests.api.test_fallbacks import ANTHROPIC, BUSY, JSON, OPENAI
from tests.api.test_stream_starts import EVENTS, GOOD, SSE

FALLBACKS = {"lab-openai/m": ["lab-anthropic/n"], "lab-bedrock/m": ["lab-anthropic/n"]}
STARTED = GOOD[: GOOD.index(b"\n\n") + 2]
BROKEN_START = b'data: {"error":{"message":"busy","type":"server_error","code":503}}\n\n'

Said = tuple[int, dict[str, str], list[bytes | Exception]]


@dataclass
class Body:
    """Takes a step of the loop for each chunk, and is open until it is closed or read to its end."""

    chunks: list[bytes | Exception]
    open_bodies: set[int]

    def __post_init__(self) -> None:
        self.open_bodies.add(id(self))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        chunk = self.chunks.pop(0) if self.chunks else StopAsyncIteration()
        if isinstance(chunk, Exception):
            await self.aclose()
            raise chunk
        return chunk

    async def aclose(self) -> None:
        self.open_bodies.discard(id(self))


@dataclass
class Stepping:
    """An upstream whose every answer takes some steps of the loop; the first calls say `script`, all later ones `last`.

    Keeps its bodies, so that none is closed by being forgotten.
    """

    script: list[Said]
    last: Said
    asked: int = 0
    open_bodies: set[int] = field(default_factory=set)
    kept: list[Body] = field(default_factory=list)

    async def send(self, call: Call) -> UpstreamReply:
        said = self.script[self.asked] if self.asked < len(self.script) else self.last
        self.asked += 1
        for _ in range(4 if call.hedge else 8):
            await asyncio.sleep(0)
        status, headers, chunks = said
        body = Body(list(chunks), self.open_bodies)
        self.kept.append(body)
        return UpstreamReply(status=status, headers=headers, chunks=body, key="one")

    async def connected(self) -> frozenset[str]:
        await asyncio.sleep(0)
        return frozenset({"lab-openai", "lab-anthropic", "lab-bedrock"})


PLAIN: Said = (200, JSON, [OPENAI])
STREAM: Said = (200, SSE, [STARTED, GOOD[len(STARTED) :]])
FULL: Said = (503, JSON, [BUSY])
OTHER: Said = (200, JSON, [ANTHROPIC])
SCENARIOS: dict[str, tuple[list[Said], Said, dict[str, Any]]] = {
    "a plain answer": ([], PLAIN, {}),
    "a stream": ([], STREAM, {}),
    "a stream that breaks off": ([], (200, SSE, [STARTED, UpstreamUnavailable("gone")]), {}),
    "a retry": ([FULL], STREAM, {}),
    "another model": ([FULL, FULL], OTHER, {}),
    "a start that is an error": ([(200, SSE, [BROKEN_START])] * 2, OTHER, {}),
    "a start that is none": ([(200, SSE, [UpstreamUnavailable("gone")]), (200, SSE, [])], OTHER, {}),
    "a start that is garbage": ([(200, EVENTS, [bytes(99), b"more"])], OTHER, {}),
    "an answer that is none": ([FULL, FULL], (200, JSON, [b"<html>"]), {}),
    "no answer": ([], FULL, {}),
    "a hedge": ([], STREAM, {"hedge_after_s": 1e-6}),
    "a hedge that fails": ([FULL, FULL], STREAM, {"hedge_after_s": 1e-6}),
}


@pytest.mark.parametrize("how", ["leaves", "is cut off"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_who_leaves_at_any_step_leaves_nothing_open_and_is_counted_once(
    tmp_path: Path, scenario: str, how: str
) -> None:
    script, last, retries = SCENARIOS[scenario]
    settings: dict[str, Any] = {"fallbacks": FALLBACKS, "retries": {"max_retries": 1, "backoff_s": 1e-6, **retries}}
    model = "lab-bedrock/m" if "garbage" in scenario else ASK["model"]
    body = {
        **ASK,
        "model": model,
        "stream": "stream" in scenario or "start" in scenario or "hedge" in scenario,
        "max_tokens": 9,
    }
    upstream = Stepping(script, last)
    asked: dict[str, int] = {}
    async with lab_gateway(tmp_path, upstream, **settings) as lab:
        secret = await secret_of(lab.service)

        async def ask(leaves_at: int | None = None) -> int:
            """How many steps it took."""
            caller = Caller(secret, CHAT, body)
            request_id = f"r-{leaves_at}"
            caller.scope["headers"] = [*caller.scope["headers"], (b"x-request-id", request_id.encode())]
            upstream.asked = 0
            steps = await leaving(caller.ask(lab.service), leaves_at, caller.gone.set if how == "leaves" else None)
            asked[request_id] = upstream.asked
            assert not upstream.open_bodies, f"left at step {leaves_at}"
            return steps

        await ask()  # the key is known from now on
        steps = await ask()
        for step in range(steps + 1):
            await ask(step)
        registry = lab.service.metrics.registry
        samples = [sample for metric in registry.collect() for sample in metric.samples]
        ended = sum(sample.value for sample in samples if sample.name == "orqen_requests_total")
        assert ended == steps + 3 and registry.get_sample_value("orqen_open_requests") == 0
        rows = Counter(row["request_id"] for row in await lab.rows())
    assert steps > 8 and len(asked) == steps + 2
    assert rows.pop("r-None") == 2 and set(rows.values()) == {1}
    assert all(request_id in rows for request_id, calls in asked.items() if calls and request_id != "r-None")


async def leaving(asking: Any, step: int | None, leave: Callable[[], None] | None) -> int:
    """Let `asking` run for `step` steps of the loop, then `leave`, or cancel it as a server does. How many it took."""
    task = asyncio.ensure_future(asking)
    steps = 0
    while not task.done():
        await asyncio.sleep(0)
        if steps == step:
            leave() if leave is not None else task.cancel()
        steps += 1
    if not task.cancelled():
        task.result()
    return steps
