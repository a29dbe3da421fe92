"""The SQL database, SQLite or PostgreSQL: its connections, its migrations, and its failures as the gateway's own."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from orqen_ray.errors import StoreUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.store.database_url import parse_database_url, sqlite_path
from orqen_ray.store.outage import Outage

_COMMAND_TIMEOUT_S = 5
_CONNECT_TIMEOUT_S = 5
_MIGRATION_TIMEOUT_S = 60
_POOL = {"pool_size": 5, "max_overflow": 10, "pool_timeout": _CONNECT_TIMEOUT_S, "pool_recycle": 1800}
MIGRATION_LOCK = 0x0C0E11
"""PostgreSQL's advisory lock of who migrates: any number that no other program takes in the same database."""
_WAL_RETRY_S = 0.02
MIGRATIONS = Path(__file__).with_name("migrations")

_log = logging.getLogger(__name__)


def make_private_directory(path: Path) -> None:
    """Make `path` and its parents if absent, readable by the owner only; one that exists is left as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


class Database:
    """Connections to the store. Cheap to make; connects on first use, on the running event loop.

    `reads` and `writes` know whether the database can be read and written just now: a full disk or a standby server
    that has taken over still answers questions.
    """

    def __init__(self, url: str, metrics: Metrics | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: url: as docs/settings.md describes it. Raises StoreUnavailable if it cannot be one."""
        self.url = url
        self._parsed = parse_database_url(url)
        self._engine = _engine(self._parsed, _COMMAND_TIMEOUT_S)
        metrics = metrics or Metrics()
        self.reads = Outage("database", "the database cannot be read", metrics, clock)
        self.writes = Outage("database", "the database cannot be written", metrics, clock)

    async def migrate(self) -> None:
        """Bring the tables up to date, creating the database if need be. Safe when several processes start at once.

        Raises:
            StoreUnavailable: the file or the server cannot be used.
        """
        await asyncio.to_thread(asyncio.run, self._migrate())

    async def aclose(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def begin(self, *, write: bool = False) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back on an error. `write`: it changes something.

        Raises:
            IntegrityError: a row exists already, for the caller to resolve.
            StoreUnavailable: any other failure of the database.
        """
        with (self.writes if write else self.reads).watching(), _failures():
            async with self._engine.begin() as connection:
                yield connection

    async def _migrate(self) -> None:
        try:
            with _failures():
                if (path := sqlite_path(self.url)) is not None:
                    _prepare_file(path)
                engine = _engine(self._parsed, _MIGRATION_TIMEOUT_S, poolclass=NullPool)
                async with engine.connect() as connection:
                    await connection.run_sync(_upgrade)
        except StoreUnavailable as error:
            _log.error("the database cannot be brought up to date: %s", error.__cause__ or error)
            raise


def _engine(url: URL, timeout_s: int, **options: Any) -> AsyncEngine:
    # Parameters would show digests and sealed secrets in the log.
    options = {"hide_parameters": True, **options}
    if url.get_backend_name() == "postgresql":
        # asyncpg reads the whole URL itself, TLS and sockets included, and no engine's text then holds a password.
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)

        async def connect() -> Any:
            return await asyncpg.connect(address, timeout=_CONNECT_TIMEOUT_S, command_timeout=timeout_s)

        pool = {} if "poolclass" in options else {"pool_pre_ping": True, **_POOL}
        return create_async_engine("postgresql+asyncpg://", async_creator=connect, **pool, **options)
    engine = create_async_engine(url, **options)

    def configure(connection: Any, _record: object) -> None:
        # The time-out comes first: the other statements may have to wait for a lock. FULL: a power cut must not bring a
        # revoked key back, nor rows that were sealed with a key which a rotation has taken away since.
        for pragma in (f"busy_timeout = {timeout_s * 1000}", "foreign_keys = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}").close()

    event.listen(engine.sync_engine, "connect", configure)
    return engine


def _prepare_file(path: Path) -> None:
    """Make the SQLite file for the owner only (its WAL takes over the mode), and switch it to WAL for good."""
    make_private_directory(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
    deadline_s = time.monotonic() + _MIGRATION_TIMEOUT_S
    while not _is_wal(path):
        if time.monotonic() > deadline_s:
            raise StoreUnavailable(f"{path.name} is locked by another process; stop it and start again")
        time.sleep(_WAL_RETRY_S)


def _is_wal(path: Path) -> bool:
    """Whether the file is, or could now be made, a WAL one. SQLite does not wait here for another process's switch:
    https://www.sqlite.org/wal.html#sometimes_queries_return_sqlite_busy_in_wal_mode
    """
    with closing(sqlite3.connect(path, timeout=_MIGRATION_TIMEOUT_S)) as connection:
        try:
            return bool(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        # Takes the write lock before the version is read, so that a second process waits and then finds nothing to do.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except CommandError as error:
        if "locate revision" not in str(error):
            raise
        raise StoreUnavailable(
            "the database was made by a newer version of the gateway: start that one, or restore an older copy"
        ) from error
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, sqlite3.Error, OSError) as error:
        # The driver's words may hold a path or an address: for the log only.
        raise StoreUnavailable("the gateway's database cannot be used; see its log and storage.database_url") from error
