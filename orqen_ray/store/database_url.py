"""The address of the database, read and checked; what is refused is said without showing a password."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from orqen_ray.errors import StoreUnavailable

_EXPECTED = "write sqlite+aiosqlite:///data/orqen.db or postgresql://USER:PASSWORD@HOST/DATABASE"
_POSTGRESQL = ("postgresql", "postgres", "postgresql+asyncpg")
_TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# What asyncpg reads from a URL: https://magicstack.github.io/asyncpg/current/api/index.html#connection
_QUERY = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "host", "port", "application_name"})


def parse_database_url(url: str) -> URL:
    """A SQLite URL as it is; a PostgreSQL one with the driver `postgresql+asyncpg` and `ssl` written as `sslmode`.

    Raises:
        StoreUnavailable: no URL, another database, or a parameter that the driver does not take.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number, often a password with a slash or an at sign in it
        raise StoreUnavailable(
            f"storage.database_url is no URL: {_EXPECTED}; percent-encode special characters of the password"
        ) from None
    if parsed.drivername == "sqlite+aiosqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StoreUnavailable(f"storage.database_url names no file: {_EXPECTED}")
        return parsed
    if parsed.drivername not in _POSTGRESQL:
        raise StoreUnavailable(f"storage.database_url: SQLite and PostgreSQL are supported: {_EXPECTED}")
    query = dict(parsed.query)
    if "ssl" in query:
        query.setdefault("sslmode", query.pop("ssl"))
    if unknown := sorted(query.keys() - _QUERY):
        raise StoreUnavailable(
            f"storage.database_url: unknown parameter {unknown[0][:40]!r}; known are {', '.join(sorted(_QUERY))}"
        )
    if query.get("sslmode", "prefer") not in _TLS_MODES:
        raise StoreUnavailable(f"storage.database_url: sslmode is one of {', '.join(_TLS_MODES)}")
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite `url`; None for another database.

    Raises:
        StoreUnavailable: see `parse_database_url`.
    """
    parsed = parse_database_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None
