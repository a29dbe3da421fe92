"""The use of tools learned from the trace log is what the gateway learned in passing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orqen_ray.offline.use_from_traces import COLUMNS, use_from_traces

START = datetime(2030, 1, 1, 12, tzinfo=UTC)


def row(
    session: str, called: tuple[str, ...] = (), pin: str | None = "found", days: float = 0, **more: Any
) -> dict[str, Any]:
    made = {"key_id": "key", "session_id": session, "tool_set": "set", "tools_arm": "routed", "tools_missed": ()}
    return made | {"started_at": START + timedelta(days=days), "tools_called": called, "pin": pin} | more


def test_each_conversation_counts_a_tool_once() -> None:
    rows = [
        row("a", ("read",), "new"),
        row("a", ("read", "edit"), tools_missed=("edit",)),
        row("a", ("edit",), tools_missed=("edit",)),
        row("b", ("read",), "new", tools_arm="holdout", tools_missed=("read",)),
        row("c", ("other",), None, tool_set=None),
    ]
    assert set(rows[0]) == set(COLUMNS)
    use = use_from_traces(rows)
    assert set(use) == {"set"}
    assert (use["set"].conversations, use["set"].calls) == (2, 4)
    assert use["set"].called == {"read": 2, "edit": 1}
    assert (use["set"].routed, use["set"].asked, use["set"].holdout, use["set"].missed) == (1, 1, 1, 1)


def test_older_conversations_count_less() -> None:
    use = use_from_traces([row("a", ("x",), "new"), row("b", ("y",), "new", days=7)])["set"]
    assert use.conversations == pytest.approx(1.5)
    assert use.called == pytest.approx({"x": 0.5, "y": 1})
