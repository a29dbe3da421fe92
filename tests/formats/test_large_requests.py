"""Requests of many small parts take time in proportion: twice as many, twice as long."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import pytest

from orqen_ray.conversation import Block, Conversation, Document, JsonObject, Message, Source, Text, Tool, ToolChoice
from orqen_ray.formats.registry import FORMATS
from orqen_ray.types import Capabilities

PARTS = 20_000
MAX_S = 4.0
"""Quadratic code took 7 s and more for so many parts, linear code a few tenths."""


def user(*blocks: Block) -> Message:
    return Message(role="user", blocks=blocks)


def same_name(count: int) -> list[Message]:
    document = Document(source=Source(kind="text", data="x"), name="a")
    return [user(*[document] * count)]


def one_turn(count: int) -> list[Message]:
    return [user(Text(text="x"))] * count


def silent_model(count: int) -> list[Message]:
    return [user(Text(text="x")), Message(role="assistant", blocks=(Text(text=" "),))] * (count // 2)


@pytest.mark.parametrize("provider", ["anthropic_messages", "bedrock_converse", "openai_chat"])
@pytest.mark.parametrize("messages", [same_name, one_turn, silent_model])
def test_many_parts_are_written_in_time(provider: str, messages: Callable[[int], list[Message]]) -> None:
    caller = "anthropic_messages" if provider == "openai_chat" else "openai_chat"
    conversation = Conversation(format=caller, model="m", messages=tuple(messages(PARTS)))  # type: ignore[arg-type]
    started_s = process_time()
    body: JsonObject = FORMATS[provider].write_request(conversation, "m", Capabilities()).body  # type: ignore[index]
    assert process_time() - started_s < MAX_S
    assert body["messages"]


def test_many_allowed_tools_are_written_in_time() -> None:
    names = tuple(f"tool_{i:06}" for i in range(2 * PARTS))
    conversation = Conversation(
        format="openai_chat",
        model="m",
        messages=(user(Text(text="x")),),
        tools=tuple(Tool(name=name) for name in reversed(names)),
        tool_choice=ToolChoice(mode="allowed", names=names),
    )
    started_s = process_time()
    body = FORMATS["anthropic_messages"].write_request(conversation, "m", Capabilities()).body
    assert process_time() - started_s < MAX_S
    assert len(body["tools"]) == 2 * PARTS
