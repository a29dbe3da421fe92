"""Several keys of a provider: one for all turns of a conversation, another when it fails, none when all must rest."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from orqen_ray.errors import CircuitOpen, DeadlinePassed, UpstreamTimeout, UpstreamUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.providers.breaker import BreakerPolicy
from orqen_ray.providers.forward import Timeouts
from orqen_ray.providers.keyring import KeyRing
from orqen_ray.types import Credentials
from tests.providers.scripted import call, forwarder, lab, read, reply, say_nothing, say_one_thing, scripted, until_eof
from tests.providers.test_breaker import Clock

KEYS = tuple(Credentials(label=name, api_key=f"sk-{name}") for name in ("one", "two", "three"))
POLICY = BreakerPolicy(failures=2, window_s=60, cooldown_s=5)


def ring(clock: Clock | None = None, metrics: Metrics | None = None) -> KeyRing:
    return KeyRing(POLICY, metrics or Metrics(), clock or Clock())


def chosen(keys: KeyRing, conversation: str = "c", among: tuple[Credentials, ...] = KEYS, **more: object) -> str | None:
    got = keys.choose(call(conversation=conversation, **more), among)
    got.settle(None)
    return got.label


# --- Balance ------------------------------------------------------------------------------------------------------


def test_all_turns_of_a_conversation_use_one_key_and_conversations_use_all() -> None:
    keys = ring()
    labels = [chosen(keys, f"conversation {i}") for i in range(300)]
    assert labels == [chosen(ring(), f"conversation {i}") for i in range(300)], "the same in every process"
    assert all(60 < count < 140 for count in Counter(labels).values()) and len(set(labels)) == 3


def test_a_key_that_goes_moves_only_its_own_conversations() -> None:
    keys = ring()
    for i in range(100):
        before = chosen(keys, str(i))
        after = chosen(keys, str(i), KEYS[:2])
        assert after == before or before == "three"


def test_a_conversation_stays_with_the_key_that_answered_it_last() -> None:
    keys = ring()
    first = chosen(keys)
    other = next(key.label for key in KEYS if key.label != first)
    keys.served(call(conversation="c"), other, KEYS)
    assert chosen(keys) == other and chosen(keys, key_bound=True) == other
    keys.served(call(conversation="c"), str(first), KEYS)
    assert chosen(keys) == first


def test_the_conversations_that_have_moved_are_so_many_and_no_more() -> None:
    keys = ring()
    moved = {str(i): other_than(keys, str(i)) for i in range(16_400)}
    for conversation, label in moved.items():
        keys.served(call(conversation=conversation), label, KEYS)
    stayed = [chosen(keys, conversation) == label for conversation, label in moved.items()]
    assert stayed == [False] * 16 + [True] * 16_384


def other_than(keys: KeyRing, conversation: str) -> str:
    first = chosen(keys, conversation)
    return next(key.label for key in KEYS if key.label != first)


async def test_the_key_that_has_answered_a_conversation_answers_it_again() -> None:
    first = chosen(ring())
    async with scripted(reply()) as server, forwarder(lab(server.url), lab=KEYS) as upstream:
        answers = [await upstream.send(call(conversation="c", avoid_keys=avoid)) for avoid in ((), (str(first),), ())]
    assert answers[0].key == first != answers[1].key == answers[2].key


def test_a_key_that_was_tried_comes_last_and_a_bound_call_never_leaves_its_own() -> None:
    keys = ring()
    first = str(chosen(keys))
    assert chosen(keys, avoid_keys=(first,)) != first
    assert chosen(keys, hedge=True) != first
    assert chosen(keys, avoid_keys=(first,), hedge=True, key_bound=True) == first
    got = keys.choose(call(conversation="c", key_bound=True), KEYS)
    assert not got.other_keys


def test_a_call_outside_any_conversation_uses_the_first_key() -> None:
    assert chosen(ring(), "") == "one"


def test_the_last_key_says_that_there_is_no_other() -> None:
    keys = ring()
    assert keys.choose(call(avoid_keys=("one",)), KEYS).other_keys
    assert not keys.choose(call(avoid_keys=("one", "two", "three")), KEYS).other_keys
    assert not keys.choose(call(), KEYS[:1]).other_keys


# --- Rests --------------------------------------------------------------------------------------------------------


def test_a_key_rests_for_its_model_as_long_as_the_provider_asked() -> None:
    clock = Clock()
    keys = ring(clock)
    keys.rest(call(model="m"), "one", 3.0)
    assert chosen(keys, "", model="m") == "two" and chosen(keys, "", model="other") == "one"
    assert chosen(keys, "", KEYS[:2], model="m", avoid_keys=("two",)) == "one", "rather than one that was tried already"
    clock.now_s += 3
    assert chosen(keys, "", model="m") == "one"


def test_when_each_key_rests_the_first_to_be_ready_is_tried() -> None:
    clock = Clock()
    keys = ring(clock)
    for label, asked_s in (("one", 4.0), ("two", 3.0), ("three", None)):
        keys.rest(call(), label, asked_s)
    assert chosen(keys, "") == "three"
    for key in KEYS:
        keys.rest(call(), key.label, 3600.0)
    assert chosen(keys, "") == "one"
    keys.rest(call(), "one", 3600.0)
    clock.now_s += 60
    assert chosen(keys, "") == "one", "one huge Retry-After does not shut a key for an hour"


def test_what_is_remembered_of_rests_is_bounded() -> None:
    keys = ring()
    for i in range(5_000):
        keys.rest(call(model=f"m{i}"), "one", 3600.0)
    assert chosen(keys, "", model="m0") == "one", "forgotten, to make room"
    assert chosen(keys, "", model="m4999") == "two"


# --- Circuits -----------------------------------------------------------------------------------------------------


def open_circuits(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("orqen_open_circuits", {"provider": "lab"})


def test_a_key_that_fails_is_left_and_found_again() -> None:
    clock, metrics = Clock(), Metrics()
    keys = ring(clock, metrics)
    for _ in range(2):
        keys.choose(call(), KEYS).settle(False)
    assert chosen(keys, "") == "two" and open_circuits(metrics) == 1
    with pytest.raises(CircuitOpen, match="failed too often") as caught:
        chosen(keys, "", KEYS[:1])
    assert caught.value.retry_after_s == 5 and caught.value.status == 503
    clock.now_s += 5
    keys.choose(call(), KEYS).settle(True)
    assert open_circuits(metrics) == 0


def test_a_model_that_fails_takes_no_other_model_of_its_key_with_it() -> None:
    keys = ring()
    for _ in range(9):
        keys.choose(call(model="good"), KEYS[:1]).settle(True)
    for _ in range(2):
        keys.choose(call(model="bad"), KEYS[:1]).settle(False)
    with pytest.raises(CircuitOpen, match="this model"):
        chosen(keys, "", KEYS[:1], model="bad")
    assert chosen(keys, "", KEYS[:1], model="good") == "one" == chosen(keys, "", KEYS[:1], model="new")


def test_a_circuit_that_nobody_looks_at_is_forgotten_and_there_are_only_so_many() -> None:
    clock, metrics = Clock(), Metrics()
    keys = ring(clock, metrics)
    late = keys.choose(call(model="m4999"), KEYS)
    for i in range(5_000):
        for _ in range(2):
            keys.choose(call(model=f"m{i}"), KEYS[:1]).settle(False)
    assert open_circuits(metrics) == 4096
    clock.now_s += POLICY.window_s + POLICY.cooldown_max_s
    keys.choose(call(model="other"), KEYS).settle(True)
    assert open_circuits(metrics) == 0
    late.settle(False)
    late.broke_off()
    assert open_circuits(metrics) == 1, "what comes late begins a new circuit"


async def test_a_provider_that_fails_is_not_called_until_it_cools_down() -> None:
    clock = Clock()
    async with (
        scripted(reply(529)) as server,
        forwarder(lab(server.url, auth="none"), breaker=POLICY, clock=clock) as upstream,
    ):
        for _ in range(2):
            assert (await upstream.send(call())).status == 529
        with pytest.raises(CircuitOpen):
            await upstream.send(call())
        clock.now_s += 5
        probes = await asyncio.gather(*(upstream.send(call()) for _ in range(5)), return_exceptions=True)
        assert [getattr(probe, "status", None) for probe in probes].count(529) == 1, "one probe"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [200, 400, 401, 404, 408, 429])
async def test_what_is_not_the_providers_failure_opens_nothing(status: int) -> None:
    async with scripted(reply(status)) as server, forwarder(lab(server.url), breaker=POLICY, lab=KEYS[0]) as upstream:
        for _ in range(6):
            await read(await upstream.send(call()))
    assert len(server.requests) == 6


async def test_a_callers_own_secret_opens_no_circuit_for_others() -> None:
    own = Credentials(api_key="sk-own")
    async with (
        scripted(reply(500)) as server,
        forwarder(lab(server.url), breaker=POLICY, lab=KEYS[0]) as upstream,
    ):
        for _ in range(4):
            assert (await upstream.send(call(credentials=own))).key is None
        assert (await upstream.send(call())).status == 500


async def test_a_callers_own_secret_that_has_to_wait_makes_nobody_else_wait() -> None:
    first = chosen(ring(), "c")
    async with scripted(reply(429, retry_after="50")) as server, forwarder(lab(server.url), lab=KEYS) as upstream:
        own = Credentials(api_key="sk-own", label=first or "")
        for _ in range(2):
            assert (await upstream.send(call(conversation="c", credentials=own))).status == 429
        assert (await upstream.send(call(conversation="c"))).key == first
        assert (await upstream.send(call(conversation="c"))).key != first


async def test_an_error_that_breaks_off_is_one_failure() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\npart")
        await writer.drain()
        raise ConnectionResetError

    async with scripted(script) as server, forwarder(lab(server.url), breaker=POLICY, lab=KEYS[0]) as upstream:
        for _ in range(2):
            assert (await upstream.send(call())).status == 500
        with pytest.raises(CircuitOpen):
            await upstream.send(call())


async def test_connection_failures_and_time_outs_open_a_circuit_but_deadlines_and_callers_that_leave_do_not() -> None:
    waits = Timeouts(first_byte_s=0.02)
    async with scripted(say_nothing) as server, forwarder(lab(server.url), breaker=POLICY, lab=KEYS[0]) as upstream:
        for _ in range(3):
            with pytest.raises(DeadlinePassed):
                await upstream.send(call(deadline_s=0.02))
        for _ in range(3):
            sending = asyncio.create_task(upstream.send(call()))
            await asyncio.wait([sending], timeout=0.01)
            sending.cancel()
            await asyncio.wait([sending])
        assert len(server.requests) >= 3
        with pytest.raises(DeadlinePassed):
            await upstream.send(call(deadline_s=0.02))
    async with scripted(say_nothing) as server, forwarder(lab(server.url), waits, POLICY, lab=KEYS[0]) as upstream:
        for _ in range(2):
            with pytest.raises(UpstreamTimeout) as timeout:
                await upstream.send(call())
            assert timeout.value.key == "one"
        with pytest.raises(CircuitOpen):
            await upstream.send(call())
    async with forwarder(lab(server.url), breaker=POLICY, lab=KEYS) as upstream:  # nobody listens there any more
        for _ in range(2):
            with pytest.raises(UpstreamUnavailable) as caught:
                await upstream.send(call())
            assert (caught.value.key, caught.value.other_keys) == ("one", True)
        with pytest.raises(UpstreamUnavailable) as caught:
            await upstream.send(call())
        assert caught.value.key == "two"


@pytest.mark.parametrize("failure_ratio", [0.5, 1.0])
async def test_streams_that_fall_silent_open_a_circuit(failure_ratio: float) -> None:
    waits, policy = Timeouts(idle_s=0.02), replace(POLICY, failure_ratio=failure_ratio)
    async with scripted(say_one_thing) as server, forwarder(lab(server.url), waits, policy, lab=KEYS[0]) as upstream:
        for _ in range(8):
            try:
                answer = await upstream.send(call())
            except CircuitOpen:
                break
            with pytest.raises(UpstreamTimeout):
                await read(answer)
        else:
            raise AssertionError("the circuit never opened")


@pytest.mark.parametrize("how", ["cancelled", "closed", "over"])
async def test_streams_that_their_callers_end_open_no_circuit(how: str) -> None:
    async with scripted(say_one_thing) as server, forwarder(lab(server.url), breaker=POLICY, lab=KEYS[0]) as upstream:
        for _ in range(6):
            answer = await upstream.send(call(deadline_s=0.05 if how == "over" else 5))
            await anext(answer.chunks)
            reading = asyncio.create_task(read(answer))
            await asyncio.wait([reading], timeout=None if how == "over" else 0.01)
            if how == "closed":
                await answer.aclose()
            reading.cancel()
            (ended,) = await asyncio.gather(reading, return_exceptions=True)
            assert isinstance(ended, DeadlinePassed) == (how == "over")
        await (await upstream.send(call())).aclose()


async def test_a_probe_whose_caller_leaves_does_not_keep_the_circuit_shut() -> None:
    clock, asked = Clock(), list[int]()

    async def two_failures_then_silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(1)
        if len(asked) > 2:
            probing.set()
            await until_eof(reader)
        writer.write(reply(500))

    probing = asyncio.Event()
    async with (
        scripted(two_failures_then_silence) as server,
        forwarder(lab(server.url), breaker=POLICY, clock=clock, lab=KEYS[0]) as upstream,
    ):
        for _ in range(2):
            await upstream.send(call())
        clock.now_s += 5
        probe = asyncio.create_task(upstream.send(call()))
        await probing.wait()
        with pytest.raises(CircuitOpen):
            await upstream.send(call())
        probe.cancel()
        await asyncio.wait([probe])
        with pytest.raises(DeadlinePassed):
            await upstream.send(call(deadline_s=0.05))


async def test_an_answer_names_its_key_and_429_sends_the_next_call_to_another() -> None:
    async with scripted(reply(429, retry_after="2")) as server, forwarder(lab(server.url), lab=KEYS) as upstream:
        answers = [await upstream.send(call()) for _ in range(3)]
    assert [(answer.key, answer.other_keys) for answer in answers] == [("one", True), ("two", True), ("three", False)]
    assert [request["authorization"] for request in server.requests] == [f"Bearer sk-{a.key}" for a in answers]
