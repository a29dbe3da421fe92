"""Token budgets: counted once, across processes and outages, by UTC day and week."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orqen_ray.errors import Overloaded, StoreUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.store.budgets import Budgets
from orqen_ray.store.database import Database
from orqen_ray.store.keys import KeyRecord
from orqen_ray.store.outage import Outage
from orqen_ray.store.token_counts import KeyDay, TokenCounts

WEDNESDAY = datetime(2030, 1, 2, 12, tzinfo=UTC)
KEY = KeyRecord(id="key_1", name="n", preview="p", daily_token_budget=100, created_at=WEDNESDAY)


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def utc(self) -> datetime:
        return WEDNESDAY + timedelta(seconds=self.now_s)


@dataclass
class ScriptedCounts:
    """Stands for the database: shared by processes, and away when told so."""

    clock: Clock
    rows: dict[KeyDay, int] = field(default_factory=lambda: defaultdict(int))
    reads_away: bool = False
    writes_away: bool = False
    asked: int = 0

    def __post_init__(self) -> None:
        self.reads = Outage("database", "the test's counts cannot be read", clock=self.clock)
        self.writes = Outage("database", "the test's counts cannot be written", clock=self.clock)

    async def add(self, used: Mapping[KeyDay, int]) -> None:
        with self.writes.watching():
            if self.writes_away:
                raise StoreUnavailable("away")
            for key_day, tokens in used.items():
                self.rows[key_day] += tokens

    async def since(self, day: date, key_ids: Collection[str]) -> dict[str, dict[date, int]]:
        self.asked += 1
        with self.reads.watching():
            if self.reads_away:
                raise StoreUnavailable("away")
            return {
                key_id: {at: n for (id_, at), n in self.rows.items() if id_ == key_id and at >= day}
                for key_id in key_ids
            }

    async def forget_before(self, day: date) -> None:
        for key_day in [each for each in self.rows if each[1] < day]:
            del self.rows[key_day]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counts(clock: Clock) -> ScriptedCounts:
    return ScriptedCounts(clock)


def budgets_over(counts: ScriptedCounts, metrics: Metrics | None = None) -> Budgets:
    return Budgets(counts, metrics, counts.clock, counts.clock.utc)


async def passes(budgets: Budgets, key: KeyRecord) -> bool:
    try:
        await budgets.check(key)
    except Overloaded:
        return False
    return True


async def test_a_spent_day_says_so_until_midnight_utc(counts: ScriptedCounts, clock: Clock) -> None:
    metrics = Metrics()
    budgets = budgets_over(counts, metrics)
    budgets.spend(KEY.id, 99)
    assert await passes(budgets, KEY)
    budgets.spend(KEY.id, 1)
    with pytest.raises(Overloaded, match=r"used 100 of the 100 tokens of today \(daily_token_budget\)") as caught:
        await budgets.check(KEY)
    assert "resets at 2030-01-03 00:00 UTC" in caught.value.message
    assert caught.value.retry_after_s == 12 * 3600
    assert caught.value.headers["x-should-retry"] == "false"
    assert metrics.registry.get_sample_value("orqen_limited_requests_total", {"reason": "daily_token_budget"}) == 1
    clock.now_s += 12 * 3600
    assert await passes(budgets, KEY)


async def test_a_spent_week_lasts_until_monday_and_is_said_before_the_day(counts: ScriptedCounts, clock: Clock) -> None:
    key = replace(KEY, weekly_token_budget=150)
    budgets = budgets_over(counts)
    budgets.spend(key.id, 100)
    await budgets.sync()
    assert not await passes(budgets, key)
    clock.now_s += 86_400
    budgets.spend(key.id, 50)
    with pytest.raises(Overloaded, match=r"150 of the 150 tokens of this week \(weekly_token_budget\)") as caught:
        await budgets.check(key)
    assert caught.value.retry_after_s == 3.5 * 86_400 and "2030-01-07 00:00 UTC" in caught.value.message
    clock.now_s += 3.5 * 86_400
    assert await passes(budgets, key)


async def test_of_two_spent_budgets_the_one_that_resets_last_is_said(counts: ScriptedCounts) -> None:
    budgets = budgets_over(counts)
    budgets.spend(KEY.id, 100)
    with pytest.raises(Overloaded, match="weekly_token_budget") as caught:
        await budgets.check(replace(KEY, weekly_token_budget=100))
    assert caught.value.retry_after_s == 4.5 * 86_400


async def test_a_key_without_a_budget_asks_nobody(counts: ScriptedCounts) -> None:
    budgets = budgets_over(counts)
    free = replace(KEY, daily_token_budget=0)
    budgets.spend(free.id, 10**9)
    for _ in range(100):
        assert await passes(budgets, free)
    assert counts.asked == 0


async def test_what_others_have_used_is_loaded_before_the_first_check(counts: ScriptedCounts) -> None:
    counts.rows[KEY.id, WEDNESDAY.date()] = 100
    budgets = budgets_over(counts)
    results = await asyncio.gather(*(passes(budgets, KEY) for _ in range(50)))
    assert not any(results) and counts.asked == 1, "many requests share one look"


async def test_processes_see_each_others_tokens_after_a_round(counts: ScriptedCounts) -> None:
    one, two = budgets_over(counts), budgets_over(counts)
    assert await passes(one, KEY) and await passes(two, KEY)
    one.spend(KEY.id, 60)
    two.spend(KEY.id, 60)
    assert await passes(one, KEY) and await passes(two, KEY)
    for budgets in (one, two, one):
        await budgets.sync()
    assert not await passes(one, KEY) and not await passes(two, KEY)
    assert counts.rows == {(KEY.id, WEDNESDAY.date()): 120}


async def test_tokens_of_an_outage_are_kept_counted_and_written_when_it_ends(
    counts: ScriptedCounts, clock: Clock
) -> None:
    budgets = budgets_over(counts)
    assert await passes(budgets, KEY)
    counts.reads_away = counts.writes_away = True
    for _ in range(10):
        budgets.spend(KEY.id, 9)
        clock.now_s += 10
        await budgets.sync()
        assert await passes(budgets, KEY)
    budgets.spend(KEY.id, 10)
    assert not await passes(budgets, KEY), "the local count holds"
    counts.reads_away = counts.writes_away = False
    clock.now_s += 1
    await budgets.sync()
    assert counts.rows == {(KEY.id, WEDNESDAY.date()): 100}
    assert not await passes(budgets, KEY)


async def test_what_was_written_counts_although_it_cannot_be_read_back(counts: ScriptedCounts) -> None:
    budgets = budgets_over(counts)
    assert await passes(budgets, KEY)
    budgets.spend(KEY.id, 100)
    counts.reads_away = True
    await budgets.sync()
    assert counts.rows == {(KEY.id, WEDNESDAY.date()): 100}
    assert not await passes(budgets, KEY)


async def test_a_key_whose_totals_cannot_be_read_is_let_through(counts: ScriptedCounts) -> None:
    counts.rows[KEY.id, WEDNESDAY.date()] = 100
    counts.reads_away = True
    budgets = budgets_over(counts)
    assert await passes(budgets, KEY)
    assert await passes(budgets, KEY) and counts.asked == 1
    budgets.spend(KEY.id, 100)
    assert not await passes(budgets, KEY)


async def test_what_waits_for_the_database_is_bounded(counts: ScriptedCounts, caplog: pytest.LogCaptureFixture) -> None:
    budgets = budgets_over(counts)
    for number in range(100_050):
        budgets.spend(f"key_{number}", 1)
    budgets.spend("key_0", 5)
    assert len([record for record in caplog.records if "not counted" in record.message]) == 1
    await budgets.sync()
    assert len(counts.rows) == 100_000 and counts.rows["key_0", WEDNESDAY.date()] == 6


async def test_closing_writes_what_is_pending_and_says_what_is_lost(
    counts: ScriptedCounts, caplog: pytest.LogCaptureFixture
) -> None:
    budgets = budgets_over(counts)
    budgets.start()
    budgets.spend(KEY.id, 7)
    await budgets.aclose()
    assert counts.rows == {(KEY.id, WEDNESDAY.date()): 7}
    counts.writes_away = True
    budgets.spend(KEY.id, 5)
    await budgets.aclose()
    assert "5 tokens of budgets are not counted" in caplog.text


@pytest.mark.parametrize("tokens", [0, -5, 10**30])
async def test_what_a_provider_claims_cannot_spoil_the_count(counts: ScriptedCounts, tokens: int) -> None:
    budgets = budgets_over(counts)
    budgets.spend(KEY.id, tokens)
    await budgets.sync()
    assert counts.rows == ({} if tokens <= 0 else {(KEY.id, WEDNESDAY.date()): 10**9})


class OverlappingCounts(ScriptedCounts):
    """A write whose answer has not come back yet, although readers see what it wrote."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.written, self.answer, self.before_read = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.before_read.set()

    async def add(self, used: Mapping[KeyDay, int]) -> None:
        await super().add(used)
        self.written.set()
        await self.answer.wait()

    async def since(self, day: date, key_ids: Collection[str]) -> dict[str, dict[date, int]]:
        found = await super().since(day, key_ids)
        await self.before_read.wait()
        return found


@pytest.mark.parametrize("known", [True, False])
async def test_what_is_read_while_it_is_being_written_counts_once(clock: Clock, known: bool) -> None:
    counts = OverlappingCounts(clock)
    budgets = budgets_over(counts)
    if known:
        await budgets.check(KEY)
        clock.now_s += 10
    budgets.spend(KEY.id, 60)
    writing = asyncio.create_task(budgets.sync())
    await counts.written.wait()
    assert await passes(budgets, KEY), "60 of 100, and not 120"
    counts.answer.set()
    await writing
    assert await passes(budgets, KEY)
    budgets.spend(KEY.id, 40)
    assert not await passes(budgets, KEY)


@pytest.mark.parametrize("known", [True, False])
async def test_what_is_written_while_an_older_state_is_read_counts_too(clock: Clock, known: bool) -> None:
    counts = OverlappingCounts(clock)
    counts.answer.set()
    budgets = budgets_over(counts)
    if known:
        await budgets.check(KEY)
        clock.now_s += 10
    counts.before_read.clear()
    checking = asyncio.create_task(passes(budgets, KEY))
    while not counts.asked - known:  # noqa: ASYNC110  # until the read has begun
        await asyncio.sleep(0)
    budgets.spend(KEY.id, 100)
    await budgets._write()
    counts.before_read.set()
    await checking
    assert not await passes(budgets, KEY), "a process never forgets what it has counted itself"


async def test_rounds_go_on_after_one_that_broke(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    class BreakingCounts(ScriptedCounts):
        async def add(self, used: Mapping[KeyDay, int]) -> None:
            if not broken.is_set():
                broken.set()
                raise ValueError("no store raises this")
            await super().add(used)
            written.set()

    broken, written = asyncio.Event(), asyncio.Event()
    counts = BreakingCounts(clock)
    budgets = Budgets(counts, clock=clock, now=clock.utc, every_s=0.01)
    budgets.start()
    budgets.spend(KEY.id, 7)
    async with asyncio.timeout(10):
        await written.wait()
    await budgets.aclose()
    assert counts.rows == {(KEY.id, WEDNESDAY.date()): 7}
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_stop_in_the_middle_of_a_write_does_not_write_it_twice(clock: Clock) -> None:
    counts = OverlappingCounts(clock)
    budgets = Budgets(counts, clock=clock, now=clock.utc, every_s=0.01)
    budgets.start()
    budgets.spend(KEY.id, 7)
    await counts.written.wait()
    closing = asyncio.create_task(budgets.aclose())
    await asyncio.sleep(0)
    counts.answer.set()
    await closing
    assert counts.rows == {(KEY.id, WEDNESDAY.date()): 7}


class Accounts(RuleBasedStateMachine):
    """Three processes over one store that comes and goes; at any time no token is lost, and none counts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.counts = ScriptedCounts(self.clock)
        self.processes = [budgets_over(self.counts) for _ in range(3)]
        self.spent: Counter[KeyDay] = Counter()
        self.local: Counter[tuple[int, KeyDay]] = Counter()

    def teardown(self) -> None:
        self.counts.writes_away = False
        self.clock.now_s += 1
        for process in self.processes:
            self.loop.run_until_complete(process.sync())
        self.loop.close()
        assert self.counts.rows == self.spent

    @rule(process=st.integers(0, 2), key=st.sampled_from("ab"), tokens=st.integers(1, 60))
    def a_request_ends(self, process: int, key: str, tokens: int) -> None:
        key_day = key, self.clock.utc().date()
        self.processes[process].spend(key, tokens)
        self.spent[key_day] += tokens
        self.local[process, key_day] += tokens

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 40.0, 20_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(reads=st.booleans(), writes=st.booleans())
    def the_store_comes_or_goes(self, reads: bool, writes: bool) -> None:
        self.counts.reads_away, self.counts.writes_away = reads, writes

    @rule(process=st.integers(0, 2))
    def a_second_is_over(self, process: int) -> None:
        self.loop.run_until_complete(self.processes[process].sync())

    @rule(process=st.integers(0, 2), key=st.sampled_from("ab"))
    def a_request_comes(self, process: int, key: str) -> None:
        record = replace(KEY, id=key)
        let_in = self.loop.run_until_complete(passes(self.processes[process], record))
        key_day = key, self.clock.utc().date()
        if self.spent[key_day] < 100:
            assert let_in, "nothing counts twice"
        if self.local[process, key_day] >= 100:
            assert not let_in, "a process never forgets what it has counted itself"

    @invariant()
    def the_store_never_holds_more_than_was_spent(self) -> None:
        assert all(tokens <= self.spent[key_day] for key_day, tokens in self.counts.rows.items())


TestAccounts = Accounts.TestCase
TestAccounts.settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- The counts in the database ---------------------------------------------------------------------------------


async def test_counts_of_many_processes_add_up(database: Database) -> None:
    counts = TokenCounts(database)
    day = WEDNESDAY.date()
    used = {(f"key_{number}", day): number for number in range(1500)}
    await asyncio.gather(*(counts.add(used) for _ in range(5)))
    found = await counts.since(day, ["key_3", "key_1499", "nobody"])
    assert found == {"key_3": {day: 15}, "key_1499": {day: 1499 * 5}, "nobody": {}}


async def test_only_the_days_that_are_asked_for_are_read_and_old_ones_are_forgotten(database: Database) -> None:
    counts = TokenCounts(database)
    days = [WEDNESDAY.date() - timedelta(days=ago) for ago in range(50)]
    await counts.add({("key_1", day): 2**40 for day in days})
    assert len((await counts.since(days[2], ["key_1"]))["key_1"]) == 3
    budgets = Budgets(counts, now=lambda: WEDNESDAY)
    budgets.spend("key_2", 1)
    await budgets.sync()
    assert sorted((await counts.since(days[-1], ["key_1"]))["key_1"]) == sorted(days[:36])
