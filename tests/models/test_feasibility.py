"""Which conversations a model can take, and what is taken out of one for another account."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given

from orqen_ray.conversation import (
    Block,
    Conversation,
    Document,
    Image,
    Message,
    Opaque,
    OutputFormat,
    Reasoning,
    Source,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from orqen_ray.models.feasibility import (
    Target,
    holds_sealed_reasoning,
    obstacles,
    without_sealed_reasoning,
)
from orqen_ray.types import Capabilities
from tests.formats.conversations import conversations

HOME = Target(provider="anthropic", dialect="anthropic_messages", model_id="home", capabilities=Capabilities())
OTHER = replace(HOME, model_id="other")
ELSEWHERE = replace(HOME, provider="openai", dialect="openai_chat")
BEDROCK = replace(HOME, provider="bedrock", dialect="bedrock_converse")

SIGNED = Thinking(text="hm", signature="sig")
REDACTED = Thinking(redacted="c2VhbGVk")
CALL = ToolCall(id="1", name="f", arguments="{}")
RESULT = ToolResult(call_id="1", blocks=(Text(text="ok"),))
PICTURE = Image(source=Source(kind="base64", data="AAAA", media_type="image/png"))
PAGES = Document(source=Source(kind="base64", data="AAAA", media_type="application/pdf"))


def said(*turns: tuple[Block, ...], **fields: Any) -> Conversation:
    """Turns of user and assistant, by turns."""
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], blocks=blocks) for i, blocks in enumerate(turns))  # type: ignore[arg-type]
    return Conversation(**{"format": "anthropic_messages", "model": "m", "messages": messages, **fields})


SCHEMA = OutputFormat(kind="schema")
ASK = (Text(text="go"),)


def without(**capabilities: Any) -> Target:
    return replace(OTHER, capabilities=Capabilities(**capabilities))


@pytest.mark.parametrize(
    ("conversation", "target", "expected"),
    [
        (said(ASK), without(images=False, documents=False, tools=False, structured_output=False), ()),
        (said((PICTURE,)), OTHER, ()),
        (said((PICTURE,)), without(images=False), ("images",)),
        (said((ToolResult(call_id="1", blocks=(PICTURE,)),)), without(images=False), ("images",)),
        (said((PAGES,)), without(documents=False), ("documents",)),
        (said((Document(source=Source(kind="text", data="x")),)), without(documents=False), ()),
        (said((Image(source=Source(kind="url", data="https://a.example/b.png")),)), ELSEWHERE, ()),
        (said((Image(source=Source(kind="url", data="https://a.example/b.png")),)), BEDROCK, ("unreachable_source",)),
        (said((Image(source=Source(kind="s3", data="s3://a/b")),)), BEDROCK, ()),
        (said((Image(source=Source(kind="s3", data="s3://a/b")),)), OTHER, ("unreachable_source",)),
        (said((Image(source=Source(kind="file_id", data="file_1")),)), OTHER, ()),
        (said((Image(source=Source(kind="file_id", data="file_1")),)), ELSEWHERE, ("unreachable_source",)),
        (said((Opaque(kind="x", raw={}),)), OTHER, ()),
        (said((Opaque(kind="x", raw={}),)), BEDROCK, ("unknown_blocks",)),
        (said(ASK, tools=(Tool(name="f"),)), without(tools=False), ("tools",)),
        (said(ASK, (CALL,), (RESULT,)), without(tools=False), ("tools",)),
        (said(ASK, tools=(Tool(name="search", raw={"type": "web_search"}),)), OTHER, ()),
        (said(ASK, tools=(Tool(name="search", raw={"type": "web_search"}),)), ELSEWHERE, ("built_in_tools",)),
        (
            said(ASK, output_format=SCHEMA),
            without(structured_output=False),
            ("structured_output",),
        ),
        (said(ASK, output_format=SCHEMA), OTHER, ()),
        (said(ASK, output_format=OutputFormat(kind="json")), ELSEWHERE, ()),
        (said(ASK, output_format=OutputFormat(kind="json")), BEDROCK, ("structured_output",)),
        (said(ASK, output_format=OutputFormat(kind="text")), without(structured_output=False), ()),
        (said(ASK), replace(OTHER, context_tokens=1000), ()),
        (said(ASK), replace(OTHER, context_tokens=999), ("context_window",)),
        (said(ASK, max_tokens=1), replace(OTHER, context_tokens=1000), ("context_window",)),
        (said(ASK, (SIGNED, CALL), (RESULT,)), HOME, ()),
        (said(ASK, (SIGNED, CALL), (RESULT,)), OTHER, ("reasoning_in_tool_loop",)),
        (said(ASK, (SIGNED, CALL), (RESULT,)), replace(HOME, provider="reseller"), ("reasoning_in_tool_loop",)),
        (said(ASK, (REDACTED, CALL), (RESULT, Text(text="and this"))), OTHER, ("reasoning_in_tool_loop",)),
        (said(ASK, (Thinking(text="open"), CALL), (RESULT,)), OTHER, ()),
        (said(ASK, (SIGNED, CALL), (RESULT,), (Text(text="done"),), ASK), OTHER, ()),
        (said(ASK, (SIGNED, CALL), (RESULT,), (Text(text="done"),), ASK, (CALL,), (RESULT,)), OTHER, ()),
        (said(ASK, (SIGNED, Text(text="hello")), ASK), OTHER, ()),
        (said((PICTURE, PAGES)), without(images=False, documents=False), ("images", "documents")),
    ],
)
def test_every_reason_is_given(conversation: Conversation, target: Target, expected: tuple[str, ...]) -> None:
    assert obstacles(conversation, target, input_tokens=1000, home=HOME) == expected


def test_a_sealed_field_of_a_compatible_server_is_reasoning_too() -> None:
    call = replace(CALL, extra={"extra_content": {"google": {"thought_signature": "x"}}, "other": 1})
    assert obstacles(said(ASK, (call,), (RESULT,)), OTHER, input_tokens=1, home=HOME) == ("reasoning_in_tool_loop",)
    later = said(ASK, (call,), (RESULT,), (Text(text="done"),), ASK)
    assert without_sealed_reasoning(later).messages[1].blocks == (replace(call, extra={"other": 1}),)


def test_only_sealed_reasoning_is_taken_out_and_a_message_of_nothing_else_goes() -> None:
    open_thought = Thinking(text="open")
    held = said(ASK, (SIGNED, open_thought, Text(text="a")), ASK, (REDACTED,), ASK)
    left = without_sealed_reasoning(held)
    assert [message.blocks for message in left.messages] == [ASK, (open_thought, Text(text="a")), ASK, ASK]


@given(conversations("anthropic_messages"))
def test_what_was_taken_out_is_gone_and_the_rest_stays(conversation: Conversation) -> None:
    left = without_sealed_reasoning(conversation)
    assert not holds_sealed_reasoning(left)
    assert (left is conversation) == (not holds_sealed_reasoning(conversation))
    assert left.tools == conversation.tools and left.system == conversation.system
    assert without_sealed_reasoning(left) is left


@pytest.mark.parametrize(("mode", "left"), [("on", "off"), ("adaptive", "adaptive")])
def test_in_a_tool_loop_a_model_without_its_reasoning_stops_thinking(
    mode: Literal["on", "adaptive"], left: Literal["off", "adaptive"]
) -> None:
    thinking = Reasoning(mode=mode, budget_tokens=2048 if mode == "on" else None)
    loop = replace(said(ASK, (SIGNED, CALL), (RESULT,)), reasoning=thinking)
    assert without_sealed_reasoning(loop).reasoning == Reasoning(mode=left)
    after = replace(said(ASK, (SIGNED, CALL), (RESULT,), (Text(text="done"),), ASK), reasoning=thinking)
    assert without_sealed_reasoning(after).reasoning == thinking
