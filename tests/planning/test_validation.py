"""An edit is undone where it would have the request refused; what the caller did wrong itself is left to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orqen_ray.conversation import Tool, ToolChoice
from orqen_ray.errors import BadRequest
from orqen_ray.planning.switches import HEADER, Switches
from orqen_ray.planning.validation import fault
from tests.planning.lab import TOOLS, talk

ASKED = talk("do tool_1", "call tool_1", "done", "fine", "more")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"tools": TOOLS[:5]}, ""),
        ({"tools": TOOLS[5:]}, "called_tool"),
        ({"tools": (*TOOLS[:5], TOOLS[0])}, "illegal"),
        ({"tools": (*TOOLS[:5], Tool(name="no spaces", parameters={}))}, "illegal"),
        ({"tools": (*TOOLS, *(replace(TOOLS[0], name=f"more_{number}") for number in range(100)))}, "illegal"),
    ],
)
def test_a_fault_of_the_edit_has_a_name(edit: dict[str, Any], why: str) -> None:
    assert fault(ASKED, replace(ASKED, **edit), "bedrock_converse" if why == "called_tool" else "openai_chat") == why


def test_a_choice_must_find_its_tool() -> None:
    asked = replace(ASKED, tool_choice=ToolChoice(mode="tool", names=("tool_9",)))
    assert fault(asked, replace(asked, tools=TOOLS[:5]), "openai_chat") == "tool_choice"
    assert fault(asked, replace(asked, tools=TOOLS[:10]), "openai_chat") == ""
    unknown = replace(ASKED, tool_choice=ToolChoice(mode="tool", names=("nobody",)))
    assert fault(unknown, replace(unknown, tools=TOOLS[:5]), "openai_chat") == ""


def test_without_tools_nothing_may_say_how_to_call_them() -> None:
    for more in ({"tool_choice": ToolChoice(mode="auto")}, {"parallel_tool_calls": False}):
        asked = talk("hello", **more)
        assert fault(asked, replace(asked, tools=()), "openai_chat") == "tool_choice"
    asked = talk("hello")
    assert fault(asked, replace(asked, tools=()), "openai_chat") == ""


def test_too_many_tools_made_fewer_are_no_fault() -> None:
    many = tuple(replace(TOOLS[0], name=f"tool_{number}") for number in range(200))
    asked = replace(ASKED, tools=many)
    assert fault(asked, replace(asked, tools=many[:150]), "openai_chat") == ""


@pytest.mark.parametrize(
    ("header", "on"),
    [
        (None, {"tools", "schemas", "context"}),
        (" ,", {"tools", "schemas", "context"}),
        ("off", set()),
        ("OFF ", set()),
        ("tools", {"tools"}),
        (" schemas, tools ,", {"schemas", "tools"}),
    ],
)
def test_a_header_takes_away(header: str | None, on: set[str]) -> None:
    headers = {} if header is None else {HEADER: header}
    switches = Switches().narrowed({}, None, headers)
    assert {name for name in ("tools", "schemas", "context") if getattr(switches, name)} == on


def test_a_key_goes_over_the_settings_and_a_header_gives_nothing_back() -> None:
    settings = Switches(tools=False)
    assert settings.narrowed({"tools": True, "restore": False, "unknown": True}, 7, {}) == Switches(
        restore=False, k_target=7
    )
    assert not settings.narrowed({}, None, {HEADER: "tools"}).tools


@pytest.mark.parametrize("value", ["everything", "tools,off", "tools;schemas", "x" * 500])
def test_another_word_is_the_callers_error(value: str) -> None:
    with pytest.raises(BadRequest, match="`off`, or a list of tools, schemas, context") as raised:
        Switches().narrowed({}, None, {HEADER: value})
    assert len(str(raised.value)) < 200
