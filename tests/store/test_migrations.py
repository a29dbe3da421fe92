"""From every released shape of the store to the newest, with all that was in it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from orqen_ray.pins import Pin
from orqen_ray.policy import ToolUse
from orqen_ray.store.cipher import Cipher
from orqen_ray.store.database import Database
from orqen_ray.store.keys import KeyRecord, Keys, sha256_hex
from orqen_ray.store.pins import open_pins
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.store.tables import METADATA
from orqen_ray.store.token_counts import TokenCounts
from orqen_ray.store.tool_use import ToolUses
from orqen_ray.store.tool_vectors import ToolVectors
from orqen_ray.types import Credentials

PIN = Pin(snapshot="1", arm="routed", tool_set="set", kept=("read",), indexed=("write",))
SECRET = "sk-orq-" + "ab" * 32
SECRET_KEY = "k" * 32
MADE = datetime(2029, 12, 31, 23, 59, 58, tzinfo=UTC)
KEY = KeyRecord(
    id="key_1",
    name="Älice",
    preview="sk-orq-abab…",
    is_admin=True,
    rate_limit_rpm=60,
    daily_token_budget=2**40,
    weekly_token_budget=2**41,
    k_target_override=8,
    optimization={"tools": False},
    created_at=MADE,
    expires_at=MADE + timedelta(days=1),
    revoked_at=None,
)


def alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "orqen_ray:store/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


REVISIONS = [
    script.revision
    for script in ScriptDirectory.from_config(
        alembic_config(None)  # type: ignore[arg-type]  # nothing connects
    ).walk_revisions()
]


@pytest.fixture
async def engine(database_url: str, tmp_path: Any) -> AsyncIterator[AsyncEngine]:
    (tmp_path / "data").mkdir(exist_ok=True)
    engine = create_async_engine(database_url, poolclass=NullPool)
    yield engine
    await engine.dispose()


async def run(engine: AsyncEngine, work: Callable[[Connection], Any]) -> Any:
    async with engine.connect() as connection:
        result = await connection.run_sync(work)
        await connection.commit()
    return result


def fill_0001(connection: Connection) -> None:
    """The rows as the version with revision 0001 wrote them, sealed as it did."""
    key = {"id": KEY.id, "name": KEY.name, "preview": KEY.preview, "sha": sha256_hex(SECRET), "made": MADE}
    connection.execute(
        text(
            "INSERT INTO keys VALUES (:id, :name, :sha, :preview, true, 60, 1099511627776, 2199023255552, 8, "
            "'{\"tools\": false}', :made, :expires, NULL)"
        ).bindparams(**key, expires=MADE + timedelta(days=1))
    )
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"orqen-ray provider credentials v1")
    fernet = Fernet(base64.urlsafe_b64encode(derivation.derive(SECRET_KEY.encode())))
    secret = {"api_key": "sk-live", "aws": None, "region": "eu-west-1", "base_url": "https://a.example"}
    sealed = fernet.encrypt(msgspec.json.encode({"provider": "azure", "credentials": secret})).decode()
    connection.execute(
        text(
            "INSERT INTO provider_credentials (provider, ciphertext, preview, region, base_url, created_at, updated_at)"
            " VALUES ('azure', :sealed, '…', 'eu-west-1', 'https://a.example', :made, :made)"
        ).bindparams(sealed=sealed, made=MADE)
    )


def fill_0002(connection: Connection) -> None:
    """What revision 0002 added."""
    sealed = Cipher(SECRET_KEY).seal(
        msgspec.json.encode({"provider": "azure", "credentials": {"api_key": "sk-two", "label": "two"}})
    )
    connection.execute(
        text(
            "INSERT INTO provider_credentials (provider, label, ciphertext, preview, created_at, updated_at)"
            " VALUES ('azure', 'two', :sealed, '…', :made, :made)"
        ).bindparams(sealed=sealed, made=MADE)
    )
    day = MADE.date()
    connection.execute(text("INSERT INTO key_usage VALUES ('key_1', :day, 3000000000)").bindparams(day=day))


def fill_0005(connection: Connection) -> None:
    """What revision 0005 added."""
    use = '{"conversations":40.0,"called":{"read":30.0},"calls":200.0}'
    connection.execute(
        text("INSERT INTO tool_use VALUES ('set', :made, :live, :use)").bindparams(
            made=MADE, live=f'{{"use":{use},"recent":2.0,"minutes":60.0}}', use=use
        )
    )


def fill_0003(connection: Connection) -> None:
    """What revision 0003 added."""
    row = {"sha256": "a" * 64, "vector": b"1234", "day": MADE.date()}
    connection.execute(text("INSERT INTO tool_vectors VALUES (:sha256, 'one', :vector, :day)").bindparams(**row))


def fill_0004(connection: Connection) -> None:
    """What revision 0004 added."""
    pin = msgspec.msgpack.encode(PIN)
    connection.execute(
        text("INSERT INTO pins VALUES ('one', :pin, :until)").bindparams(pin=pin, until=datetime(2999, 1, 1))
    )


FILLS: dict[str, Callable[[Connection], None]] = {
    "0001": fill_0001,
    "0002": fill_0002,
    "0003": fill_0003,
    "0004": fill_0004,
    "0005": fill_0005,
}


@pytest.mark.parametrize("revision", sorted(REVISIONS))
async def test_what_an_older_version_has_stored_is_read_by_the_newest(
    engine: AsyncEngine, database_url: str, revision: str
) -> None:
    def build(connection: Connection) -> None:
        # A literal time binds as text on SQLite, as the older version's own type did.
        for step in sorted(FILLS):
            if step <= revision:
                command.upgrade(alembic_config(connection), step)
                FILLS[step](connection)

    assert set(FILLS) == set(REVISIONS), "a new revision needs rows of its own here"
    await run(engine, build)
    database = Database(database_url)
    await database.migrate()
    assert await Keys(database).find(SECRET) == KEY
    stored = ProviderSecrets(database, Cipher(SECRET_KEY))
    first = Credentials(api_key="sk-live", region="eu-west-1", base_url="https://a.example")
    second = [Credentials(api_key="sk-two", label="two")] if revision >= "0002" else []
    assert await stored.get("azure") == (first, *second)
    assert [(row.label, row.created_at) for row in await stored.list()][0] == ("default", MADE)
    used = await TokenCounts(database).since(MADE.date(), ["key_1"])
    assert used == {"key_1": {MADE.date(): 3_000_000_000} if revision >= "0002" else {}}
    learned = {"set": ToolUse(conversations=40, called={"read": 30}, calls=200)} if revision >= "0005" else {}
    assert await ToolUses(database).published() == learned
    vectors = await ToolVectors(database).get_many("one", ["a" * 64])
    assert vectors == ({"a" * 64: b"1234"} if revision >= "0003" else {})
    assert await open_pins(database, None, 60).get("one") == (PIN if revision >= "0004" else None)
    await database.aclose()


async def test_the_migrations_make_exactly_the_tables_of_the_code(database: Database, engine: AsyncEngine) -> None:
    def compare(connection: Connection) -> Any:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)

    assert await run(engine, compare) == []


async def test_a_gateway_of_the_version_before_can_still_store_credentials(
    database: Database, engine: AsyncEngine
) -> None:
    await run(engine, fill_0001)  # its INSERT knows no label
    assert [row.label for row in await ProviderSecrets(database, Cipher(SECRET_KEY)).list()] == ["default"]


async def test_a_revision_can_be_undone_while_nothing_needs_it(database: Database, engine: AsyncEngine) -> None:
    await run(engine, fill_0001)
    await run(engine, fill_0002)
    await run(engine, lambda connection: command.downgrade(alembic_config(connection), "0001"))
    await database.migrate()
    stored = ProviderSecrets(database, Cipher(SECRET_KEY))
    assert [credentials.label for credentials in await stored.get("azure")] == ["default"]
    await asyncio.sleep(0)
