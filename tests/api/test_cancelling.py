"""Who ends a request in the middle: a caller that leaves, a server that stops, a time that is over, or two of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from orqen_ray.service import Service
from orqen_ray.types import Call, UpstreamReply
from tests.api.conftest import ScriptedUpstream, json_reply
from tests.api.test_edges import ASK, CHAT, Caller, rows, secret_of

MESSAGES = "/v1/messages"


def stalls(upstream: ScriptedUpstream, until: Callable[[], Awaitable[None]]) -> None:
    async def send(call: Call) -> UpstreamReply:
        await until()
        raise AssertionError

    upstream.send = send  # type: ignore[method-assign]


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_server_that_stops_is_not_told_that_the_request_ended_well(
    service: Service, upstream: ScriptedUpstream
) -> None:
    asked, given_up = asyncio.Event(), asyncio.Event()

    async def until() -> None:
        asked.set()
        try:
            await for_ever()
        finally:
            given_up.set()

    stalls(upstream, until)
    serving = asyncio.create_task(Caller(await secret_of(service), CHAT, ASK).ask(service))
    await asked.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert given_up.is_set()
    assert [row["status"] for row in await rows(service)] == [499]


async def test_a_server_that_stops_while_a_caller_leaves_has_its_way(
    service: Service, upstream: ScriptedUpstream
) -> None:
    caller = Caller(await secret_of(service), CHAT, ASK)

    async def until() -> None:
        caller.gone.set()
        try:
            await for_ever()
        finally:
            serving.cancel()

    stalls(upstream, until)
    serving = asyncio.create_task(caller.ask(service))
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert [row["status"] for row in await rows(service)] == [499]


@pytest.mark.parametrize("expires", [False, True])
async def test_a_caller_that_leaves_while_a_time_runs_is_no_time_out(
    service: Service, upstream: ScriptedUpstream, expires: bool
) -> None:
    caller = Caller(await secret_of(service), CHAT, ASK)

    async def until() -> None:
        async with asyncio.timeout(60) as time:
            caller.gone.set()
            if expires:
                time.reschedule(asyncio.get_running_loop().time())
            await for_ever()

    stalls(upstream, until)
    await caller.ask(service)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0, "what comes after it in this task must not be cancelled"
    assert not caller.sent
    (row,) = await rows(service)
    assert (row["status"], row["client_disconnected"], row["error_code"]) == (499, True, None)


async def test_a_call_that_was_given_up_is_counted_once(service: Service, upstream: ScriptedUpstream) -> None:
    caller = Caller(await secret_of(service), CHAT, ASK)

    async def until() -> None:
        caller.gone.set()
        await for_ever()

    stalls(upstream, until)
    await caller.ask(service)
    registry = service.metrics.registry
    labels = {"format": "openai_chat", "provider": "lab-openai", "status": "499"}
    assert registry.get_sample_value("orqen_requests_total", labels) == 1
    total = sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "orqen_requests_total"
    )
    assert total == 1 and registry.get_sample_value("orqen_open_requests") == 0


# --- The way past FastAPI ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/messages/count_tokens", "/v1/embeddings"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_another_method_is_refused_on_each_path_and_told_the_right_one(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, method: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"], upstream.calls) == (405, "POST", [])


@pytest.mark.parametrize("path", ["//v1/messages", "/v1//messages", "/v1/messages/", "/V1/messages", "/v1/messages;a"])
async def test_a_path_that_only_looks_right_is_no_such_path(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str
) -> None:
    answer = await client.post(f"http://gateway{path}", json={**ASK, "model": "lab-anthropic/m"})
    assert (answer.status_code, upstream.calls) == (404, [])


async def test_a_gateway_below_a_prefix_answers_there(service: Service, upstream: ScriptedUpstream) -> None:
    upstream.script = json_reply(b'{"choices":[]}')
    caller = Caller(await secret_of(service), f"/llm{CHAT}", ASK)
    caller.scope["root_path"] = "/llm"
    await caller.ask(service)
    assert caller.sent[0]["status"] == 200
