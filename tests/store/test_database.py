"""The database file, its modes and its migrations."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys
from orqen_ray.store.tables import METADATA

_MIGRATE = """
import asyncio, sys
from orqen_ray.store.database import Database
sys.stdin.readline()
asyncio.run(Database(sys.argv[1]).migrate())
"""


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_two_processes_that_migrate_at_once_both_succeed(database_url: str, database_path: Path) -> None:
    command = [sys.executable, "-c", _MIGRATE, database_url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:  # both are past their imports' slow part when the line arrives, or soon after
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert [code for _, code in results] == [0, 0], results
    with closing(sqlite3.connect(database_path)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]


async def test_the_migrations_make_exactly_the_tables_of_the_code(database: Database, database_path: Path) -> None:
    engine = create_engine(f"sqlite:///{database_path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


async def test_migrating_again_keeps_what_is_there(database: Database) -> None:
    record, _ = await Keys(database).create("kept")
    await database.migrate()
    assert [key.id for key in await Keys(database).list()] == [record.id]


async def test_only_the_owner_can_read_the_database_and_its_log(database: Database, database_path: Path) -> None:
    await Keys(database).create("someone")
    files = sorted(database_path.parent.iterdir())
    assert database_path in files
    assert {file.name: _mode(file) for file in files} == {file.name: 0o600 for file in files}
    assert _mode(database_path.parent) == 0o700


def test_a_database_file_that_others_could_read_is_closed_to_them(database_url: str, database_path: Path) -> None:
    database_path.parent.mkdir()
    database_path.touch(mode=0o644)
    asyncio.run(Database(database_url).migrate())
    assert _mode(database_path) == 0o600


async def test_sqlite_writes_ahead_and_checks_foreign_keys(database: Database) -> None:
    async with database.begin() as connection:
        values = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert values == ["wal", 1, 5000]


@pytest.mark.parametrize(
    "url", ["", "nonsense", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "sqlite:///x.db"]
)
async def test_a_url_that_names_no_usable_database_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(StoreUnavailable, match="storage.database_url.*sqlite\\+aiosqlite"):
        Database(url)


def test_a_file_that_is_no_database_is_an_error_without_its_path(database_url: str, database_path: Path) -> None:
    database_path.parent.mkdir()
    database_path.write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreUnavailable) as caught:
        asyncio.run(Database(database_url).migrate())
    assert str(database_path.parent) not in str(caught.value)


async def test_a_store_that_was_never_migrated_is_unavailable_and_not_a_crash(
    database_url: str, database_path: Path
) -> None:
    await asyncio.to_thread(database_path.parent.mkdir)
    database = Database(database_url)
    with pytest.raises(StoreUnavailable):
        await Keys(database).count()
    await database.aclose()
