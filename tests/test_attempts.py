"""The calls for one request: which come after a failure, after which wait, and when there are no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orqen_ray.attempts import Attempts, Candidate, RetryBudget, RetryPolicy
from orqen_ray.conversation import Conversation
from orqen_ray.errors import CircuitOpen, DeadlinePassed, UpstreamError, UpstreamUnavailable
from orqen_ray.exchange import Exchange
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.metrics import Metrics
from orqen_ray.providers.catalog import Resolved, load_catalog
from orqen_ray.relay import Route
from orqen_ray.types import Call, UpstreamReply

CATALOG = load_catalog()
ROUTE = Route(
    caller=OPENAI_CHAT,
    provider=OPENAI_CHAT,
    conversation=Conversation(format="openai_chat", model="m", messages=()),
)
Step = Callable[[Call], UpstreamReply | Exception]


@dataclass
class Body:
    """A body that knows how often it was closed."""

    closed: int = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


def answers(status: int = 200, *, key: str | None = None, other_keys: bool = False, **headers: str) -> Step:
    def step(call: Call) -> UpstreamReply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return UpstreamReply(status=status, headers=named, chunks=Body(), key=key, other_keys=other_keys)

    return step


def gone(key: str | None = None, *, other_keys: bool = False) -> Step:
    def step(call: Call) -> Exception:
        error = UpstreamUnavailable("gone", provider=call.provider)
        error.key, error.other_keys = key, other_keys
        return error

    return step


@dataclass
class Scripted:
    """Answers by `steps`, the last of them for ever; `before` is awaited before each answer, given its number."""

    steps: list[Step]
    before: Callable[[int], Any] | None = None
    calls: list[Call] = field(default_factory=list)
    replies: list[UpstreamReply] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)

    async def send(self, call: Call) -> UpstreamReply:
        self.calls.append(call)
        number = len(self.calls)
        try:
            if self.before is not None:
                await self.before(number)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        got = self.steps[min(number, len(self.steps)) - 1](call)
        if isinstance(got, Exception):
            raise got
        self.replies.append(got)
        return got

    async def connected(self) -> frozenset[str]:
        return frozenset()


@dataclass
class Run:
    """One request after another through `Attempts`, with waits that are noted and not waited."""

    upstream: Scripted
    policy: RetryPolicy = RetryPolicy()
    waits: list[float] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    exchange: Exchange = field(default_factory=lambda: new_exchange())

    def __post_init__(self) -> None:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        self.attempts = Attempts(self.upstream, self.policy, self.metrics, sleep)

    async def ask(self, *others: str, chat: bool = True, **fields: Any) -> tuple[str, UpstreamReply]:
        """The model that answered, and its reply."""

        async def rest() -> AsyncGenerator[Candidate]:
            for model in others:
                yield candidate(model, chat=chat)

        self.exchange = new_exchange()
        served, reply = await self.attempts.answer(self.exchange, candidate("m", chat=chat, **fields), rest())
        return served.call.model, reply

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"provider": "openai", **labels}) or 0.0

    def trace(self) -> list[tuple[str | None, int | None, str | None]]:
        return [(each.key, each.status, each.error_code) for each in self.exchange.attempts]


def new_exchange() -> Exchange:
    return Exchange(request_id="r", key_id="k", session_id="s", inbound_format="openai_chat")


def candidate(model: str, *, chat: bool = True, **fields: Any) -> Candidate:
    call = Call(**{"provider": "openai", "path": "/chat/completions", "body": b"{}", "model": model, **fields})
    return Candidate(
        target=Resolved(provider=CATALOG.providers["openai"], model_id=model), call=call, route=ROUTE, chat=chat
    )


# --- Retries ------------------------------------------------------------------------------------------------------


async def test_a_busy_provider_is_asked_again_after_waits_that_grow_and_vary() -> None:
    run = Run(Scripted([answers(503)]), RetryPolicy(max_retries=3, backoff_s=1.0, backoff_max_s=3.0))
    _, reply = await run.ask()
    assert reply.status == 503 and len(run.upstream.calls) == 4
    assert 0.5 <= run.waits[0] <= 1 <= run.waits[1] <= 2 <= run.waits[2] <= 3
    assert [each.chunks.closed for each in run.upstream.replies] == [1, 1, 1, 0]  # type: ignore[attr-defined]
    assert run.trace() == [(None, 503, "upstream_rejected")] * 4
    assert run.count("orqen_retries_total") == 3
    assert run.count("orqen_upstream_attempts_total", outcome="upstream_rejected") == 4


@pytest.mark.parametrize(
    ("headers", "calls", "wait_s"),
    [
        ({"retry_after": "3"}, 2, 3.0),
        ({"retry_after_ms": "2500", "retry_after": "4"}, 2, 2.5),
        ({"retry_after": "30"}, 1, None),
        ({"retry_after": "Fri, 31 Dec 2999 23:59:59 GMT"}, 1, None),
        ({"retry_after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 2, 0.0),
        ({"x_should_retry": "false"}, 1, None),
    ],
)
async def test_the_providers_own_wish_is_obeyed(headers: dict[str, Any], calls: int, wait_s: float | None) -> None:
    run = Run(Scripted([answers(429, **headers), answers()]))
    await run.ask()
    assert len(run.upstream.calls) == calls
    assert len(run.waits) == calls - 1 and (wait_s is None or wait_s <= run.waits[0] <= wait_s + 0.2)


async def test_an_outage_is_not_multiplied() -> None:
    run = Run(Scripted([answers(503)]), RetryPolicy(max_retries=2, budget_ratio=0.2))
    for _ in range(200):
        await run.ask()
    assert 200 + 0.2 * 200 <= len(run.upstream.calls) <= 200 + 0.2 * 200 + 10
    assert run.count("orqen_retries_refused_total") > 100


def test_a_budget_is_its_providers_own_and_refills() -> None:
    budget = RetryBudget(0.5)
    assert [budget.spend("a") for _ in range(11)] == [True] * 10 + [False]
    assert budget.spend("b")
    budget.earn("a")
    assert not budget.spend("a")
    budget.earn("a")
    assert budget.spend("a") and not budget.spend("a")


# --- Keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_what_one_key_is_refused_the_next_is_asked_at_once(status: int) -> None:
    refused = answers(status, key="one", other_keys=True, retry_after="900", x_should_retry="false")
    run = Run(Scripted([refused, answers(key="two")]))
    _, reply = await run.ask()
    assert (reply.status, reply.key, run.waits) == (200, "two", [])
    assert [call.avoid_keys for call in run.upstream.calls] == [(), ("one",)]
    assert run.trace() == [("one", status, "upstream_rejected"), ("two", 200, None)]


async def test_a_connection_that_fails_is_tried_with_the_next_key_after_a_wait() -> None:
    run = Run(Scripted([gone("one", other_keys=True), gone("two"), answers()]))
    await run.ask()
    assert [call.avoid_keys for call in run.upstream.calls] == [(), ("one",), ("one",)] and len(run.waits) == 2
    assert run.trace()[:2] == [("one", None, "upstream_unavailable"), ("two", None, "upstream_unavailable")]


@pytest.mark.parametrize("status", [401, 403])
async def test_the_last_key_that_is_refused_is_not_tried_again(status: int) -> None:
    run = Run(Scripted([answers(status, key="one")]))
    assert (await run.ask())[1].status == status and len(run.upstream.calls) == 1


async def test_a_key_that_is_refused_costs_the_callers_nothing_as_long_as_there_is_another() -> None:
    run = Run(Scripted([]), RetryPolicy(max_retries=1, budget_ratio=0.0))
    run.upstream.steps = [
        lambda call: answers(key="two")(call) if call.avoid_keys else answers(401, key="one", other_keys=True)(call)
    ]
    assert [(await run.ask())[1].status for _ in range(50)] == [200] * 50
    assert run.count("orqen_retries_refused_total") == 0 and run.count("orqen_retries_total") == 50


# --- Deadline -----------------------------------------------------------------------------------------------------


async def test_each_call_gets_what_is_left_of_the_time_and_no_wait_begins_that_cannot_end_in_it() -> None:
    run = Run(Scripted([answers(429, retry_after="4")]), RetryPolicy(total_s=3.0))
    assert (await run.ask("n"))[1].status == 429
    assert not run.waits and [call.model for call in run.upstream.calls] == ["m", "n"]
    first, second = (call.deadline_s or 0 for call in run.upstream.calls)
    assert 2.5 < second <= first <= 3.0


async def test_when_the_time_is_over_nothing_more_is_asked() -> None:
    policy = RetryPolicy(total_s=0.05, backoff_s=0.001)
    run = Run(Scripted([gone()], before=lambda number: asyncio.sleep(0.06)), policy)
    with pytest.raises(UpstreamUnavailable):
        await run.ask("n")
    assert len(run.upstream.calls) == 1
    late = new_exchange()
    late.started_s -= 1
    with pytest.raises(DeadlinePassed) as caught:
        await run.attempts.answer(late, candidate("m"))
    assert caught.value.status == 504 and len(run.upstream.calls) == 1


# --- Other models -------------------------------------------------------------------------------------------------


async def test_an_open_circuit_is_not_waited_for() -> None:
    def circuit(call: Call) -> Exception:
        return CircuitOpen("failed too often", retry_after_s=1)

    run = Run(Scripted([circuit, answers()]))
    assert (await run.ask("n"))[0] == "n" and not run.waits
    assert [each.error_code for each in run.exchange.attempts] == ["circuit_open", None]
    assert run.exchange.sent_model == "n"


async def test_the_retries_of_each_model_are_its_own() -> None:
    run = Run(Scripted([answers(503)] * 5 + [answers()]))
    assert (await run.ask("n"))[0] == "n"
    assert [call.model for call in run.upstream.calls] == ["m"] * 3 + ["n"] * 3
    assert run.count("orqen_fallbacks_total") == 1


# --- Hedges -------------------------------------------------------------------------------------------------------

HEDGING = RetryPolicy(hedge_after_s=0.01, max_retries=0)


async def never(number: int) -> None:
    if number == 1:
        await asyncio.Event().wait()


async def test_the_first_good_head_wins_and_the_other_call_is_given_up() -> None:
    run = Run(Scripted([answers(key="one"), answers(key="two")], before=never), HEDGING)
    _, reply = await run.ask()
    assert reply.key == "two" and run.upstream.cancelled == [1]
    assert [call.hedge for call in run.upstream.calls] == [False, True]
    assert sorted(run.trace(), key=str) == [("two", 200, None), (None, None, "cancelled")]
    assert run.count("orqen_retries_total") == 1


async def test_an_answer_in_time_has_no_second_call_beside_it() -> None:
    run = Run(Scripted([answers()]), replace(HEDGING, hedge_after_s=5.0))
    await run.ask()
    assert len(run.upstream.calls) == 1


async def test_of_two_answers_the_good_one_wins_and_the_other_is_closed() -> None:
    heads = asyncio.Event()

    async def together(number: int) -> None:
        if number == 2:
            heads.set()
        await heads.wait()

    run = Run(Scripted([answers(503), answers(200)], before=together), HEDGING)
    _, reply = await run.ask()
    assert reply.status == 200
    assert {each.status: each.chunks.closed for each in run.upstream.replies} == {503: 1, 200: 0}  # type: ignore[attr-defined]


async def test_a_second_call_that_fails_leaves_the_first_to_answer() -> None:
    second_failed = asyncio.Event()

    async def first_waits(number: int) -> None:
        if number == 1:
            await second_failed.wait()
        else:
            second_failed.set()

    run = Run(Scripted([answers(key="one"), gone()], before=first_waits), HEDGING)
    run.upstream.steps = [lambda call: gone()(call) if call.hedge else answers(key="one")(call)]
    assert (await run.ask())[1].key == "one"


async def test_a_caller_that_leaves_takes_both_calls_with_it() -> None:
    both = asyncio.Event()

    async def stall(number: int) -> None:
        if number == 2:
            both.set()
        await asyncio.Event().wait()

    run = Run(Scripted([answers()], before=stall), HEDGING)
    asking = asyncio.create_task(run.ask())
    await both.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert sorted(run.upstream.cancelled) == [1, 2]


async def test_a_caller_that_leaves_while_the_slower_call_is_let_go_leaves_nothing_open() -> None:
    letting_go, gone = asyncio.Event(), asyncio.Event()

    async def slow_to_go(number: int) -> None:
        try:
            await never(number)
        except asyncio.CancelledError:
            letting_go.set()
            await gone.wait()
            raise

    run = Run(Scripted([answers(key="two")], before=slow_to_go), HEDGING)
    asking = asyncio.create_task(run.ask())
    await letting_go.wait()
    asking.cancel()
    gone.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [each.chunks.closed for each in run.upstream.replies] == [1]  # type: ignore[attr-defined]


async def test_hedges_count_as_retries_and_never_repeat_what_is_no_chat() -> None:
    run = Run(Scripted([answers()], before=lambda number: asyncio.sleep(0.03)), replace(HEDGING, budget_ratio=0.0))
    for _ in range(12):
        await run.ask()
    assert len(run.upstream.calls) == 12 + 10 and run.count("orqen_retries_refused_total") == 2
    other = Run(Scripted([answers()], before=lambda number: asyncio.sleep(0.03)), HEDGING)
    await other.ask(chat=False)
    assert len(other.upstream.calls) == 1


# --- Streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[], [b"data: {"], [UpstreamUnavailable("reset")]])
async def test_a_stream_that_ends_before_it_begins_is_asked_for_again(chunks: list[bytes | Exception]) -> None:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def empty(call: Call) -> UpstreamReply:
        return UpstreamReply(status=200, headers={"content-type": "text/event-stream"}, chunks=body(), key="one")

    run = Run(Scripted([empty, answers()]))
    assert (await run.ask("n"))[1].status == 200
    assert run.trace()[0][0] == "one" and len(run.upstream.calls) == 2
    alone = Run(Scripted([empty]), RetryPolicy(max_retries=0))
    with pytest.raises(UpstreamError):
        await alone.ask()
