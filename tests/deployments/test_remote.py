"""The pool's client over a pretended handle: errors, bounds, and that whatever is given up is cancelled."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from deployments.remote import DEADLINE_SLACK_S, Head, RemoteForwarder
from orqen_ray.errors import (
    CircuitOpen,
    DeadlinePassed,
    GatewayError,
    Overloaded,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from orqen_ray.types import AwsCredentials, Call, Credentials

CALL = Call(
    provider="lab",
    path="/chat/completions",
    body=b"{}",
    credentials=Credentials(aws=AwsCredentials(access_key_id="id", secret_access_key="secret"), region="eu-west-1"),
    model="m",
    conversation="key/session",
    key_bound=True,
    avoid_keys=("ONE",),
    hedge=True,
)


class Frames:
    """What a streaming handle call returns: `script` holds frames, errors to raise, and None for a wait without end."""

    def __init__(self, script: list[Any]) -> None:
        self._script = iter(script)
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            step = next(self._script)
        except StopIteration:
            raise StopAsyncIteration from None
        if step is None:
            await asyncio.Event().wait()
        if isinstance(step, ConnectionError):
            raise step
        return pickle.loads(pickle.dumps(step))

    def cancel(self) -> None:
        self.cancelled = True


class Pool:
    """A handle whose streaming method answers with `frames`, and whose plain one counts its calls."""

    def __init__(self, *script: Any, lost: bool = False) -> None:
        self.frames = Frames(list(script))
        self.lost = lost
        self.asked = 0

    def options(self, *, method_name: str, **_: Any) -> Any:
        return self if method_name == "send" else Connected(self)

    def remote(self, call: Call) -> Frames:
        assert pickle.loads(pickle.dumps(call)) == call
        return self.frames


class Connected:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def remote(self) -> frozenset[str]:
        self._pool.asked += 1
        await asyncio.sleep(0)
        if self._pool.lost:
            raise ConnectionError("actor 7 at 10.0.0.3 died")
        return frozenset({"lab"})


def _forwarder(pool: Pool, *, head_timeout_s: float = 5, idle_timeout_s: float = 5) -> RemoteForwarder:
    handle: Any = pool
    return RemoteForwarder(handle, head_timeout_s=head_timeout_s, idle_timeout_s=idle_timeout_s)


async def test_the_head_comes_first_and_the_bytes_follow() -> None:
    pool = Pool(Head(201, {"a": "b"}), b"one", b"two")
    reply = await _forwarder(pool).send(CALL)
    assert (reply.status, reply.headers) == (201, {"a": "b"})
    assert [chunk async for chunk in reply.chunks] == [b"one", b"two"]
    await reply.aclose()
    assert not pool.frames.cancelled


async def test_an_error_before_the_head_is_raised_as_what_it_was() -> None:
    error = UpstreamRejected("busy", status=529, kind="overloaded_error", retry_after_s=2)
    with pytest.raises(UpstreamRejected) as raised:
        await _forwarder(Pool(error)).send(CALL)
    assert (raised.value.status, raised.value.kind, raised.value.retry_after_s) == (529, "overloaded_error", 2)


async def test_which_key_was_used_and_whether_there_is_another_crosses_with_an_answer_and_with_an_error() -> None:
    reply = await _forwarder(Pool(Head(429, {"retry-after": "2"}, "ONE", True))).send(CALL)
    assert (reply.key, reply.other_keys, reply.headers["retry-after"]) == ("ONE", True, "2")
    error = UpstreamUnavailable("gone", provider="lab")
    error.key, error.other_keys = "ONE", True
    with pytest.raises(UpstreamUnavailable) as raised:
        await _forwarder(Pool(error)).send(CALL)
    assert (raised.value.provider, raised.value.key, raised.value.other_keys) == ("lab", "ONE", True)


@pytest.mark.parametrize("error", [CircuitOpen("open", retry_after_s=7), Overloaded("full", retry_after_s=7)])
async def test_what_the_pool_refuses_to_call_says_when_to_come_again(error: GatewayError) -> None:
    with pytest.raises(type(error)) as raised:
        await _forwarder(Pool(error)).send(CALL)
    assert getattr(raised.value, "retry_after_s", None) == 7


async def test_the_pools_own_word_on_a_deadline_comes_first() -> None:
    pool = Pool(DeadlinePassed("over"))
    with pytest.raises(DeadlinePassed):
        await _forwarder(pool).send(replace(CALL, deadline_s=0.0))


async def test_a_pool_that_says_nothing_is_left_when_the_time_for_the_request_is_over() -> None:
    pool = Pool(None)
    with pytest.raises(UpstreamTimeout):
        await _forwarder(pool, head_timeout_s=3600).send(replace(CALL, deadline_s=0.01 - DEADLINE_SLACK_S))
    assert pool.frames.cancelled


async def test_an_error_in_the_middle_is_raised_after_the_bytes_before_it() -> None:
    reply = await _forwarder(Pool(Head(200, {}), b"one", UpstreamTimeout("stalled"))).send(CALL)
    assert await anext(reply.chunks) == b"one"
    with pytest.raises(UpstreamTimeout, match="stalled"):
        await anext(reply.chunks)


@pytest.mark.parametrize("script", [[None], [Head(200, {}), None]], ids=["before the head", "after it"])
async def test_a_pool_that_says_nothing_is_left_in_time_and_cancelled(script: list[Any]) -> None:
    pool = Pool(*script)
    with pytest.raises(UpstreamTimeout):
        reply = await _forwarder(pool, head_timeout_s=0.01, idle_timeout_s=0.01).send(CALL)
        await anext(reply.chunks)
    assert pool.frames.cancelled


async def test_losing_the_pool_says_so_and_shows_nothing_of_it() -> None:
    with pytest.raises(UpstreamUnavailable) as raised:
        await _forwarder(Pool(ConnectionError("actor 7 at 10.0.0.3 died"))).send(CALL)
    assert "10.0.0.3" not in str(raised.value)


async def test_a_cancelled_send_is_cancelled_in_the_pool() -> None:
    pool = Pool(None)
    sending = asyncio.create_task(_forwarder(pool).send(CALL))
    await asyncio.wait([sending], timeout=0.01)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert pool.frames.cancelled


async def test_closing_an_answer_that_nobody_read_cancels_it() -> None:
    pool = Pool(Head(200, {}), b"one")
    await (await _forwarder(pool).send(CALL)).aclose()
    assert pool.frames.cancelled


async def test_who_is_connected_is_asked_once_for_many() -> None:
    pool = Pool()
    forwarder = _forwarder(pool)
    assert set(await asyncio.gather(*(forwarder.connected() for _ in range(20)))) == {frozenset({"lab"})}
    assert pool.asked == 1


async def test_those_who_wait_for_a_pool_that_is_lost_hear_of_it_together_and_the_next_one_asks_again() -> None:
    pool = Pool(lost=True)
    forwarder = _forwarder(pool)
    asking = [asyncio.create_task(forwarder.connected()) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    first, *others = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert all(isinstance(each, UpstreamUnavailable) for each in others) and pool.asked == 1
    assert len({id(each) for each in others}) == 19, "each request adds headers of its own to its error"
    pool.lost = False
    assert await forwarder.connected() == {"lab"} and pool.asked == 2
