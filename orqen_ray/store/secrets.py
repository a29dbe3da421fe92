"""The credentials of providers, sealed at rest."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from orqen_ray.errors import BadRequest, StoreUnavailable
from orqen_ray.store.database import Database, make_private_directory, sqlite_path
from orqen_ray.store.tables import PROVIDER_CREDENTIALS
from orqen_ray.types import Credentials

_MIN_KEY_CHARS = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_SECRET = re.compile(r"[!-~]{1,4096}", re.ASCII)
_MAKE_ONE = "`openssl rand -hex 32` makes one"


class Cipher:
    """Authenticated encryption (Fernet: AES-128-CBC and HMAC-SHA256) with a key derived by HKDF-SHA256."""

    def __init__(self, secret_key: str) -> None:
        """Args: secret_key: at least 32 characters, random. Raises StoreUnavailable if shorter."""
        if len(secret_key) < _MIN_KEY_CHARS:
            raise StoreUnavailable(f"ORQEN_SECRET_KEY needs at least {_MIN_KEY_CHARS} characters; {_MAKE_ONE}")
        derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"orqen-ray provider credentials v1")
        self._fernet = Fernet(base64.urlsafe_b64encode(derivation.derive(secret_key.encode())))

    def seal(self, data: bytes) -> str:
        return self._fernet.encrypt(data).decode()

    def open(self, sealed: str) -> bytes:
        """Raises StoreUnavailable: sealed with another key, or changed since."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise StoreUnavailable(
                "the stored credentials were sealed with another secret key: set ORQEN_SECRET_KEY (or restore the file "
                "secret.key beside the database) as it was then, or run `orqen providers connect` again"
            ) from None


def load_cipher(database_url: str, secret_key: str | None) -> Cipher:
    """The cipher of this installation; blocking, for start-up.

    Args:
        secret_key: ORQEN_SECRET_KEY. Without it, the file `secret.key` (mode 0600) beside the SQLite database is used,
            and made at first.
    Raises:
        StoreUnavailable: the key is too short, its file can be read by others, or there is no place for one.
    """
    if secret_key is not None:
        return Cipher(secret_key)
    database_path = sqlite_path(database_url)
    if database_path is None:
        raise StoreUnavailable(f"set ORQEN_SECRET_KEY: this database has no folder for a key file; {_MAKE_ONE}")
    path = database_path.with_name("secret.key")
    try:
        make_private_directory(path.parent)
        if not path.exists():
            write_new_key(path)
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise StoreUnavailable("secret.key beside the database can be read by others: `chmod 600` it")
            return Cipher(file.read().strip())
    except OSError as error:
        raise StoreUnavailable(f"secret.key beside the database cannot be used: {error.strerror}") from error


def write_new_key(path: Path) -> None:
    """Write a random key to `path`, whole or not at all; of two processes the first wins."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProvider:
    """What may be shown of stored credentials. `preview` is the end of the secret."""

    provider: str
    preview: str
    region: str | None
    base_url: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    """What is encrypted: the provider's name too, so that a row moved to another provider is refused."""

    provider: str
    credentials: Credentials


class ProviderSecrets:
    """Stored credentials by provider. What another process changes is seen within `ttl_s`.

    Every method raises StoreUnavailable when the database or the secret key cannot be used.
    """

    def __init__(
        self, database: Database, cipher: Cipher, ttl_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._ttl_s = ttl_s
        self._clock = clock
        self._sealed: Mapping[str, str] = {}
        self._until_s = float("-inf")
        self._lock = asyncio.Lock()

    async def put(self, provider: str, credentials: Credentials) -> StoredProvider:
        """Store credentials, in place of any that the provider has.

        Raises:
            BadRequest: no secret in them, or a name or base URL that cannot be one.
        """
        _check(provider, credentials)
        sealed = self._cipher.seal(msgspec.json.encode(_Sealed(provider=provider, credentials=credentials)))
        now = datetime.now(UTC)
        values = {
            "ciphertext": sealed,
            "preview": _preview(credentials),
            "region": credentials.region,
            "base_url": credentials.base_url,
            "updated_at": now,
        }
        table = PROVIDER_CREDENTIALS
        change = update(table).where(table.c.provider == provider).values(values)
        try:
            async with self._database.begin() as connection:
                if (await connection.execute(change)).rowcount == 0:
                    await connection.execute(insert(table).values(values | {"provider": provider, "created_at": now}))
        except IntegrityError:  # another process inserted it in between
            async with self._database.begin() as connection:
                await connection.execute(change)
        self._forget()
        return next(stored for stored in await self.list() if stored.provider == provider)

    async def get(self, provider: str) -> tuple[Credentials, ...]:
        """The credentials of `provider`, if there are any."""
        sealed = (await self._rows()).get(provider)
        if sealed is None:
            return ()
        opened = msgspec.json.decode(self._cipher.open(sealed), type=_Sealed)
        if opened.provider != provider:
            raise StoreUnavailable("stored credentials belong to another provider; run `orqen providers connect` again")
        return (opened.credentials,)

    async def names(self) -> frozenset[str]:
        """The providers that have stored credentials."""
        return frozenset(await self._rows())

    async def list(self) -> list[StoredProvider]:
        """What may be shown of each, by name."""
        table = PROVIDER_CREDENTIALS
        shown = [column for column in table.columns if column.name != "ciphertext"]
        async with self._database.begin() as connection:
            rows = await connection.execute(select(*shown).order_by(table.c.provider))
            return [StoredProvider(**row._mapping) for row in rows]

    async def delete(self, provider: str) -> bool:
        """Forget the credentials of `provider`. False when there were none."""
        table = PROVIDER_CREDENTIALS
        async with self._database.begin() as connection:
            result = await connection.execute(delete(table).where(table.c.provider == provider))
        self._forget()
        return result.rowcount > 0

    def _forget(self) -> None:
        self._until_s = float("-inf")

    async def _rows(self) -> Mapping[str, str]:
        """The sealed credentials of all providers: few rows, so one query serves every request for `ttl_s`."""
        if self._clock() >= self._until_s:
            async with self._lock:
                started_s = self._clock()
                if started_s >= self._until_s:
                    table = PROVIDER_CREDENTIALS
                    async with self._database.begin() as connection:
                        rows = await connection.execute(select(table.c.provider, table.c.ciphertext))
                        self._sealed = {row.provider: row.ciphertext for row in rows}
                    self._until_s = started_s + self._ttl_s
        return self._sealed


def _check(provider: str, credentials: Credentials) -> None:
    if not _NAME.fullmatch(provider):
        raise BadRequest("a provider's name is 1 to 100 letters, digits, dots, dashes or underscores", param="provider")
    if not credentials.api_key and credentials.aws is None:
        raise BadRequest("credentials need an API key or AWS keys", param="api_key")
    if any(not _SECRET.fullmatch(secret) for secret in _secrets_of(credentials)):
        raise BadRequest("a secret is visible ASCII characters without spaces", param="api_key")
    if credentials.base_url is not None:
        try:
            url = urlsplit(credentials.base_url)
            usable = url.scheme in ("http", "https") and url.hostname and not url.username and not url.password
        except ValueError:
            usable = False
        if not usable:
            raise BadRequest("write a full http(s) URL without user name or password", param="base_url")


def _secrets_of(credentials: Credentials) -> list[str]:
    aws = credentials.aws
    parts = [credentials.api_key, *((aws.access_key_id, aws.secret_access_key, aws.session_token) if aws else ())]
    return [part for part in parts if part is not None]


def _preview(credentials: Credentials) -> str:
    secret = credentials.api_key or (credentials.aws.access_key_id if credentials.aws else "")
    return f"…{secret[-4:]}" if len(secret) >= 16 else "…"
