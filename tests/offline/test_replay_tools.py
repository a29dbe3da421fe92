"""Replaying conversations: the bill by hand, and what a small application gains."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from orqen_ray.conversation import Conversation, JsonObject
from orqen_ray.economics import Situation
from orqen_ray.offline.applications import Call, Replayed, applications
from orqen_ray.offline.billing import billed
from orqen_ray.offline.priors_eval import priors
from orqen_ray.offline.replay_tools import replay
from orqen_ray.offline.tool_data import Query, ToolData, ToolRow
from orqen_ray.policy import ToolPolicy
from orqen_ray.tools.scoring import Scorer

POLICY = ToolPolicy(bias=-6.0, weights={"words:": -6.0})
FULL: Mapping[str, int] = {"a": 300, "b": 200, "c": 500}
TWO_CALLS = Replayed(
    id="one",
    head=Conversation(format="openai_chat", model="any", messages=()),
    system_tokens=1000,
    calls=(
        Call(prompt_tokens=2000, needs=frozenset({"a"})),
        Call(prompt_tokens=3000, needs=frozenset({"b", "unknown"})),
    ),
    fold=0,
)
WARM = Situation(conversations_per_minute=1000, ask_rate=1.0)


def test_all_tools_are_read_from_a_warm_cache() -> None:
    whole = billed(TWO_CALLS, FULL, 1000, FULL, WARM, shared=True)
    first = (1000 + 1000) * 0.1 + 1000 * 1.25
    assert whole.tokens == pytest.approx(first + 3000 * 0.1 + 1000 * 1.25)
    assert (whole.calls, whole.needed, whole.kept, whole.restores) == (2, 2, 2, 0)


def test_a_restore_that_appends_reads_once_more_and_writes_the_tool() -> None:
    routed = billed(TWO_CALLS, ["a"], 400, FULL, WARM, shared=False)
    calls = 2400 * 1.25 + (2400 * 0.1 + 1000 * 1.25)
    assert routed.tokens == pytest.approx(calls + 3400 * 0.1 + 200 * 1.25)
    assert (routed.kept, routed.restores, routed.restored, routed.changed, routed.lost) == (1, 1, 1, 0, 0)


def test_a_restore_that_rewrites_writes_all_anew() -> None:
    rewriting = Situation(conversations_per_minute=1000, ask_rate=1.0, restore="rewrite")
    routed = billed(TWO_CALLS, ["a"], 400, FULL, rewriting, shared=False)
    calls = 2400 * 1.25 + (2400 * 0.1 + 1000 * 1.25)
    assert routed.tokens == pytest.approx(calls + 3600 * 1.25)
    assert routed.changed == 1


def test_a_tool_that_is_not_asked_for_is_lost() -> None:
    silent = billed(TWO_CALLS, ["a"], 400, FULL, Situation(ask_rate=0.0), shared=False)
    assert (silent.lost, silent.restores) == (1, 0)


def application(conversations: int = 30, tools: int = 45) -> ToolData:
    """Conversations of two turns that call two of many tools, and now and then a third."""
    words = "The quick service returns every detail of an entry, page by page, in the order of its date. " * 3
    parameters = {"type": "object", "properties": {"id": {"type": "string", "description": words}}}
    rows = {
        f"tool_{at}": ToolRow(name=f"tool_{at}", description=f"Number {at}. {words}", parameters=parameters, cluster=at)
        for at in range(tools)
    }
    queries = []
    for at in range(conversations):
        asked: list[JsonObject] = [{"role": "user", "content": "Please do what I always ask for."}]
        call = {"id": "1", "type": "function", "function": {"name": "tool_1", "arguments": "{}"}}
        later: list[JsonObject] = [
            *asked,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
            {"role": "user", "content": "And the rest."},
        ]
        last = ["tool_2", "tool_3"] if at % 5 == 0 else ["tool_2"]
        queries += [
            Query(id=f"talk_{at}:0", messages=asked, gold=["tool_1"], candidates=["tool_1"], future=["tool_1", *last]),
            Query(id=f"talk_{at}:1", messages=later, gold=last, candidates=["tool_1"], future=last),
        ]
    return ToolData(tools=rows, of_set={"app": list(rows)}, queries={"app": queries})


def test_conversations_are_put_together_from_their_calls() -> None:
    (app,) = applications(application(), "app", 45)
    assert (len(app.tools), len(app.conversations)) == (45, 30)
    one = next(one for one in app.conversations if one.id == "talk_5")
    assert [call.needs for call in one.calls] == [{"tool_1"}, {"tool_2", "tool_3"}]
    assert len(one.head.messages) == 1
    assert one.calls[1].prompt_tokens > one.calls[0].prompt_tokens > 0


async def test_use_learned_from_other_conversations_saves_and_nothing_costs_more_than_all() -> None:
    done = await replay(application(), Scorer(None), POLICY, sizes=[45])
    summary = done["summary"]
    assert summary["bill"] <= 1.0
    assert max(summary["bill_above_40_tools"].values()) < 0.7
    assert summary["prefix_changed"] <= 0.02
    learned = [row for row in done["rows"] if row["use"] == "learned"]
    assert {row["per_minute"] for row in learned} == {None, 0.1, 1.0, 10.0}
    assert all(row["recall"] == 1.0 and row["kept_share"] < 0.2 for row in learned)


async def test_priors_tell_what_use_gains() -> None:
    done = await priors(application(), Scorer(None), POLICY, sets=["app"], sizes=[45])
    assert len(done["rows"]) == 4
    for row in done["rows"]:
        assert row["bill"]["gain"] > 0
        assert row["recall"]["learned"] == 1.0
