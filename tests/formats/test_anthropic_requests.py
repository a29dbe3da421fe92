"""Anthropic Messages requests: read, written back, and refused when malformed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given

from orqen_ray.conversation import (
    CacheMarker,
    Document,
    Image,
    JsonObject,
    Opaque,
    OutputFormat,
    Reasoning,
    Source,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChange,
    ToolChoice,
    ToolResult,
)
from orqen_ray.errors import BadRequest
from orqen_ray.formats.anthropic_messages.request_in import read_count_request, read_request
from orqen_ray.formats.anthropic_messages.request_out import write_request
from orqen_ray.types import Capabilities
from tests.formats.anthropic_wire import PNG, requests


def body_with(**fields: Any) -> JsonObject:
    return {"model": "claude", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], **fields}


def asking(*blocks: JsonObject) -> JsonObject:
    return body_with(messages=[{"role": "user", "content": list(blocks)}])


def rewritten(body: JsonObject) -> Any:
    """`body` read, written for its own format, and decoded as its provider would."""
    written = write_request(read_request(body, None), body["model"], Capabilities())
    assert written.dropped == ()
    return msgspec.json.decode(msgspec.json.encode(written.body))


@given(body=requests)
def test_a_request_written_back_is_the_request_that_was_read(body: JsonObject) -> None:
    assert rewritten(body) == body


def test_fields_at_their_default_are_left_out_and_strings_become_blocks() -> None:
    body = body_with(
        system="be brief",
        stream=False,
        thinking=None,
        tools=[{"type": "custom", "name": "f", "input_schema": {}, "cache_control": None}],
        output_format={"type": "json_schema", "schema": {}},
    )
    assert rewritten(body) == body_with(
        system=[{"type": "text", "text": "be brief"}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        tools=[{"name": "f", "input_schema": {}}],
        output_config={"format": {"type": "json_schema", "schema": {}}},
    )


def test_every_block_is_read_as_what_it_means() -> None:
    hour = {"type": "ephemeral", "ttl": "1h"}
    tool = {"name": "f", "input_schema": {}, "defer_loading": True}
    conversation = read_request(
        body_with(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "t", "cache_control": hour, "newer": 1},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                        {
                            "type": "document",
                            "source": {"type": "file", "file_id": "f1"},
                            "title": "T",
                            "context": "C",
                            "citations": {"enabled": True},
                        },
                        {"type": "newest"},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "redacted_thinking", "data": "d"},
                        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": [1]}},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "1", "content": "no", "is_error": True}],
                },
                {
                    "role": "system",
                    "content": [
                        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool}},
                        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "g"}},
                    ],
                },
            ]
        ),
        None,
    )
    user, assistant, results, system = (message.blocks for message in conversation.messages)
    assert user == (
        Text(text="t", cache=CacheMarker(ttl="1h"), extra={"newer": 1}),
        Image(source=Source(kind="base64", data=PNG, media_type="image/png")),
        Document(source=Source(kind="file_id", data="f1"), name="T", context="C", citations=True),
        Opaque(kind="newest", raw={"type": "newest"}),
    )
    assert assistant == (
        Thinking(text="hm", signature="s"),
        Thinking(redacted="d"),
        ToolCall(id="1", name="f", arguments='{"a":[1]}'),
    )
    assert results == (ToolResult(call_id="1", blocks=(Text(text="no"),), is_error=True),)
    assert system == (
        ToolChange(action="add", name="f", tool=Tool(name="f", parameters={}, defer_loading=True)),
        ToolChange(action="remove", name="g"),
    )


def test_every_setting_is_read_as_what_it_means() -> None:
    conversation = read_request(
        body_with(
            tools=[{"type": "bash_20250124", "name": "bash"}],
            tool_choice={"type": "tool", "name": "bash", "disable_parallel_tool_use": True},
            stop_sequences=["END"],
            thinking={"type": "adaptive", "display": "omitted"},
            output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
            cache_control={"type": "ephemeral"},
            metadata={"user_id": "u"},
            top_k=5,
            stream=True,
            speed="fast",
        ),
        None,
    )
    assert conversation.tools == (Tool(name="bash", raw={"type": "bash_20250124", "name": "bash"}),)
    assert conversation.tool_choice == ToolChoice(mode="tool", names=("bash",))
    assert conversation.parallel_tool_calls is False
    assert conversation.stop == ("END",)
    assert conversation.reasoning == Reasoning(mode="adaptive", display="omitted", effort="max")
    assert conversation.output_format == OutputFormat(kind="schema", schema={"type": "object"})
    assert (conversation.auto_cache, conversation.user) == (CacheMarker(), "u")
    assert (conversation.sampling, conversation.stream, conversation.include_usage) == ({"top_k": 5}, True, True)
    assert conversation.extra == {"speed": "fast"}


def test_counting_tokens_needs_no_max_tokens() -> None:
    body = body_with()
    del body["max_tokens"]
    assert "max_tokens" not in write_request(read_count_request(body, None), "claude", Capabilities()).body
    with pytest.raises(BadRequest, match="max_tokens: is required"):
        read_request(body, None)


def test_the_model_may_come_from_the_url() -> None:
    body = body_with()
    del body["model"]
    assert read_request(body, "from-url").model == "from-url"


def _nested_results(depth: int) -> JsonObject:
    block: JsonObject = {"type": "text", "text": "x"}
    for _ in range(depth):
        block = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
    return block


def test_results_nested_in_results_do_not_exhaust_the_stack() -> None:
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    messages = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [_nested_results(400)]}]
    assert read_request(body_with(messages=messages), None).messages[1].blocks[0]


def _missing(key: str) -> JsonObject:
    body = body_with()
    del body[key]
    return body


AT = "messages[0].content[0]"
MALFORMED: list[tuple[JsonObject, str]] = [
    (_missing("model"), "model"),
    (_missing("messages"), "messages"),
    (_missing("max_tokens"), "max_tokens"),
    (body_with(model=7), "model"),
    (body_with(model=""), "model"),
    (body_with(messages=[]), "messages"),
    (body_with(messages={}), "messages"),
    (body_with(messages=["hi"]), "messages[0]"),
    (body_with(messages=[{"content": "hi"}]), "messages[0].role"),
    (body_with(messages=[{"role": "tool", "content": "hi"}]), "messages[0].role"),
    (body_with(messages=[{"role": "user"}]), "messages[0].content"),
    (body_with(messages=[{"role": "user", "content": 1}]), "messages[0].content"),
    (body_with(max_tokens="many"), "max_tokens"),
    (body_with(max_tokens=True), "max_tokens"),
    (body_with(temperature="hot"), "temperature"),
    (body_with(stream="yes"), "stream"),
    (body_with(system=3), "system"),
    (body_with(system=[{"text": "x"}]), "system[0].type"),
    (body_with(metadata=[]), "metadata"),
    (body_with(metadata={"user_id": 1}), "metadata.user_id"),
    (body_with(stop_sequences="END"), "stop_sequences"),
    (body_with(stop_sequences=[1]), "stop_sequences[0]"),
    (body_with(tools={}), "tools"),
    (body_with(tools=[{"input_schema": {}}]), "tools[0].name"),
    (body_with(tools=[{"name": "f"}]), "tools[0].input_schema"),
    (body_with(tools=[{"name": "f", "input_schema": {}, "defer_loading": 1}]), "tools[0].defer_loading"),
    (body_with(tool_choice="auto"), "tool_choice"),
    (body_with(tool_choice={"type": "tool"}), "tool_choice.name"),
    (body_with(thinking="on"), "thinking"),
    (body_with(thinking={"type": "enabled", "budget_tokens": "all"}), "thinking.budget_tokens"),
    (body_with(output_config={"format": "json"}), "output_config.format"),
    (body_with(output_format={"type": "json_schema"}), "output_format.schema"),
    (body_with(cache_control="ephemeral"), "cache_control"),
    (asking({"text": "x"}), f"{AT}.type"),
    (asking({"type": "text"}), f"{AT}.text"),
    (
        asking({"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": 5}}),
        f"{AT}.cache_control.ttl",
    ),
    (asking({"type": "image"}), f"{AT}.source"),
    (
        asking({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "é!"}}),
        f"{AT}.source.data",
    ),
    (asking({"type": "image", "source": {"type": "base64", "data": PNG}}), f"{AT}.source.media_type"),
    (asking({"type": "document", "source": {"type": "url"}}), f"{AT}.source.url"),
    (
        asking({"type": "document", "source": {"type": "file", "file_id": "f"}, "citations": True}),
        f"{AT}.citations",
    ),
    (asking({"type": "tool_use", "id": "1", "name": "f", "input": "{}"}), f"{AT}.input"),
    (asking({"type": "tool_result", "content": "x"}), f"{AT}.tool_use_id"),
    (asking({"type": "tool_result", "tool_use_id": "1", "content": 1}), f"{AT}.content"),
    (asking({"type": "tool_result", "tool_use_id": "none"}), "messages[0]"),
    (asking({"type": "tool_addition", "tool": "f"}), f"{AT}.tool"),
    (asking({"type": "thinking", "signature": "s"}), f"{AT}.thinking"),
]


@pytest.mark.parametrize(("body", "path"), MALFORMED, ids=[path for _, path in MALFORMED])
def test_a_malformed_request_is_refused_by_the_path_of_its_fault(body: JsonObject, path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_request(body, None)
    assert caught.value.param == path


@pytest.mark.parametrize(
    "message",
    [
        {"role": "x" * 9999, "content": "hi"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x" * 9999}]},
    ],
)
def test_a_refusal_repeats_only_the_start_of_a_long_word(message: JsonObject) -> None:
    with pytest.raises(BadRequest) as caught:
        read_request(body_with(messages=[message]), None)
    assert "x" * 80 in caught.value.message
    assert len(caught.value.message) < 200
