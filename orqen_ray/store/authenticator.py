"""From a caller's secret to its key, with a cache so short that a revocation takes effect within seconds."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from orqen_ray.errors import StoreUnavailable, Unauthenticated
from orqen_ray.store.keys import KeyRecord, is_well_formed, sha256_hex
from orqen_ray.store.outage import Outage, forget_failure

T = TypeVar("T")

_UNKNOWN_TTL_S = 1.0
_MAX_UNKNOWN = 1000
_LOOK_UP_S = 10.0
_RECENT_S = 60.0
_MORE_PATIENCE = 8
_GUESSES_AT_ONCE = 10  # of the database's 15 connections


class KeyFinder(Protocol):
    async def find(self, secret: str) -> KeyRecord | None: ...


@dataclass(frozen=True, slots=True)
class _Known:
    """A key as the database gave it when it was asked at `asked_s`."""

    record: KeyRecord
    asked_s: float


class KeyCache:
    """Authenticates callers. One per process, on one event loop.

    A key that was found is believed for `ttl_s`, one that was not for at most a second. The two memories are bounded
    apart, so that guesses cannot push known keys out, and so are the look-ups at a time, so that guesses cannot keep
    known keys from being confirmed. Many requests with one key cause one look-up.

    While the database cannot be asked, a known key is believed for `grace_s` more. A request waits `patience_s` for an
    answer that would only confirm what is known, and not at all while the store is known to be away. What was last
    confirmed over a minute ago is less worth: for that it waits eight times as long.
    """

    def __init__(
        self,
        keys: KeyFinder,
        outage: Outage | None = None,
        ttl_s: float = 5.0,
        grace_s: float = 3600.0,
        *,
        patience_s: float = 0.25,
        max_entries: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = keys
        self._outage = outage or Outage("database", "keys cannot be looked up", clock=clock)
        self._ttl_s = ttl_s
        self._grace_s = grace_s
        self._patience_s = patience_s
        self._max_entries = max_entries
        self._clock = clock
        self._now = now
        self._known: OrderedDict[str, _Known] = OrderedDict()  # the most recently used last
        self._unknown: OrderedDict[str, float] = OrderedDict()  # until when, by their age
        self._lookups: dict[str, asyncio.Task[KeyRecord | None]] = {}
        self._guesses = asyncio.Semaphore(_GUESSES_AT_ONCE)
        self._answered_s = float("-inf")

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

    def can_serve(self) -> bool:
        """Whether some key would be let in without the database."""
        return bool(self._known) and self._clock() < self._answered_s + self._ttl_s + self._grace_s

    async def _find(self, secret: str) -> KeyRecord | None:
        digest, now_s = sha256_hex(secret), self._clock()
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            if now_s < known.asked_s + self._ttl_s:
                return known.record
            if now_s >= known.asked_s + self._ttl_s + self._grace_s:
                known = None
        elif now_s < self._unknown.get(digest, now_s):
            return None
        try:
            return await self._ask(secret, digest, known)
        except StoreUnavailable:
            if known is None:
                raise
            return known.record

    async def _ask(self, secret: str, digest: str, known: _Known | None) -> KeyRecord | None:
        """The answer of the database, waited for as long as it is worth.

        Raises:
            StoreUnavailable: there is none, or none in time.
        """
        outage = self._outage
        doubtful = outage.away or (outage.slow and known is not None)
        lookup = self._lookups.get(digest)
        if lookup is None:
            if doubtful and not outage.may_ask():
                raise StoreUnavailable("the gateway's database cannot be used just now; try again in a moment")
            look_up = self._look_up if known is not None else self._look_up_guess
            lookup = asyncio.create_task(look_up(secret, digest))
            self._lookups[digest] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(digest, None))
            lookup.add_done_callback(forget_failure)
        elif doubtful and known is not None:
            raise StoreUnavailable("the gateway's database does not answer")
        # One caller that goes away must not take the answer from the others.
        if known is None:
            # Not noted as the database's delay: it may only be that many guesses stand in line.
            return await outage.patiently(lookup, self._patience_s if doubtful else _LOOK_UP_S, note=False)
        recent = self._clock() < known.asked_s + _RECENT_S
        return await outage.patiently(lookup, self._patience_s * (1 if recent else _MORE_PATIENCE))

    async def _look_up_guess(self, secret: str, digest: str) -> KeyRecord | None:
        try:
            async with asyncio.timeout(_LOOK_UP_S):
                await self._guesses.acquire()
        except TimeoutError:  # nobody waits for the answer any more
            raise StoreUnavailable("too many unknown keys are asked about at once; try again in a moment") from None
        try:
            return await self._look_up(secret, digest)
        finally:
            self._guesses.release()

    async def _look_up(self, secret: str, digest: str) -> KeyRecord | None:
        # The answer is as old as the question: a slow database must not lengthen the life of a revoked key.
        asked_s = self._clock()
        record = await self._keys.find(secret)
        self._answered_s = max(self._answered_s, asked_s)
        if record is None:
            self._known.pop(digest, None)
            _put(self._unknown, digest, asked_s + min(self._ttl_s, _UNKNOWN_TTL_S), _MAX_UNKNOWN)
        else:
            self._unknown.pop(digest, None)
            _put(self._known, digest, _Known(record, asked_s), self._max_entries)
        return record


def _put(memory: OrderedDict[str, T], digest: str, value: T, max_entries: int) -> None:
    memory[digest] = value
    memory.move_to_end(digest)
    if len(memory) > max_entries:
        memory.popitem(last=False)
