"""The key cache: how soon a change is seen, how often the database is asked."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import hypothesis
import psutil
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from orqen_ray.errors import StoreUnavailable, Unauthenticated
from orqen_ray.store.authenticator import KeyCache
from orqen_ray.store.database import Database
from orqen_ray.store.keys import KeyRecord, Keys
from orqen_ray.store.outage import Outage

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

    def __init__(self, *secrets: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.outage = Outage("database", "the test's database cannot be read", clock=clock)
        self.records = {s: KeyRecord(id=s[-4:], name="n", preview="p", created_at=NOON) for s in secrets}
        self.asked: list[str] = []
        self.away = False
        self.gate: asyncio.Event | None = None
        self.on_find: Callable[[], None] = lambda: None

    async def find(self, secret: str) -> KeyRecord | None:
        self.asked.append(secret)
        self.on_find()
        with self.outage.watching():
            if self.gate is not None:
                await self.gate.wait()
            if self.away:
                raise StoreUnavailable("away")
            return self.records.get(secret)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_over(keys: ScriptedKeys, clock: Clock, max_entries: int = 10_000) -> KeyCache:
    return KeyCache(
        keys, keys.outage, grace_s=3600, patience_s=0.01, max_entries=max_entries, clock=clock, now=clock.utc
    )


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


async def test_guesses_cannot_keep_a_known_key_from_being_confirmed(clock: Clock) -> None:
    keys = ScriptedKeys(secret_of(0), clock=clock)
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(0))
    keys.records.clear()
    keys.gate = asyncio.Event()
    guesses = [asyncio.create_task(cache.authenticate(secret_of(number))) for number in range(1, 1000)]
    clock.now_s += 4
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(keys.asked) - 1 <= 10, "the rest of the database's connections is free for known keys"
    clock.now_s += 1
    confirming = asyncio.create_task(cache.authenticate(secret_of(0)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert keys.asked[-1] == secret_of(0)
    keys.gate.set()
    with pytest.raises(Unauthenticated):
        await confirming
    results = await asyncio.gather(*guesses, return_exceptions=True)
    assert {type(result) for result in results} == {Unauthenticated}


async def test_the_cache_holds_no_more_keys_than_it_may(clock: Clock) -> None:
    keys = ScriptedKeys(*(secret_of(number) for number in range(3)))
    cache = cache_over(keys, clock, max_entries=2)
    for number in (0, 1, 0, 2, 0, 1):
        await cache.authenticate(secret_of(number))
    assert keys.asked == [secret_of(0), secret_of(1), secret_of(2), secret_of(1)]


# --- While the database is away ---------------------------------------------------------------------------------


@pytest.fixture
def keys(clock: Clock) -> ScriptedKeys:
    return ScriptedKeys(secret_of(1), secret_of(2), clock=clock)


async def test_a_known_key_works_for_the_grace_and_no_longer(keys: ScriptedKeys, clock: Clock) -> None:
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(1))
    keys.away = True
    for _ in range(4):
        clock.now_s += 901
        await cache.authenticate(secret_of(1))
        assert cache.can_serve()
    clock.now_s += 2
    assert not cache.can_serve()
    with pytest.raises(StoreUnavailable):
        await cache.authenticate(secret_of(1))
    keys.away = False
    clock.now_s += 1
    assert await cache.authenticate(secret_of(1)) and cache.can_serve()


async def test_an_unknown_key_is_no_wrong_key_while_nobody_can_tell(keys: ScriptedKeys, clock: Clock) -> None:
    cache = cache_over(keys, clock)
    keys.away = True
    assert not cache.can_serve()
    for number in (2, 3, 4):
        with pytest.raises(StoreUnavailable):
            await cache.authenticate(secret_of(number))
    assert len(keys.asked) == 1, "the others did not ask again within the second"


async def test_a_key_that_expires_in_an_outage_expires(keys: ScriptedKeys, clock: Clock) -> None:
    keys.records[secret_of(1)] = replace(keys.records[secret_of(1)], expires_at=NOON + timedelta(seconds=100))
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(1))
    keys.away = True
    clock.now_s += 99
    await cache.authenticate(secret_of(1))
    clock.now_s += 1
    with pytest.raises(Unauthenticated, match="expired"):
        await cache.authenticate(secret_of(1))


async def test_a_revocation_before_the_outage_stays_and_one_in_it_is_seen_when_it_ends(
    keys: ScriptedKeys, clock: Clock
) -> None:
    keys.records[secret_of(1)] = replace(keys.records[secret_of(1)], revoked_at=NOON)
    cache = cache_over(keys, clock)
    with pytest.raises(Unauthenticated):
        await cache.authenticate(secret_of(1))
    await cache.authenticate(secret_of(2))
    keys.away = True
    clock.now_s += 10
    with pytest.raises(Unauthenticated):
        await cache.authenticate(secret_of(1))
    await cache.authenticate(secret_of(2))
    keys.records.clear()
    keys.away = False
    clock.now_s += 1
    with pytest.raises(Unauthenticated):
        await cache.authenticate(secret_of(2))


async def test_a_key_that_was_deleted_is_not_let_in_again_by_an_outage(keys: ScriptedKeys, clock: Clock) -> None:
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(1))
    del keys.records[secret_of(1)]
    clock.now_s += 5
    with pytest.raises(Unauthenticated):
        await cache.authenticate(secret_of(1))
    keys.away = True
    clock.now_s += 5
    with pytest.raises(StoreUnavailable):
        await cache.authenticate(secret_of(1))


async def test_an_outage_is_asked_about_once_a_second_and_said_twice(
    keys: ScriptedKeys, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(1))
    keys.asked.clear()
    keys.away = True
    clock.now_s += 5
    for _ in range(100):
        clock.now_s += 0.1
        await cache.authenticate(secret_of(1))
    assert 8 <= len(keys.asked) <= 11
    keys.away = False
    clock.now_s += 1
    await cache.authenticate(secret_of(1))
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "over after 1" in caplog.messages[1]


async def test_a_database_that_hangs_is_waited_for_once_and_briefly(keys: ScriptedKeys, clock: Clock) -> None:
    cache = cache_over(keys, clock)
    await cache.authenticate(secret_of(1))
    await cache.authenticate(secret_of(2))
    keys.asked.clear()
    keys.gate = asyncio.Event()
    clock.now_s += 5
    for _ in range(50):
        await cache.authenticate(secret_of(1))
        await cache.authenticate(secret_of(2))
    assert keys.asked == [secret_of(1)], "one look-up hangs; nobody else begins another"
    keys.records.clear()
    keys.gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Unauthenticated):
        await cache.authenticate(secret_of(1))


async def test_a_key_that_rested_for_long_is_not_believed_because_a_connection_takes_a_moment(
    keys: ScriptedKeys, clock: Clock
) -> None:
    cache = KeyCache(keys, keys.outage, patience_s=0.1, clock=clock, now=clock.utc)
    await cache.authenticate(secret_of(1))
    keys.records.clear()
    keys.gate = asyncio.Event()
    clock.now_s += 1800
    asyncio.get_running_loop().call_later(0.2, keys.gate.set)
    with pytest.raises(Unauthenticated):
        await cache.authenticate(secret_of(1))


async def test_a_hundred_thousand_keys_known_and_guessed_take_bounded_room(clock: Clock) -> None:
    keys = ScriptedKeys(*(secret_of(number) for number in range(100_000)), clock=clock)
    cache = cache_over(keys, clock)
    process, full_bytes = psutil.Process(), 0
    for number in range(200_000):
        wanted = secret_of(number // 2 + (number % 2) * 10**6)
        with suppress(Unauthenticated):
            await cache.authenticate(wanted)
        keys.asked.clear()
        if number == 30_000:
            full_bytes = process.memory_info().rss
    assert process.memory_info().rss - full_bytes < 8 << 20, "170,000 more keys took no more room"


class Outages(RuleBasedStateMachine):
    """Requests, revocations and a store that fails as it likes, against a clock that only the test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.keys = ScriptedKeys(*(secret_of(number) for number in range(2)), clock=self.clock)
        self.cache = cache_over(self.keys, self.clock)
        self.answering_since_s = self.clock.now_s
        self.revoked_s: dict[int, float] = {}
        self.seen_s: dict[int, float] = {}

    def teardown(self) -> None:
        self.loop.close()

    @rule(seconds=st.sampled_from([0.1, 0.9, 1.0, 2.5, 4.0, 5.0, 900.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(away=st.booleans())
    def the_store_comes_or_goes(self, away: bool) -> None:
        if self.keys.away and not away:
            self.answering_since_s = self.clock.now_s
        self.keys.away = away

    @rule(number=st.integers(0, 1))
    def a_key_is_revoked(self, number: int) -> None:
        if self.keys.away:
            return
        record = self.keys.records[secret_of(number)]
        self.keys.records[secret_of(number)] = replace(record, revoked_at=self.clock.utc())
        self.revoked_s.setdefault(number, self.clock.now_s)

    @rule(number=st.integers(0, 2))
    def a_request_comes(self, number: int) -> None:
        now_s = self.clock.now_s
        outcome: object
        try:
            outcome = self.loop.run_until_complete(self.cache.authenticate(secret_of(number)))
        except (Unauthenticated, StoreUnavailable) as error:
            outcome = error
        good = number < 2 and number not in self.revoked_s
        if good:
            assert not isinstance(outcome, Unauthenticated), "a good key is never refused"
            if now_s < self.seen_s.get(number, -math.inf) + 3600:
                assert isinstance(outcome, KeyRecord), "a key that was seen needs no store"
        elif number >= 2:
            assert not isinstance(outcome, KeyRecord)
        elif not self.keys.away and now_s >= max(self.revoked_s[number], self.answering_since_s) + 5:
            assert isinstance(outcome, Unauthenticated), "revoked for 5 s while the store answers"
        if isinstance(outcome, KeyRecord) and not self.keys.away:
            self.seen_s[number] = now_s


TestOutages = Outages.TestCase
TestOutages.settings = hypothesis.settings(max_examples=150, stateful_step_count=40, deadline=None)
