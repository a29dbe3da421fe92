"""The SQLite file: its modes, and how it is opened."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys, sha256_hex


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_only_the_owner_can_read_the_database_and_its_log(sqlite_database: Database, database_path: Path) -> None:
    await Keys(sqlite_database).create("someone")
    files = sorted(database_path.parent.iterdir())
    assert database_path in files
    assert {file.name: _mode(file) for file in files} == {file.name: 0o600 for file in files}
    assert _mode(database_path.parent) == 0o700


def test_a_database_file_that_others_could_read_is_closed_to_them(sqlite_url: str, database_path: Path) -> None:
    database_path.parent.mkdir()
    database_path.touch(mode=0o644)
    asyncio.run(Database(sqlite_url).migrate())
    assert _mode(database_path) == 0o600


async def test_sqlite_writes_ahead_checks_foreign_keys_and_syncs_each_commit(sqlite_database: Database) -> None:
    async with sqlite_database.begin() as connection:
        values = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        ]
    assert values == ["wal", 1, 5000, 2]


def test_a_file_that_is_no_database_is_an_error_without_its_path(sqlite_url: str, database_path: Path) -> None:
    database_path.parent.mkdir()
    database_path.write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreUnavailable) as caught:
        asyncio.run(Database(sqlite_url).migrate())
    assert str(database_path.parent) not in str(caught.value)


async def test_a_store_that_was_never_migrated_is_unavailable_and_not_a_crash(
    sqlite_url: str, database_path: Path
) -> None:
    await asyncio.to_thread(database_path.parent.mkdir)
    database = Database(sqlite_url)
    with pytest.raises(StoreUnavailable):
        await Keys(database).count()
    secret = f"sk-orq-{'0' * 64}"
    with pytest.raises(StoreUnavailable) as caught:
        await Keys(database).find(secret)
    assert "no such table" in str(caught.value.__cause__) and sha256_hex(secret) not in str(caught.value.__cause__)
    await database.aclose()
