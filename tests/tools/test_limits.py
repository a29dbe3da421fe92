"""What a vendor would refuse is known before it is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orqen_ray.conversation import Conversation, FormatName, Message, Text, Tool, ToolCall, ToolChange, ToolChoice
from orqen_ray.formats.tool_names import legal_tool_names
from orqen_ray.tools.limits import problems

ALL: tuple[FormatName, ...] = ("openai_chat", "anthropic_messages", "bedrock_converse")
GOOD = Tool(name="get_weather", description="Weather of a city.", parameters={"type": "object"})


def asked(*tools: Tool, **fields: Any) -> Conversation:
    messages = (Message(role="user", blocks=(Text(text="x"),)),)
    return Conversation(**{"format": "openai_chat", "model": "m", "messages": messages, "tools": tools, **fields})


@pytest.mark.parametrize("dialect", ALL)
def test_nothing_speaks_against_good_tools(dialect: FormatName) -> None:
    builtin = Tool(name="a b", raw={"type": "web_search", "name": "a b"})
    choice = ToolChoice(mode="tool", names=("get_weather",))
    assert problems(asked(GOOD, builtin, tool_choice=choice), dialect) == ()
    assert problems(asked(), dialect) == ()


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        (
            asked(*(replace(GOOD, name=f"f{i}") for i in range(129))),
            {"openai_chat": "129 tools, over the limit of 128"},
        ),
        (asked(GOOD, GOOD), dict.fromkeys(ALL, "'get_weather': 2 tools have this name")),
        (asked(replace(GOOD, name="天气")), dict.fromkeys(ALL, "letters, digits, _ and -")),
        (asked(replace(GOOD, name="")), dict.fromkeys(ALL, "letters, digits, _ and -")),
        (asked(replace(GOOD, name="x" * 65)), dict.fromkeys(("openai_chat", "bedrock_converse"), "limit of 64")),
        (asked(replace(GOOD, name="x" * 129)), dict.fromkeys(ALL, "has 129 characters")),
        (asked(replace(GOOD, description="")), {"bedrock_converse": "the description is empty"}),
        (asked(replace(GOOD, parameters={"type": "string"})), dict.fromkeys(ALL, "are not an object")),
        (asked(replace(GOOD, parameters={"anyOf": [{}]})), {"anthropic_messages": "at the top"}),
        (asked(replace(GOOD, parameters={"properties": {"a b": {}}})), {"anthropic_messages": "the parameter 'a b'"}),
        (asked(replace(GOOD, parameters={"type": 5, "properties": []})), dict.fromkeys(ALL, "are not an object")),
        (asked(GOOD, tool_choice=ToolChoice(mode="tool", names=("other",))), dict.fromkeys(ALL, "is not offered")),
    ],
)
def test_what_is_refused_is_named(conversation: Conversation, said: dict[FormatName, str]) -> None:
    for dialect in ALL:
        found = problems(conversation, dialect)
        assert len(found) == (dialect in said), dialect
        assert said.get(dialect, "") in "".join(found)


def test_bedrock_wants_definitions_of_the_calls_in_the_history() -> None:
    call = Message(role="assistant", blocks=(ToolCall(id="1", name="f", arguments="{}"),))
    assert problems(asked(messages=(call,)), "bedrock_converse") == (
        "the history holds tool calls, and no tool is offered",
    )
    assert problems(asked(messages=(call,)), "openai_chat") == ()


def test_a_tool_offered_later_may_be_chosen() -> None:
    change = Message(role="system", blocks=(ToolChange(action="add", name="later", tool=replace(GOOD, name="later")),))
    choice = ToolChoice(mode="tool", names=("later",))
    assert problems(asked(GOOD, messages=(change,), tool_choice=choice), "anthropic_messages") == ()


@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("name", ["", "天气", "a b", "x" * 64, "x" * 65, "x" * 128, "x" * 129, "ok-1_A"])
def test_a_name_is_legal_where_it_is_not_renamed(dialect: FormatName, name: str) -> None:
    conversation = asked(replace(GOOD, name=name))
    _, renamed = legal_tool_names(conversation, dialect)
    assert bool(problems(conversation, dialect)) == bool(renamed)
