"""Requests a minute of each key: counted in this process, or exactly across all processes in Redis."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from orqen_ray.errors import Overloaded, StoreUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.store.keys import KeyRecord
from orqen_ray.store.outage import Outage

_WINDOW_S = 60.0
_REDIS_TIMEOUT_S = 0.25
_REDIS_CONNECTIONS = 32  # at once; more wait for their turn, which is no fault of Redis
_PROBE = "probe"


class RateLimits:
    """Holds each key to its `rate_limit_rpm`. One per process, on one event loop.

    The window moves: no 60 seconds, wherever they begin, hold more requests than the limit. A counter for each calendar
    minute would let twice the limit through around its turn, and a weighted one up to that as well; the price is one
    number for each request of the last minute. What is refused does not count.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        redis_timeout_s: float = _REDIS_TIMEOUT_S,
    ) -> None:
        """Args: redis_url: redis://, rediss:// or unix://; None counts in this process alone."""
        metrics = metrics or Metrics()
        self._limited = metrics.limited.labels("rate_limit_rpm")
        self._local = LocalWindow(clock)
        self._shared = RedisWindow(redis_url, redis_timeout_s) if redis_url else None
        self._turns = asyncio.Semaphore(_REDIS_CONNECTIONS)
        self._outage = Outage("redis", "redis cannot be used, so each process counts for itself", metrics, clock)
        self._probe: asyncio.Task[None] | None = None

    async def check(self, key: KeyRecord) -> None:
        """Count one request of `key`.

        Raises:
            Overloaded: its last minute is full.
        """
        limit = key.rate_limit_rpm
        if not limit:
            return
        wait_s = await self._hit(key.id, limit)
        if wait_s is not None:
            self._limited.inc()
            wait_s = max(math.ceil(wait_s), 1)
            raise Overloaded(
                f"this key may make {limit} requests a minute (rate_limit_rpm); try again in {wait_s} s",
                retry_after_s=wait_s,
            )

    async def aclose(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        if self._shared is not None:
            await self._shared.aclose()

    async def _hit(self, key_id: str, limit: int) -> float | None:
        if self._shared is None:
            return self._local.hit(key_id, limit)
        if not self._outage.away:
            try:
                async with self._turns:
                    if self._outage.away:  # those before in the queue have found out
                        return self._local.hit(key_id, limit)
                    wait_s = await self._shared.hit(key_id, limit)
            except (RedisError, OSError) as error:
                self._outage.failed(error)
            else:
                self._outage.worked()
                return wait_s
        elif self._outage.may_ask() and (self._probe is None or self._probe.done()):
            self._probe = asyncio.create_task(self._try_again(self._shared))
        return self._local.hit(key_id, limit)

    async def _try_again(self, shared: RedisWindow) -> None:
        try:
            await shared.hit(_PROBE, 100)  # a server that only answers pings is of no use
        except (RedisError, OSError) as error:
            self._outage.failed(error)
        else:
            self._outage.worked()


class LocalWindow:
    """The requests of the last minute in memory. Keys that made none take no room.

    Not the library's own memory storage: that looks through every key again after each request.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made_s: OrderedDict[str, deque[float]] = OrderedDict()  # the key with the newest request last

    def __len__(self) -> int:
        return len(self._made_s)

    def hit(self, key_id: str, limit: int) -> float | None:
        """None, and the request counts; or, for a full minute, the seconds until there is room."""
        now_s = self._clock()
        self._forget(now_s - _WINDOW_S)
        made_s = self._made_s.get(key_id)
        if made_s is None:
            made_s = self._made_s[key_id] = deque()
        while made_s and made_s[0] <= now_s - _WINDOW_S:
            made_s.popleft()
        if len(made_s) >= limit:
            return made_s[len(made_s) - limit] + _WINDOW_S - now_s
        made_s.append(now_s)
        self._made_s.move_to_end(key_id)
        return None

    def _forget(self, before_s: float) -> None:
        while self._made_s:
            key_id, made_s = next(iter(self._made_s.items()))
            if made_s[-1] > before_s:
                return
            del self._made_s[key_id]


async def try_redis(url: str) -> float:
    """How many milliseconds a request's count takes there.

    Raises:
        StoreUnavailable: it cannot be used.
    """
    window = RedisWindow(url)
    started_s = time.perf_counter()
    try:
        await window.hit(_PROBE, 100)
    except (RedisError, OSError) as error:
        raise StoreUnavailable("storage.redis_url: this Redis does not answer, or refuses the password") from error
    finally:
        await window.aclose()
    return (time.perf_counter() - started_s) * 1000


class RedisWindow:
    """The same in Redis, for all processes together: one atomic script a request.

    Raises:
        RedisError, OSError: Redis did not answer within `timeout_s`.
    """

    def __init__(self, url: str, timeout_s: float = _REDIS_TIMEOUT_S) -> None:
        scheme, _, rest = url.partition("://")
        scheme = {"unix": "redis+unix"}.get(scheme, scheme)
        self._storage = RedisStorage(
            f"async+{scheme}://{rest}",
            implementation="redispy",
            key_prefix="orqen",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # the library passes on whatever redis-py takes
        )
        self._window = MovingWindowRateLimiter(self._storage)
        self._timeout_s = timeout_s

    async def hit(self, key_id: str, limit: int) -> float | None:
        """See `LocalWindow.hit`. The clocks of the gateway's machines must agree."""
        minute = RateLimitItemPerMinute(limit)
        async with asyncio.timeout(self._timeout_s):
            if await self._window.hit(minute, key_id):
                return None
            stats = await self._window.get_window_stats(minute, key_id)
        return min(max(stats.reset_time - time.time(), 0.0), _WINDOW_S)

    async def aclose(self) -> None:
        await self._storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]  # redis-py's own
