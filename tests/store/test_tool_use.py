"""The counts of the use of tools: summed over processes, decayed, published when they differ."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from orqen_ray.errors import StoreUnavailable
from orqen_ray.policy import ToolUse
from orqen_ray.store.database import Database
from orqen_ray.store.tool_use import ToolUses

START = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def use(conversations: float, **called: float) -> ToolUse:
    return ToolUse(conversations=conversations, called=called, calls=5 * conversations)


async def test_processes_add_to_one_count(database: Database) -> None:
    clock = Clock()
    one, other = ToolUses(database, clock), ToolUses(database, clock)
    await asyncio.gather(*(uses.add({"a": use(10, x=5), "b": use(1)}) for uses in (one, other)))
    published = await one.published()
    assert set(published) == {"a", "b"}
    assert published["a"].conversations == 20
    assert published["a"].called == {"x": 10}
    assert published["a"].calls == 100


async def test_older_conversations_count_less(database: Database) -> None:
    clock = Clock()
    uses = ToolUses(database, clock)
    await uses.add({"a": use(100, x=100, rare=1.5e-5)})
    clock.now += timedelta(days=7)
    await uses.add({"a": use(10, y=10)})
    published = (await uses.published())["a"]
    assert published.conversations == pytest.approx(60)
    assert published.called == pytest.approx({"x": 50, "y": 10})


async def test_a_count_that_hardly_changes_is_not_published_again(database: Database) -> None:
    uses = ToolUses(database, Clock())
    await uses.add({"a": use(100, x=50)})
    before = await uses.published()
    await uses.add({"a": use(2, x=1)})
    assert await uses.published() == before
    await uses.add({"a": use(40, x=20)})
    assert (await uses.published())["a"].conversations == 142


async def test_the_rate_of_arrival_is_that_of_late(database: Database) -> None:
    clock = Clock()
    uses = ToolUses(database, clock)
    for _ in range(60):
        clock.now += timedelta(minutes=1)
        await uses.add({"a": use(10)})
    assert (await uses.published())["a"].per_minute == pytest.approx(10, rel=0.1)
    for _ in range(60):
        clock.now += timedelta(minutes=10)
        await uses.add({"a": use(1)})
    # A change below a factor of two is not published.
    assert 0.05 < (await uses.published())["a"].per_minute < 0.25


async def test_a_clock_that_goes_back_does_no_harm(database: Database) -> None:
    clock = Clock()
    uses = ToolUses(database, clock)
    await uses.add({"a": use(10)})
    clock.now -= timedelta(hours=1)
    await uses.add({"a": use(10)})
    assert (await uses.published())["a"].conversations == 20


async def test_a_tool_set_not_seen_for_long_is_forgotten(database: Database) -> None:
    clock = Clock()
    uses = ToolUses(database, clock)
    await uses.add({"old": use(10)})
    clock.now += timedelta(days=61)
    await uses.add({"new": use(10)})
    assert set(await uses.published()) == {"new"}


async def test_what_is_kept_is_bounded(database: Database) -> None:
    clock = Clock()
    uses = ToolUses(database, clock, max_tool_sets=3)
    for number in range(6):
        clock.now += timedelta(seconds=1)
        await uses.add({f"set{number}": use(1), "often": use(1)})
    assert set(await uses.published()) == {"often", "set4", "set5"}


async def test_a_database_that_is_away_says_so() -> None:
    uses = ToolUses(Database("sqlite+aiosqlite:////nowhere/at/all.db"), Clock())
    with pytest.raises(StoreUnavailable):
        await uses.add({"a": use(1)})
    with pytest.raises(StoreUnavailable):
        await uses.published()
