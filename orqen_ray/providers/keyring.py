"""Which of a provider's keys a call uses: one for all turns of a conversation, another when that one rests or fails."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from orqen_ray.errors import CircuitOpen
from orqen_ray.metrics import Metrics
from orqen_ray.providers.breaker import Breaker, BreakerPolicy, Permit
from orqen_ray.types import Call, Credentials

_REST_S = 1.0
_MAX_REST_S = 60.0
_MAX_RESTS = 4096
_MAX_MOVED = 16_384
_MAX_CIRCUITS = 4096
_KEYLESS = (Credentials(label=""),)
"""Stands for the one way to a provider that needs no key."""


_Place = tuple[str, str, str]
"""Provider, label of its key, model."""


@dataclass(slots=True)
class Chosen:
    """A key for one call, with leave to use it; must be settled. `circuit`: whose failures count; None: nobody's."""

    credentials: Credentials | None
    label: str | None
    other_keys: bool
    permit: Permit | None
    circuit: Callable[[], Breaker] | None
    settled: bool = False

    def settle(self, good: bool | None) -> None:
        """See `Permit.settle`."""
        if self.settled or self.circuit is None:
            return
        self.settled = True
        # Most calls go well, so there is a circuit from the first failure on.
        permit = self.circuit().acquire() if self.permit is None and good is False else self.permit
        if permit is not None:
            permit.settle(good)

    def broke_off(self) -> None:
        """The answer began well and failed later."""
        if self.circuit is not None:
            self.circuit().fail()


class KeyRing:
    """Keys, their circuits and their rests, in one process. What it remembers is bounded and lost with the process.

    Args:
        clock: seconds; any that never goes back.
    """

    def __init__(
        self,
        policy: BreakerPolicy,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._metrics = metrics
        self._clock = clock
        self._circuits: OrderedDict[_Place, Breaker] = OrderedDict()  # the last used last
        self._used_s: dict[_Place, float] = {}
        self._rests: dict[_Place, float] = {}
        self._moved: OrderedDict[tuple[str, str], str] = OrderedDict()

    def choose(self, call: Call, keys: Sequence[Credentials]) -> Chosen:
        """The key for `call` among the provider's, in the order of its conversation.

        Raises:
            CircuitOpen: none may be called now.
        """
        if call.credentials is not None and (
            call.credentials.api_key or call.credentials.aws
        ):  # a caller's own secret must not open a circuit for others
            return Chosen(None, None, False, None, None)
        self._forget_idle()
        order = self._order(call, keys) if len(keys) > 1 else keys or _KEYLESS
        if self._rests and len(order) > 1:
            order = self._rested(call, order)
        waits: list[float] = []
        for key in order:
            place = call.provider, key.label, call.model
            permit = None
            if (breaker := self._circuits.get(place)) is not None:
                self._touch(place)
                if (permit := breaker.acquire()) is None:
                    waits.append(breaker.wait_s)
                    continue
            circuit = partial(self._circuit, place)
            if not keys:
                return Chosen(None, None, False, permit, circuit)
            others = any(other is not key and self._is_ready(call, other) for other in order)
            return Chosen(key, key.label, others, permit, circuit)
        wait_s = min(waits)
        raise CircuitOpen(
            f"the provider {call.provider!r} failed too often with this model and is not called for {wait_s:.0f} s; "
            "try again then",
            retry_after_s=max(wait_s, 1.0),
            provider=call.provider,
        )

    def rest(self, call: Call, label: str | None, asked_s: float | None) -> None:
        """Take this key last for the call's model, for as long as the provider asked: it answered 429."""
        now_s = self._clock()
        if len(self._rests) >= _MAX_RESTS:
            self._rests = {place: until_s for place, until_s in self._rests.items() if until_s > now_s}
            while len(self._rests) >= _MAX_RESTS:
                del self._rests[next(iter(self._rests))]
        rest_s = min(_REST_S if asked_s is None else asked_s, _MAX_REST_S)
        self._rests[call.provider, label or "", call.model] = now_s + rest_s

    def served(self, call: Call, label: str, keys: Sequence[Credentials]) -> None:
        """Stay with the key that answered: its account has the conversation cached and can read its reasoning."""
        if len(keys) < 2 or not call.conversation:
            return
        place = (call.provider, call.conversation)
        if label == self._balanced(call, keys)[0].label:
            self._moved.pop(place, None)
            return
        self._moved[place] = label
        self._moved.move_to_end(place)
        if len(self._moved) > _MAX_MOVED:
            self._moved.popitem(last=False)

    def _order(self, call: Call, keys: Sequence[Credentials]) -> Sequence[Credentials]:
        order = self._balanced(call, keys)
        if call.conversation and (home := self._moved.get((call.provider, call.conversation))) is not None:
            order.sort(key=lambda key: key.label != home)
        if call.key_bound:
            return order[:1]
        if call.hedge:
            order = [*order[1:], order[0]]
        if call.avoid_keys:
            order.sort(key=lambda key: key.label in call.avoid_keys)
        return order

    def _balanced(self, call: Call, keys: Sequence[Credentials]) -> list[Credentials]:
        """By rendezvous hashing: a key that comes or goes moves only the conversations that are its own."""
        if not call.conversation:
            return list(keys)
        seed = call.conversation.encode(errors="surrogatepass")
        return sorted(keys, key=lambda key: hashlib.blake2b(seed, digest_size=8, key=_short(key.label)).digest())

    def _rested(self, call: Call, order: Sequence[Credentials]) -> Sequence[Credentials]:
        """Keys that rest last, the first to be ready before the others.

        When all rest, a call is still made: what one request was refused for, another may be small enough to get.
        """
        now_s = self._clock()
        waits = [self._rests.get((call.provider, key.label, call.model), 0.0) - now_s for key in order]
        if max(waits) <= 0:
            return order
        avoided = call.avoid_keys
        places = sorted(range(len(order)), key=lambda i: (order[i].label in avoided, max(waits[i], 0.0), i))
        return [order[i] for i in places]

    def _is_ready(self, call: Call, key: Credentials) -> bool:
        """Not tried for this request, not resting, not failing."""
        place = call.provider, key.label, call.model
        breaker = self._circuits.get(place)
        if key.label in call.avoid_keys or (breaker is not None and breaker.wait_s > 0):
            return False
        return self._rests.get(place, 0.0) <= self._clock()

    def _circuit(self, place: _Place) -> Breaker:
        """The circuit of a key for a model, made when there is none: it has just failed."""
        breaker = self._circuits.get(place)
        if breaker is None:
            gauge = self._metrics.open_circuits.labels(place[0])

            def changed(opened: bool) -> None:
                gauge.inc() if opened else gauge.dec()

            breaker = self._circuits[place] = Breaker(self._policy, self._clock, changed)
            if len(self._circuits) > _MAX_CIRCUITS:
                self._forget(next(iter(self._circuits)))
        self._touch(place)
        return breaker

    def _touch(self, place: _Place) -> None:
        self._circuits.move_to_end(place)
        self._used_s[place] = self._clock()

    def _forget_idle(self) -> None:
        """A model that nobody asks for any more, or a key that is gone, must not be told of as failing for ever."""
        idle_s = self._policy.window_s + self._policy.cooldown_max_s
        while self._circuits and self._used_s[first := next(iter(self._circuits))] <= self._clock() - idle_s:
            self._forget(first)

    def _forget(self, place: _Place) -> None:
        self._circuits.pop(place).forget()
        del self._used_s[place]


def _short(label: str) -> bytes:
    return hashlib.blake2b(label.encode(errors="surrogatepass"), digest_size=16).digest()
