"""Whether a store can be asked just now: noted from its calls, said once in the log, so that nobody waits in vain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from orqen_ray.errors import StoreUnavailable
from orqen_ray.metrics import Metrics

T = TypeVar("T")

_RETRY_S = 1.0

_log = logging.getLogger(__name__)


class Outage:
    """What the last calls to one store say about the next one. One per process and store, on one event loop.

    `away`: the newest call that has ended has failed. `slow`: one takes too long to be waited for, and none has ended
    since.
    """

    def __init__(
        self, store: str, what: str, metrics: Metrics | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: store: the metric's label; what: for the log, what cannot be done, as `the database cannot be read`."""
        self._failures = (metrics or Metrics()).store_failures.labels(store)
        self._what = what
        self._clock = clock
        self._began_s: float | None = None
        self._next_try_s = self._worked_from_s = float("-inf")
        self.slow = False

    @property
    def away(self) -> bool:
        return self._began_s is not None

    def may_ask(self) -> bool:
        """Whether to make a call now: always while all is well, else once a second, to see whether it is over."""
        if not self.away and not self.slow:
            return True
        now_s = self._clock()
        if now_s < self._next_try_s:
            return False
        self._next_try_s = now_s + _RETRY_S
        return True

    def failed(self, error: BaseException) -> None:
        self._failures.inc()
        self._next_try_s = self._clock() + _RETRY_S
        if self._began_s is None:
            self._began_s = self._clock()
            _log.error("%s: %s", self._what, _reason(error))

    def delayed(self) -> None:
        """A call takes too long; until one ends, others shall not wait for theirs."""
        if not self.away and not self.slow:
            self.slow = True
            self._next_try_s = self._clock() + _RETRY_S

    def worked(self) -> None:
        self.slow = False
        if self._began_s is not None:
            took_s, self._began_s = self._clock() - self._began_s, None
            _log.warning("%s: over after %.0f s", self._what, took_s)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes whether the call inside fails with StoreUnavailable, or ends well."""
        began_s = self._clock()
        try:
            yield
        except StoreUnavailable as error:
            if began_s >= self._worked_from_s:
                self.failed(error.__cause__ or error)
            else:  # a later call has worked: what this one met is over
                self._failures.inc()
            raise
        self._worked_from_s = max(self._worked_from_s, began_s)
        self.worked()

    async def patiently(self, call: asyncio.Future[T], patience_s: float, *, note: bool = True) -> T:
        """The result of a call that others wait for too; it goes on when this one gives up, and `note` notes that.

        Raises:
            StoreUnavailable: it failed, or took longer than `patience_s`.
        """
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(call)
        except TimeoutError:
            if note:
                self.delayed()
            raise StoreUnavailable("the gateway's database does not answer in time; try again in a moment") from None


def forget_failure(call: asyncio.Future[Any]) -> None:
    """As a done callback: nobody may be waiting any more for a call that fails, and its failure is noted already."""
    if not call.cancelled():
        call.exception()


def _reason(error: BaseException) -> str:
    # SQLAlchemy's own text adds the statement and a link; the driver's says what happened.
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
