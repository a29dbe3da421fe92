"""Requests of the other two formats, written for Chat Completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam
from openai.types.chat.completion_create_params import CompletionCreateParams
from pydantic import TypeAdapter

from orqen_ray.conversation import (
    Block,
    CacheMarker,
    Conversation,
    Document,
    FormatName,
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
    ToolChoice,
    ToolResult,
)
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.types import Capabilities, Written
from tests.formats.conversations import conversations

REQUEST: TypeAdapter[Any] = TypeAdapter(CompletionCreateParams)
MESSAGE: TypeAdapter[Any] = TypeAdapter(ChatCompletionMessageParam)
TOOL: TypeAdapter[Any] = TypeAdapter(ChatCompletionToolUnionParam)
PNG = Image(source=Source(kind="base64", data="aGk=", media_type="image/png"))
FOREIGN: st.SearchStrategy[FormatName] = st.sampled_from(["anthropic_messages", "bedrock_converse"])


def exhaust(value: object) -> None:
    """pydantic validates iterables only when they are read."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return
    for item in value:
        exhaust(item)


def conversation_of(*messages: Message, **fields: Any) -> Conversation:
    return Conversation(format="anthropic_messages", model="m", messages=messages, **fields)


def user(*blocks: Block) -> Message:
    return Message(role="user", blocks=blocks)


def write(conversation: Conversation, **capabilities: Any) -> Written:
    return OPENAI_CHAT.write_request(conversation, "m", Capabilities(**capabilities))


def results_of(conversation: Conversation) -> Iterator[ToolResult]:
    for message in conversation.messages:
        yield from (block for block in message.blocks if isinstance(block, ToolResult))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_converted_request_is_one_that_the_sdk_would_send(data: st.DataObject) -> None:
    conversation = data.draw(conversations(data.draw(FOREIGN)))
    body = write(conversation).body
    exhaust(REQUEST.validate_python(body))
    for message in body["messages"]:
        exhaust(MESSAGE.validate_python(message))
    for tool in body.get("tools", ()):
        exhaust(TOOL.validate_python(tool))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_conversion_keeps_words_calls_results_and_pictures(data: st.DataObject) -> None:
    conversation = data.draw(conversations(data.draw(FOREIGN)))
    body = write(conversation).body
    read = OPENAI_CHAT.read_request(body, None)
    written = json.dumps(body)
    for message in conversation.messages:
        for block in message.blocks:
            inner = block.blocks if isinstance(block, ToolResult) else (block,)
            for text in (part.text for part in inner if isinstance(part, Text)):
                assert json.dumps(text)[1:-1] in written
    calls = [b for m in read.messages for b in m.blocks if isinstance(b, ToolCall)]
    assert calls == [b for m in conversation.messages for b in m.blocks if isinstance(b, ToolCall)]
    assert [r.call_id for r in results_of(read)] == [r.call_id for r in results_of(conversation)]
    assert written.count('"image_url": {') == repr(conversation.messages).count("Image(")
    following = {i: m["role"] for i, m in enumerate(body["messages"])}
    for i, message in enumerate(body["messages"]):
        count = len(message.get("tool_calls", ()))
        assert [following[i + 1 + k] for k in range(count)] == ["tool"] * count


def test_parallel_results_follow_their_calls_and_media_move_below_them() -> None:
    calls = [ToolCall(id=i, name="f", arguments="{}") for i in ("a", "b")]
    answer = user(
        Text(text="and then"),
        ToolResult(call_id="a", blocks=(Text(text="boom"), PNG), is_error=True),
        ToolResult(call_id="b", blocks=(PNG,)),
    )
    written = write(conversation_of(user(Text(text="go")), Message(role="assistant", blocks=tuple(calls)), answer))
    assert written.dropped == ()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    assert written.body["messages"][2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "Error: boom\n[image below]"},
        {"role": "tool", "tool_call_id": "b", "content": "[image below]"},
        {"role": "user", "content": [image, image, {"type": "text", "text": "and then"}]},
    ]


def test_the_head_comes_first_and_later_system_text_stays_in_its_place() -> None:
    later = Message(role="system", blocks=(Text(text="be brief"),))
    conversation = conversation_of(user(Text(text="hi")), later, system=(Text(text="a"), Text(text="b")))
    assert write(conversation, mid_conversation_system=True).body["messages"] == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "be brief"},
    ]


def test_later_system_text_is_the_users_where_the_model_takes_none() -> None:
    later = Message(role="system", blocks=(Text(text="be brief"),))
    assert write(conversation_of(user(Text(text="hi")), later)).body["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "<system-reminder>\nbe brief\n</system-reminder>"},
    ]


def test_a_choice_of_a_tool_that_cannot_come_along_is_dropped() -> None:
    own, other = Tool(name="bash", raw={"type": "bash_20250124", "name": "bash"}), Tool(name="f")
    choice = ToolChoice(mode="tool", names=("bash",))
    written = write(conversation_of(user(Text(text="x")), tools=(own, other), tool_choice=choice))
    assert "tool_choice" not in written.body and set(written.dropped) == {"tools[0]", "tool_choice"}


@pytest.mark.parametrize(
    ("blocks", "name"),
    [
        ((Thinking(text="hm", signature="s"),), "messages.thinking"),
        ((Thinking(redacted="x"),), "messages.redacted_thinking"),
        ((Opaque(kind="search_result", raw={}),), "messages[0].content[0]"),
        ((Image(source=Source(kind="file_id", data="file_1")),), "messages[0].content[0]"),
        ((Document(source=Source(kind="url", data="https://x.test/a.pdf")),), "messages[0].content[0]"),
        ((Text(text="x", cache=CacheMarker()), Text(text="y", cache=CacheMarker())), "cache_control"),
        ((Text(text="x", extra={"citations": []}),), "messages[0].content[0].citations"),
    ],
)
def test_what_the_format_cannot_carry_is_named_once(blocks: tuple[Block, ...], name: str) -> None:
    role: Any = "assistant" if isinstance(blocks[0], Thinking) else "user"
    written = write(conversation_of(Message(role=role, blocks=blocks), user(Text(text="go"))), thinking="adaptive")
    assert written.dropped == (name,)
    assert written.body["messages"][-1]["content"] == "go"


def test_unsigned_thinking_reaches_a_model_that_thinks() -> None:
    said = Message(role="assistant", blocks=(Thinking(text="hm"), Text(text="yes")))
    body = write(conversation_of(said), thinking="adaptive").body
    assert body["messages"] == [{"role": "assistant", "content": "yes", "reasoning_content": "hm"}]
    assert write(conversation_of(said)).dropped == ("messages.thinking",)


def test_cache_markers_are_written_where_the_model_takes_them() -> None:
    tool = Tool(name="f", cache=CacheMarker(ttl="1h"))
    system = (Text(text="a"), Text(text="b", cache=CacheMarker()))
    written = write(conversation_of(user(Text(text="hi")), system=system, tools=(tool,)), cache_markers=True)
    assert written.dropped == ()
    assert written.body["messages"][0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
    ]
    assert written.body["tools"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


def test_documents_become_files_or_text() -> None:
    pdf = Document(source=Source(kind="base64", data="aGk=", media_type="application/pdf"), name="a.pdf")
    plain = Document(source=Source(kind="text", data="words"), name="n", context="c")
    encoded = Document(source=Source(kind="base64", data="d29yZHM=", media_type="text/csv"))
    content = write(conversation_of(user(pdf, plain, encoded))).body["messages"][0]["content"]
    assert content == [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
        {"type": "text", "text": '<document name="n" context="c">\nwords\n</document>'},
        {"type": "text", "text": "<document>\nwords\n</document>"},
    ]


@pytest.mark.parametrize(
    ("reasoning", "thinking", "effort", "dropped"),
    [
        (Reasoning(mode="on", budget_tokens=4096), "budget", "low", ()),
        (Reasoning(mode="on", budget_tokens=16384), "budget", "medium", ()),
        (Reasoning(mode="on", budget_tokens=32000), "adaptive", "high", ()),
        (Reasoning(mode="adaptive", effort="max"), "adaptive", "max", ()),
        (Reasoning(mode="adaptive"), "adaptive", None, ()),
        (Reasoning(mode="off"), "adaptive", "none", ()),
        (Reasoning(mode="on", budget_tokens=4096), "none", None, ("thinking",)),
        (Reasoning(mode="off"), "none", None, ("thinking",)),
        (Reasoning(), "none", None, ()),
    ],
)
def test_thinking_becomes_an_effort(
    reasoning: Reasoning, thinking: str, effort: str | None, dropped: tuple[str, ...]
) -> None:
    written = write(conversation_of(user(Text(text="hi")), reasoning=reasoning), thinking=thinking)
    assert (written.body.get("reasoning_effort"), written.dropped) == (effort, dropped)


def test_the_head_takes_the_names_that_the_model_knows() -> None:
    conversation = conversation_of(
        user(Text(text="hi")),
        tools=(Tool(name="f"), Tool(name="web_search", raw={"type": "web_search_20250305"})),
        tool_choice=ToolChoice(mode="any"),
        parallel_tool_calls=False,
        max_tokens=9,
        stop=("a",),
        sampling={"top_k": 3, "temperature": 0.5},
        output_format=OutputFormat(kind="schema", schema={"type": "object"}),
        stream=True,
        user="u" * 65,
        service_tier="standard_only",
        extra={"container": "c"},
    )
    written = write(conversation, max_tokens_field="max_tokens", sampling_refused=frozenset({"temperature"}))
    assert set(written.dropped) == {"temperature", "container", "service_tier", "tools[1]"}
    head = {key: value for key, value in written.body.items() if key not in ("messages", "user")}
    assert head == {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 9,
        "stop": ["a"],
        "top_k": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "response", "schema": {"type": "object"}}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert len(written.body["user"]) == 64


def test_a_choice_without_tools_is_left_out() -> None:
    body = write(conversation_of(user(Text(text="hi")), tool_choice=ToolChoice(mode="auto"))).body
    assert body.keys() == {"model", "messages"}
