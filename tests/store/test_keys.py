"""Keys: made, found, revoked, and never stored in the clear."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import BadRequest, NotFound
from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys, is_well_formed

SECRET = "sk-orq-" + "0123456789abcdef" * 4


async def test_a_key_is_found_by_its_secret_with_all_it_was_made_with(database: Database) -> None:
    keys = Keys(database)
    expires_at = datetime.now(UTC) + timedelta(days=1)
    record, secret = await keys.create(
        "alice", admin=True, expires_at=expires_at, rate_limit_rpm=60, daily_token_budget=1, weekly_token_budget=2
    )
    assert re.fullmatch(r"sk-orq-[0-9a-f]{64}", secret)
    assert await keys.find(secret) == record
    assert (record.name, record.is_admin, record.expires_at, record.rate_limit_rpm) == ("alice", True, expires_at, 60)
    assert (record.daily_token_budget, record.weekly_token_budget) == (1, 2)
    assert record.created_at.tzinfo is not None


async def test_a_time_in_another_zone_is_kept_as_the_same_instant(database: Database) -> None:
    keys = Keys(database)
    expires_at = datetime.fromisoformat("2030-01-01T02:00:00+05:00")
    _, secret = await keys.create("far", expires_at=expires_at)
    found = await keys.find(secret)
    assert found is not None and found.expires_at == expires_at


async def test_the_secret_is_nowhere_in_the_files(sqlite_database: Database, database_path: Path) -> None:
    record, secret = await Keys(sqlite_database).create("alice")
    stored = b"".join(file.read_bytes() for file in database_path.parent.iterdir())
    assert record.id.encode() in stored
    assert secret.encode() not in stored and secret[11:].encode() not in stored
    assert secret not in repr(record) and secret.startswith(record.preview.removesuffix("…"))


async def test_no_two_keys_have_one_secret(database: Database) -> None:
    keys = Keys(database)
    await keys.create("first", secret=SECRET)
    with pytest.raises(BadRequest, match="exists already"):
        await keys.create("second", secret=SECRET)


async def test_ensuring_a_key_many_times_at_once_makes_it_once(database: Database) -> None:
    keys = Keys(database)
    records = await asyncio.gather(*(keys.ensure(SECRET, "bootstrap") for _ in range(5)))
    assert {record.id for record in records} == {(await keys.list())[0].id}
    assert await keys.count() == 1 and records[0].is_admin


async def test_ensuring_does_not_bring_a_revoked_key_back(database: Database) -> None:
    keys = Keys(database)
    record = await keys.ensure(SECRET, "bootstrap")
    await keys.revoke(record.id)
    assert (await keys.ensure(SECRET, "bootstrap")).revoked_at is not None


async def test_revoking_twice_keeps_the_first_time_and_an_unknown_id_is_named(database: Database) -> None:
    keys = Keys(database)
    record, _ = await keys.create("alice")
    first = await keys.revoke(record.id)
    assert first.revoked_at is not None and await keys.revoke(record.id) == first
    with pytest.raises(NotFound, match="key_nope"):
        await keys.revoke("key_nope")


@pytest.mark.parametrize(
    "secret", ["", "sk-orq-", SECRET[:-1], SECRET + "0", SECRET.upper(), SECRET + "\n", "x" + SECRET]
)
async def test_a_secret_of_another_form_is_refused_and_never_found(database: Database, secret: str) -> None:
    with pytest.raises(BadRequest, match="openssl rand"):
        await Keys(database).ensure(secret, "bootstrap")
    assert await Keys(database).find(secret) is None


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "x" * 201, "\x1b[31m"])
async def test_a_name_that_would_spoil_a_list_is_refused(database: Database, name: str) -> None:
    with pytest.raises(BadRequest, match="name"):
        await Keys(database).create(name)


@pytest.mark.parametrize("limit", ["rate_limit_rpm", "daily_token_budget", "weekly_token_budget"])
async def test_a_negative_limit_is_refused_by_its_name(database: Database, limit: str) -> None:
    with pytest.raises(BadRequest, match=limit):
        await Keys(database).create("alice", **{limit: -1})  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_only_the_documented_form_is_well_formed(text: str) -> None:
    assert is_well_formed(text) == (re.fullmatch(r"sk-orq-[0123456789abcdef]{64}", text) is not None)
