"""What the conversations of each tool set did, summed over all processes, in the database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from orqen_ray.policy import HALF_LIFE, ToolUse, add_use, differs
from orqen_ray.store.database import Database
from orqen_ray.store.tables import TOOL_USE

_KEPT = timedelta(days=60)
_RATE_MINUTES = 60.0
_MAX_SNAPSHOT_ROWS = 2000
_MAX_SNAPSHOT_CHARS = 16_000_000


class _Live(msgspec.Struct, frozen=True):
    """`recent` conversations in `minutes`, both decayed with the time constant `_RATE_MINUTES`: their ratio is the rate
    of arrival, from the first minute on."""

    use: ToolUse = msgspec.field(default_factory=ToolUse)
    recent: float = 0.0
    minutes: float = 1.0


class ToolUses:
    """The counts. Every method raises StoreUnavailable when the database cannot be used."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_tool_sets: int = 20_000,
    ) -> None:
        """Args: max_tool_sets: those not seen for longest are forgotten beyond it, should a caller never repeat one."""
        self._database = database
        self._clock = clock
        self._max_tool_sets = max_tool_sets

    async def add(self, new: Mapping[str, ToolUse]) -> None:
        """Add to what is there, which has decayed since. Publishes what now differs notably."""
        now = self._clock()
        async with self._database.begin(write=True) as connection:
            # In one order for all processes, so that no two wait for each other's rows.
            for tool_set in sorted(new):
                await _add(connection, tool_set, new[tool_set], now)
            newest = select(TOOL_USE.c.as_of).order_by(TOOL_USE.c.as_of.desc()).offset(self._max_tool_sets).limit(1)
            too_old = await connection.scalar(newest) or now - _KEPT
            await connection.execute(delete(TOOL_USE).where(TOOL_USE.c.as_of <= max(too_old, now - _KEPT)))

    async def published(self) -> dict[str, ToolUse]:
        """Tool set -> its use, as of the last time that it changed notably; those seen last, if there are very many."""
        newest = select(TOOL_USE.c.tool_set, TOOL_USE.c.published).order_by(TOOL_USE.c.as_of.desc())
        async with self._database.begin() as connection:
            rows = (await connection.execute(newest.limit(_MAX_SNAPSHOT_ROWS))).all()
        return await asyncio.to_thread(_uses, rows)


def _uses(rows: Iterable[Any]) -> dict[str, ToolUse]:
    """Those of `rows` that fit into a snapshot: a caller may name its tools as it likes."""
    uses: dict[str, ToolUse] = {}
    chars = 0
    for row in rows:
        chars += len(row.published)
        if chars > _MAX_SNAPSHOT_CHARS:
            break
        uses[row.tool_set] = msgspec.json.decode(row.published, type=ToolUse)
    return uses


async def _add(connection: AsyncConnection, tool_set: str, new: ToolUse, now: datetime) -> None:
    insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert
    empty = {"live": _text(_Live()), "published": _text(ToolUse())}
    made = insert(TOOL_USE).values(tool_set=tool_set, as_of=now, **empty)
    # Writing first locks the row, in both databases, against another process between the reading and the update.
    await connection.execute(made.on_conflict_do_update(index_elements=["tool_set"], set_={"tool_set": tool_set}))
    row = (await connection.execute(select(TOOL_USE).where(TOOL_USE.c.tool_set == tool_set))).one()
    live = _sum(msgspec.json.decode(row.live, type=_Live), new, max(now - row.as_of, timedelta()))
    values = {"as_of": max(now, row.as_of), "live": _text(live)}
    if differs(live.use, msgspec.json.decode(row.published, type=ToolUse)):
        values["published"] = _text(live.use)
    await connection.execute(update(TOOL_USE).where(TOOL_USE.c.tool_set == tool_set).values(values))


def _sum(old: _Live, new: ToolUse, age: timedelta) -> _Live:
    minutes = age / timedelta(minutes=1)
    faded = math.exp(-minutes / _RATE_MINUTES)
    recent = old.recent * faded + new.conversations
    exposure = old.minutes * faded + _RATE_MINUTES * (1 - faded)
    summed = add_use(old.use, new, 0.5 ** (age / HALF_LIFE))
    return _Live(replace(summed, per_minute=recent / exposure), recent, exposure)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
