"""Conversations made legal for another format."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.conversation import (
    Conversation,
    Message,
    Text,
    Tool,
    ToolCall,
    ToolChange,
    ToolChoice,
    ToolResult,
)
from orqen_ray.formats.adapt import Adapted, adapt, legal_tool_id
from orqen_ray.types import Capabilities


def user(*texts: str) -> Message:
    return Message(role="user", blocks=tuple(Text(text=text) for text in texts))


def system(text: str) -> Message:
    return Message(role="system", blocks=(Text(text=text),))


def model(*texts: str) -> Message:
    return Message(role="assistant", blocks=tuple(Text(text=text) for text in texts))


def adapted(
    *messages: Message,
    tools: tuple[Tool, ...] = (),
    choice: ToolChoice | None = None,
    sampling: dict[str, object] | None = None,
    capabilities: Capabilities | None = None,
    mid: bool = False,
    pattern: str = r"[a-zA-Z0-9_-]+",
) -> Adapted:
    conversation = Conversation(
        format="openai_chat",
        model="m",
        messages=messages,
        tools=tools,
        tool_choice=choice,
        sampling=sampling or {},
    )
    return adapt(
        conversation,
        capabilities or Capabilities(),
        tool_id_pattern=pattern,
        mid_system=mid,
        mid_tools=mid,
        alternate=True,
    )


def shape(conversation: Conversation) -> list[tuple[str, list[str]]]:
    return [(m.role, [b.text for b in m.blocks if isinstance(b, Text)]) for m in conversation.messages]


def test_leading_system_messages_become_the_head() -> None:
    result = adapted(system("a"), system("b"), user("hi")).conversation
    assert [block.text for block in result.system if isinstance(block, Text)] == ["a", "b"]
    assert shape(result) == [("user", ["hi"])]


def test_system_text_in_mid_conversation_is_folded_where_it_stands_and_never_into_the_head() -> None:
    result = adapted(user("one"), model("two"), user("three"), system("rule"), model("four"), user("five")).conversation
    assert result.system == ()
    assert shape(result) == [
        ("user", ["one"]),
        ("assistant", ["two"]),
        ("user", ["three", "<system-reminder>\nrule\n</system-reminder>"]),
        ("assistant", ["four"]),
        ("user", ["five"]),
    ]


def test_a_model_that_takes_system_messages_gets_them_only_after_a_users_turn() -> None:
    result = adapted(user("a"), system("kept"), model("b"), system("folded"), user("c"), mid=True).conversation
    assert shape(result) == [
        ("user", ["a"]),
        ("system", ["kept"]),
        ("assistant", ["b"]),
        ("user", ["<system-reminder>\nfolded\n</system-reminder>", "c"]),
    ]


def test_results_stand_before_the_text_that_was_folded_between_call_and_result() -> None:
    call = Message(role="assistant", blocks=(ToolCall(id="c1", name="f", arguments="{}"),))
    answer = Message(role="user", blocks=(ToolResult(call_id="c1", blocks=(Text(text="42"),)),))
    result = adapted(user("x"), call, system("rule"), answer).conversation
    last = result.messages[-1].blocks
    assert isinstance(last[0], ToolResult) and isinstance(last[1], Text)


def test_tool_changes_are_applied_and_named_where_they_cannot_be_told() -> None:
    added = ToolChange(action="add", name="b", tool=Tool(name="b"))
    removed = ToolChange(action="remove", name="a")
    change = Message(role="system", blocks=(added, removed, Text(text="note")))
    result = adapted(user("x"), change, model("y"), user("z"), tools=(Tool(name="a"), Tool(name="c")))
    assert [tool.name for tool in result.conversation.tools] == ["c", "b"]
    assert set(result.dropped) == {"messages.tool_addition", "messages.tool_removal"}
    assert "note" in str(shape(result.conversation))


def test_tool_changes_stay_where_the_model_takes_them() -> None:
    change = Message(role="system", blocks=(ToolChange(action="remove", name="a"),))
    result = adapted(user("x"), change, tools=(Tool(name="a"),), mid=True)
    assert result.conversation.messages[1].blocks == change.blocks
    assert result.dropped == ()


@pytest.mark.parametrize("mode", ["any", "tool"])
def test_a_forced_choice_is_relaxed_for_a_model_that_refuses_it(mode: str) -> None:
    choice = ToolChoice(mode=mode, names=("a",))  # type: ignore[arg-type]
    refuses = Capabilities(forced_tool_choice=False)
    result = adapted(user("x"), tools=(Tool(name="a"),), choice=choice, capabilities=refuses)
    assert result.conversation.tool_choice == ToolChoice(mode="auto")
    assert result.dropped == ("tool_choice",)
    assert adapted(user("x"), tools=(Tool(name="a"),), choice=choice).conversation.tool_choice == choice


def test_sampling_that_a_model_refuses_is_left_out_and_named() -> None:
    refuses = Capabilities(sampling_refused=frozenset({"temperature"}))
    result = adapted(user("x"), sampling={"temperature": 1, "top_p": 0.5}, capabilities=refuses)
    assert dict(result.conversation.sampling) == {"top_p": 0.5}
    assert result.dropped == ("temperature",)


@given(call_id=st.text(min_size=1), pattern=st.sampled_from([r"[a-zA-Z0-9_-]{1,64}", r"[a-zA-Z0-9]{9}", r".{1,40}"]))
def test_a_tool_id_obeys_the_vendor_and_still_joins_call_and_result(call_id: str, pattern: str) -> None:
    call = Message(role="assistant", blocks=(ToolCall(id=call_id, name="f", arguments="{}"),))
    answer = Message(role="user", blocks=(ToolResult(call_id=call_id, blocks=()),))
    messages = adapted(user("x"), call, answer, pattern=pattern).conversation.messages
    made, used = messages[1].blocks[0], messages[2].blocks[0]
    assert isinstance(made, ToolCall) and isinstance(used, ToolResult)
    assert made.id == used.call_id and re.fullmatch(pattern, made.id)
    if re.fullmatch(pattern, call_id):
        assert made.id == call_id


def test_different_illegal_ids_stay_different() -> None:
    ids = [legal_tool_id(f"call {i}", r"[a-zA-Z0-9]{9}") for i in range(1000)]
    assert len(set(ids)) == 1000


def test_merged_messages_keep_what_each_of_them_carried() -> None:
    named = Message(role="user", blocks=(Text(text="b"),), extra={"name": "bob"})
    (message,) = adapted(user("a"), named).conversation.messages
    assert message.extra == {"name": "bob"}


@pytest.mark.parametrize(
    ("one_sampler", "kept"), [(True, {"temperature": 0.5}), (False, {"temperature": 0.5, "top_p": 0.9})]
)
def test_a_model_of_one_sampler_gets_the_temperature(one_sampler: bool, kept: dict[str, float]) -> None:
    result = adapted(
        user("a"), sampling={"temperature": 0.5, "top_p": 0.9}, capabilities=Capabilities(one_sampler=one_sampler)
    )
    assert result.conversation.sampling == kept
    assert ("top_p" in result.dropped) is one_sampler
    assert adapted(user("a"), sampling={"top_p": 0.9}, capabilities=Capabilities(one_sampler=True)).dropped == ()
