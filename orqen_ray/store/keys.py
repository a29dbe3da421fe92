"""The keys of callers: made, found, listed and revoked; only the SHA-256 of a secret is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from orqen_ray.errors import BadRequest, NotFound
from orqen_ray.store.database import Database
from orqen_ray.store.tables import KEYS

_SECRET = re.compile(r"sk-orq-[0-9a-f]{64}", re.ASCII)
_MAX_NAME_CHARS = 200


def is_well_formed(secret: str) -> bool:
    return _SECRET.fullmatch(secret) is not None


def sha256_hex(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key without its secret. Limits of 0 mean none; `preview` is the start of the secret, for recognition only."""

    id: str
    name: str
    preview: str
    is_admin: bool = False
    rate_limit_rpm: int = 0
    daily_token_budget: int = 0
    weekly_token_budget: int = 0
    k_target_override: int | None = None
    optimization: Mapping[str, bool] = field(default_factory=dict)
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class Keys:
    """The keys in the database. Every method raises StoreUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        name: str,
        *,
        admin: bool = False,
        expires_at: datetime | None = None,
        rate_limit_rpm: int = 0,
        daily_token_budget: int = 0,
        weekly_token_budget: int = 0,
        secret: str | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key.

        Args:
            expires_at: with a time zone; None for never.
            rate_limit_rpm: requests a minute; the budgets are tokens as billed by the provider; 0 for no limit.
            secret: a given one instead of a new random one.
        Returns:
            The record, and the secret: it cannot be read again.
        Raises:
            BadRequest: a name, limit or secret that cannot be one, or a secret that exists already.
        """
        secret = f"sk-orq-{secrets.token_hex(32)}" if secret is None else secret
        record = KeyRecord(
            id=f"key_{secrets.token_hex(8)}",
            name=_checked_name(name),
            preview=f"{_checked_secret(secret)[:11]}…",
            is_admin=admin,
            rate_limit_rpm=_checked_limit("rate_limit_rpm", rate_limit_rpm),
            daily_token_budget=_checked_limit("daily_token_budget", daily_token_budget),
            weekly_token_budget=_checked_limit("weekly_token_budget", weekly_token_budget),
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        row = {column.name: getattr(record, column.name) for column in KEYS.columns if column.name != "sha256"}
        try:
            async with self._database.begin(write=True) as connection:
                await connection.execute(insert(KEYS).values(row | {"sha256": sha256_hex(secret)}))
        except IntegrityError:
            raise BadRequest("this key exists already") from None
        return record, secret

    async def ensure(self, secret: str, name: str, *, admin: bool = True) -> KeyRecord:
        """The key with this secret, made if absent. One that was revoked stays revoked.

        Raises:
            BadRequest: the secret has not the form of a key.
        """
        _checked_secret(secret)
        if (found := await self.find(secret)) is not None:
            return found
        try:
            record, _ = await self.create(name, admin=admin, secret=secret)
        except BadRequest:  # another process may have been faster
            if (found := await self.find(secret)) is None:
                raise
            return found
        return record

    async def list(self) -> list[KeyRecord]:
        """All keys, also revoked ones, oldest first."""
        async with self._database.begin() as connection:
            rows = await connection.execute(select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id))
            return [_record(row) for row in rows]

    async def revoke(self, key_id: str) -> KeyRecord:
        """Make a key useless from now on. Doing it again changes nothing.

        Raises:
            NotFound: no key has this id.
        """
        async with self._database.begin(write=True) as connection:
            found = KEYS.c.id == key_id
            now = datetime.now(UTC)
            await connection.execute(update(KEYS).where(found, KEYS.c.revoked_at.is_(None)).values(revoked_at=now))
            row = (await connection.execute(select(KEYS).where(found))).one_or_none()
        if row is None:
            raise NotFound(f"no key has the id {key_id[:64]!r}; `orqen keys list` shows the ids")
        return _record(row)

    async def switch(
        self, key_id: str, switches: Mapping[str, bool], *, k_target: int | None = None, reset: bool = False
    ) -> KeyRecord:
        """Set what may be optimized for a key; what is not named stays.

        Args:
            switches: names as in `optimization` of the settings.
            k_target: how many tools are sent in full; 0: as many as pay; None: as it was.
            reset: forget first what was set before.
        Raises:
            NotFound: no key has this id.
        """
        found = KEYS.c.id == key_id
        async with self._database.begin(write=True) as connection:
            row = (await connection.execute(select(KEYS).where(found))).one_or_none()
            if row is not None:
                before = {} if reset else row.optimization
                target = None if reset else row.k_target_override
                if k_target is not None:
                    target = _checked_limit("k_target", k_target) or None
                values = {"optimization": {**before, **switches}, "k_target_override": target}
                await connection.execute(update(KEYS).where(found).values(values))
                row = (await connection.execute(select(KEYS).where(found))).one()
        if row is None:
            raise NotFound(f"no key has the id {key_id[:64]!r}; `orqen keys list` shows the ids")
        return _record(row)

    async def find(self, secret: str) -> KeyRecord | None:
        """The key with this secret, also when expired or revoked; None, at once, for what has not the form of a key."""
        if not is_well_formed(secret):
            return None
        digest = sha256_hex(secret)
        async with self._database.begin() as connection:
            row = (await connection.execute(select(KEYS).where(KEYS.c.sha256 == digest))).one_or_none()
        if row is None or not hmac.compare_digest(row.sha256, digest):
            return None
        return _record(row)

    async def count(self) -> int:
        """How many keys there are, revoked ones included."""
        async with self._database.begin() as connection:
            return (await connection.execute(select(func.count()).select_from(KEYS))).scalar_one()


def _record(row: Row[tuple[object, ...]]) -> KeyRecord:
    values = dict(row._mapping)
    del values["sha256"]
    return KeyRecord(**values)


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise BadRequest(f"a key's name is 1 to {_MAX_NAME_CHARS} printable characters", param="name")
    return name


def _checked_secret(secret: str) -> str:
    if not is_well_formed(secret):
        raise BadRequest("a key is sk-orq- followed by 64 lower-case hex digits; `openssl rand -hex 32` makes them")
    return secret


def _checked_limit(name: str, value: int) -> int:
    if not 0 <= value < 2**31:
        raise BadRequest("a limit is 0 (none) or a positive number below 2147483648", param=name)
    return value
