"""A caller that leaves takes its upstream connection with it, at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orqen_ray.types import Credentials
from tests.providers.scripted import Scripted, call, forwarder, lab, read, reply, say_nothing, say_one_thing, scripted

KEY = Credentials(api_key="sk-upstream-secret")


async def _cancelled(task: asyncio.Task[Any], server: Scripted) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.closed.wait(), 1)


async def test_cancelling_before_the_head_closes_the_connection() -> None:
    async with scripted(say_nothing) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        task = asyncio.create_task(upstream.send(call()))
        await server.arrived.wait()
        await _cancelled(task, server)


async def test_cancelling_between_chunks_closes_the_connection() -> None:
    async with scripted(say_one_thing) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        answer = await upstream.send(call())
        chunks = aiter(answer.chunks)
        await anext(chunks)

        async def next_chunk() -> bytes:
            return await anext(chunks)

        task = asyncio.create_task(next_chunk())
        await asyncio.sleep(0)
        await _cancelled(task, server)


@pytest.mark.parametrize("read_first", [True, False])
async def test_closing_an_answer_closes_the_connection_even_if_it_was_never_read(read_first: bool) -> None:
    async with scripted(say_one_thing) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        answer = await upstream.send(call())
        if read_first:
            await anext(aiter(answer.chunks))
        await answer.aclose()
        await asyncio.wait_for(server.closed.wait(), 1)


async def test_closing_the_forwarder_leaves_it_usable() -> None:
    async with scripted(reply()) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        await read(await upstream.send(call()))
        await upstream.aclose()
        assert (await upstream.send(call())).status == 200
    assert server.connections == 2
