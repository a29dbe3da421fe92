"""Pins in memory, over SQL and over Redis: shared, bounded, forgotten in time, and never in a request's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from orqen_ray.errors import StoreUnavailable
from orqen_ray.pins import Pin, Restore
from orqen_ray.store.database import Database
from orqen_ray.store.outage import Outage
from orqen_ray.store.pins import RedisPins, SharedPins, SqlPins, open_pins
from orqen_ray.store.tables import PINS
from tests.servers import Redis

RESTORE = Restore(anchor="ab", after=3, names=("send",), appended=True)
PIN = Pin(
    snapshot="1", arm="routed", tool_set="set", kept=("read",), indexed=("send",), restores=(RESTORE,), propensity=0.98
)
OTHER = Pin(snapshot="2", arm="whole", tool_set="set", reason="late")


@pytest.fixture(params=["sql", "redis"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[SharedPins, SharedPins]]:
    """The pins of two processes."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/orqen.db")
    await database.migrate()
    url = None
    if request.param == "redis":
        server: Redis = request.getfixturevalue("redis_server")
        url = server.url
    one, other = (open_pins(database, url, 60) for _ in range(2))
    yield one, other
    await one.aclose()
    await other.aclose()
    await database.aclose()


async def written(pins: SharedPins) -> None:
    while pins._writing is not None and not pins._writing.done():
        await asyncio.wait({pins._writing})


async def test_another_process_finds_a_pin(pair: tuple[SharedPins, SharedPins]) -> None:
    one, other = pair
    assert await one.get("c") is None
    await one.put("c", PIN)
    assert await one.get("c") is PIN
    await written(one)
    assert await other.get("c") == PIN


async def test_what_another_process_changed_is_seen_when_asked_for(pair: tuple[SharedPins, SharedPins]) -> None:
    one, other = pair
    await one.put("c", PIN)
    await written(one)
    await other.get("c")
    await one.put("c", OTHER)
    await written(one)
    assert await other.get("c") == PIN
    assert await other.get("c", fresh=True) == OTHER == await other.get("c")
    assert await other.get("unknown", fresh=True) is None


async def test_what_was_put_last_is_kept_through_a_stop(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/orqen.db")
    await database.migrate()
    pins = open_pins(database, None, 60)
    for number in range(250):
        await pins.put(f"c{number % 120}", Pin(snapshot=str(number), arm="whole", tool_set=""))
    await pins.aclose()
    after = open_pins(database, None, 60)
    found = [await after.get(f"c{number}") for number in range(120)]
    assert [pin and int(pin.snapshot) for pin in found] == [*range(240, 250), *range(130, 240)]
    await after.aclose()
    await database.aclose()


async def test_a_pin_is_forgotten_some_time_after_its_last_turn(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/orqen.db")
    await database.migrate()
    now = datetime(2030, 1, 1, tzinfo=UTC)
    store = SqlPins(database, 3600, now=lambda: now)
    await store.write({"early": b"1", "late": b"1"})
    now += timedelta(minutes=50)
    await store.write({"late": b"2"})
    now += timedelta(minutes=50)
    assert (await store.read("early"), await store.read("late")) == (None, b"2")
    await store.write({"new": b"3"})
    async with database.begin() as connection:
        assert (await connection.execute(select(func.count()).select_from(PINS))).scalar_one() == 2
    await database.aclose()


async def test_memory_is_bounded_and_the_store_knows_the_rest(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/orqen.db")
    await database.migrate()
    pins = SharedPins(SqlPins(database, 60), max_entries=2)
    for name in ("a", "b", "c"):
        await pins.put(name, PIN)
    await written(pins)
    assert [*pins._known] == ["b", "c"]
    assert await pins.get("a") == PIN and [*pins._known] == ["c", "a"]
    await pins.aclose()
    await database.aclose()


async def test_what_is_put_while_the_store_is_asked_is_not_lost(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/orqen.db")
    await database.migrate()
    pins = SharedPins(SqlPins(database, 60))
    await pins.put("c", PIN)
    await written(pins)
    asked = asyncio.create_task(pins.get("c", fresh=True))
    await asyncio.sleep(0)
    await pins.put("c", OTHER)
    assert await asked == OTHER == await pins.get("c")
    await pins.aclose()
    await database.aclose()


class Stubborn:
    """A store that fails, or does not answer at all."""

    def __init__(self, error: Exception | None) -> None:
        self.reads, self.writes = Outage("database", "reads"), Outage("database", "writes")
        self._error = error
        self.asked = 0

    async def read(self, conversation: str) -> bytes | None:
        self.asked += 1
        with self.reads.watching():
            await self._answer()
        return None

    async def write(self, pins: Mapping[str, bytes]) -> None:
        with self.writes.watching():
            await self._answer()

    async def _answer(self) -> None:
        if self._error is None:
            await asyncio.Event().wait()
        else:
            raise self._error

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("error", [StoreUnavailable("away"), None])
async def test_a_store_that_is_away_holds_nobody_up(error: Exception | None) -> None:
    store = Stubborn(error)
    pins = SharedPins(store, patience_s=0.01)
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    for _ in range(20):
        assert await pins.get("unknown") is None
    assert store.asked <= 3 and loop.time() - started_s < 1
    await pins.put("c", PIN)
    assert await pins.get("c") is PIN
    if pins._writing is not None:
        pins._writing.cancel()
        await asyncio.wait({pins._writing})


async def test_what_a_newer_version_wrote_is_no_pin(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/orqen.db")
    await database.migrate()
    store = SqlPins(database, 60)
    await store.write({"c": b"\x93nonsense"})
    pins = SharedPins(store)
    assert await pins.get("c") is None
    await pins.aclose()
    await database.aclose()


async def test_redis_that_cannot_be_reached_is_a_store_that_is_away() -> None:
    pins = SharedPins(RedisPins("redis://127.0.0.1:1/0", 60), patience_s=1)
    assert await pins.get("c") is None
    await pins.put("c", PIN)
    await written(pins)
    assert await pins.get("c") is PIN
    await pins.aclose()
