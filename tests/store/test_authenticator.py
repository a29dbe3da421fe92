"""The key cache: how soon a change is seen, how often the database is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orqen_ray.errors import StoreUnavailable, Unauthenticated
from orqen_ray.store.authenticator import KeyCache
from orqen_ray.store.database import Database
from orqen_ray.store.keys import KeyRecord, Keys

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def secret_of(number: int) -> str:
    return f"sk-orq-{number:064x}"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def utc(self) -> datetime:
        return NOON + timedelta(seconds=self.now_s - 1000)


class ScriptedKeys:
    """Stands for the database: counts what it is asked, and can be slow or away."""

    def __init__(self, *secrets: str) -> None:
        self.records = {s: KeyRecord(id=s[-4:], name="n", preview="p", created_at=NOON) for s in secrets}
        self.asked: list[str] = []
        self.away = False
        self.gate: asyncio.Event | None = None
        self.on_find: Callable[[], None] = lambda: None

    async def find(self, secret: str) -> KeyRecord | None:
        self.asked.append(secret)
        self.on_find()
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise StoreUnavailable("away")
        return self.records.get(secret)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_over(keys: ScriptedKeys, clock: Clock, **options: int) -> KeyCache:
    return KeyCache(keys, clock=clock, now=clock.utc, **options)


async def test_a_revocation_takes_effect_within_five_seconds(database: Database, clock: Clock) -> None:
    keys = Keys(database)
    record, secret = await keys.create("alice")
    cache = KeyCache(keys, clock=clock)
    assert await cache.authenticate(secret) == record
    await keys.revoke(record.id)
    clock.now_s += 4.9
    assert await cache.authenticate(secret) == record
    clock.now_s += 0.1
    with pytest.raises(Unauthenticated, match="unknown or revoked"):
        await cache.authenticate(secret)


async def test_a_key_expires_on_the_second_although_it_is_cached(clock: Clock) -> None:
    keys = ScriptedKeys(secret_of(1))
    keys.records[secret_of(1)] = replace(keys.records[secret_of(1)], expires_at=NOON + timedelta(seconds=2))
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(1))
    clock.now_s += 1.9
    await cache.authenticate(secret_of(1))
    clock.now_s += 0.1
    with pytest.raises(Unauthenticated, match="expired at 2030-01-01 12:00 UTC"):
        await cache.authenticate(secret_of(1))
    assert len(keys.asked) == 1


@pytest.mark.parametrize(("secret", "says"), [("", "no API key"), ("Bearer x", "not a key"), ("sk-orq-é", "not a key")])
async def test_what_cannot_be_a_key_is_refused_without_asking(secret: str, says: str, clock: Clock) -> None:
    keys = ScriptedKeys()
    with pytest.raises(Unauthenticated, match=says):
        await cache_over(keys, clock).authenticate(secret)
    assert keys.asked == []


async def test_unknown_and_revoked_read_the_same(clock: Clock) -> None:
    keys = ScriptedKeys(secret_of(1))
    keys.records[secret_of(1)] = replace(keys.records[secret_of(1)], revoked_at=NOON)
    cache = cache_over(keys, clock)
    messages = set()
    for number in (1, 2):
        with pytest.raises(Unauthenticated) as caught:
            await cache.authenticate(secret_of(number))
        messages.add(caught.value.message)
        assert secret_of(number) not in caught.value.message
    assert len(messages) == 1


async def test_a_new_key_works_within_a_second_of_its_first_refusal(clock: Clock) -> None:
    keys = ScriptedKeys()
    cache = cache_over(keys, clock)
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await cache.authenticate(secret_of(1))
    assert len(keys.asked) == 1
    keys.records = ScriptedKeys(secret_of(1)).records
    clock.now_s += 1
    assert (await cache.authenticate(secret_of(1))).name == "n"


async def test_many_requests_with_one_key_cause_one_look_up(clock: Clock) -> None:
    keys = ScriptedKeys(secret_of(1))
    keys.gate = asyncio.Event()
    cache = cache_over(keys, clock)
    callers = [asyncio.create_task(cache.authenticate(secret_of(1))) for _ in range(20)]
    await asyncio.sleep(0)
    callers[0].cancel()  # the one that asked first goes away; the others still get their answer
    await asyncio.sleep(0)
    keys.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {type(result) for result in results[1:]} == {KeyRecord}
    assert len(keys.asked) == 1


async def test_a_slow_database_does_not_lengthen_the_life_of_an_answer(clock: Clock) -> None:
    keys = ScriptedKeys(secret_of(1))
    cache = cache_over(keys, clock)

    def take_three_seconds() -> None:
        clock.now_s += 3

    keys.on_find = take_three_seconds
    await cache.authenticate(secret_of(1))
    clock.now_s += 2
    await cache.authenticate(secret_of(1))
    assert len(keys.asked) == 2


async def test_guesses_cannot_push_a_known_key_out(clock: Clock) -> None:
    keys = ScriptedKeys(secret_of(0))
    cache = cache_over(keys, clock, max_entries=2)
    await cache.authenticate(secret_of(0))
    for number in range(1, 1200):
        with pytest.raises(Unauthenticated):
            await cache.authenticate(secret_of(number))
    keys.asked.clear()
    await cache.authenticate(secret_of(0))
    assert keys.asked == []
    with pytest.raises(Unauthenticated):
        await cache.authenticate(secret_of(1))  # the oldest guess was forgotten: that memory is bounded
    assert keys.asked == [secret_of(1)]


async def test_the_cache_holds_no_more_keys_than_it_may(clock: Clock) -> None:
    keys = ScriptedKeys(*(secret_of(number) for number in range(3)))
    cache = cache_over(keys, clock, max_entries=2)
    for number in (0, 1, 0, 2, 0, 1):
        await cache.authenticate(secret_of(number))
    assert keys.asked == [secret_of(0), secret_of(1), secret_of(2), secret_of(1)]


async def test_without_the_database_cached_keys_work_until_their_time_is_over(clock: Clock) -> None:
    keys = ScriptedKeys(secret_of(1))
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(1))
    keys.away = True
    clock.now_s += 4.9
    await cache.authenticate(secret_of(1))
    for secret in (secret_of(1), secret_of(2)):
        clock.now_s += 5
        with pytest.raises(StoreUnavailable):
            await cache.authenticate(secret)
    keys.away = False
    assert await cache.authenticate(secret_of(1))
