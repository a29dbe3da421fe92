"""Where pins are kept: a bounded memory in this process, over the SQL database or Redis, which all processes share."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from orqen_ray.errors import StoreUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.pins import Pin
from orqen_ray.store.database import Database
from orqen_ray.store.outage import Outage, forget_failure
from orqen_ray.store.tables import PINS

_PATIENCE_S = 0.1
_REDIS_TIMEOUT_S = 0.25
_LAST_WRITES_S = 3.0
_ROWS_A_STATEMENT = 100
_MAX_PENDING = 10_000
_MAX_NAMES = 3_000_000
"""Of tools, in all pins that a process knows: some 300 MB where they came from the shared store."""
_SWEEP_EVERY = timedelta(hours=1)
_REDIS_PREFIX = "orqen:pin:"

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pin).decode


class PinStore(Protocol):
    """What all processes share. Every method raises StoreUnavailable when the store cannot be used."""

    reads: Outage
    writes: Outage

    async def read(self, conversation: str) -> bytes | None: ...

    async def write(self, pins: Mapping[str, bytes]) -> None: ...

    async def aclose(self) -> None: ...


class SharedPins:
    """Implements `Pins`. One per process, on one event loop.

    A pin is read from the shared store when this process does not know it, and written there in the background, at
    once: a later turn may reach another process. While the store is away each process knows its own.
    """

    def __init__(self, shared: PinStore, *, max_entries: int = 50_000, patience_s: float = _PATIENCE_S) -> None:
        """Args: patience_s: how long a request waits for the shared store before it goes on without a pin."""
        self._shared = shared
        self._max_entries = max_entries
        self._patience_s = patience_s
        self._known: OrderedDict[str, Pin] = OrderedDict()  # the most recently used last
        self._names = 0
        self._pending: dict[str, Pin] = {}
        self._writing: asyncio.Task[None] | None = None

    async def get(self, conversation: str, *, fresh: bool = False) -> Pin | None:
        """See `Pins.get`. `fresh`: ask the shared store also for one that is known here."""
        known = self._known.get(conversation)
        if known is not None:
            self._known.move_to_end(conversation)
            if not fresh or conversation in self._pending:
                return known
        found = await self._find(conversation)
        newest = self._known.get(conversation)
        if found is None or newest is not known:  # put here meanwhile
            return newest
        self._keep(conversation, found)
        return found

    async def put(self, conversation: str, pin: Pin) -> None:
        """See `Pins.put`."""
        self._keep(conversation, pin)
        if conversation in self._pending or len(self._pending) < _MAX_PENDING:
            self._pending[conversation] = pin
        if (self._writing is None or self._writing.done()) and self._shared.writes.may_ask():
            self._writing = asyncio.create_task(self._write())

    async def aclose(self) -> None:
        """Write what is pending, waiting a few seconds for a store that does not answer."""
        try:
            async with asyncio.timeout(_LAST_WRITES_S):
                if self._writing is not None:
                    await asyncio.wait({self._writing})
                await self._write()
        except TimeoutError:
            pass
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        if self._pending:
            _log.warning("%d pins are not stored: their next turns may decide anew", len(self._pending))
        await self._shared.aclose()

    async def _find(self, conversation: str) -> Pin | None:
        reads = self._shared.reads
        if not reads.may_ask():
            return None
        call = asyncio.ensure_future(self._shared.read(conversation))
        call.add_done_callback(forget_failure)
        try:
            data = await reads.patiently(call, self._patience_s)
            return None if data is None else _decode(data)
        except (StoreUnavailable, msgspec.DecodeError):  # or a newer version wrote it
            return None

    async def _write(self) -> None:
        """Write until nothing is pending: what comes meanwhile goes together in the next statement."""
        while self._pending:
            batch = dict(list(self._pending.items())[:_ROWS_A_STATEMENT])
            try:
                await self._shared.write({name: _encode(pin) for name, pin in batch.items()})
            except StoreUnavailable:  # noted by the store; the next put tries again
                return
            except Exception:  # noqa: BLE001  # whatever it is, the next put tries again
                _log.exception("pins could not be written")
                return
            for name, pin in batch.items():
                if self._pending.get(name) is pin:
                    del self._pending[name]

    def _keep(self, conversation: str, pin: Pin) -> None:
        self._names += _names(pin) - _names(self._known.get(conversation))
        self._known[conversation] = pin
        self._known.move_to_end(conversation)
        while len(self._known) > self._max_entries or (self._names > _MAX_NAMES and len(self._known) > 1):
            self._names -= _names(self._known.popitem(last=False)[1])


def _names(pin: Pin | None) -> int:
    """How many names of tools it holds."""
    if pin is None:
        return 0
    return len(pin.kept) + len(pin.indexed) + sum(len(restore.names) for restore in pin.restores)


class SqlPins:
    """Implements `PinStore` over the table `pins`."""

    def __init__(
        self, database: Database, ttl_s: float, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Args: ttl_s: how long a pin is kept after its last turn."""
        self._database = database
        self.reads, self.writes = database.reads, database.writes
        self._ttl = timedelta(seconds=ttl_s)
        self._now = now
        self._next_sweep = now()

    async def read(self, conversation: str) -> bytes | None:
        chosen = select(PINS.c.pin).where(PINS.c.conversation == conversation, PINS.c.expires_at > self._now())
        async with self._database.begin() as connection:
            found: bytes | None = (await connection.execute(chosen)).scalar_one_or_none()
        return found

    async def write(self, pins: Mapping[str, bytes]) -> None:
        now = self._now()
        # In one order for all processes, so that no two wait for each other's rows.
        rows = [{"conversation": name, "pin": pins[name], "expires_at": now + self._ttl} for name in sorted(pins)]
        async with self._database.begin(write=True) as connection:
            insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert
            new = insert(PINS).values(rows)
            changed = {"pin": new.excluded.pin, "expires_at": new.excluded.expires_at}
            await connection.execute(new.on_conflict_do_update(index_elements=["conversation"], set_=changed))
            if now >= self._next_sweep:
                await connection.execute(delete(PINS).where(PINS.c.expires_at <= now))
                self._next_sweep = now + _SWEEP_EVERY

    async def aclose(self) -> None:
        """The database is its owner's to close."""


class RedisPins:
    """Implements `PinStore` in Redis, which forgets by itself."""

    def __init__(
        self, url: str, ttl_s: float, metrics: Metrics | None = None, timeout_s: float = _REDIS_TIMEOUT_S
    ) -> None:
        self.reads = Outage("redis", "pins cannot be read from redis, so each process knows its own", metrics)
        self.writes = Outage("redis", "pins cannot be written to redis, so each process knows its own", metrics)
        self._ttl_ms = int(ttl_s * 1000)
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )

    async def read(self, conversation: str) -> bytes | None:
        with self.reads.watching():
            try:
                found = await self._redis.get(_REDIS_PREFIX + conversation)
            except (RedisError, OSError) as error:
                raise StoreUnavailable("redis cannot be used just now") from error
        return found.encode() if isinstance(found, str) else found

    async def write(self, pins: Mapping[str, bytes]) -> None:
        with self.writes.watching():
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for name, data in pins.items():
                        pipeline.set(_REDIS_PREFIX + name, data, px=self._ttl_ms)
                    await pipeline.execute()
            except (RedisError, OSError) as error:
                raise StoreUnavailable("redis cannot be used just now") from error

    async def aclose(self) -> None:
        await self._redis.aclose()


def open_pins(database: Database, redis_url: str | None, ttl_s: float, metrics: Metrics | None = None) -> SharedPins:
    """The pins of this process; shared through Redis where there is one, else through the database."""
    shared: PinStore = RedisPins(redis_url, ttl_s, metrics) if redis_url else SqlPins(database, ttl_s)
    return SharedPins(shared)
