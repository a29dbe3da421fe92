"""Looks at the database without changing it: its latency, its migrations, its clock, and whether it can be written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, false, func, select, update

from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.database import MIGRATIONS, Database
from orqen_ray.store.tables import KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseHealth:
    """Attributes:
    revision: of the tables; None where there are none.
    not_writable: why a write fails; None when it does not.
    clock_offset_s: how far this machine's clock is ahead of the server's; None for a file, which has no clock.
    """

    latency_ms: float
    revision: str | None
    newest_revision: str | None
    not_writable: str | None
    clock_offset_s: float | None


async def inspect_database(database: Database) -> DatabaseHealth:
    """Raises StoreUnavailable: it cannot be read."""
    offset_s = None
    async with database.begin() as connection:
        await connection.execute(select(1))
        started_s = time.perf_counter()
        await connection.execute(select(1))
        latency_ms = (time.perf_counter() - started_s) * 1000
        revision = await connection.run_sync(_revision)
        if connection.dialect.name != "sqlite":
            asked_at = datetime.now(UTC)
            # Not `now()`: that is when the transaction began.
            theirs = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
            offset_s = (asked_at - theirs).total_seconds()
    return DatabaseHealth(
        latency_ms=latency_ms,
        revision=revision,
        newest_revision=ScriptDirectory(str(MIGRATIONS)).get_current_head(),
        not_writable=await _write_failure(database) if revision else None,
        clock_offset_s=offset_s,
    )


async def _write_failure(database: Database) -> str | None:
    """Why a statement fails that takes the lock for writing and changes no row."""
    try:
        async with database.begin() as connection:
            await connection.execute(update(KEYS).where(false()).values(name=KEYS.c.name))
    except StoreUnavailable as error:
        words = str(getattr(error.__cause__, "orig", None) or "").splitlines()
        return words[0][:200] if words else error.message
    return None


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
