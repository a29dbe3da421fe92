"""`x-orqen-overhead-ms` is the gateway's own time: from the body's last byte to the first call, on every answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.types import Message

from orqen_ray.errors import UpstreamUnavailable
from orqen_ray.service import Service
from orqen_ray.types import Call, UpstreamReply
from tests.api.conftest import ScriptedUpstream, json_reply
from tests.api.test_edges import ASK, CHAT, START, Caller, rows, secret_of

PACE_S = 0.1  # how long the slow side takes: a provider, a caller's network
HEADER = "x-orqen-overhead-ms"
SSE = {"content-type": "text/event-stream"}
STREAM = {"model": "lab-anthropic/m", "stream": True, "max_tokens": 5}
CONVERSE = {"messages": [{"role": "user", "content": [{"text": "x"}]}]}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, ASK, 200),
        (CHAT, ASK, 429),
        (CHAT, {**ASK, "model": "lab-anthropic/m"}, 429),
        ("/v1/messages", {**ASK, "max_tokens": 5}, 500),
        (CHAT, {**ASK, **STREAM}, 200),
        ("/v1/messages", {**ASK, **STREAM}, 200),
        ("/v1/messages", {**ASK, **STREAM}, 529),
        ("/v1/responses", {"model": "lab-openai/m", "input": "x"}, 200),
        ("/v1/responses", {"model": "lab-openai/m", "input": "x"}, 404),
        ("/model/lab-bedrock%2Fm/invoke", {}, 200),
        ("/model/lab-openai%2Fm/converse", CONVERSE, 401),
    ],
)
async def test_each_answer_of_a_slow_provider_tells_only_the_gateways_time(
    service: Service,
    client: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    path: str,
    body: dict[str, Any],
    status: int,
) -> None:
    streamed = body.get("stream") and status == 200
    upstream.script = (lambda call: (200, SSE, START)) if streamed else json_reply(b'{"choices":[]}', status)
    answers = upstream.send

    async def slow(call: Call) -> UpstreamReply:
        await asyncio.sleep(PACE_S)
        return await answers(call)

    upstream.send = slow  # type: ignore[method-assign]
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    told_ms = float(answer.headers[HEADER])
    (row,) = await rows(service)
    assert told_ms == pytest.approx(row["overhead_ms"], abs=0.01)
    assert 0 <= told_ms < PACE_S * 1000 <= row["total_ms"]


async def test_a_provider_that_is_gone_has_cost_the_gateways_time_too(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    async def gone(call: Call) -> UpstreamReply:
        await asyncio.sleep(PACE_S)
        raise UpstreamUnavailable("gone")

    upstream.send = gone  # type: ignore[method-assign]
    answer = await client.post(CHAT, json=ASK)
    assert answer.status_code == 503 and float(answer.headers[HEADER]) < PACE_S * 1000


async def test_a_caller_that_sends_its_body_slowly_is_not_the_gateways_time(service: Service) -> None:
    class Slow(Caller):
        async def receive(self) -> Message:
            await asyncio.sleep(PACE_S)
            return await super().receive()

    caller = Slow(await secret_of(service), CHAT, ASK)
    await caller.ask(service)
    headers = {name.decode(): value.decode() for name, value in caller.sent[0]["headers"]}
    assert caller.sent[0]["status"] == 200 and float(headers[HEADER]) < PACE_S * 1000


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("POST", CHAT, {**ASK, "model": "no-such-model"}),
        ("POST", "/v1/messages/count_tokens", {**ASK, "model": "lab-openai/m"}),
        ("POST", "/v1/messages", {"model": "m"}),
    ],
)
async def test_an_answer_without_a_call_tells_none(
    client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    answer = await client.request(method, path, json=body)
    assert HEADER not in answer.headers
