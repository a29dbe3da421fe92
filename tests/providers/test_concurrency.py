"""A provider with a limit: callers wait in line, not for ever, and each slot comes back exactly once."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from orqen_ray.errors import DeadlinePassed, Overloaded, UpstreamError
from orqen_ray.providers.catalog import Provider
from orqen_ray.providers.concurrency import Slots
from orqen_ray.providers.forward import Forwarder, Timeouts
from orqen_ray.types import Credentials, UpstreamReply
from tests.providers.scripted import (
    call,
    forwarder,
    lab,
    read,
    reply,
    say_nothing,
    say_one_thing,
    scripted,
    until_eof,
)

KEY = Credentials(api_key="sk-upstream-secret")
SHORT = Timeouts(queue_s=0.05)


async def is_free(upstream: Forwarder) -> bool:
    """Whether a call goes out at once."""
    sending = asyncio.create_task(upstream.send(call(deadline_s=5)))
    done, _ = await asyncio.wait([sending], timeout=0.2)
    if done and not isinstance(sending.exception(), Overloaded):
        await sending.result().aclose()
        return True
    sending.cancel()
    (ended,) = await asyncio.gather(sending, return_exceptions=True)
    if isinstance(ended, UpstreamReply):
        await ended.aclose()
    return False


async def test_who_finds_no_slot_in_time_is_told_to_come_again() -> None:
    async with (
        scripted(say_one_thing) as server,
        forwarder(lab(server.url, max_concurrent_requests=2), SHORT, lab=KEY) as upstream,
    ):
        open_calls = [await upstream.send(call()) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 calls open") as caught:
            await upstream.send(call())
        assert caught.value.status == 429 and caught.value.retry_after_s >= 1
        await open_calls[0].aclose()
        assert await is_free(upstream)
        await open_calls[1].aclose()


async def test_those_who_wait_are_served_in_the_order_they_came() -> None:
    async with (
        scripted(say_one_thing) as server,
        forwarder(lab(server.url, max_concurrent_requests=1), lab=KEY) as upstream,
    ):
        first = await upstream.send(call())
        served: list[int] = []

        async def ask(number: int) -> None:
            answer = await upstream.send(call())
            served.append(number)
            await answer.aclose()

        waiting = []
        for number in range(5):
            waiting.append(asyncio.create_task(ask(number)))
            await asyncio.sleep(0)
        waiting[1].cancel()
        await first.aclose()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert served == [0, 2, 3, 4]


@pytest.mark.parametrize("how", ["read", "closed", "closed twice", "failed", "an error", "cancelled"])
async def test_a_slot_comes_back_however_the_call_ends(how: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if how == "failed":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart")
            await writer.drain()
            raise ConnectionResetError
        if how in ("read", "an error"):
            writer.write(reply(200 if how == "read" else 500))
            return
        await (say_nothing if how == "cancelled" else say_one_thing)(reader, writer)

    async with (
        scripted(script) as server,
        forwarder(lab(server.url, max_concurrent_requests=1), Timeouts(queue_s=0.5), lab=KEY) as upstream,
    ):
        for _ in range(3):
            await end(upstream, how)
        if how in ("read", "an error", "failed"):
            return
        held = asyncio.create_task(upstream.send(call()))
        await asyncio.wait([held], timeout=0.1)
        assert not await is_free(upstream), "a slot that was given back twice would let two in"
        held.cancel()
        (ended,) = await asyncio.gather(held, return_exceptions=True)
        if isinstance(ended, UpstreamReply):
            await ended.aclose()


async def end(upstream: Forwarder, how: str) -> None:
    if how == "cancelled":
        sending = asyncio.create_task(upstream.send(call()))
        await asyncio.wait([sending], timeout=0.05)
        sending.cancel()
        await asyncio.wait([sending])
        return
    answer = await upstream.send(call())
    if how == "failed":
        with pytest.raises(UpstreamError):
            await read(answer)
    elif how in ("read", "an error"):
        await read(answer)
    await answer.aclose()
    if how == "closed twice":
        await answer.aclose()


@pytest.mark.parametrize("how", ["no connection", "cancelled", "no head in time", "a redirect", "a long error"])
async def test_a_slot_comes_back_from_a_call_without_an_answer(how: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.connections > 1:
            writer.write(reply())
        elif how == "no connection":
            writer.transport.abort()
        elif how == "a long error":
            writer.write(b"HTTP/1.1 500 X\r\ncontent-length: 9999999\r\n\r\n" + b"x" * (2 << 20))
        elif how == "a redirect":
            writer.write(b"HTTP/1.1 307 X\r\nlocation: /\r\ncontent-length: 100\r\n\r\n")
        await until_eof(reader)

    async with (
        scripted(script) as server,
        forwarder(lab(server.url, max_concurrent_requests=1), Timeouts(queue_s=0.05), lab=KEY) as upstream,
    ):
        sending = asyncio.create_task(upstream.send(call(deadline_s=0.1 if how == "no head in time" else 5)))
        await server.arrived.wait()
        if how == "cancelled":
            sending.cancel()
        await asyncio.wait([sending])
        if not sending.cancelled() and how != "a long error":
            assert isinstance(sending.exception(), UpstreamError)
        await asyncio.wait_for(server.closed.wait(), 5)
        answer = await upstream.send(call())
        with pytest.raises(Overloaded):  # it came back once
            await upstream.send(call())
        assert await read(answer) == b"{}"


async def test_who_waits_in_line_waits_no_longer_than_the_request_may_take() -> None:
    async with (
        scripted(say_one_thing) as server,
        forwarder(lab(server.url, max_concurrent_requests=1), Timeouts(queue_s=60), lab=KEY) as upstream,
    ):
        first = await upstream.send(call())
        with pytest.raises(Overloaded):
            await asyncio.wait_for(upstream.send(call(deadline_s=0.05)), 5)
        await first.aclose()


async def test_at_the_deadline_a_slot_comes_back_from_a_caller_that_does_not_read() -> None:
    async with (
        scripted(say_one_thing) as server,
        forwarder(lab(server.url, max_concurrent_requests=1), lab=KEY) as upstream,
    ):
        answer = await upstream.send(call(deadline_s=0.05))
        await asyncio.wait_for(server.closed.wait(), 5)
        assert await is_free(upstream)
        with pytest.raises(DeadlinePassed):
            await read(answer)


async def test_nothing_of_an_answer_that_was_read_is_kept_until_its_deadline() -> None:
    async with scripted(reply()) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        answer = await upstream.send(call())
        assert await read(answer) == b"{}"
        kept = weakref.ref(answer.chunks)
        del answer
        gc.collect()
        assert kept() is None


async def test_a_provider_without_a_limit_makes_nobody_wait() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(1)
        if len(arrived) == 30:
            all_there.set()
        await all_there.wait()
        writer.write(reply())

    arrived, all_there = list[int](), asyncio.Event()
    async with scripted(slow) as server, forwarder(lab(server.url), SHORT, lab=KEY) as upstream:
        answers = await asyncio.gather(*(upstream.send(call()) for _ in range(30)))
        assert [await read(answer) for answer in answers] == [b"{}"] * 30
    assert [answer.status for answer in answers] == [200] * 30


async def test_a_slot_that_is_freed_twice_lets_one_in() -> None:
    slots = Slots([Provider(name="lab", dialect="openai_chat", max_concurrent_requests=1)])
    slot = await slots.take("lab", 0.01)
    slot.free()
    slot.free()
    await slots.take("lab", 0.01)
    with pytest.raises(Overloaded):
        await slots.take("lab", 0.01)
