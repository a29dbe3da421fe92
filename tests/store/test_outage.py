"""A store that cannot be asked: SQLite locked, full or read-only, PostgreSQL gone; what is known goes on serving."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orqen_ray.errors import StoreUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.store.authenticator import KeyCache
from orqen_ray.store.budgets import Budgets
from orqen_ray.store.cipher import Cipher
from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys
from orqen_ray.store.outage import Outage
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.store.token_counts import TokenCounts
from orqen_ray.types import Credentials
from tests.servers import Postgres


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_calls_are_made_freely_until_one_fails_and_then_once_a_second() -> None:
    clock = Clock()
    outage = Outage("database", "x", clock=clock)
    assert all(outage.may_ask() for _ in range(3))
    outage.failed(OSError("gone"))
    assert not outage.may_ask()
    clock.now_s += 1
    assert [outage.may_ask(), outage.may_ask()] == [True, False]
    outage.worked()
    assert outage.may_ask() and outage.may_ask() and not outage.away


async def test_a_call_that_takes_too_long_makes_others_not_wait_until_one_ends() -> None:
    outage = Outage("database", "x")
    call: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(StoreUnavailable):
        await outage.patiently(call, 0.01)
    assert outage.slow and not outage.away and not outage.may_ask()
    outage.worked()
    assert outage.may_ask() and not call.cancelled()


def test_a_call_of_the_outage_that_ends_after_it_begins_no_other() -> None:
    clock = Clock()
    metrics = Metrics()
    outage = Outage("database", "x", metrics, clock)
    with pytest.raises(StoreUnavailable), outage.watching():
        clock.now_s += 5
        with outage.watching():
            pass
        raise StoreUnavailable("timed out at last")
    assert not outage.away and outage.may_ask()
    assert metrics.registry.get_sample_value("orqen_store_failures_total", {"store": "database"}) == 1
    with pytest.raises(StoreUnavailable), outage.watching():
        raise StoreUnavailable("gone again")
    assert outage.away


@contextmanager
def nothing_can_grow(path: Path) -> Iterator[None]:
    """As on a full disk: no file of this process may become longer than this one is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_on_a_full_disk_keys_are_read_and_tokens_are_kept_until_there_is_room(
    sqlite_database: Database, database_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, counts = Keys(sqlite_database), TokenCounts(sqlite_database)
    record, secret = await keys.create("alice", daily_token_budget=10)
    cache, budgets = KeyCache(keys, sqlite_database.reads, ttl_s=0), Budgets(counts)
    budgets.spend(record.id, 7)
    wal = database_path.with_name(f"{database_path.name}-wal")
    with nothing_can_grow(wal):
        for _ in range(5):
            await budgets.sync()
            assert await cache.authenticate(secret) == record
        with pytest.raises(StoreUnavailable):
            await keys.create("bob")
    assert sqlite_database.writes.away and not sqlite_database.reads.away
    await budgets.aclose()
    today = next(iter((await counts.since(record.created_at.date(), [record.id]))[record.id].values()))
    assert today == 7
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert all("the database cannot be written" in message for message in caplog.messages)


async def test_a_read_only_database_authenticates(sqlite_database: Database, database_path: Path) -> None:
    record, secret = await Keys(sqlite_database).create("alice")
    read_only = Database(f"sqlite+aiosqlite:///file:{database_path}?mode=ro&uri=true")
    budgets = Budgets(TokenCounts(read_only))
    budgets.spend(record.id, 7)
    await budgets.sync()
    assert await KeyCache(Keys(read_only), read_only.reads).authenticate(secret) == record
    with pytest.raises(StoreUnavailable):
        await Keys(read_only).create("bob")
    assert read_only.writes.away and not read_only.reads.away
    await read_only.aclose()


async def test_a_locked_database_holds_no_known_key_up(sqlite_url: str, database_path: Path) -> None:
    database = Database(sqlite_url)
    await database.migrate()
    clock = Clock()
    record, secret = await Keys(database).create("alice")
    _, late = await Keys(database).create("late")
    cache = KeyCache(Keys(database), database.reads, clock=clock)
    secrets = ProviderSecrets(database, Cipher("k" * 32), clock=clock)
    await secrets.put("openai", Credentials(api_key="sk"))
    await cache.authenticate(secret)
    await secrets.get("openai")
    await database.aclose()  # in WAL only a connection that is alone can lock readers out
    holder = sqlite3.connect(database_path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    clock.now_s += 100
    for _ in range(20):
        assert await cache.authenticate(secret) == record
        assert await secrets.get("openai") == (Credentials(api_key="sk"),)
    holder.close()
    assert (await cache.authenticate(late)).name == "late"
    await database.aclose()


async def test_credentials_that_were_read_outlast_the_server_for_the_grace(postgres: Postgres) -> None:
    clock = Clock()
    database = Database(await asyncio.to_thread(postgres.new_database), clock=clock)
    await database.migrate()
    secrets = ProviderSecrets(database, Cipher("k" * 32), grace_s=60, clock=clock)
    await secrets.put("openai", Credentials(api_key="sk"))
    expected = (Credentials(api_key="sk"),)
    assert await secrets.get("openai") == expected
    await asyncio.to_thread(postgres.stop)
    for _ in range(10):
        clock.now_s += 6
        assert await secrets.get("openai") == expected and await secrets.names() == {"openai"}
    clock.now_s += 6
    with pytest.raises(StoreUnavailable):
        await secrets.get("openai")
    await asyncio.to_thread(postgres.start)
    clock.now_s += 1
    assert await secrets.get("openai") == expected
    await database.aclose()
