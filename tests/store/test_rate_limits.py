"""Requests a minute: in one process, across processes in Redis, and while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import Overloaded
from orqen_ray.metrics import Metrics
from orqen_ray.store.keys import KeyRecord
from orqen_ray.store.rate_limits import LocalWindow, RateLimits
from tests.servers import Redis

KEY = KeyRecord(id="key_1", name="n", preview="p", rate_limit_rpm=3, created_at=datetime(2030, 1, 1, tzinfo=UTC))


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def limits_over(
    url: str | None, metrics: Metrics | None = None, redis_timeout_s: float = 0.25
) -> AsyncIterator[RateLimits]:
    limits = RateLimits(url, metrics, redis_timeout_s=redis_timeout_s)
    try:
        yield limits
    finally:
        await limits.aclose()


async def passed(limits: RateLimits, key: KeyRecord, times: int) -> int:
    results = await asyncio.gather(*(limits.check(key) for _ in range(times)), return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), Overloaded}
    return sum(result is None for result in results)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=80), st.integers(1, 6))
def test_no_sixty_seconds_hold_more_than_the_limit_and_the_wait_is_true(pauses_s: list[float], limit: int) -> None:
    clock = Clock()
    window = LocalWindow(clock)
    allowed_s: list[float] = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        wait_s = window.hit("a", limit)
        if wait_s is None:
            allowed_s.append(clock.now_s)
        recent = [at_s for at_s in allowed_s if at_s > clock.now_s - 60]
        assert len(recent) <= limit
        if wait_s is not None:
            assert len(recent) == limit and wait_s == pytest.approx(recent[0] + 60 - clock.now_s)


async def test_the_message_names_the_limit_and_when_to_come_back() -> None:
    clock, metrics = Clock(), Metrics()
    limits = RateLimits(None, metrics, clock)
    assert await passed(limits, KEY, 3) == 3
    clock.now_s += 17.5
    with pytest.raises(Overloaded, match=r"3 requests a minute \(rate_limit_rpm\); try again in 43 s") as caught:
        await limits.check(KEY)
    assert caught.value.retry_after_s == 43
    assert metrics.registry.get_sample_value("orqen_limited_requests_total", {"reason": "rate_limit_rpm"}) == 1
    clock.now_s += 43
    await limits.check(KEY)


async def test_keys_do_not_share_a_minute_and_one_without_a_limit_has_none() -> None:
    limits = RateLimits()
    assert await passed(limits, KEY, 5) == 3
    assert await passed(limits, replace(KEY, id="key_2"), 5) == 3
    assert await passed(limits, replace(KEY, rate_limit_rpm=0), 500) == 500


def test_the_wait_is_exact_also_where_the_limit_was_lowered() -> None:
    clock = Clock()
    window = LocalWindow(clock)
    for _ in range(5):
        assert window.hit("a", 5) is None
        clock.now_s += 1
    assert window.hit("a", 2) == 58
    clock.now_s += 57
    assert window.hit("a", 2) == 1
    clock.now_s += 1
    assert window.hit("a", 2) is None


def test_keys_that_are_not_used_any_more_take_no_room() -> None:
    clock = Clock()
    window = LocalWindow(clock)
    for number in range(100_000):
        clock.now_s += 0.1
        window.hit(f"key_{number}", 5)
    assert len(window) <= 601


# --- Redis ------------------------------------------------------------------------------------------------------


async def test_in_redis_processes_share_one_exact_count(redis_server: Redis) -> None:
    key = replace(KEY, rate_limit_rpm=50)
    async with limits_over(redis_server.url) as one, limits_over(redis_server.url) as two:
        both = await asyncio.gather(passed(one, key, 60), passed(two, key, 60))
        assert sum(both) == 50
        with pytest.raises(Overloaded) as caught:
            await two.check(key)
        assert 50 < caught.value.retry_after_s <= 60
    with redis_server.client() as client:
        assert all(0 < client.ttl(name) <= 60 for name in client.scan_iter()), "it empties itself"


async def test_a_burst_of_hundreds_is_counted_in_redis_all_the_same(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with limits_over(redis_server.url, redis_timeout_s=10) as limits:  # a pause of this machine is no outage
        assert await passed(limits, replace(KEY, rate_limit_rpm=50), 400) == 50
    assert caplog.messages == [], "a burst is no outage"


async def test_a_redis_that_has_forgotten_the_script_is_told_it_again(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with limits_over(redis_server.url) as limits:
        await limits.check(KEY)
        with redis_server.client() as client:
            client.script_flush()
        assert await passed(limits, KEY, 10) == 2
    assert caplog.messages == []


async def test_a_request_that_is_cancelled_midway_spoils_no_other(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with limits_over(redis_server.url) as limits:
        for turns in range(30):
            leaving = asyncio.create_task(limits.check(replace(KEY, id="leaving", rate_limit_rpm=10**6)))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait({leaving})
        assert await passed(limits, KEY, 10) == 3
    assert caplog.messages == []


async def test_without_redis_at_the_start_each_process_counts_for_itself_until_it_is_there(
    redis_server: Redis,
) -> None:
    await asyncio.to_thread(redis_server.stop)
    async with limits_over(redis_server.url) as limits:
        assert await passed(limits, KEY, 5) == 3
        await asyncio.to_thread(redis_server.start)
        async with asyncio.timeout(10):
            while limits._outage.away:
                await limits.check(replace(KEY, id="probing", rate_limit_rpm=10**6))
                await asyncio.sleep(0)
        assert await passed(limits, replace(KEY, id="after"), 5) == 3
    with redis_server.client() as client:
        assert any(b"after" in name for name in client.scan_iter())


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_each_process_counts_for_itself_until_it_is_back(
    redis_server: Redis, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    key = replace(KEY, rate_limit_rpm=1000)
    async with limits_over(redis_server.url, metrics) as limits:
        await limits.check(key)
        await asyncio.to_thread(redis_server.kill if how == "kill" else redis_server.freeze)
        slowest_s = 0.0
        for _ in range(100):
            started_s = time.monotonic()
            await limits.check(key)
            slowest_s = max(slowest_s, time.monotonic() - started_s)
        assert slowest_s < 0.6
        assert await passed(limits, replace(KEY, id="other"), 10) == 3, "limited all the same"
        if how == "freeze":
            redis_server.thaw()
        await asyncio.to_thread(redis_server.start)
        deadline_s = time.monotonic() + 10
        while len(caplog.records) < 2:
            assert time.monotonic() < deadline_s
            await limits.check(replace(key, rate_limit_rpm=10**6))
            await asyncio.sleep(0)  # lets the probe run: it is not on the path of a request
        assert await passed(limits, replace(KEY, id="after"), 5) == 3
    with redis_server.client() as client:
        assert any(b"after" in name for name in client.scan_iter())
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    failures = metrics.registry.get_sample_value("orqen_store_failures_total", {"store": "redis"})
    assert failures is not None and 1 <= failures < 15


async def test_a_redis_that_refuses_the_password_is_left_out_and_not_shown(
    redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    url = redis_server.url.replace("p%25w", "wrong")
    async with limits_over(url) as limits:
        assert await passed(limits, KEY, 5) == 3
    assert "redis cannot be used" in caplog.text and "of%2Fthe" not in caplog.text and "wrong" not in caplog.text
