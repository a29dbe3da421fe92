"""The credentials of providers, sealed at rest; a provider may have several, told apart by their labels."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from orqen_ray.errors import BadRequest, StoreUnavailable
from orqen_ray.store.cipher import Cipher
from orqen_ray.store.database import Database
from orqen_ray.store.outage import forget_failure
from orqen_ray.store.tables import PROVIDER_CREDENTIALS
from orqen_ray.types import Credentials

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_SECRET = re.compile(r"[!-~]{1,4096}", re.ASCII)
_PATIENCE_S = 0.25
_LOOK_UP_S = 10.0
_RELOAD_EVERY_S = 1.0

_log = logging.getLogger(__name__)

_Rows = Mapping[str, Mapping[str, str]]
"""Provider -> label -> sealed credentials, by label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProvider:
    """What may be shown of stored credentials. `preview` is the end of the secret."""

    provider: str
    label: str
    preview: str
    region: str | None
    base_url: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    """What is encrypted: provider and label too (it is in `credentials`), so that a row moved elsewhere is refused."""

    provider: str
    credentials: Credentials


class ProviderSecrets:
    """Stored credentials by provider. What another process changes is seen within `ttl_s`.

    While the database cannot be asked, what was read from it goes on serving for `grace_s`. Every method raises
    StoreUnavailable when the database or the secret key cannot be used and nothing is known that would do.
    """

    def __init__(
        self,
        database: Database,
        cipher: Cipher,
        ttl_s: float = 5.0,
        grace_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._ttl_s = ttl_s
        self._grace_s = grace_s
        self._clock = clock
        self._sealed: _Rows = {}
        self._opened: dict[str, tuple[Mapping[str, str], tuple[Credentials, ...]]] = {}
        self._lost: dict[tuple[str, str], str] = {}
        self._fresh_until_s = self._read_at_s = float("-inf")
        self._refresh: asyncio.Task[None] | None = None
        self._reload_after_s = float("-inf")

    async def put(self, provider: str, credentials: Credentials) -> StoredProvider:
        """Store credentials, in place of those with the same label.

        Raises:
            BadRequest: no secret in them, or a name, label or base URL that cannot be one.
        """
        _check(provider, credentials)
        label, table = credentials.label, PROVIDER_CREDENTIALS
        async with sealing(self._cipher):
            now = datetime.now(UTC)
            values = {
                "ciphertext": self._cipher.seal(
                    msgspec.json.encode(_Sealed(provider=provider, credentials=credentials))
                ),
                "preview": _preview(credentials),
                "region": credentials.region,
                "base_url": credentials.base_url,
                "updated_at": now,
            }
            change = update(table).where(table.c.provider == provider, table.c.label == label).values(values)
            new = insert(table).values(values | {"provider": provider, "label": label, "created_at": now})
            try:
                async with self._database.begin(write=True) as connection:
                    if (await connection.execute(change)).rowcount == 0:
                        await connection.execute(new)
            except IntegrityError:  # another process inserted it in between
                async with self._database.begin(write=True) as connection:
                    await connection.execute(change)
        self._forget()
        return next(row for row in await self.list() if (row.provider, row.label) == (provider, label))

    async def get(self, provider: str) -> tuple[Credentials, ...]:
        """The credentials of `provider` in the order of their labels; none: an empty tuple.

        Raises:
            StoreUnavailable: there are some, and none of them can be opened.
        """
        sealed = (await self._rows()).get(provider)
        if sealed is None:
            return ()
        rows, opened = self._opened.get(provider, ({}, ()))
        # What a key is missing for is tried again: its file may have got that key since.
        if rows != sealed or (len(opened) < len(sealed) and self._clock() >= self._reload_after_s):
            opened = await self._open_all(provider, sealed)
            self._opened[provider] = sealed, opened
        return opened

    async def lost(self) -> list[tuple[str, str]]:
        """Provider and label of those that no key opens."""
        rows = await self._rows()
        for provider in rows:
            try:
                await self.get(provider)
            except StoreUnavailable:
                continue
        return sorted(key for key, text in self._lost.items() if rows.get(key[0], {}).get(key[1]) == text)

    async def names(self) -> frozenset[str]:
        """The providers that have stored credentials."""
        return frozenset(await self._rows())

    async def list(self) -> list[StoredProvider]:
        """What may be shown of each, by provider and label."""
        table = PROVIDER_CREDENTIALS
        shown = [column for column in table.columns if column.name != "ciphertext"]
        async with self._database.begin() as connection:
            rows = await connection.execute(select(*shown))
            found = [StoredProvider(**row._mapping) for row in rows]
        return sorted(found, key=lambda row: (row.provider, row.label))  # databases differ in how they sort text

    async def delete(self, provider: str, label: str | None = None) -> bool:
        """Forget the credentials of `provider` with this label, or all of them. False when there were none."""
        table = PROVIDER_CREDENTIALS
        chosen = delete(table).where(table.c.provider == provider)
        if label is not None:
            chosen = chosen.where(table.c.label == label)
        async with self._database.begin(write=True) as connection:
            result = await connection.execute(chosen)
        self._forget()
        return result.rowcount > 0

    async def _open_all(self, provider: str, sealed: Mapping[str, str]) -> tuple[Credentials, ...]:
        """Those that can be opened; a key that is lost takes only its own credentials with it."""
        opened: list[Credentials] = []
        failure: StoreUnavailable | None = None
        for label, text in sealed.items():
            try:
                opened.append(await self._open(provider, label, text))
                self._lost.pop((provider, label), None)
            except StoreUnavailable as error:
                failure = error
                if self._lost.get((provider, label)) != text:  # said once
                    self._lost[provider, label] = text
                    _log.error("the credentials %s of %s cannot be opened", label, provider)
        if failure is not None and not opened:
            raise failure
        return tuple(opened)

    async def _open(self, provider: str, label: str, text: str) -> Credentials:
        try:
            data = self._cipher.open(text)
        except StoreUnavailable:
            if self._clock() < self._reload_after_s:
                raise
            self._reload_after_s = self._clock() + _RELOAD_EVERY_S
            if not await asyncio.to_thread(self._cipher.reload):
                raise
            data = self._cipher.open(text)
        found = msgspec.json.decode(data, type=_Sealed)
        if (found.provider, found.credentials.label) != (provider, label):
            raise StoreUnavailable("stored credentials belong to another provider; run `orqen providers connect` again")
        return found.credentials

    def _forget(self) -> None:
        self._fresh_until_s = float("-inf")

    async def _rows(self) -> _Rows:
        """The sealed credentials of all providers: few rows, so one query serves every request for `ttl_s`."""
        now_s, outage = self._clock(), self._database.reads
        if now_s < self._fresh_until_s:
            return self._sealed
        usable = now_s < self._read_at_s + self._ttl_s + self._grace_s
        if self._refresh is None and outage.may_ask():
            self._refresh = asyncio.create_task(self._read())
            self._refresh.add_done_callback(forget_failure)
        elif usable and (outage.away or outage.slow):
            return self._sealed
        if self._refresh is None:
            raise StoreUnavailable("the gateway's database cannot be used just now; try again in a moment")
        try:
            await outage.patiently(self._refresh, _PATIENCE_S if usable or outage.away else _LOOK_UP_S)
        except StoreUnavailable:
            if not usable:
                raise
        return self._sealed

    async def _read(self) -> None:
        started_s, table = self._clock(), PROVIDER_CREDENTIALS
        try:
            async with self._database.begin() as connection:
                rows = await connection.execute(select(table.c.provider, table.c.label, table.c.ciphertext))
                found: dict[str, dict[str, str]] = {}
                for row in sorted(rows, key=lambda row: (row.provider, row.label)):
                    found.setdefault(row.provider, {})[row.label] = row.ciphertext
            self._sealed, self._read_at_s = found, started_s
            self._fresh_until_s = started_s + self._ttl_s
        finally:
            self._refresh = None


@asynccontextmanager
async def sealing(cipher: Cipher, *, exclusive: bool = False) -> AsyncIterator[None]:
    """Seal with a key that is not on its way out: no rotation begins meanwhile, and the newest keys are read.

    `exclusive`: this is the rotation. Keys of the environment change only with the process: nothing to hold off.
    """
    if cipher.key_file is None:
        yield
        return
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, cipher.key_file.locked(exclusive=exclusive))
        await asyncio.to_thread(cipher.reload)
        yield


def _check(provider: str, credentials: Credentials) -> None:
    for param, name in (("provider", provider), ("label", credentials.label)):
        if not _NAME.fullmatch(name):
            raise BadRequest("expected a name of 1 to 100 letters, digits, dots, dashes or underscores", param=param)
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
