"""Tokens that each key has used, by UTC day, in the database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import date
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from orqen_ray.store.database import Database
from orqen_ray.store.tables import KEY_USAGE

T = TypeVar("T")

KeyDay = tuple[str, date]
"""The id of a key, and a UTC day."""

_ROWS_A_STATEMENT = 1000


class TokenCounts:
    """The counts. Every method raises StoreUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = database.reads
        self.writes = database.writes

    async def add(self, used: Mapping[KeyDay, int]) -> None:
        """Add tokens to what is there: all of them or none."""
        # In one order for all processes, so that no two wait for each other's rows.
        rows = [{"key_id": key_id, "day": day, "tokens": used[key_id, day]} for key_id, day in sorted(used)]
        async with self._database.begin(write=True) as connection:
            insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert
            for batch in _batches(rows):
                new = insert(KEY_USAGE).values(batch)
                tokens = KEY_USAGE.c.tokens + new.excluded.tokens
                await connection.execute(
                    new.on_conflict_do_update(index_elements=["key_id", "day"], set_={"tokens": tokens})
                )

    async def since(self, day: date, key_ids: Collection[str]) -> dict[str, dict[date, int]]:
        """The tokens of these keys from `day` on: key id -> day -> tokens."""
        found: dict[str, dict[date, int]] = {key_id: {} for key_id in key_ids}
        async with self._database.begin() as connection:
            for batch in _batches(sorted(found)):
                chosen = select(KEY_USAGE).where(KEY_USAGE.c.key_id.in_(batch), KEY_USAGE.c.day >= day)
                for row in await connection.execute(chosen):
                    found[row.key_id][row.day] = row.tokens
        return found

    async def forget_before(self, day: date) -> None:
        async with self._database.begin(write=True) as connection:
            await connection.execute(delete(KEY_USAGE).where(KEY_USAGE.c.day < day))


def _batches(items: Collection[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, _ROWS_A_STATEMENT)):
        yield batch
