"""Token budgets a day and a week: counted in memory, written and read back about once a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

from orqen_ray.errors import Overloaded, StoreUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.store.keys import KeyRecord
from orqen_ray.store.outage import Outage, forget_failure
from orqen_ray.store.token_counts import KeyDay

_EVERY_S = 1.0
_ACTIVE_S = 30.0
_STALE_S = 3.0
_PATIENCE_S = 0.25
_FIRST_PATIENCE_S = 1.0
_LAST_FLUSH_S = 3.0
_LOOKS = 3
_KEPT = timedelta(weeks=5)
_DAY = timedelta(days=1)
_MAX_TOKENS = 10**9  # of one request: what a provider claims must fit into a column
_MAX_PENDING = 100_000
_MAX_KEYS = 50_000

_log = logging.getLogger(__name__)


class Counts(Protocol):
    """Where totals are kept; see `TokenCounts`."""

    reads: Outage
    writes: Outage

    async def add(self, used: Mapping[KeyDay, int]) -> None: ...

    async def since(self, day: date, key_ids: Collection[str]) -> dict[str, dict[date, int]]: ...

    async def forget_before(self, day: date) -> None: ...


@dataclass(slots=True)
class _Total:
    """What the database holds of one key since Monday, when it was read, and when somebody last wanted to know."""

    by_day: dict[date, int]
    read_s: float
    wanted_s: float


class Budgets:
    """Holds keys to `daily_token_budget` and `weekly_token_budget`. One per process, on one event loop.

    A day is a UTC day, a week starts on Monday at 00:00 UTC. What a request costs is known when it has ended, so a key
    can overspend by what its requests in flight cost, and by what all processes bill within about a second. While the
    database is away, tokens are kept in memory, and the totals are those known before. A key whose totals cannot be
    read at all is let through: a budget is no lock.
    """

    def __init__(
        self,
        counts: Counts,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        every_s: float = _EVERY_S,
    ) -> None:
        self._counts = counts
        self._limited = (metrics or Metrics()).limited
        self._clock = clock
        self._now = now
        self._every_s = every_s
        self._totals: OrderedDict[str, _Total] = OrderedDict()  # of keys with a budget, the last wanted last
        self._pending: dict[KeyDay, int] = {}
        self._in_flush: dict[KeyDay, int] = {}
        self._in_doubt: set[str] = set()
        self._wanted: set[str] = set()
        self._next_read: asyncio.Task[None] | None = None
        self._one_read = asyncio.Lock()
        self._swept_on: date | None = None
        self._full = False
        self._closing = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write and read back once a second, until `aclose`."""
        self._rounds = asyncio.create_task(self._go_round())

    async def aclose(self) -> None:
        """Write what is pending, waiting a few seconds for a database that does not answer."""
        self._closing.set()
        try:
            async with asyncio.timeout(_LAST_FLUSH_S):
                if self._rounds is not None:
                    await asyncio.wait({self._rounds})  # a write that is cut off may be stored, and done once more
                if self._pending:
                    await self._write()
        except TimeoutError:
            pass
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait({self._rounds})
        if lost := sum(self._pending.values()) + sum(self._in_flush.values()):
            _log.error("%d tokens of budgets are not counted: the database was away until the end", lost)

    def spend(self, key_id: str, tokens: int) -> None:
        """Count tokens that a provider has billed."""
        if tokens <= 0:
            return
        tokens = min(tokens, _MAX_TOKENS)
        today = key_id, self._now().date()
        if today not in self._pending and len(self._pending) >= _MAX_PENDING:
            if not self._full:
                _log.error("token budgets: over %d keys wait for the database; others are not counted", _MAX_PENDING)
            self._full = True
            return
        self._pending[today] = self._pending.get(today, 0) + tokens

    async def check(self, key: KeyRecord) -> None:
        """Let a request of `key` pass, or not.

        Raises:
            Overloaded: a budget is spent; `retry_after_s` leads to the first moment at which none is.
        """
        if not key.daily_token_budget and not key.weekly_token_budget:
            return
        now = self._now()
        today, monday = now.date(), _monday(now.date())
        await self._load(key.id)
        spans = (
            ("daily_token_budget", "today", key.daily_token_budget, today, today + _DAY),
            ("weekly_token_budget", "this week", key.weekly_token_budget, monday, monday + 7 * _DAY),
        )
        for name, when, budget, first, end in reversed(spans):  # the week ends last
            used = self._used(key.id, first) if budget else 0
            if budget and used >= budget:
                self._limited.labels(name).inc()
                reset = datetime(end.year, end.month, end.day, tzinfo=UTC)
                raise _spent(f"this key has used {used} of the {budget} tokens of {when} ({name})", reset, now)

    def _used(self, key_id: str, first: date) -> int:
        total = self._totals.get(key_id)
        used = sum(tokens for day, tokens in total.by_day.items() if day >= first) if total else 0
        for unwritten in (self._pending, self._in_flush):
            day = first
            while day <= self._now().date():
                used += unwritten.get((key_id, day), 0)
                day += _DAY
        return used

    async def _load(self, key_id: str) -> None:
        """Have the totals of a key at hand, as new as can be without holding the request up."""
        now_s = self._clock()
        total = self._totals.get(key_id)
        if total is not None:
            total.wanted_s = now_s
            self._totals.move_to_end(key_id)
            if now_s < total.read_s + _STALE_S:
                return
        reads = self._counts.reads
        if (reads.away or reads.slow) and not reads.may_ask():
            return
        self._wanted.add(key_id)
        try:
            await reads.patiently(self._read_soon(), _FIRST_PATIENCE_S if total is None else _PATIENCE_S)
        except StoreUnavailable:
            return

    def _read_soon(self) -> asyncio.Task[None]:
        """The next look at the totals that begins from now on: many requests share it."""
        if self._next_read is None:
            self._next_read = asyncio.create_task(self._read())
            self._next_read.add_done_callback(forget_failure)
        return self._next_read

    async def _go_round(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._every_s):
                    await self._closing.wait()
                return
            except TimeoutError:
                pass
            try:
                await self.sync()
            except Exception:  # noqa: BLE001  # whatever it is, tokens must not go uncounted from then on
                _log.exception("token budgets could not be written or read; trying again")

    async def sync(self) -> None:
        """Write what is pending, read back what is in use. A failure is noted, and made up for the next time."""
        if self._pending and self._counts.writes.may_ask():
            await self._write()
        if any(self._active()) and self._counts.reads.may_ask():
            await asyncio.wait({self._read_soon()})

    def _active(self) -> list[str]:
        """The keys whose totals are read back although nobody waits for them."""
        active = []
        for key_id, total in reversed(self._totals.items()):
            if total.wanted_s < self._clock() - _ACTIVE_S:
                break
            active.append(key_id)
        return active

    async def _write(self) -> None:
        self._in_flush, self._pending = self._pending, {}
        self._in_doubt.update(key_id for key_id, _ in self._in_flush)
        try:
            await self._counts.add(self._in_flush)
        except BaseException as error:  # also when cancelled: nothing that was billed may be forgotten
            for key_day, tokens in self._in_flush.items():
                self._pending[key_day] = self._pending.get(key_day, 0) + tokens
            self._in_flush = {}
            if not isinstance(error, StoreUnavailable):
                raise
            return
        for (key_id, day), tokens in self._in_flush.items():
            if (total := self._totals.get(key_id)) is not None:  # until it is read back
                total.by_day[day] = total.by_day.get(day, 0) + tokens
        self._in_flush, self._full = {}, False
        today = self._now().date()
        if self._swept_on != today:
            self._swept_on = today
            try:
                await self._counts.forget_before(today - _KEPT)
            except StoreUnavailable:
                self._swept_on = None

    async def _read(self) -> None:
        async with self._one_read:
            self._next_read = None
            key_ids, self._wanted = {*self._wanted, *self._active()}, set()
            for _ in range(_LOOKS):
                asked_s = self._clock()
                self._in_doubt = {key_id for key_id, _ in self._in_flush}
                try:
                    found = await self._counts.since(_monday(self._now().date()), key_ids)
                except StoreUnavailable:
                    return
                # What was written meanwhile may be in what was found, or not: such a key keeps the total it has.
                self._keep({key_id: found[key_id] for key_id in found if key_id not in self._in_doubt}, asked_s)
                key_ids = {key_id for key_id in found if key_id not in self._totals}
                if not key_ids:
                    return

    def _keep(self, found: Mapping[str, dict[date, int]], asked_s: float) -> None:
        for key_id, by_day in found.items():
            known = self._totals.get(key_id)
            self._totals[key_id] = _Total(by_day, asked_s, asked_s if known is None else known.wanted_s)
            if known is None and len(self._totals) > _MAX_KEYS:
                self._totals.popitem(last=False)


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _spent(what: str, reset: datetime, now: datetime) -> Overloaded:
    error = Overloaded(f"{what}; it resets at {reset:%Y-%m-%d %H:%M} UTC", retry_after_s=(reset - now).total_seconds())
    # The SDKs of OpenAI and Anthropic would ask again within seconds: https://github.com/openai/openai-python (retries)
    error.headers = {"x-should-retry": "false"}
    return error
