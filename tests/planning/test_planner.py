"""What a conversation is given, and that it keeps it: pins, restores, processes, and what breaks a prefix."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from orqen_ray.conversation import CacheMarker, Conversation, Message, Text, ToolChange, ToolChoice
from orqen_ray.encoders.protocol import EncoderUnavailable
from orqen_ray.planning.applying import Destination
from orqen_ray.planning.plan import Plan
from orqen_ray.planning.switches import Switches
from orqen_ray.policy import Snapshot, ToolPolicy, ToolUse
from orqen_ray.tools.index import MORE_TOOLS
from orqen_ray.types import Capabilities
from tests.planning.lab import ADDS, PLAIN, POLICY, TOOLS, Lab, Memory, marked, names, talk

FIRST = "please tool_7 and tool_3 now"
TAKEN_BACK = (*talk(FIRST).messages, Message(role="system", blocks=(ToolChange(action="remove", name="tool_30"),)))


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_first_sight_keeps_what_is_needed_in_the_callers_order(lab: Lab) -> None:
    plan = await lab.plan(talk(FIRST), PLAIN)
    assert names(plan) == ["tool_3", "tool_7", MORE_TOOLS]
    assert (plan.pin_state, plan.reason, plan.tools_output, plan.method) == ("new", "conversation", 2, "semantic")
    assert [*plan.restorable] == [tool.name for tool in TOOLS if tool.name not in ("tool_3", "tool_7")]
    assert plan.tool_tokens_in is not None and plan.tool_tokens_out is not None
    assert 0 < plan.tool_tokens_out < plan.tool_tokens_in


async def test_later_turns_get_the_very_same_tools_without_scoring(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST))
    later = await lab.plan(talk(FIRST, "call tool_3", "done", "and now?", "tool_9 please"))
    assert later.conversation.tools is first.conversation.tools and lab.scorer.asked == 1
    assert (later.pin_state, later.prefix_break) == ("found", "")


async def test_requests_that_come_together_are_decided_once(lab: Lab) -> None:
    plans = await asyncio.gather(*(lab.plan(talk(FIRST)) for _ in range(5)))
    assert sorted(plan.pin_state for plan in plans) == ["found"] * 4 + ["new"] and lab.scorer.asked == 1
    assert len({id(plan.conversation.tools) for plan in plans}) == 1
    left = asyncio.create_task(lab.plan(talk(FIRST, tools=TOOLS[1:])))
    await asyncio.sleep(0)
    left.cancel()
    assert (await lab.plan(talk(FIRST, tools=TOOLS[1:]))).pin_state == "new"


async def test_another_process_sends_the_same(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST))
    other = lab.process(Memory(lab.pins.shared))
    later = await lab.plan(talk(FIRST, "yes", "go on"), planner=other)
    assert later.conversation.tools == first.conversation.tools and later.pin_state == "found"


async def test_callers_heads_and_tool_sets_do_not_mix(lab: Lab) -> None:
    await lab.plan(talk(FIRST))
    for asked in (talk("only tool_1"), talk(FIRST, tools=TOOLS[:30]), talk(FIRST, system=talk("x").messages[0].blocks)):
        assert (await lab.plan(asked)).pin_state == "new"
    await lab.plan(talk(FIRST))
    for key_id, session in (("other", ""), ("key", "a session")):
        plan = await lab.planner.plan(talk(FIRST), PLAIN, Switches(), key_id=key_id, session=session)
        assert plan.pin_state == "new"


async def test_a_new_snapshot_is_for_new_conversations(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST))
    lab.snapshots.current = Snapshot(version="2", tools=ToolPolicy(bias=0, weights={}, small_tools=0, max_miss=1e-9))
    later = await lab.plan(talk(FIRST, "yes", "go on"))
    assert names(later) == names(first) and later.pin is not None and later.pin.snapshot == "1"


async def test_a_lost_pin_is_decided_by_the_head_again_and_what_was_called_is_kept(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST))
    lab.pins.shared.clear()
    lab.pins.own.clear()
    lost = await lab.plan(talk(FIRST, "call tool_3", "ok", "yes", "tool_20 please"))
    assert names(lost) == names(first) and (lost.pin_state, lost.prefix_break) == ("lost", "pin_lost")
    lab.pins.shared.clear()
    lab.pins.own.clear()
    lost = await lab.plan(talk(FIRST, "call tool_12", "ok"))
    assert names(lost) == ["tool_3", "tool_7", "tool_12", MORE_TOOLS]


@pytest.mark.parametrize("error", [EncoderUnavailable("late"), RuntimeError("bug")])
async def test_what_fails_is_sent_whole_and_stays_so(lab: Lab, error: Exception) -> None:
    lab.scorer.error = error
    asked = talk(FIRST)
    first = await lab.plan(asked, schemas=False)
    assert first.conversation is asked and first.reason == (
        "late" if isinstance(error, EncoderUnavailable) else "failed"
    )
    lab.scorer.error = None
    later = await lab.plan(talk(FIRST, "yes", "more"), schemas=False)
    assert not later.edited and later.pin_state == "found" and later.prefix_break == ""


# --- Restores ---------------------------------------------------------------------------------------------------


def additions(plan: Plan) -> list[tuple[int, list[str]]]:
    return [
        (at, [block.name for block in message.blocks if isinstance(block, ToolChange)])
        for at, message in enumerate(plan.conversation.messages)
        if any(isinstance(block, ToolChange) for block in message.blocks)
    ]


async def test_a_restored_tool_is_appended_and_stays_at_its_place(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST, format_="anthropic_messages"), ADDS)
    again = await lab.planner.restored(first, ("tool_5",), ADDS)
    assert again.conversation.tools is first.conversation.tools and additions(again) == [(1, ["tool_5"])]
    assert (again.restored, again.tools_output, again.prefix_break) == (("tool_5",), 3, "")
    later = await lab.plan(talk(FIRST, "call tool_5", "ok", "yes", "more", format_="anthropic_messages"), ADDS)
    assert later.conversation.messages[:2] == again.conversation.messages
    assert (additions(later), later.prefix_break) == ([(1, ["tool_5"])], "")
    second = await lab.planner.restored(later, None, ADDS)
    assert len(additions(second)[1][1]) == 37 and second.tools_output == 40


async def test_where_nothing_can_be_appended_the_tool_joins_and_the_break_has_a_cause(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST))
    again = await lab.planner.restored(first, ("tool_5",), PLAIN)
    assert names(again) == ["tool_3", "tool_5", "tool_7", MORE_TOOLS] and again.prefix_break == "restore"
    assert "tool_5" not in again.restorable
    later = await lab.plan(talk(FIRST, "call tool_5", "ok"))
    assert later.conversation.tools is again.conversation.tools and later.prefix_break == ""


async def test_a_core_set_that_the_provider_would_refuse_is_none(lab: Lab) -> None:
    many = [replace(TOOLS[0], name=f"tool_{at}") for at in range(200)]
    openai = Destination(dialect="openai_chat", capabilities=Capabilities())
    tool_set = (await lab.plan(talk("no words of it", tools=many), openai)).pin.tool_set  # type: ignore[union-attr]
    use = ToolUse(conversations=500, called={f"tool_{at}": 200 for at in range(150)}, calls=30_000, per_minute=5)
    lab.snapshots.current = Snapshot(version="2", tools=lab.snapshots.current.tools, use={tool_set: use})
    assert len(names(await lab.plan(talk(FIRST, tools=many), openai))) < 128


async def test_no_more_come_back_than_the_provider_takes(lab: Lab) -> None:
    many = [replace(TOOLS[0], name=f"tool_{at}") for at in range(200)]
    openai = Destination(dialect="openai_chat", capabilities=Capabilities())
    first = await lab.plan(talk(FIRST, tools=many), openai, k_target=100)
    again = await lab.planner.restored(first, None, openai)
    assert len(names(again)) == 128 and MORE_TOOLS in names(again)
    assert names(await lab.planner.restored(again, None, openai)) == names(again)
    later = await lab.plan(talk(FIRST, "yes", "go", tools=many), openai, k_target=100)
    assert names(later) == names(again)


async def test_a_conversation_with_the_same_head_is_not_given_what_another_asked_for(lab: Lab) -> None:
    one = await lab.plan(talk(FIRST, "yes", "one"))
    await lab.planner.restored(one, ("tool_5",), PLAIN)
    other = await lab.plan(talk(FIRST, "yes", "two"))
    assert names(other) == ["tool_3", "tool_7", MORE_TOOLS]
    assert "tool_5" in names(await lab.plan(talk(FIRST, "yes", "one", "call tool_5", "ok")))


async def test_the_same_request_twice_at_once_brings_back_what_was_asked_for_and_no_more(lab: Lab) -> None:
    asked = talk(FIRST, format_="anthropic_messages")
    one, other = await lab.plan(asked, ADDS), await lab.plan(asked, ADDS)
    await lab.planner.restored(one, ("tool_5",), ADDS)
    assert additions(await lab.planner.restored(other, ("tool_5",), ADDS)) == [(1, ["tool_5"])]
    assert additions(await lab.planner.restored(other, ("tool_5", "tool_6"), ADDS)) == [(1, ["tool_5", "tool_6"])]
    there = await lab.plan(asked, ADDS)  # asked for again where it is there: the model does not see what it has
    assert len(additions(await lab.planner.restored(there, ("tool_5",), ADDS))[0][1]) == 38


async def test_what_is_owed_comes_in_the_next_turn(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST, format_="anthropic_messages"), ADDS)
    await lab.planner.owe(first, ("tool_8",))
    later = await lab.plan(talk(FIRST, "call tool_3", "ok", format_="anthropic_messages"), ADDS)
    assert additions(later) == [(3, ["tool_8"])] and later.prefix_break == ""
    after = await lab.plan(talk(FIRST, "call tool_3", "ok", "call tool_8", "ok", format_="anthropic_messages"), ADDS)
    assert additions(after) == [(3, ["tool_8"])]


async def test_a_process_that_missed_a_restore_looks_for_it(lab: Lab) -> None:
    other = lab.process(Memory(lab.pins.shared))
    await lab.plan(talk(FIRST), planner=other)
    second = await lab.plan(talk(FIRST, "yes", "two"))
    await lab.planner.restored(second, ("tool_5",), PLAIN)
    later = await lab.plan(talk(FIRST, "yes", "two", "call tool_5", "ok"), planner=other)
    assert "tool_5" in names(later) and later.prefix_break == ""


async def test_another_model_gets_the_same_tools_in_the_way_it_takes_them(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST, format_="anthropic_messages"), ADDS)
    again = await lab.planner.restored(first, ("tool_5",), ADDS)
    fallback = lab.planner.for_destination(again, PLAIN)
    assert additions(fallback) == [] and names(fallback) == ["tool_3", "tool_5", "tool_7", MORE_TOOLS]


async def test_a_choice_of_a_tool_left_out_brings_it_back(lab: Lab) -> None:
    await lab.plan(talk(FIRST))
    later = await lab.plan(talk(FIRST, "yes", "go", tool_choice=ToolChoice(mode="tool", names=("tool_30",))))
    assert "tool_30" in names(later) and later.prefix_break == "restore"


# --- What breaks a prefix, and what does not --------------------------------------------------------------------


async def test_a_note_in_the_system_text_that_is_new_each_time_breaks_nothing(lab: Lab) -> None:
    def asked(nonce: str, *texts: str) -> Conversation:
        note = Text(text=f"x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={nonce};")
        return talk(*texts, format_="anthropic_messages", system=(note, Text(text="You are Claude Code.")))

    first = await lab.plan(asked("36ee5", FIRST), ADDS)
    later = await lab.plan(asked("0aaa9", FIRST, "yes", "go on"), ADDS)
    assert (later.pin_state, later.prefix_break) == ("found", "") and names(later) == names(first)


async def test_markers_that_move_break_nothing(lab: Lab) -> None:
    await lab.plan(marked(talk(FIRST), 0), ADDS)
    later = await lab.plan(marked(talk(FIRST, "yes", "go on"), 2), ADDS)
    assert (later.pin_state, later.prefix_break) == ("found", "")


@pytest.mark.parametrize(
    ("later", "cause"),
    [
        (talk(FIRST, "no", "more", "and", "more"), "client"),
        (talk(FIRST), "client"),
        (talk(FIRST, "yes", "more", "and", "more", tools=TOOLS[1:]), "client_tools"),
    ],
)
async def test_what_the_client_rewrote_is_its_own_break(lab: Lab, later: Any, cause: str) -> None:
    await lab.plan(talk(FIRST, "yes", "more"))
    plan = await lab.plan(later)
    assert plan.prefix_break == cause
    assert (await lab.plan(replace(later, messages=(*later.messages, *talk("x", "y").messages)))).prefix_break == ""


# --- The few that are held out, and the core set ----------------------------------------------------------------


async def test_the_holdout_is_stable_and_of_the_size_that_is_asked_for() -> None:
    lab = Lab(holdout_ratio=0.25)
    plans = [await lab.plan(talk(f"{FIRST} {number}")) for number in range(200)]
    held = [plan for plan in plans if plan.pin is not None and plan.pin.arm == "holdout"]
    assert 30 <= len(held) <= 70
    for plan in held:
        assert plan.pin is not None and not plan.edited and plan.pin.propensity == 0.25 and len(plan.pin.indexed) == 38
    fresh = Lab(holdout_ratio=0.25)
    again = [await fresh.plan(talk(f"{FIRST} {number}")) for number in range(200)]
    assert [plan.pin for plan in again] == [plan.pin for plan in plans]


async def test_examples_are_for_choosing_and_not_kept_beyond_that(lab: Lab) -> None:
    tools = [replace(tool, examples=("an example",)) for tool in TOOLS]
    plan = await lab.plan(talk(FIRST, tools=tools))
    assert plan.seen is not None and plan.seen.prepared is not None
    assert not any(tool.examples for tool in plan.conversation.tools)
    assert "an example" in plan.seen.prepared.tool_set.cards[0].text


async def test_what_others_called_decides_without_scoring(lab: Lab) -> None:
    first = await lab.plan(talk(FIRST))
    assert first.pin is not None
    use = ToolUse(conversations=500, called={"tool_1": 400, "tool_2": 100}, calls=3000, per_minute=5)
    policy = lab.snapshots.current.tools
    lab.snapshots.current = Snapshot(version="2", tools=policy, use={first.pin.tool_set: use})
    core = [await lab.plan(talk(f"something else {number}")) for number in range(3)]
    assert {plan.reason for plan in core} == {"core"} and lab.scorer.asked == 1
    assert len({id(plan.conversation.tools) for plan in core}) == 1
    assert {"tool_1", "tool_2"} <= {*names(core[0])} and core[0].method == "keyword"
    named = await lab.plan(talk("use tool_30 for this"))
    assert "tool_30" in names(named)


# --- What is never touched --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tools": ()}, "no_tools"),
        ({"tools": TOOLS[:20]}, "small"),
        ({"tools": (*TOOLS, replace(TOOLS[0], name=MORE_TOOLS))}, "name_taken"),
        ({"tools": (*TOOLS, TOOLS[0])}, "duplicate_names"),
        ({"tools": (*TOOLS, replace(TOOLS[0], name="x", defer_loading=True))}, "deferred"),
        ({"messages": TAKEN_BACK}, "deferred"),
        ({"sampling": {"n": 2}}, "many_answers"),
        ({"tool_choice": ToolChoice(mode="any")}, "forced"),
        ({"tool_choice": ToolChoice(mode="allowed", names=("tool_1",))}, "restricted"),
    ],
)
async def test_some_requests_are_left_alone(lab: Lab, more: dict[str, Any], reason: str) -> None:
    asked = replace(talk(FIRST), **more)
    plan = await lab.plan(asked, schemas=False)
    assert plan.conversation is asked and plan.reason == reason and lab.scorer.asked == 0


async def test_definitions_that_are_nested_too_deeply_are_not_taken_for_others(lab: Lab) -> None:
    for leaf in ("string", "number"):
        schema: dict[str, Any] = {"type": leaf}
        for _ in range(2000):
            schema = {"type": "object", "properties": {"x": schema}}
        asked = talk(FIRST, tools=[replace(TOOLS[0], name="deep", parameters=schema), *TOOLS])
        plan = await lab.plan(asked)
        assert plan.conversation is asked and plan.reason == "too_deep"


async def test_tiny_definitions_are_a_small_set_whatever_their_number(lab: Lab) -> None:
    tools = [replace(tool, parameters={}, description="x") for tool in TOOLS]
    for asked in (talk(FIRST, tools=tools), talk(FIRST, "yes", "more", tools=tools)):
        plan = await lab.plan(asked)
        assert plan.conversation is asked and plan.reason == "small"
    assert lab.pins.shared == {}


async def test_a_number_of_tools_is_kept_to_in_small_sets_too(lab: Lab) -> None:
    assert (await lab.plan(talk(FIRST, tools=TOOLS[:12]), k_target=12)).reason == "small"
    assert len(names(await lab.plan(talk(FIRST, tools=TOOLS[:12]), k_target=5))) == 6


async def test_several_answers_in_a_later_turn_are_sent_whole(lab: Lab) -> None:
    await lab.plan(talk(FIRST))
    plan = await lab.plan(talk(FIRST, "yes", "more", sampling={"n": 3}))
    assert not plan.edited and plan.prefix_break == "many_answers"
    assert len(names(await lab.plan(talk(FIRST, "yes", "more", "and", "more")))) == 3


async def test_what_was_wrong_before_is_no_reason_to_undo_an_edit(lab: Lab) -> None:
    tools = [replace(TOOLS[0], name="no spaces allowed"), *TOOLS[1:]]
    plan = await lab.plan(talk(FIRST, tools=tools))
    assert names(plan) == ["tool_3", "tool_7", MORE_TOOLS]


async def test_a_marker_stays_with_its_tool_or_moves_to_the_last(lab: Lab) -> None:
    marker = CacheMarker(ttl="1h")
    tools = [replace(tool, cache=marker) if tool.name in ("tool_3", "tool_39") else tool for tool in TOOLS]
    plan = await lab.plan(talk(FIRST, tools=tools), ADDS)
    assert [(tool.name, tool.cache) for tool in plan.conversation.tools] == [
        ("tool_3", marker), ("tool_7", None), (MORE_TOOLS, marker)]  # fmt: skip
    later = await lab.plan(talk(FIRST, "yes", "go", tools=[replace(tool) for tool in tools]), ADDS)
    assert later.conversation.tools is plan.conversation.tools  # so that they are written once
    without = await lab.plan(talk(FIRST, "yes", "go"), ADDS)
    assert (without.pin_state, names(without)) == ("found", names(plan))


async def test_a_marker_for_an_hour_is_not_moved_behind_a_shorter_one(lab: Lab) -> None:
    markers = {"tool_1": CacheMarker(ttl="1h"), "tool_7": CacheMarker()}
    tools = [replace(tool, cache=markers.get(tool.name)) for tool in TOOLS]
    plan = await lab.plan(talk(FIRST, tools=tools), ADDS)
    assert [tool.cache for tool in plan.conversation.tools] == [None, CacheMarker(), None]


async def test_without_restores_there_is_no_index(lab: Lab) -> None:
    lab.snapshots.current = Snapshot(version="1", tools=replace(POLICY, max_miss_final=0.04))
    plan = await lab.plan(talk(FIRST), restore=False)
    assert plan.routed
    assert MORE_TOOLS not in names(plan) and not plan.restorable and plan.tools_output == len(names(plan)) < 10
