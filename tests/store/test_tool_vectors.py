"""The table of vectors: what is put is found again by the same encoder only, and the table stays small."""

from __future__ import annotations

from datetime import date, timedelta

from orqen_ray.store.database import Database
from orqen_ray.store.tool_vectors import KEPT_DAYS, ToolVectors

MANY = {f"{number:064x}": number.to_bytes(2, "little") for number in range(1200)}


async def test_what_was_put_is_found_by_the_same_encoder_and_by_no_other(database: Database) -> None:
    await ToolVectors(database).put_many("one", MANY)
    vectors = ToolVectors(database)
    assert await vectors.get_many("one", [*MANY, "f" * 64]) == MANY
    assert await vectors.get_many("two", list(MANY)) == {}
    await vectors.put_many("one", dict.fromkeys(MANY, b"xx"))
    assert await vectors.get_many("one", list(MANY)) == MANY, "a vector that is there stays as it is"


async def test_old_vectors_go_and_a_full_table_takes_no_more(database: Database) -> None:
    vectors = ToolVectors(database, max_rows=3)
    first = date(2026, 1, 1)
    digests = list(MANY)
    await vectors.put_many("one", {digest: MANY[digest] for digest in digests[:2]}, first)
    await vectors.put_many("one", {digest: MANY[digest] for digest in digests[2:5]}, first)
    assert len(await vectors.get_many("one", digests)) == 3
    later = first + timedelta(days=KEPT_DAYS + 1)
    await vectors.put_many("one", {digests[7]: b"ab"}, later)
    assert await vectors.get_many("one", digests) == {digests[7]: b"ab"}
