"""Calls for one request until there is an answer: retries, other keys, hedges and other models, in a bounded time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from orqen_ray.conversation import Ping, ReplyStart, StreamFailure
from orqen_ray.errors import (
    CircuitOpen,
    DeadlinePassed,
    GatewayError,
    Overloaded,
    UpstreamError,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamUnavailable,
)
from orqen_ray.exchange import Exchange
from orqen_ray.formats.format import Format
from orqen_ray.metrics import Metrics
from orqen_ray.providers.catalog import Resolved
from orqen_ray.relay import STREAM_TYPES, Resumed, Route
from orqen_ray.retry_after import read_wait_s
from orqen_ray.types import Call, Upstream, UpstreamReply

RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
_REFUSED_STATUSES = frozenset({401, 403})
_KEY_STATUSES = _REFUSED_STATUSES | {429}
"""What a provider answers to one key and perhaps not to another."""

_RESERVE = 10.0
_PEEK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retries before the first byte.

    Attributes:
        max_retries: further attempts at one model after the first.
        backoff_s: the wait before the second attempt; doubles each time, with jitter, up to `backoff_max_s`.
        budget_ratio: retries that each request earns its provider, beyond a reserve of ten.
        hedge_after_s: a second attempt starts beside one that has no head after this time; None: never.
        total_s: all attempts, waits and the whole answer.
    """

    max_retries: int = 2
    backoff_s: float = 0.2
    backoff_max_s: float = 5.0
    budget_ratio: float = 0.2
    hedge_after_s: float | None = None
    total_s: float = 3600.0

    def delay_s(self, attempt: int, asked_s: float | None) -> float | None:
        """How long to wait after `attempt` (from 1), or None when there shall be no further one.

        `asked_s`: what the provider asked for. The wait is never shorter; for a longer one than `backoff_max_s` the
        caller can wait better than we can.
        """
        if attempt > self.max_retries or (asked_s or 0.0) > self.backoff_max_s:
            return None
        jittered_s = random.uniform(0.5, 1.0) * self.backoff_s * 2.0 ** (attempt - 1)
        return max(asked_s or 0.0, min(jittered_s, self.backoff_max_s))


class RetryBudget:
    """How many retries each provider may still be sent, so that an outage does not multiply the load on it."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._left: dict[str, float] = {}

    def earn(self, provider: str) -> None:
        """Note a request."""
        self._left[provider] = min(self._left.get(provider, _RESERVE) + self._ratio, _RESERVE)

    def spend(self, provider: str) -> bool:
        """Take a retry; False when none is left."""
        left = self._left.get(provider, _RESERVE)
        if left < 1.0:
            return False
        self._left[provider] = left - 1.0
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that may answer, and the call that asks it. `dropped`: what that call cannot carry.

    `chat`: the answer is a conversation's, so its stream may be looked into, and asking twice does nothing twice.
    """

    target: Resolved
    call: Call
    route: Route
    dropped: tuple[str, ...] = ()
    chat: bool = False


@dataclass(slots=True, kw_only=True)
class _Outcome:
    """What became of one attempt: a `reply`, or an `error`. `failure`: the reply's stream begins with this."""

    reply: UpstreamReply | None = None
    error: GatewayError | None = None
    failure: StreamFailure | None = None
    head_ms: float | None = None

    @property
    def status(self) -> int | None:
        if self.failure is not None:
            return self.failure.status
        return self.reply.status if self.reply is not None else None

    @property
    def good(self) -> bool:
        return self.status is not None and self.status < 400

    @property
    def key(self) -> str | None:
        return self.reply.key if self.reply is not None else getattr(self.error, "key", None)

    @property
    def other_key_helps(self) -> bool:
        of = self.reply if self.reply is not None else self.error
        if not getattr(of, "other_keys", False):
            return False
        return self.status in _KEY_STATUSES or isinstance(self.error, UpstreamUnavailable)

    @property
    def retry_helps(self) -> bool:
        if self.reply is None:
            return isinstance(self.error, UpstreamUnavailable) and not isinstance(self.error, CircuitOpen)
        return self.status in RETRYABLE_STATUSES and self.reply.headers.get("x-should-retry") != "false"

    @property
    def other_model_helps(self) -> bool:
        if self.status is not None:
            return self.status >= 500 or self.status in RETRYABLE_STATUSES
        hopeless = isinstance(self.error, UpstreamRefused | DeadlinePassed)
        return isinstance(self.error, UpstreamError | Overloaded) and not hopeless

    @property
    def decides(self) -> bool:
        """Asking again, in whatever way, would change nothing."""
        return not (self.other_key_helps or self.retry_helps or self.other_model_helps)

    async def aclose(self) -> None:
        if self.reply is not None:
            await self.reply.aclose()


class Attempts:
    """One per process: the budgets of retries are its only state.

    Args:
        sleep: waits; given seconds.
    """

    def __init__(
        self,
        upstream: Upstream,
        policy: RetryPolicy,
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._upstream = upstream
        self._policy = policy
        self._metrics = metrics
        self._sleep = sleep
        self._budget = RetryBudget(policy.budget_ratio)

    async def answer(
        self, exchange: Exchange, candidate: Candidate, others: AsyncGenerator[Candidate] | None = None
    ) -> tuple[Candidate, UpstreamReply]:
        """The first good answer, else the last bad one, and whose it is. The caller must close the reply.

        Args:
            others: models to try, one after another, when `candidate` fails in a way that another may not.
        Raises:
            GatewayError: the last attempt had no answer at all.
        """
        self._note(exchange, candidate)
        exchange.overhead_ms = exchange.elapsed_ms()
        outcome = await self._ask(candidate, exchange)
        if others is not None and outcome.other_model_helps:
            candidate, outcome = await self._ask_others(candidate, outcome, others, exchange)
        if outcome.reply is None:
            assert outcome.error is not None
            raise outcome.error
        exchange.first_byte_ms = outcome.head_ms
        return candidate, outcome.reply

    async def _ask_others(
        self, candidate: Candidate, outcome: _Outcome, others: AsyncGenerator[Candidate], exchange: Exchange
    ) -> tuple[Candidate, _Outcome]:
        try:
            async with aclosing(others) as rest:
                async for other in rest:
                    if self._left_s(exchange) <= 0:
                        break
                    await outcome.aclose()
                    self._metrics.fallbacks.labels(other.call.provider).inc()
                    candidate = other
                    self._note(exchange, candidate)
                    outcome = await self._ask(candidate, exchange)
                    if not outcome.other_model_helps:
                        break
        except BaseException:
            await outcome.aclose()
            raise
        return candidate, outcome

    def _note(self, exchange: Exchange, candidate: Candidate) -> None:
        exchange.note_target(candidate.target)
        exchange.dropped, exchange.request_bytes = candidate.dropped, len(candidate.call.body)

    def _left_s(self, exchange: Exchange) -> float:
        return self._policy.total_s - exchange.elapsed_ms() / 1000

    async def _ask(self, candidate: Candidate, exchange: Exchange) -> _Outcome:
        """One model, as often as it is worth it."""
        call, provider, attempt = candidate.call, candidate.call.provider, 1
        self._budget.earn(provider)
        while True:
            outcome = await self._send(call, candidate, exchange)
            again = self._again(call, outcome, attempt)
            if again is None:
                return outcome
            call, delay_s = again
            if delay_s >= self._left_s(exchange):
                return outcome
            # A key that is refused outright burdens nobody, and the next one must not wait for a budget.
            if outcome.status not in _REFUSED_STATUSES and not self._budget.spend(provider):
                self._metrics.retries_refused.labels(provider).inc()
                return outcome
            self._metrics.retries.labels(provider).inc()
            await outcome.aclose()
            if delay_s > 0:
                await self._sleep(delay_s)
            attempt += 1

    def _again(self, call: Call, outcome: _Outcome, attempt: int) -> tuple[Call, float] | None:
        """The call to make next and the seconds to wait before it, or None when asking this model again is no use."""
        if outcome.good or attempt > self._policy.max_retries:
            return None
        if outcome.other_key_helps and outcome.key is not None:
            call = replace(call, avoid_keys=(*call.avoid_keys, outcome.key))
            # It is this key that was refused, so the next one need not wait.
            return call, 0.0 if outcome.status is not None else self._policy.delay_s(attempt, None) or 0.0
        if not outcome.retry_helps:
            return None
        asked_s = read_wait_s(outcome.reply.headers) if outcome.reply is not None else None
        delay_s = self._policy.delay_s(attempt, asked_s)
        return None if delay_s is None else (call, delay_s)

    async def _send(self, call: Call, candidate: Candidate, exchange: Exchange) -> _Outcome:
        """One attempt, with a second one beside it when that is wanted and the first is slow."""
        hedge_after_s = self._policy.hedge_after_s
        if hedge_after_s is None or not candidate.chat:
            return await self._send_once(call, candidate, exchange)
        tasks = {asyncio.ensure_future(self._send_once(call, candidate, exchange))}
        winner: _Outcome | None = None
        try:
            done, _ = await asyncio.wait(tasks, timeout=hedge_after_s)
            if not done and self._left_s(exchange) > 0 and self._may_hedge(call.provider):
                second = replace(call, hedge=True)
                tasks.add(asyncio.ensure_future(self._send_once(second, candidate, exchange)))
            outcome, pending = None, set(tasks)
            while pending and (outcome is None or not outcome.decides):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                outcome = max((task.result() for task in done), key=lambda each: (each.good, each.decides))
            winner = outcome
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            except asyncio.CancelledError:  # the caller left while the other call was let go
                winner = None
                raise
            finally:
                for task in tasks:
                    if not task.cancelled() and task.exception() is None and task.result() is not winner:
                        await task.result().aclose()
        assert winner is not None
        return winner

    def _may_hedge(self, provider: str) -> bool:
        if self._budget.spend(provider):
            self._metrics.retries.labels(provider).inc()
            return True
        self._metrics.retries_refused.labels(provider).inc()
        return False

    async def _send_once(self, call: Call, candidate: Candidate, exchange: Exchange) -> _Outcome:
        """Send, and look at what the answer begins with."""
        started_ms = exchange.elapsed_ms()
        reply: UpstreamReply | None = None
        try:
            left_s = self._left_s(exchange)
            if left_s <= 0:
                raise DeadlinePassed("the time for the request was over before the provider was called")
            reply = await self._upstream.send(replace(call, deadline_s=left_s))
            outcome = _Outcome(reply=reply, head_ms=exchange.elapsed_ms())
            if candidate.chat and reply.status < 400 and _is_stream(reply):
                outcome.failure = await _first_failure(reply, candidate.route.provider)
        except GatewayError as error:
            if reply is not None:
                await reply.aclose()
                if isinstance(error, UpstreamError):
                    error.key, error.other_keys = reply.key, reply.other_keys
            outcome = _Outcome(error=error)
        except BaseException:
            if reply is not None:
                await reply.aclose()
            self._keep(exchange, call, started_ms, None)
            raise
        self._keep(exchange, call, started_ms, outcome)
        return outcome

    def _keep(self, exchange: Exchange, call: Call, started_ms: float, outcome: _Outcome | None) -> None:
        """Note an attempt in trace and metrics; None: it was given up, as its caller left or another won."""
        code = "cancelled" if outcome is None else _error_code(outcome)
        reply = outcome.reply if outcome is not None else None
        key = outcome.key if outcome is not None else None
        exchange.note_attempt(call, started_ms, key=key, status=reply.status if reply else None, error_code=code)
        self._metrics.attempts.labels(call.provider, code or "ok").inc()


def _error_code(outcome: _Outcome) -> str | None:
    if outcome.failure is not None:
        return "upstream_stream_failed"
    if outcome.error is not None:
        return outcome.error.code
    return None if outcome.good else UpstreamRejected.code


def _is_stream(reply: UpstreamReply) -> bool:
    return reply.headers.get("content-type", "").lower().startswith(STREAM_TYPES)


async def _first_failure(reply: UpstreamReply, format_: Format) -> StreamFailure | None:
    """The failure with which a stream begins, if it does; waits for the first whole frame and takes nothing away.

    Providers that are overloaded say so in a stream's first event, under status 200:
    https://platform.claude.com/docs/en/build-with-claude/streaming, "Error events".

    Raises:
        UpstreamError: the stream ended or broke off before it began, or is none.
    """
    reader, scanner = format_.stream_reader(), format_.stream_scanner(False)
    chunks, taken = reply.chunks, bytearray()
    async for chunk in chunks:
        taken += chunk
        events, whole = reader.feed(chunk), scanner.feed(chunk)
        if scanner.broken is not None and not whole:
            raise UpstreamError(scanner.broken)
        # A comment or an event without meaning is a frame too: what keeps a caller's connection alive is not held.
        if events or whole or len(taken) > _PEEK_BYTES:
            break
    else:
        events = reader.end()
        if not events or isinstance(events[0], StreamFailure):
            raise UpstreamError("the provider's stream ended before it began")
    reply.chunks = Resumed(bytes(taken), chunks)
    first = next((event for event in events if not isinstance(event, Ping | ReplyStart)), None)
    return first if isinstance(first, StreamFailure) else None
