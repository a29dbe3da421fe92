"""Threads that encode for many callers at once: in turns, in order, within a bound, and for nobody who has gone."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from orqen_ray.encoders.protocol import EncoderUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Sequence[Item]], Sequence[Result]]

MAX_QUEUED_TOKENS = 32_768
_CHARS_PER_TOKEN = 3
"""Less than any language's mean, so that the estimate is rather too high."""

_log = logging.getLogger(__name__)


class Workers(Generic[Item, Result]):
    """Calls `run` with batches of items in `threads` threads, each caller's items in turns with those of the others:
    a large set does not keep a single query waiting for its end.

    Args:
        run: items to one result each, in order; whatever it raises is logged, and `EncoderUnavailable` for its callers.
        cost: tokens of an item, estimated.
        threads: how many batches run at a time.
        max_batch_tokens: bound of a batch; 0 runs every item by itself.
        max_queued_tokens: bound of what waits.
    """

    def __init__(
        self,
        run: Run[Item, Result],
        cost: Callable[[Item], int],
        *,
        threads: int = 1,
        max_batch_tokens: int = 0,
        max_queued_tokens: int = MAX_QUEUED_TOKENS,
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._lock = threading.Lock()
        self._callers: deque[_Caller[Item, Result]] = deque()
        self._queued_tokens = 0
        self._threads = ThreadPoolExecutor(threads, "encoder")

    async def map(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item, in order. Items of a cancelled call that have not run yet never run.

        An idle encoder takes any number of items.

        Raises:
            EncoderUnavailable: too much waits already, or `run` failed.
        """
        if not items:
            return []
        caller = _Caller[Item, Result](items, [self._cost(item) for item in items])
        with self._lock:
            if self._queued_tokens and self._queued_tokens + caller.waiting_tokens > self._max_queued_tokens:
                raise EncoderUnavailable(f"overloaded: {self._queued_tokens} tokens wait already")
            self._queued_tokens += caller.waiting_tokens
            self._callers.append(caller)
        try:
            for _ in items:
                self._threads.submit(self._work)
            return await asyncio.wrap_future(caller.future)
        except RuntimeError as error:  # the interpreter ends
            raise EncoderUnavailable("closed") from error
        finally:
            caller.future.cancel()

    def _work(self) -> None:
        batch = self._next_batch()
        if not batch:
            return
        try:
            results = self._run([caller.items[index] for caller, index in batch])
        except Exception as error:  # noqa: BLE001  # of a model's library, for all who wait
            _log.exception("an encoder failed")
            for caller, _ in batch:
                caller.end(EncoderUnavailable(f"failed: {type(error).__name__}"))
            return
        with self._lock:
            done = [
                caller for (caller, index), result in zip(batch, results, strict=True) if caller.keep(index, result)
            ]
        for caller in done:
            caller.end(caller.results)

    def _next_batch(self) -> list[tuple[_Caller[Item, Result], int]]:
        batch: list[tuple[_Caller[Item, Result], int]] = []
        tokens = 0
        with self._lock:
            while self._callers:
                caller = self._callers[0]
                if caller.future.done():
                    self._queued_tokens -= caller.waiting_tokens
                    self._callers.popleft()
                    continue
                cost = caller.costs[caller.taken]
                if batch and tokens + cost > self._max_batch_tokens:
                    break
                batch.append((caller, caller.taken))
                tokens += cost
                self._queued_tokens -= cost
                caller.waiting_tokens -= cost
                caller.taken += 1
                self._callers.popleft()
                if caller.taken < len(caller.items):
                    self._callers.append(caller)
        return batch


class _Caller(Generic[Item, Result]):
    """The items of one call and what is known of them. All but `future` belong to the workers' lock."""

    def __init__(self, items: Sequence[Item], costs: list[int]) -> None:
        self.items = items
        self.costs = costs
        self.waiting_tokens = sum(costs)
        self.taken = 0
        self.results: list[Any] = [None] * len(items)
        self.missing = len(items)
        self.future: Future[list[Result]] = Future()

    def keep(self, index: int, result: Result) -> bool:
        """Keep one result; True for the last of all."""
        self.results[index] = result
        self.missing -= 1
        return self.missing == 0

    def end(self, outcome: list[Result] | EncoderUnavailable) -> None:
        try:
            if isinstance(outcome, EncoderUnavailable):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:
            pass  # it has gone, or heard of an earlier failure


def estimated_tokens(chars: int, max_tokens: int) -> int:
    """Tokens of a text with so many characters, of which a model reads no more than `max_tokens`."""
    return min(max_tokens, chars // _CHARS_PER_TOKEN + 2)


def readable(text: str, max_chars: int) -> str:
    """The part of a text that is read, without lone surrogates: JSON may hold them, a tokenizer may not."""
    return text[:max_chars].encode("utf-8", "replace").decode()
