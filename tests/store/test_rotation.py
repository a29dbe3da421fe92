"""Changing the key that seals: nothing is lost wherever it stops, and gateways go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.cipher import Cipher, KeyFile, load_cipher
from orqen_ray.store.database import Database
from orqen_ray.store.rotation import Rotation, rotate
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.types import Credentials

OLD, NEW = "o" * 32, "n" * 32
STORED = {
    "openai": (Credentials(api_key="sk-a", label="a"), Credentials(api_key="sk-b", label="b")),
    "groq": (Credentials(api_key="sk-g"),),
}


async def fill(secrets: ProviderSecrets) -> None:
    for provider, several in STORED.items():
        for credentials in several:
            await secrets.put(provider, credentials)


async def opened(secrets: ProviderSecrets) -> dict[str, tuple[Credentials, ...]]:
    return {provider: await secrets.get(provider) for provider in STORED}


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys" / "secret.key")


def cipher_of(key_file: KeyFile) -> Cipher:
    return Cipher(*key_file.read(), key_file=key_file)


async def test_with_keys_of_the_environment_all_rows_go_to_the_first(database: Database) -> None:
    await fill(ProviderSecrets(database, Cipher(OLD)))
    both = load_cipher("postgresql://h/d", f"{NEW}, {OLD}")
    assert await opened(ProviderSecrets(database, both)) == STORED
    assert await rotate(database, both) == Rotation(credentials=3, resealed=3, new_key=False)
    assert await rotate(database, both) == Rotation(credentials=3, resealed=0, new_key=False)
    assert await opened(ProviderSecrets(database, Cipher(NEW))) == STORED
    with pytest.raises(StoreUnavailable):
        await ProviderSecrets(database, Cipher(OLD)).get("groq")


async def test_with_a_key_file_a_new_key_is_alone_there_in_the_end(
    database: Database, key_file: KeyFile, tmp_path: Path
) -> None:
    cipher = cipher_of(key_file)
    (first,) = key_file.read()
    await fill(ProviderSecrets(database, cipher))
    assert await rotate(database, cipher) == Rotation(credentials=3, resealed=3, new_key=True)
    (second,) = key_file.read()
    assert second != first and len(second) == 64
    assert await opened(ProviderSecrets(database, cipher_of(key_file))) == STORED
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
    assert files == {"secret.key": 0o600, "secret.key.lock": 0o600}


class Killed(BaseException):
    pass


class DyingKeyFile(KeyFile):
    """Dies at a given write: before it, or just after."""

    def __init__(self, path: Path, at: int, before: bool) -> None:
        super().__init__(path)
        self.at, self.before, self.writes = at, before, 0

    def write(self, secret_keys: Sequence[str]) -> None:
        self.writes += 1
        if self.writes == self.at and self.before:
            raise Killed
        super().write(secret_keys)
        if self.writes == self.at:
            raise Killed


async def check_that_nothing_is_lost(database: Database, key_file: KeyFile) -> None:
    assert await opened(ProviderSecrets(database, cipher_of(key_file))) == STORED
    await rotate(database, cipher_of(key_file))
    (only,) = key_file.read()
    assert await opened(ProviderSecrets(database, Cipher(only))) == STORED


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", [1, 2])
async def test_killed_at_the_key_file_nothing_is_lost_and_again_finishes_it(
    database: Database, key_file: KeyFile, at: int, before: bool
) -> None:
    await fill(ProviderSecrets(database, cipher_of(key_file)))
    dying = DyingKeyFile(key_file._path, at, before)
    with pytest.raises(Killed):
        await rotate(database, Cipher(*key_file.read(), key_file=dying))
    await check_that_nothing_is_lost(database, key_file)


@pytest.mark.parametrize("after_rows", [0, 1, 2])
async def test_killed_between_two_rows_nothing_is_lost_and_again_finishes_it(
    database: Database, key_file: KeyFile, after_rows: int
) -> None:
    await fill(ProviderSecrets(database, cipher_of(key_file)))
    updates = 0

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal updates
        if statement.startswith("UPDATE provider_credentials"):
            updates += 1
            if updates > after_rows:
                raise Killed

    event.listen(database._engine.sync_engine, "before_cursor_execute", count)
    with pytest.raises(Killed):
        await rotate(database, cipher_of(key_file))
    event.remove(database._engine.sync_engine, "before_cursor_execute", count)
    await check_that_nothing_is_lost(database, key_file)


async def test_a_running_gateway_opens_what_was_sealed_anew(database: Database, key_file: KeyFile) -> None:
    now_s = 0.0
    gateway = ProviderSecrets(database, cipher_of(key_file), clock=lambda: now_s)
    cold = ProviderSecrets(database, cipher_of(key_file), clock=lambda: now_s)
    await fill(ProviderSecrets(database, cipher_of(key_file)))
    assert await opened(gateway) == STORED
    await cold.names()  # has the rows of before, and has opened none of them
    for _ in range(3):
        await rotate(database, cipher_of(key_file))
        assert await opened(gateway) == STORED
        now_s += 5
        assert await opened(gateway) == STORED
    assert await opened(cold) == STORED


async def test_a_gateway_that_read_the_rows_in_the_middle_of_a_rotation_opens_all_of_them(
    database: Database, key_file: KeyFile
) -> None:
    key_file.read()
    key_file.write([OLD])
    gateway = ProviderSecrets(database, cipher_of(key_file))
    await ProviderSecrets(database, Cipher(NEW)).put("openai", Credentials(api_key="sk-new"))
    await ProviderSecrets(database, Cipher(OLD)).put("groq", Credentials(api_key="sk-old"))
    assert await gateway.names() == {"openai", "groq"}
    key_file.write([NEW])  # the rotation ends, and with it the old key
    assert await gateway.get("openai") == (Credentials(api_key="sk-new"),)
    assert await gateway.get("groq") == (Credentials(api_key="sk-old"),)


async def test_what_is_stored_during_a_rotation_waits_and_is_sealed_with_the_new_key(
    database: Database, key_file: KeyFile
) -> None:
    slow = ProviderSecrets(database, cipher_of(key_file))  # has read the old key, and takes its time
    with key_file.locked(exclusive=True):
        storing = asyncio.create_task(slow.put("groq", Credentials(api_key="sk-g")))
        done, _ = await asyncio.wait({storing}, timeout=0.2)
        assert not done
        key_file.write([NEW])
    await storing
    assert await ProviderSecrets(database, Cipher(NEW)).get("groq") == STORED["groq"]


async def test_what_somebody_stores_while_a_row_is_sealed_anew_is_not_overwritten(
    database: Database, database_url: str
) -> None:
    await ProviderSecrets(database, Cipher(OLD)).put("groq", Credentials(api_key="sk-old"))

    async def store() -> None:
        other = Database(database_url)
        await ProviderSecrets(other, Cipher(NEW, OLD)).put("groq", Credentials(api_key="sk-new"))
        await other.aclose()

    class Interrupted(Cipher):
        """Somebody else stores between the reading of a row and its writing."""

        def open(self, sealed: str) -> bytes:
            with ThreadPoolExecutor() as pool:
                pool.submit(asyncio.run, store()).result()
            return super().open(sealed)

    await rotate(database, Interrupted(NEW, OLD))
    assert await ProviderSecrets(database, Cipher(NEW)).get("groq") == (Credentials(api_key="sk-new"),)


async def test_rows_that_were_read_in_the_middle_of_a_rotation_are_opened_after_its_end(
    database: Database, key_file: KeyFile
) -> None:
    (first,) = key_file.read()
    gateway = ProviderSecrets(database, cipher_of(key_file))
    await ProviderSecrets(database, Cipher(NEW)).put("groq", Credentials(api_key="sk-g"))
    for credentials in STORED["openai"]:
        await ProviderSecrets(database, Cipher(first)).put("openai", credentials)
    await gateway.names()
    key_file.write([NEW])
    assert await gateway.get("groq") == STORED["groq"], "the key file was read again"
    assert await gateway.get("openai") == STORED["openai"], "and the key that is no longer in it still known"


async def test_a_row_that_no_key_opens_is_named_and_no_key_is_taken_away(database: Database, key_file: KeyFile) -> None:
    await ProviderSecrets(database, Cipher(OLD)).put("openai", Credentials(api_key="lost", label="eu"))
    await ProviderSecrets(database, cipher_of(key_file)).put("groq", Credentials(api_key="sk-g"))
    with pytest.raises(StoreUnavailable, match="disconnect openai --label eu"):
        await rotate(database, cipher_of(key_file))
    assert len(key_file.read()) == 2
    assert await ProviderSecrets(database, cipher_of(key_file)).get("groq") == STORED["groq"]


async def test_a_lost_key_takes_only_its_own_credentials_with_it(database: Database) -> None:
    await ProviderSecrets(database, Cipher(OLD)).put("openai", Credentials(api_key="lost", label="a"))
    secrets = ProviderSecrets(database, Cipher(NEW))
    await secrets.put("openai", Credentials(api_key="kept", label="b"))
    assert await secrets.get("openai") == (Credentials(api_key="kept", label="b"),)


async def test_one_of_several_that_cannot_be_opened_is_tried_again_and_said_once(
    database: Database, key_file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    (first,) = key_file.read()
    gateway = ProviderSecrets(database, cipher_of(key_file), clock=lambda: now_s)
    await ProviderSecrets(database, Cipher(first)).put("openai", Credentials(api_key="sk-a", label="a"))
    await ProviderSecrets(database, Cipher(NEW)).put("openai", Credentials(api_key="sk-b", label="b"))
    for _ in range(20):
        now_s += 0.5
        assert await gateway.get("openai") == STORED["openai"][:1]
    assert await gateway.lost() == [("openai", "b")]
    assert caplog.messages == ["the credentials b of openai cannot be opened"]
    key_file.write([NEW, first])  # as a rotation does, of which this row was a part
    now_s += 1
    assert await gateway.get("openai") == STORED["openai"] and await gateway.lost() == []


async def test_a_row_with_another_label_than_it_was_sealed_with_is_refused(database: Database) -> None:
    secrets = ProviderSecrets(database, Cipher(OLD))
    await secrets.put("openai", Credentials(api_key="sk", label="a"))
    async with database.begin(write=True) as connection:
        await connection.execute(text("UPDATE provider_credentials SET label = 'b'"))
    with pytest.raises(StoreUnavailable, match="another"):
        await ProviderSecrets(database, Cipher(OLD)).get("openai")


async def test_labels_are_replaced_listed_and_forgotten_one_by_one(database: Database) -> None:
    secrets = ProviderSecrets(database, Cipher(OLD))
    for label in ("z", "default", "B"):
        await secrets.put("openai", Credentials(api_key=f"sk-{label}", label=label))
    await secrets.put("openai", Credentials(api_key="sk-new", label="z"))
    assert [row.label for row in await secrets.list()] == ["B", "default", "z"]
    assert [each.api_key for each in await secrets.get("openai")] == ["sk-B", "sk-default", "sk-new"]
    assert await secrets.delete("openai", "default") and not await secrets.delete("openai", "default")
    assert [each.label for each in await secrets.get("openai")] == ["B", "z"]
    assert await secrets.delete("openai") and await secrets.get("openai") == ()
