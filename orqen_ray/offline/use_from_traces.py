"""The use of tools, learned again from the trace log: as the gateway learned it in passing, for a store that is new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any

from orqen_ray.policy import HALF_LIFE, ToolUse, add_use
from orqen_ray.tools.use import UseLearner

COLUMNS = ("started_at", "key_id", "session_id", "tool_set", "tools_arm", "tools_called", "tools_missed", "pin")
"""What is read of a trace."""


def use_from_traces(rows: Iterable[Mapping[str, Any]]) -> dict[str, ToolUse]:
    """Tool set -> its use, decayed to the day of the last row.

    Args:
        rows: traces with `COLUMNS`, oldest first. Those without a tool set teach nothing.
    """
    learned: dict[str, ToolUse] = {}
    called: dict[tuple[str, str, str], set[str]] = {}
    missed: set[tuple[str, str, str]] = set()
    learner, day = UseLearner(), date.min
    for row in rows:
        if not row["tool_set"] or not row["tools_arm"]:
            continue
        if row["started_at"].date() != day:
            learned = _summed(learned, learner.drain(), row["started_at"].date() - day)
            day = row["started_at"].date()
        conversation = (row["key_id"], row["session_id"], row["tool_set"])
        before = called.setdefault(conversation, set())
        learner.note(
            row["tool_set"],
            row["tools_arm"],
            begins=row["pin"] == "new",
            called=row["tools_called"],
            before=before,
            missed=bool(row["tools_missed"]) and conversation not in missed,
        )
        before.update(row["tools_called"])
        if row["tools_missed"]:
            missed.add(conversation)
    return _summed(learned, learner.drain(), timedelta())


def _summed(old: Mapping[str, ToolUse], new: Mapping[str, ToolUse], age: timedelta) -> dict[str, ToolUse]:
    """`new` happened after `old`, and both are `age` old now."""
    faded = 0.5 ** (age / HALF_LIFE)
    summed = {name: add_use(old.get(name, ToolUse()), new.get(name, ToolUse())) for name in {*old, *new}}
    return {name: add_use(use, ToolUse(), faded) for name, use in summed.items()}
