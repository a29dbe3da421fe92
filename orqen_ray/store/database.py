"""The SQL database: its file, its connections, its migrations, and its failures as the gateway's own error."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, NullPool, event, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from orqen_ray.errors import StoreUnavailable

_BUSY_TIMEOUT_S = 5
_MIGRATION_TIMEOUT_S = 60
_WAL_RETRY_S = 0.02
MIGRATIONS = Path(__file__).with_name("migrations")

_log = logging.getLogger(__name__)


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite `url`; None for another database.

    Raises:
        StoreUnavailable: not a database URL, or a SQLite one without a file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreUnavailable("storage.database_url is no URL: write sqlite+aiosqlite:///data/orqen.db") from None
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise StoreUnavailable("storage.database_url names no file: write sqlite+aiosqlite:///data/orqen.db")
    return Path(parsed.database)


def make_private_directory(path: Path) -> None:
    """Make `path` and its parents if absent, readable by the owner only; one that exists is left as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


class Database:
    """Connections to the store. Cheap to make; connects on first use, on the running event loop."""

    def __init__(self, url: str) -> None:
        """Args: url: as `sqlite+aiosqlite:///data/orqen.db`. Raises StoreUnavailable if it cannot be one."""
        self._path = sqlite_path(url)
        self.url = url
        self._engine = _engine(url, _BUSY_TIMEOUT_S)

    async def migrate(self) -> None:
        """Bring the tables up to date, creating the database if need be. Safe when several processes start at once.

        Raises:
            StoreUnavailable: the file or the server cannot be used.
        """
        await asyncio.to_thread(asyncio.run, self._migrate())

    async def aclose(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back on an error.

        Raises:
            IntegrityError: a row exists already, for the caller to resolve.
            StoreUnavailable: any other failure of the database.
        """
        with _failures():
            async with self._engine.begin() as connection:
                yield connection

    async def _migrate(self) -> None:
        with _failures():
            if self._path is not None:
                _prepare_file(self._path)
            engine = _engine(self.url, _MIGRATION_TIMEOUT_S, poolclass=NullPool)
            async with engine.connect() as connection:
                await connection.run_sync(_upgrade)


def _engine(url: str, busy_timeout_s: int, **options: Any) -> AsyncEngine:
    try:
        engine = create_async_engine(url, hide_parameters=True, **options)
    except (SQLAlchemyError, ImportError):
        raise StoreUnavailable(
            "storage.database_url: SQLite is what this version supports, as sqlite+aiosqlite:///PATH"
        ) from None
    if engine.dialect.name == "sqlite":

        def configure(connection: Any, _record: object) -> None:
            # The time-out comes first: the other statements may have to wait for a lock.
            for pragma in (f"busy_timeout = {busy_timeout_s * 1000}", "foreign_keys = ON", "synchronous = NORMAL"):
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
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        # The driver's words may hold a path: for the log only. A statement and its values are not even for that.
        _log.error("the store failed: %s", getattr(error, "orig", None) or error)
        raise StoreUnavailable("the gateway's database cannot be used; see its log and storage.database_url") from error
