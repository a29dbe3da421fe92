from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import Conversation, Image, Opaque, Refusal, Text, Thinking, ToolCall, ToolResult
from orqen_ray.errors import BadRequest
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.types import Capabilities
from tests.formats.conversations import conversations

CAPABILITIES = Capabilities()
USER = {"role": "user", "content": "hi"}


def body_of(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **fields}


def write(conversation: Conversation) -> dict[str, Any]:
    written = OPENAI_CHAT.write_request(conversation, conversation.model, CAPABILITIES)
    assert written.dropped == ()
    return written.body


def read(body: dict[str, Any]) -> Conversation:
    return OPENAI_CHAT.read_request(body, None)


@settings(max_examples=60, deadline=None)
@given(conversations("openai_chat"))
def test_what_is_written_reads_back_to_the_same_conversation(conversation: Conversation) -> None:
    assert read(write(conversation)) == conversation


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer"])
@pytest.mark.parametrize("text", ["hi", ""])
def test_a_message_of_text_alone_reads_as_one_with_empty_fields_beside_it(role: str, text: str) -> None:
    plain = {"role": role, "content": text}
    assert read(body_of(messages=[plain])) == read(body_of(messages=[{**plain, "audio": None}]))


@st.composite
def spellings(draw: st.DrawFn) -> dict[str, Any]:
    """Requests in the many ways that clients write the same thing."""
    body = write(draw(conversations("openai_chat")))
    for message in body["messages"]:
        if isinstance(message["content"], str) and draw(st.booleans()):
            message["content"] = [{"type": "text", "text": message["content"]}]
        if message["role"] == "assistant":
            message |= draw(st.sampled_from([{}, {"refusal": None, "audio": None, "annotations": []}]))
            if "reasoning_content" in message and draw(st.booleans()):
                message["reasoning"] = message.pop("reasoning_content")
    for field, others in {
        "max_completion_tokens": [{"max_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": None}],
        "stop": [{"stop": "x"}, {"stop": None}, {"stop": []}],
        "stream": [{"stream": False}, {"stream": None}],
        "tools": [{"tools": []}, {"tools": None}],
    }.items():
        if draw(st.booleans()) and (field != "tools" or "tools" not in body):
            body.pop(field, None)
            body |= draw(st.sampled_from(others))
    newer = {"metadata": {"a": 1}, "response_format": {"type": "grammar"}, "tool_choice": {"type": "mcp"}, "x": None}
    return body | {key: newer[key] for key in draw(st.sets(st.sampled_from(sorted(newer))))}


@settings(max_examples=60, deadline=None)
@given(spellings())
def test_a_request_is_written_again_exactly_as_it_was_spelled(body: dict[str, Any]) -> None:
    received = copy.deepcopy(body)
    written = write(read(body))
    assert written == received
    assert list(written) == list(received)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "auto"},
        {"tool_choice": "none"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": {"type": "custom", "custom": {"name": "c"}}},
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
            }
        },
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
        {"parallel_tool_calls": False},
        {"reasoning_effort": "minimal"},
        {"reasoning_effort": "none"},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"user": "u", "service_tier": "flex"},
        {"n": 2, "seed": 1, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}, "top_k": 4},
    ],
)
def test_each_field_of_the_head_survives_without_its_spelling(fields: dict[str, Any]) -> None:
    tools = [
        {"type": "function", "function": {"name": "f"}},
        {"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}},
        {"type": "web_search", "web_search": {"depth": 1}},
    ]
    body = body_of(tools=tools, **fields)
    conversation = read(body)
    assert conversation.extra == {}
    unspelled = replace(conversation, wire=None, tools=tuple(replace(tool, wire=None) for tool in conversation.tools))
    assert write(unspelled) == body


def test_an_edited_message_leaves_the_others_as_they_were_spelled() -> None:
    spelled = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call("a")]}
    body = body_of(messages=[USER, spelled, {"role": "tool", "tool_call_id": "a", "content": "long", "name": "f"}])
    conversation = read(body)
    edited = replace(conversation.messages[2], blocks=(ToolResult(call_id="a", blocks=(Text(text="short"),)),))
    messages = (*conversation.messages[:2], edited)
    written = write(replace(conversation, messages=messages))["messages"]
    assert written == [
        USER,
        spelled,
        {"role": "tool", "tool_call_id": "a", "content": "short", "name": "f"},
    ]


def test_an_edited_field_of_the_head_keeps_its_name_and_place() -> None:
    body = body_of(max_tokens=5, temperature=None, zzz=1)
    assert write(replace(read(body), max_tokens=7)) == body_of(max_tokens=7, temperature=None, zzz=1)


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_every_kind_of_block_is_read() -> None:
    parts = [
        {"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
        {"type": "image_url", "image_url": "https://x.test/a.png"},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]
    said = {
        "role": "assistant",
        "content": [{"type": "text", "text": "t"}],
        "reasoning_content": "hm",
        "refusal": "no",
        "tool_calls": [call("a"), {"id": "b", "type": "custom", "custom": {"name": "c", "input": "free text"}}],
    }
    answers = [{"role": "tool", "tool_call_id": i, "content": [{"type": "text", "text": "r"}]} for i in "ab"]
    user, assistant, *results = read(body_of(messages=[{"role": "user", "content": parts}, said, *answers])).messages
    assert [type(block).__name__ for block in user.blocks] == [
        "Text",
        "Image",
        "Image",
        "Document",
        "Document",
        "Opaque",
    ]
    assert isinstance(user.blocks[1], Image) and user.blocks[1].source.media_type == "image/png"
    assert [type(block) for block in assistant.blocks] == [Thinking, Text, Refusal, ToolCall, ToolCall]
    assert [message.wire_role for message in results] == ["tool", "tool"]


def test_the_gateways_own_tool_fields_are_read_and_never_written() -> None:
    function = {"name": "f", "x-orqen-examples": ["find a file"], "x-orqen-keep": True, "x": 1}
    conversation = read(body_of(tools=[{"type": "function", "function": function}]))
    assert (conversation.tools[0].examples, conversation.tools[0].keep) == (("find a file",), True)
    assert write(conversation)["tools"] == [{"type": "function", "function": {"name": "f", "x": 1}}]
    function["x-orqen-examples"], function["x-orqen-keep"] = [], False
    assert write(read(body_of(tools=[{"type": "function", "function": function}])))["tools"] == [
        {"type": "function", "function": {"name": "f", "x": 1}}
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER]}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": 1, "messages": [USER]}, "model"),
        (body_of(messages=[]), "messages"),
        (body_of(messages={}), "messages"),
        (body_of(messages=["hi"]), "messages[0]"),
        (body_of(messages=[{"content": "x"}]), "messages[0].role"),
        (body_of(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
        (body_of(messages=[{"role": "user"}]), "messages[0].content"),
        (body_of(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
        (body_of(messages=[{"role": "user", "content": [5]}]), "messages[0].content[0]"),
        (body_of(messages=[{"role": "user", "content": [{"text": "x"}]}]), "messages[0].content[0].type"),
        (body_of(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (
            body_of(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages[0].content[0].image_url.url",
        ),
        (
            body_of(
                messages=[
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:a/b;base64,!"}}]}
                ]
            ),
            "messages[0].content[0].image_url.url",
        ),
        (
            body_of(messages=[{"role": "user", "content": [{"type": "file", "file": {"file_data": "é"}}]}]),
            "messages[0].content[0].file.file_data",
        ),
        (body_of(messages=[{"role": "assistant", "tool_calls": {}}]), "messages[0].tool_calls"),
        (
            body_of(messages=[{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}]),
            "messages[0].tool_calls[0].id",
        ),
        (
            body_of(messages=[{"role": "assistant", "tool_calls": [{"id": "a", "function": {}}]}]),
            "messages[0].tool_calls[0].function.name",
        ),
        (body_of(messages=[USER, {"role": "tool", "tool_call_id": "a", "content": "x"}]), "messages[1]"),
        (body_of(messages=[{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
        (body_of(tools={}), "tools"),
        (body_of(tools=[{"type": "function"}]), "tools[0].function"),
        (body_of(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
        (body_of(tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]), None),
        (body_of(tools=[{"type": "function", "function": {"name": "f", "x-orqen-examples": "e"}}]), None),
        (body_of(tool_choice=5), "tool_choice"),
        (body_of(tool_choice={"type": "function"}), "tool_choice.function"),
        (body_of(stop=5), "stop"),
        (body_of(stop=["a", 5]), "stop[1]"),
        (body_of(n=0), "n"),
        (body_of(temperature="hot"), "temperature"),
        (body_of(max_tokens=1.5), "max_tokens"),
        (body_of(stream="yes"), "stream"),
        (body_of(stream_options=[]), "stream_options"),
        (body_of(response_format="json"), "response_format"),
        (body_of(response_format={"type": "json_schema"}), "response_format.json_schema"),
        (body_of(reasoning_effort=3), "reasoning_effort"),
        (body_of(logit_bias=[]), "logit_bias"),
    ],
)
def test_bad_input_names_the_field(body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body)
    if param is not None:
        assert caught.value.param == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["tools", "tool_choice", "stop", "n", "response_format", "stream_options", "cache_control", "logit_bias"]
TYPES = st.sampled_from(["text", "image_url", "file", "refusal", "function", "custom", "new"])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON),
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "role": st.sampled_from(["user", "assistant", "tool", "function", "x"]),
                "content": JSON | st.lists(st.fixed_dictionaries({"type": TYPES}, optional={"file": JSON}), max_size=2),
                "tool_calls": JSON | st.lists(st.fixed_dictionaries({"id": JSON, "type": TYPES, "function": JSON})),
                "tool_call_id": JSON,
                "reasoning": JSON,
            },
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_no_input_breaks_the_reader_and_what_it_takes_it_writes_again(
    fields: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    body = {"model": "m", "messages": messages, **fields}
    try:
        conversation = read(copy.deepcopy(body))
    except BadRequest:
        return
    assert write(conversation) == body


def test_a_call_of_a_newer_kind_may_be_answered() -> None:
    newer = {"id": "a", "type": "computer", "computer": {"action": "click"}}
    body = body_of(
        messages=[
            USER,
            {"role": "assistant", "tool_calls": [newer]},
            {"role": "tool", "tool_call_id": "a", "content": "ok"},
        ]
    )
    conversation = read(body)
    assert isinstance(conversation.messages[1].blocks[0], Opaque)
    assert write(conversation) == body


def test_the_model_of_the_url_wins() -> None:
    assert OPENAI_CHAT.read_request({"messages": [USER]}, "from-url").model == "from-url"
