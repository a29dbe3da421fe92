"""What it gains to know what an application's other conversations called, over the cold start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orqen_ray.offline.replay_tools import SIZES, replay
from orqen_ray.offline.tool_data import ToolData
from orqen_ray.policy import ToolPolicy
from orqen_ray.tools.scoring import Scorer

AGENT_SETS = ("bfcl_multiturn", "taubench")
_MORE_THAN_NEEDED = 1.25
"""A fold of five is left out of what is learned."""


async def priors(
    data: ToolData,
    scorer: Scorer,
    policy: ToolPolicy,
    *,
    sets: Sequence[str] = AGENT_SETS,
    sizes: Sequence[int] = SIZES,
    conversations: int | None = None,
) -> dict[str, Any]:
    """Replay the applications that have conversations enough, cold and with the use of four of five folds.

    Returns:
        `rows`: for each set, size and rate of arrival (null: no cache) where restores append: the recall of all tools
        that the conversations call, the share of tools that is kept, and the bill over that of sending all, at an
        ask rate of 0.7; `cold`, `learned`, and what is gained.
    """
    least = int(policy.core_min_conversations * _MORE_THAN_NEEDED)
    present = [name for name in sets if name in data.queries]
    replayed = await replay(data, scorer, policy, sets=present, sizes=sizes, conversations=conversations, least=least)
    by_case: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in replayed["rows"]:
        if row["restore"] == "append" and row["use"] in ("cold", "learned"):
            by_case.setdefault((row["set"], row["size"], row["per_minute"]), {})[row["use"]] = row
    return {"rows": [_gain(case) for case in by_case.values() if len(case) == 2]}


def _gain(case: dict[str, Any]) -> dict[str, Any]:
    cold, learned = ({**row, "bill": row["bill"]["0.7"]} for row in (case["cold"], case["learned"]))
    gained = {"recall": learned["recall"] - cold["recall"]}
    gained |= {name: cold[name] - learned[name] for name in ("kept_share", "bill")}
    return {
        **{name: cold[name] for name in ("set", "size", "per_minute", "conversations")},
        **{name: {"cold": cold[name], "learned": learned[name], "gain": round(gained[name], 4)} for name in gained},
    }
