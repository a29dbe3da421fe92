"""Learns from traffic which tools the conversations of a tool set call, and how often such conversations begin."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from orqen_ray.pins import Arm
from orqen_ray.policy import ToolUse
from orqen_ray.tools.routing import Routing

_MAX_NAMES = 1000
_MAX_NAME_CHARS = 200
_LEAST_SCORE = 0.001


@dataclass(slots=True)
class _Counts:
    """A `ToolUse` in the making; fields as there."""

    conversations: float = 0.0
    called: dict[str, float] = field(default_factory=dict)
    calls: float = 0.0
    expected: dict[str, float] = field(default_factory=dict)
    routed: float = 0.0
    asked: float = 0.0
    holdout: float = 0.0
    missed: float = 0.0

    def frozen(self) -> ToolUse:
        return ToolUse(
            conversations=self.conversations,
            called=self.called,
            calls=self.calls,
            expected=self.expected,
            routed=self.routed,
            asked=self.asked,
            holdout=self.holdout,
            missed=self.missed,
        )


class UseLearner:
    """What this process saw since it was last drained. Bounded: the tool set least lately seen is given up.

    No record of a conversation is kept: what is new in an answer is told from its request, so a conversation counts
    once, whatever processes serve it.
    """

    def __init__(self, max_tool_sets: int = 1000) -> None:
        self._max_tool_sets = max_tool_sets
        self._counts: OrderedDict[str, _Counts] = OrderedDict()

    def note(
        self,
        tool_set: str,
        arm: Arm,
        *,
        begins: bool,
        called: Collection[str],
        before: Collection[str] = (),
        missed: bool = False,
        routing: Routing | None = None,
    ) -> None:
        """An answer of the model was seen.

        Args:
            tool_set: fingerprint of the caller's tools.
            begins: the first answer of a conversation that got its pin now.
            called: tools that this answer calls; before: those that the request's messages call already.
            missed: for the first time in this conversation, a tool that was left out was needed: when `routed`, the
                model asked for one; in the `holdout`, it called one that would have been left out.
            routing: what was decided at first sight, if it was now.
        """
        counts = self._of(tool_set)
        counts.calls += 1
        counts.conversations += begins
        for name in {*called}.difference(before):
            _add(counts.called, name, 1.0)
        if routing is not None and routing.method is not None:
            for verdict in routing.verdicts:
                if verdict.score is not None and verdict.score > _LEAST_SCORE:
                    _add(counts.expected, verdict.name, verdict.score)
        if arm == "routed":
            counts.routed += begins
            counts.asked += missed
        elif arm == "holdout":
            counts.holdout += begins
            counts.missed += missed

    def drain(self) -> Mapping[str, ToolUse]:
        """What was seen since the last call; it is the caller's now."""
        counts, self._counts = self._counts, OrderedDict()
        return {tool_set: seen.frozen() for tool_set, seen in counts.items()}

    def put_back(self, new: Mapping[str, ToolUse]) -> None:
        """Take back what was drained and could not be stored."""
        for tool_set, use in new.items():
            counts = self._of(tool_set)
            for name in ("conversations", "calls", "routed", "asked", "holdout", "missed"):
                setattr(counts, name, getattr(counts, name) + getattr(use, name))
            for sums, more in ((counts.called, use.called), (counts.expected, use.expected)):
                for name, part in more.items():
                    _add(sums, name, part)

    def _of(self, tool_set: str) -> _Counts:
        counts = self._counts.setdefault(tool_set, _Counts())
        self._counts.move_to_end(tool_set)
        if len(self._counts) > self._max_tool_sets:
            self._counts.popitem(last=False)
        return counts


def _add(sums: dict[str, float], name: str, part: float) -> None:
    if len(name) <= _MAX_NAME_CHARS and (name in sums or len(sums) < _MAX_NAMES):
        sums[name] = sums.get(name, 0.0) + part
