"""A circuit breaker: whoever fails too often is left alone for a while, then tried with one call at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a circuit opens, and for how long.

    Attributes:
        failures: how many there must be in the window, at least.
        failure_ratio: the share of the window's calls that must have failed, at least.
        window_s: how long a result counts; it is forgotten between half of this and all of it.
        cooldown_s: how long the circuit stays open; doubles with each probe that fails, up to `cooldown_max_s`.
    """

    failures: int = 10
    failure_ratio: float = 0.5
    window_s: float = 30.0
    cooldown_s: float = 5.0
    cooldown_max_s: float = 120.0


class Breaker:
    """The circuit of one key for one model. For one event loop: nothing here awaits, so nothing needs a lock.

    Args:
        clock: seconds; any that never goes back.
        on_change: told True when the circuit opens, False when it closes; not told of probes.
    """

    __slots__ = (
        "_calls", "_calls_before", "_clock", "_cooldown_s", "_failed", "_failed_before", "_half_began_s", "_on_change",
        "_policy", "_probe", "_state", "_wait_until_s",
    )  # fmt: skip

    def __init__(
        self, policy: BreakerPolicy, clock: Callable[[], float], on_change: Callable[[bool], None] | None = None
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._state: State = "closed"
        self._cooldown_s = policy.cooldown_s
        self._wait_until_s = 0.0
        self._probe: Permit | None = None
        self._half_began_s = clock()
        self._calls = self._failed = self._calls_before = self._failed_before = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def wait_s(self) -> float:
        """How long until a call may be let through; 0 when one may be now."""
        if self._state == "closed" or (self._state == "half_open" and self._probe is None):
            return 0.0
        return max(self._wait_until_s - self._clock(), 0.0)

    def acquire(self) -> Permit | None:
        """Leave to call, to be answered by exactly one verdict; None while the circuit is open.

        A probe that says nothing for as long as the circuit was open makes way for another one.
        """
        if self._state == "closed":
            return Permit(self)
        if self.wait_s > 0:
            return None
        self._state = "half_open"
        self._probe = Permit(self)
        self._wait_until_s = self._clock() + self._cooldown_s
        return self._probe

    def fail(self) -> None:
        """Count a failure that came after a call's verdict, which has counted the call: an answer that broke off."""
        if self._state == "closed":
            self._count(failed=True, calls=0)

    def forget(self) -> None:
        """Let go of a circuit that nobody looks at any more: it is closed, and says nothing after that."""
        if self._state != "closed":
            self._close()
        self._on_change = None

    def _settle(self, permit: Permit, good: bool | None) -> None:
        if self._state == "closed":
            if good is not None:
                self._count(failed=not good)
        elif good and self._state == "half_open":  # a late answer of an earlier probe is as good a sign
            self._close()
        elif permit is self._probe:
            self._probe = None
            if good is False:
                self._cooldown_s = min(2 * self._cooldown_s, self._policy.cooldown_max_s)
                self._open()

    def _count(self, *, failed: bool, calls: int = 1) -> None:
        now_s, half_s = self._clock(), self._policy.window_s / 2
        if now_s - self._half_began_s >= half_s:
            recent = now_s - self._half_began_s < 2 * half_s
            self._calls_before, self._failed_before = (self._calls, self._failed) if recent else (0, 0)
            self._calls = self._failed = 0
            self._half_began_s = now_s
        self._calls += calls
        if not failed:
            return
        self._failed += 1
        failures, in_all = self._failed + self._failed_before, self._calls + self._calls_before
        if failures >= self._policy.failures and failures >= self._policy.failure_ratio * in_all:
            self._open()
            if self._on_change is not None:
                self._on_change(True)

    def _open(self) -> None:
        self._state = "open"
        self._wait_until_s = self._clock() + self._cooldown_s

    def _close(self) -> None:
        self._state, self._probe = "closed", None
        self._cooldown_s = self._policy.cooldown_s
        self._calls = self._failed = self._calls_before = self._failed_before = 0
        self._half_began_s = self._clock()
        if self._on_change is not None:
            self._on_change(False)


class Permit:
    """Leave for one call. The first verdict counts; one that is given back without any says nothing."""

    __slots__ = ("_breaker", "_settled")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._settled = False

    def settle(self, good: bool | None) -> None:
        """`good`: the other side answered as it should; None: the call ended without telling, as when cancelled."""
        if not self._settled:
            self._settled = True
            self._breaker._settle(self, good)
