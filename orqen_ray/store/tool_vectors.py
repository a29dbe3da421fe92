"""Vectors of tool texts in the database: `encoders.cache.VectorStore`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from orqen_ray.store.database import Database
from orqen_ray.store.tables import TOOL_VECTORS

MAX_ROWS = 200_000
"""With 384 dimensions, some 400 MB."""
KEPT_DAYS = 30
"""A vector that is still needed is then made anew."""
_ROWS_A_STATEMENT = 500


class ToolVectors:
    """At most `max_rows` of them, none older than `KEPT_DAYS`. Methods raise StoreUnavailable."""

    def __init__(self, database: Database, max_rows: int = MAX_ROWS) -> None:
        self._database = database
        self._max_rows = max_rows
        self._cleared_on: date | None = None

    async def get_many(self, encoder: str, digests: Sequence[str]) -> dict[str, bytes]:
        """Those that are there."""
        found: dict[str, bytes] = {}
        async with self._database.begin() as connection:
            for batch in _batches(digests):
                chosen = select(TOOL_VECTORS.c.sha256, TOOL_VECTORS.c.vector).where(
                    TOOL_VECTORS.c.sha256.in_(batch), TOOL_VECTORS.c.encoder == encoder[:200]
                )
                found.update((row.sha256, row.vector) for row in await connection.execute(chosen))
        return found

    async def put_many(self, encoder: str, vectors: Mapping[str, bytes], today: date | None = None) -> None:
        """Keep these, unless the table is full."""
        today = today or datetime.now(UTC).date()
        async with self._database.begin(write=True) as connection:
            if self._cleared_on != today:
                old = today - timedelta(days=KEPT_DAYS)
                await connection.execute(delete(TOOL_VECTORS).where(TOOL_VECTORS.c.made_on < old))
            count = await connection.scalar(select(func.count()).select_from(TOOL_VECTORS)) or 0
            insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert
            # In one order for all processes, so that no two wait for each other's rows.
            for batch in _batches(sorted(vectors)[: max(0, self._max_rows - count)]):
                rows = [
                    {"sha256": digest, "encoder": encoder[:200], "vector": vectors[digest], "made_on": today}
                    for digest in batch
                ]
                await connection.execute(insert(TOOL_VECTORS).values(rows).on_conflict_do_nothing())
        self._cleared_on = today


def _batches(digests: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(digests), _ROWS_A_STATEMENT):
        yield digests[start : start + _ROWS_A_STATEMENT]
