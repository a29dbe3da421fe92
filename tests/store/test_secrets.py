"""Credentials of providers at rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from orqen_ray.errors import BadRequest, StoreUnavailable
from orqen_ray.store.cipher import Cipher
from orqen_ray.store.database import Database
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.store.tables import PROVIDER_CREDENTIALS
from orqen_ray.types import AwsCredentials, Credentials

KEY = "k" * 32
API_KEY = "sk-live-abcdefghijklmnopqrstuvwxyz-1234"
AWS = AwsCredentials(
    access_key_id="AKIAEXAMPLEEXAMPLE12", secret_access_key="wJalrXUtnFEMI/K7MDENG", session_token="tok"
)


def secrets_over(database: Database, key: str = KEY) -> ProviderSecrets:
    return ProviderSecrets(database, Cipher(key))


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(api_key=API_KEY),
        Credentials(api_key=API_KEY, base_url="https://example.com/v1"),
        Credentials(aws=AWS, region="eu-central-1"),
    ],
)
async def test_credentials_come_back_as_they_went_in(database: Database, credentials: Credentials) -> None:
    await secrets_over(database).put("bedrock", credentials)
    reader = secrets_over(database)
    assert await reader.get("bedrock") == (credentials,)
    assert await reader.names() == {"bedrock"}
    assert await reader.get("other") == ()


async def test_no_secret_can_be_read_in_the_files_or_lists(sqlite_database: Database, database_path: Path) -> None:
    secrets = secrets_over(sqlite_database)
    await secrets.put("openai", Credentials(api_key=API_KEY))
    await secrets.put("bedrock", Credentials(aws=AWS))
    stored = b"".join(file.read_bytes() for file in database_path.parent.iterdir())
    assert b"openai" in stored
    for secret in (API_KEY, AWS.access_key_id, AWS.secret_access_key):
        assert secret.encode() not in stored
        assert secret not in repr(await secrets.list()) + repr(await secrets.get("openai"))
    assert [row.preview for row in await secrets.list()] == ["…LE12", "…1234"]


async def test_a_short_secret_shows_nothing_of_itself(database: Database) -> None:
    assert (await secrets_over(database).put("lab", Credentials(api_key="short"))).preview == "…"


async def test_putting_again_replaces_and_deleting_forgets(database: Database) -> None:
    secrets = secrets_over(database)
    first = await secrets.put("openai", Credentials(api_key="first"))
    second = await secrets.put("openai", Credentials(api_key="second"))
    assert await secrets.get("openai") == (Credentials(api_key="second"),)
    assert second.created_at == first.created_at and second.updated_at > first.updated_at
    assert await secrets.delete("openai") is True
    assert await secrets.get("openai") == ()
    assert await secrets.delete("openai") is False


async def test_what_another_process_changes_is_seen_within_five_seconds(database: Database) -> None:
    now_s = 0.0
    reader = ProviderSecrets(database, Cipher(KEY), clock=lambda: now_s)
    assert await reader.names() == frozenset()
    await secrets_over(database).put("openai", Credentials(api_key=API_KEY))
    now_s = 4.9
    assert await reader.names() == frozenset()
    now_s = 5.0
    assert await reader.get("openai") == (Credentials(api_key=API_KEY),)


async def test_another_secret_key_is_refused_with_what_to_do(database: Database) -> None:
    await secrets_over(database).put("openai", Credentials(api_key=API_KEY))
    other = secrets_over(database, "x" * 32)
    assert await other.names() == {"openai"}
    with pytest.raises(StoreUnavailable, match="ORQEN_SECRET_KEY.*orqen providers connect"):
        await other.get("openai")


async def test_a_row_moved_to_another_provider_is_refused(database: Database) -> None:
    await secrets_over(database).put("openai", Credentials(api_key=API_KEY))
    async with database.begin() as connection:
        await connection.execute(update(PROVIDER_CREDENTIALS).values(provider="evil"))
    with pytest.raises(StoreUnavailable, match="another provider"):
        await secrets_over(database).get("evil")


@pytest.mark.parametrize(
    ("provider", "credentials", "says"),
    [
        ("openai", Credentials(), "API key or AWS keys"),
        ("openai", Credentials(api_key=""), "API key or AWS keys"),
        ("openai", Credentials(api_key="two words"), "visible ASCII"),
        ("openai", Credentials(api_key="line\nbreak"), "visible ASCII"),
        ("../x", Credentials(api_key="a"), "name"),
        ("openai", Credentials(api_key="a", base_url="ftp://x"), "base_url"),
        ("openai", Credentials(api_key="a", base_url="https://user:pass@x"), "base_url"),
        ("openai", Credentials(api_key="a", base_url="https://[x"), "base_url"),
    ],
)
async def test_what_cannot_be_credentials_is_refused(
    database: Database, provider: str, credentials: Credentials, says: str
) -> None:
    with pytest.raises(BadRequest, match=says):
        await secrets_over(database).put(provider, credentials)


@given(st.binary(max_size=200), st.integers(min_value=0))
def test_a_sealed_text_opens_only_unchanged(data: bytes, position: int) -> None:
    cipher = Cipher(KEY)
    sealed = cipher.seal(data)
    assert cipher.open(sealed) == data
    at = position % len(sealed)
    changed = sealed[:at] + ("A" if sealed[at] != "A" else "Q") + sealed[at + 1 :]
    if changed.rstrip("=")[:-1] != sealed.rstrip("=")[:-1]:  # the last letter has bits that mean nothing
        with pytest.raises(StoreUnavailable):
            cipher.open(changed)
