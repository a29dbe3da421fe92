"""The policy snapshot: all that was learned, immutable and versioned, so that any decision can be made again."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.resources
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Protocol

import msgspec

from orqen_ray.errors import GatewayError

_log = logging.getLogger(__name__)

HALF_LIFE = timedelta(days=7)
"""After which a conversation counts half."""
_PRIOR_NEEDS = 20.0
_NEGLIGIBLE = 1e-5
"""A tool of which less is left is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What conversations with one tool set did, older ones counting less. All numbers are decayed alike.

    Attributes:
        conversations: how many there were.
        called: tool name -> in how many it was called at least once.
        calls: how many answers of the model they had.
        per_minute: at which rate they began of late.
        expected: tool name -> the sum of its probabilities at first sight, over those that were scored.
        routed, asked: those that had tools left out, and how many of these asked for one.
        holdout, missed: those that would have had, and how many of these called one that would have been left out.
    """

    conversations: float = 0.0
    called: Mapping[str, float] = field(default_factory=dict)
    calls: float = 0.0
    per_minute: float = 0.0
    expected: Mapping[str, float] = field(default_factory=dict)
    routed: float = 0.0
    asked: float = 0.0
    holdout: float = 0.0
    missed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicy:
    """How tools are scored and how many are kept.

    Attributes:
        bias, weights: the calibrated scorer: P(needed) = 1 / (1 + exp(-(bias + sum of weight x feature))).
        ask_rate: how often a model asks for a tool that it sees in the index only and needs.
        small_tools, small_tokens: a set with no more tools, or no more tokens, is forwarded whole.
        max_miss: tools may be left out while the probability that one of them is needed stays below it;
            max_miss_unsure: the same where the scores are in doubt;
            max_miss_final: the same where the model could not ask for what was left out.
        later_bias, later_slope, later_log_tools: from the log-odds that the next answer needs a tool that was left
            out, and the logarithm of their number, to the log-odds that the whole conversation does.
        min_saving: the share of the bill that a set of its own must save a conversation where sending all would find
            the provider's cache warm. Much, for nobody knows yet how long it will be.
        core_min_conversations: how many must have been seen before their use alone decides.
        core_prior: how many tools called for the first time are added to those seen, so that no set is thought perfect.
        core_max_miss: `max_miss` of a core set, over the whole conversation; `max_miss` itself holds where a restore
            writes the prefix anew.
        expected_calls: calls to the model in one conversation, where none were seen.
        expected_per_minute: rate at which conversations of a tool set arrive that was not seen before.
        lost_answer_tokens: the price of an answer that lacked a tool, in tokens of plain input.
    """

    bias: float
    weights: Mapping[str, float]
    ask_rate: float = 0.7
    small_tools: int = 20
    small_tokens: int = 3000
    max_miss: float = 0.04
    max_miss_unsure: float = 0.01
    max_miss_final: float = 0.005
    later_bias: float = 1.1
    later_slope: float = 0.5
    later_log_tools: float = -0.36
    min_saving: float = 0.3
    core_min_conversations: float = 20.0
    core_prior: float = 0.5
    core_max_miss: float = 0.08
    expected_calls: float = 6.0
    expected_per_minute: float = 1.0
    lost_answer_tokens: float = 20_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One version of everything learned. `version` names it in pins and traces.

    Attributes:
        use: fingerprint of a tool set -> what its conversations called.
    """

    version: str
    tools: ToolPolicy
    use: Mapping[str, ToolUse] = field(default_factory=dict)


@functools.cache
def default_snapshot() -> Snapshot:
    """What ships: fitted on public data by `offline/tune_tools.py`, with no use learned yet."""
    text = importlib.resources.files("orqen_ray.tools").joinpath("default_policy.json").read_bytes()
    version = f"default-{hashlib.sha256(text).hexdigest()[:8]}"
    return Snapshot(version=version, tools=msgspec.json.decode(text, type=ToolPolicy))


def add_use(old: ToolUse, new: ToolUse, faded: float = 1.0) -> ToolUse:
    """`new`, and what has not faded of `old`: the share `faded`. The rate of arrival is the new one's."""
    return ToolUse(
        conversations=old.conversations * faded + new.conversations,
        called=_added(old.called, new.called, faded),
        calls=old.calls * faded + new.calls,
        per_minute=new.per_minute,
        expected=_added(old.expected, new.expected, faded),
        routed=old.routed * faded + new.routed,
        asked=old.asked * faded + new.asked,
        holdout=old.holdout * faded + new.holdout,
        missed=old.missed * faded + new.missed,
    )


def _added(old: Mapping[str, float], new: Mapping[str, float], faded: float) -> dict[str, float]:
    summed = {name: part * faded for name, part in old.items() if part * faded > _NEGLIGIBLE}
    for name, part in new.items():
        summed[name] = summed.get(name, 0.0) + part
    return summed


def differs(new: ToolUse, old: ToolUse) -> bool:
    """Whether `new` is worth a new snapshot.

    Each one may give the tool set another core set, whose first conversation finds the provider's cache cold: so
    only when there is much more or less evidence, another habit, or another rate of arrival.
    """
    if not 0.5 < (new.conversations + 1) / (old.conversations + 1) < 1.25:
        return True
    if not 0.5 < (new.per_minute + 0.01) / (old.per_minute + 0.01) < 2:
        return True
    moved = [abs(_share(new, name) - _share(old, name)) for name in {*new.called, *old.called}]
    return sum(moved) > 0.1


def learned_ask_rate(prior: float, uses: Iterable[ToolUse]) -> float:
    """How often models ask for what they need: those who did among the routed, over as many as the holdout says
    needed to. `prior` weighs as much as `_PRIOR_NEEDS` of them."""
    total = ToolUse()
    for use in uses:
        total = add_use(total, replace(use, called={}, expected={}))
    routed, asked, holdout, missed = total.routed, total.asked, total.holdout, total.missed
    # One need that was not seen is granted: a small holdout without a miss does not prove that there are none.
    needed = routed * (missed + prior / _PRIOR_NEEDS) / (holdout + 1) if holdout else 0.0
    rate = (prior * _PRIOR_NEEDS + (asked if holdout else 0.0)) / (_PRIOR_NEEDS + needed)
    return round(min(max(rate, 0.05), 1.0), 2)


def _share(use: ToolUse, name: str) -> float:
    return use.called.get(name, 0.0) / max(use.conversations, 1.0)


class LearnedUse(Protocol):
    """Where the use of tools is kept for all processes (`store.tool_use`)."""

    async def add(self, new: Mapping[str, ToolUse]) -> None:
        """Add what this process saw since it last did. Raises an GatewayError when it could not."""
        ...

    async def published(self) -> Mapping[str, ToolUse]:
        """Tool set -> its use, as of the last time that it changed notably. Raises as `add`."""
        ...


class Learner(Protocol):
    """What watches this process's traffic (`tools.use`)."""

    def drain(self) -> Mapping[str, ToolUse]:
        """What was seen since the last call."""
        ...

    def put_back(self, new: Mapping[str, ToolUse]) -> None:
        """Take back what could not be stored."""
        ...


class Snapshots:
    """The current snapshot of this process. `current` never waits and never fails."""

    def __init__(self, base: Snapshot, store: LearnedUse | None = None, learner: Learner | None = None) -> None:
        self._base = base
        self._store = store
        self._learner = learner
        self.current = base

    async def refresh(self) -> None:
        """Store what was learned here, and take what all processes have learned. Never raises.

        A conversation that has its pin keeps to it: a new snapshot is for new conversations.
        """
        if self._store is None:
            return
        new = self._learner.drain() if self._learner else {}
        try:
            if new:
                await self._store.add(new)
                new = {}
            self.current = await asyncio.to_thread(self._snapshot, await self._store.published())
        except GatewayError as error:
            _log.warning("what was learned of the use of tools cannot be shared now: %s", error)
        finally:
            if new and self._learner:
                self._learner.put_back(new)

    async def keep_fresh(self, every_s: float = 60.0) -> None:
        """Refresh for ever, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(every_s)

    def _snapshot(self, use: Mapping[str, ToolUse]) -> Snapshot:
        if not use:
            return self._base
        content = msgspec.json.encode(use, order="deterministic")
        version = f"{self._base.version}+{hashlib.sha256(content).hexdigest()[:12]}"
        if version == self.current.version:
            return self.current
        ask_rate = learned_ask_rate(self._base.tools.ask_rate, use.values())
        return Snapshot(version=version, tools=replace(self._base.tools, ask_rate=ask_rate), use=use)
