"""From a caller's secret to its key, with a cache so short that a revocation takes effect within seconds."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from orqen_ray.errors import Unauthenticated
from orqen_ray.store.keys import KeyRecord, is_well_formed, sha256_hex

_UNKNOWN_TTL_S = 1.0
_MAX_UNKNOWN = 1000


class KeyFinder(Protocol):
    async def find(self, secret: str) -> KeyRecord | None: ...


class KeyCache:
    """Authenticates callers. One per process, on one event loop.

    A key that was found is believed for `ttl_s`, one that was not for at most a second. The two memories are bounded
    apart, so that guesses cannot push known keys out. Many requests with one key cause one look-up.
    """

    def __init__(
        self,
        keys: KeyFinder,
        ttl_s: float = 5.0,
        max_entries: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = keys
        self._ttl_s = ttl_s
        self._clock = clock
        self._now = now
        self._known = _Bounded(max_entries)
        self._unknown = _Bounded(_MAX_UNKNOWN)
        self._lookups: dict[str, asyncio.Task[KeyRecord | None]] = {}

    async def authenticate(self, secret: str) -> KeyRecord:
        """The key that `secret` is.

        Raises:
            Unauthenticated: missing, malformed, unknown, revoked or expired.
            StoreUnavailable: the key is not in the cache and the database cannot be asked.
        """
        if not secret:
            raise Unauthenticated("no API key: send `Authorization: Bearer sk-orq-...` or `x-api-key: sk-orq-...`")
        if not is_well_formed(secret):
            raise Unauthenticated("this is not a key of this gateway: those are sk-orq- followed by 64 hex digits")
        record = await self._find(secret)
        if record is None or record.revoked_at is not None:
            raise Unauthenticated("this API key is unknown or revoked; `orqen keys create` makes a new one")
        if record.expires_at is not None and record.expires_at <= self._now():
            raise Unauthenticated(f"this API key expired at {record.expires_at:%Y-%m-%d %H:%M} UTC; ask for a new one")
        return record

    async def _find(self, secret: str) -> KeyRecord | None:
        digest = sha256_hex(secret)
        now_s = self._clock()
        for memory in (self._known, self._unknown):
            hit, record = memory.get(digest, now_s)
            if hit:
                return record
        lookup = self._lookups.get(digest)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(secret, digest, now_s))
            self._lookups[digest] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(digest, None))
        # One caller that goes away must not take the answer from the others.
        return await asyncio.shield(lookup)

    async def _look_up(self, secret: str, digest: str, started_s: float) -> KeyRecord | None:
        record = await self._keys.find(secret)
        # The answer is as old as the question: a slow database must not lengthen the life of a revoked key.
        if record is None:
            self._unknown.put(digest, None, started_s + min(self._ttl_s, _UNKNOWN_TTL_S))
        else:
            self._known.put(digest, record, started_s + self._ttl_s)
        return record


class _Bounded:
    """The most recently used answers, each until its own time."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[str, tuple[KeyRecord | None, float]] = OrderedDict()

    def get(self, digest: str, now_s: float) -> tuple[bool, KeyRecord | None]:
        record, until_s = self._entries.get(digest, (None, float("-inf")))
        if now_s >= until_s:
            self._entries.pop(digest, None)
            return False, None
        self._entries.move_to_end(digest)
        return True, record

    def put(self, digest: str, record: KeyRecord | None, until_s: float) -> None:
        self._entries[digest] = record, until_s
        self._entries.move_to_end(digest)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
