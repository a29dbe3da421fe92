"""The database: its address, its migrations, its failures; what only SQLite has is in test_sqlite.py."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from sqlalchemy import text

from orqen_ray.config import Settings
from orqen_ray.errors import StoreUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.store.database import MIGRATION_LOCK, Database
from orqen_ray.store.database_url import parse_database_url
from orqen_ray.store.keys import Keys
from tests.servers import PASSWORD, Postgres

_MIGRATE = """
import asyncio, sys
from orqen_ray.store.database import Database
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(Database(sys.argv[1]).migrate())
"""


async def version_of(database: Database) -> list[str]:
    async with database.begin() as connection:
        return list((await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars())


def test_processes_that_migrate_at_once_all_succeed(database_url: str) -> None:
    command = [sys.executable, "-c", _MIGRATE, database_url]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert [code for _, code in results] == [0] * 4, results

    async def version() -> list[str]:
        database = Database(database_url)
        try:
            return await version_of(database)
        finally:
            await database.aclose()

    assert asyncio.run(version()) == ["0005"]


async def test_migrating_again_keeps_what_is_there(database: Database) -> None:
    record, _ = await Keys(database).create("kept")
    await database.migrate()
    assert [key.id for key in await Keys(database).list()] == [record.id]


async def test_a_store_of_a_newer_version_is_left_alone_with_what_to_do(database: Database) -> None:
    async with database.begin(write=True) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnavailable, match="newer version"):
        await database.migrate()
    assert await version_of(database) == ["9999"]


@pytest.mark.parametrize(
    "url",
    [
        "", "nonsense", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "sqlite:///x.db", "mysql://h/d",
        "postgresql+psycopg://h/d", "postgresql://user:se#cret@host:port/d",
    ],
)  # fmt: skip
async def test_a_url_that_names_no_usable_database_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(StoreUnavailable, match="storage.database_url.*sqlite\\+aiosqlite.*postgresql://") as caught:
        Database(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "says"),
    [("sslmode=yes", "sslmode is one of"), ("ssl=true", "sslmode is one of"), ("pool_size=3", "unknown parameter")],
)
def test_a_parameter_that_the_driver_does_not_take_is_refused_by_name(query: str, says: str) -> None:
    with pytest.raises(StoreUnavailable, match=says) as caught:
        Database(f"postgresql://user:secret@host/d?{query}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_the_usual_names_of_postgresql_mean_the_same(scheme: str) -> None:
    url = parse_database_url(f"{scheme}://user:a%40b@host/d?ssl=require")
    assert (url.drivername, url.password, dict(url.query)) == ("postgresql+asyncpg", "a@b", {"sslmode": "require"})


# --- A PostgreSQL server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_postgresql_is_reached_by_tls_where_the_url_says_so(postgres: Postgres, mode: str) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    database = Database(f"{url}?sslmode={mode}&sslrootcert={postgres.certificate}")
    async with database.begin() as connection:
        used = await connection.execute(text("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        assert used.one() == (True, "TLSv1.3")
    await database.aclose()


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    database = Database(f"{url}?sslmode=verify-full&sslrootcert={ssl.get_default_verify_paths().openssl_cafile}")
    with pytest.raises(StoreUnavailable):
        await Keys(database).count()
    await database.aclose()


@pytest.mark.parametrize("wrong", ["password", "database", "port"])
async def test_no_password_is_in_an_error_a_log_or_the_settings(
    postgres: Postgres, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    url = postgres.url("nowhere" if wrong == "database" else "postgres")
    url = url.replace("p%25w", "other-p%25w") if wrong == "password" else url
    url = url.replace(f":{postgres.port}/", ":1/") if wrong == "port" else url
    settings = Settings.model_validate(
        {"storage": {"database_url": url, "redis_url": f"redis://:{quote(PASSWORD, safe='')}@h:6379"}}
    )
    database = Database(settings.storage.database_url)
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as read:
        await Keys(database).count()
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as migrated:
        await database.migrate()
    await database.aclose()
    shown = f"{read.value} {migrated.value} {settings!r} {settings} {caplog.text} {database._engine!r}"
    assert "of/the" not in shown and "of%2Fthe" not in shown
    assert caplog.text.count("the database cannot be read") == 1
    caplog.clear()  # its records hold the errors, and those the refused connections


async def test_a_migration_waits_for_another_one(postgres: Postgres) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    database = Database(url)
    async with database.begin() as other:
        await other.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        migration = asyncio.create_task(database.migrate())
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while (await other.execute(waiting)).scalar_one() == 0:
            assert not migration.done(), "it did not wait"
        assert (await other.execute(text("SELECT to_regclass('keys')"))).scalar_one() is None
    await migration
    assert await version_of(database) == ["0005"]
    await database.aclose()


async def test_the_pool_has_bounds_and_outlasts_connections_that_were_cut(postgres: Postgres) -> None:
    database = Database(await asyncio.to_thread(postgres.new_database))
    await database.migrate()
    keys = Keys(database)
    await asyncio.gather(*(keys.count() for _ in range(100)))
    async with database.begin() as connection:
        count = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert 1 <= (await connection.execute(count)).scalar_one() <= 15
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    assert await keys.count() == 0  # each pooled connection is dead, and none of them costs a request
    await database.aclose()


async def test_a_server_that_takes_connections_and_says_nothing_is_given_up(postgres: Postgres) -> None:
    metrics = Metrics()
    database = Database(await asyncio.to_thread(postgres.new_database), metrics)
    postgres.freeze()
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await Keys(database).count()
    assert time.monotonic() - started_s < 8
    postgres.thaw()
    assert metrics.registry.get_sample_value("orqen_store_failures_total", {"store": "database"}) == 1
    await database.aclose()
