"""When a circuit opens, whom it lets through meanwhile, and that it never stays shut."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orqen_ray.providers.breaker import Breaker, BreakerPolicy, Permit

POLICY = BreakerPolicy(failures=3, failure_ratio=0.5, window_s=10, cooldown_s=2, cooldown_max_s=8)


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(POLICY, clock)
    for _ in range(3):
        settle(breaker, False)
    return breaker


def settle(breaker: Breaker, good: bool | None) -> None:
    permit = breaker.acquire()
    assert permit is not None
    permit.settle(good)


def test_it_opens_at_the_least_number_of_failures_and_not_before() -> None:
    breaker = Breaker(POLICY, Clock())
    for _ in range(2):
        settle(breaker, False)
    assert breaker.state == "closed"
    settle(breaker, False)
    assert (breaker.state, breaker.acquire(), breaker.wait_s) == ("open", None, 2)


def test_a_small_share_of_failures_does_not_open_it() -> None:
    breaker = Breaker(POLICY, Clock())
    for good in [True, True, False] * 20:
        settle(breaker, good)
    assert breaker.state == "closed"


def test_failures_are_forgotten_after_the_window() -> None:
    clock = Clock()
    breaker = Breaker(POLICY, clock)
    for _ in range(10):
        settle(breaker, False)
        clock.now_s += 6
    assert breaker.state == "closed"


def test_calls_that_were_given_up_say_nothing() -> None:
    breaker = Breaker(POLICY, Clock())
    for _ in range(20):
        settle(breaker, None)
    assert breaker.state == "closed"


def test_after_the_cooldown_one_probe_is_let_through_and_its_success_closes() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 2
    probe = breaker.acquire()
    assert probe is not None and breaker.acquire() is None
    probe.settle(True)
    assert breaker.state == "closed" and breaker.acquire() is not None


def test_each_probe_that_fails_doubles_the_cooldown_up_to_its_limit() -> None:
    clock = Clock()
    breaker = opened(clock)
    waits = []
    for _ in range(4):
        waits.append(breaker.wait_s)
        clock.now_s += breaker.wait_s
        settle(breaker, False)
    assert waits == [2, 4, 8, 8]


def test_a_probe_that_was_cancelled_makes_way_for_another_at_once() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 2
    settle(breaker, None)
    assert breaker.acquire() is not None


def test_a_probe_that_never_answers_makes_way_for_another_in_the_end() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 2
    lost = breaker.acquire()
    assert lost is not None and breaker.wait_s == 2
    clock.now_s += 2
    second = breaker.acquire()
    assert second is not None
    lost.settle(False)
    assert breaker.state != "open", "the verdict of a probe that was replaced opens nothing"
    second.settle(True)
    assert breaker.acquire() is not None and breaker.acquire() is not None


def test_it_says_when_it_opens_and_closes_and_nothing_of_probes() -> None:
    clock, said = Clock(), list[bool]()
    breaker = Breaker(POLICY, clock, said.append)
    for _ in range(3):
        settle(breaker, False)
    for good in (False, None, True):
        clock.now_s += 8
        settle(breaker, good)
    assert said == [True, False]


def test_an_answer_that_breaks_off_counts_against_a_closed_circuit_only() -> None:
    breaker = Breaker(POLICY, Clock())
    for _ in range(3):
        breaker.fail()
    assert breaker.state == "open"
    breaker.fail()
    assert breaker.wait_s == 2


class AnyUse(RuleBasedStateMachine):
    """Calls that begin, end, are forgotten and overlap in any order, as time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.told: list[bool] = []
        self.breaker = Breaker(POLICY, self.clock, self.told.append)
        self.open_calls: list[Permit] = []

    @rule()
    def call(self) -> None:
        was, may = self.breaker.state, self.breaker.wait_s == 0
        permit = self.breaker.acquire()
        assert (permit is not None) == may
        if permit is not None:
            self.open_calls.append(permit)
            if was != "closed":
                assert self.breaker.acquire() is None, "one probe at a time"

    @precondition(lambda self: self.open_calls)
    @rule(data=st.data(), good=st.sampled_from([True, False, None]))
    def end(self, data: st.DataObject, good: bool | None) -> None:
        permit = self.open_calls.pop(data.draw(st.integers(0, len(self.open_calls) - 1)))
        permit.settle(good)
        state = self.breaker.state
        permit.settle(not good)
        assert self.breaker.state == state, "the first verdict counts"

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule()
    def break_off(self) -> None:
        self.breaker.fail()

    @invariant()
    def is_never_shut_for_ever(self) -> None:
        assert 0 <= self.breaker.wait_s <= POLICY.cooldown_max_s + 1e-6  # the clock is a sum of floats
        assert (self.breaker.state != "closed") == (bool(self.told) and self.told[-1])
        assert all(one != two for one, two in zip(self.told, self.told[1:], strict=False))


TestAnyUse = AnyUse.TestCase
