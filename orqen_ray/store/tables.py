"""The tables of the store, in types that SQLite and PostgreSQL share."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time in UTC, always with its zone: SQLite forgets it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC)


METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    },
)

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("preview", String(32), nullable=False),
    Column("is_admin", Boolean, nullable=False),
    Column("rate_limit_rpm", Integer, nullable=False),
    Column("daily_token_budget", BigInteger, nullable=False),
    Column("weekly_token_budget", BigInteger, nullable=False),
    Column("k_target_override", Integer),
    Column("optimization", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

# `region` and `base_url` are shown in lists; the sealed text holds them too, and only that copy is used.
PROVIDER_CREDENTIALS = Table(
    "provider_credentials",
    METADATA,
    Column("provider", String(100), primary_key=True),
    Column("label", String(100), primary_key=True, server_default="default"),
    Column("ciphertext", Text, nullable=False),
    Column("preview", String(32), nullable=False),
    Column("region", String(64)),
    Column("base_url", String(2000)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

# Tokens that providers billed, by the UTC day on which the answer ended. A row outlives its key: it is only a count.
KEY_USAGE = Table(
    "key_usage",
    METADATA,
    Column("key_id", String(32), primary_key=True),
    Column("day", Date, primary_key=True, index=True),
    Column("tokens", BigInteger, nullable=False),
)

# What conversations were given at first sight, until no provider's cache can hold their prefix any more.
PINS = Table(
    "pins",
    METADATA,
    Column("conversation", String(64), primary_key=True),
    Column("pin", LargeBinary, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
)

# What the conversations of a tool set did. `live` is decayed to `as_of`; `published` is what snapshots are made of.
TOOL_USE = Table(
    "tool_use",
    METADATA,
    Column("tool_set", String(64), primary_key=True),
    Column("as_of", UtcDateTime, nullable=False, index=True),
    Column("live", Text, nullable=False),
    Column("published", Text, nullable=False),
)

# Vectors of tool texts, by the digest of the encoder's name and the text. Only a cache: any row may go.
TOOL_VECTORS = Table(
    "tool_vectors",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("encoder", String(200), nullable=False),
    Column("vector", LargeBinary, nullable=False),
    Column("made_on", Date, nullable=False, index=True),
)
