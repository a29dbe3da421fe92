from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from orqen_ray.conversation import Block, Facts, Refusal, Reply, StopReason, Text, Thinking, ToolCall, Usage
from orqen_ray.errors import UpstreamError, UpstreamRejected
from orqen_ray.formats.events import facts_of
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from tests.formats.conversations import IDS, NAMES, WORDS


def answer(message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": fields.pop("finish", "stop")}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "gpt",
        "choices": [choice],
        **fields,
    }


USAGES = st.builds(
    Usage,
    input_tokens=st.integers(0, 99),
    cache_read_tokens=st.integers(0, 99),
    cache_write_tokens=st.integers(0, 99),
    output_tokens=st.integers(50, 99),
    reasoning_tokens=st.integers(0, 50),
)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    calls = draw(st.lists(st.builds(ToolCall, id=IDS, name=NAMES, arguments=st.just('{"a":1}')), max_size=2))
    thinking = draw(st.lists(st.builds(Thinking, text=WORDS), max_size=1))
    text = draw(st.lists(st.builds(Text, text=WORDS), max_size=1))
    reason: StopReason = "tool_call" if calls else draw(st.sampled_from(["end", "max_tokens", "refusal"]))
    refusal = [Refusal(text="no")] if reason == "refusal" else []
    blocks: tuple[Block, ...] = (*thinking, *text, *refusal, *calls)
    usage = draw(st.one_of(st.none(), USAGES))
    return Reply(id="chatcmpl-x", model="m", blocks=blocks, stop_reason=reason, usage=usage, created_s=5)


@given(replies())
def test_a_written_reply_is_a_chat_completion_and_reads_back_the_same(reply: Reply) -> None:
    written = OPENAI_CHAT.write_reply(reply, "m", "chatcmpl-x")
    assert written.dropped == ()
    ChatCompletion.model_validate(written.body, strict=True)
    assert OPENAI_CHAT.read_reply(written.body) == reply


def test_parallel_calls_of_careless_servers_are_read() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"function": {"name": "g", "arguments": {"y": 2}}},
        {"id": "", "type": "function", "function": {"name": "h", "arguments": None}},
    ]
    reply = OPENAI_CHAT.read_reply(answer({"content": None, "tool_calls": calls}))
    found = [block for block in reply.blocks if isinstance(block, ToolCall)]
    assert [(call.name, call.arguments) for call in found] == [("f", '{"x": 1}'), ("g", '{"y":2}'), ("h", "")]
    assert len({call.id for call in found}) == 3 and all(call.id for call in found)
    assert reply.stop_reason == "tool_call"
    assert reply == OPENAI_CHAT.read_reply(answer({"content": None, "tool_calls": calls}))


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_call"),
        ("function_call", "tool_call"),
        ("content_filter", "refusal"),
        ("model_length", "context_window"),
        ("insufficient_system_resource", "malformed"),
        ("tomorrow", "end"),
        (None, "end"),
    ],
)
def test_every_finish_reason_is_understood(finish: str | None, reason: str) -> None:
    assert OPENAI_CHAT.read_reply(answer({"content": "x"}, finish=finish)).stop_reason == reason


@pytest.mark.parametrize("reason", list(StopReason.__args__))  # type: ignore[attr-defined]  # a Literal has them
def test_every_stop_reason_has_a_finish_reason_that_the_sdk_knows(reason: StopReason) -> None:
    reply = Reply(id="i", model="m", blocks=(Text(text="x"),), stop_reason=reason)
    ChatCompletion.model_validate(OPENAI_CHAT.write_reply(reply, "m", "r").body, strict=True)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 9,
                "total_tokens": 109,
                "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            Usage(input_tokens=10, cache_read_tokens=60, cache_write_tokens=30, output_tokens=9, reasoning_tokens=4),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 2},
            Usage(input_tokens=2, cache_read_tokens=8, output_tokens=2),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 20}, Usage(input_tokens=10, output_tokens=10)),
        ({"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": None}, Usage(input_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(cache_read_tokens=5)),
        ("many", None),
        (None, None),
    ],
)
def test_usage_counts_no_token_twice(usage: object, expected: Usage | None) -> None:
    assert OPENAI_CHAT.read_reply(answer({"content": "x"}, usage=usage)).usage == expected


def test_reasoning_is_read_under_each_of_its_names() -> None:
    for message in (
        {"content": "x", "reasoning_content": "hm"},
        {"content": "x", "reasoning": "hm"},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "x"},
            ]
        },
    ):
        assert OPENAI_CHAT.read_reply(answer(message)).blocks == (Thinking(text="hm"), Text(text="x"))


def test_what_a_reply_cannot_say_is_named() -> None:
    blocks = (
        Thinking(text="hm", signature="s"),
        Thinking(redacted="r"),
        Text(text="a", extra={"citations": [1]}),
        Text(text="b"),
        ToolCall(id="i", name="f", arguments=""),
    )
    written = OPENAI_CHAT.write_reply(Reply(id="i", model="m", blocks=blocks, extra={"container": {}}), "m", "r1")
    assert written.dropped == ("container", "content[0].signature", "content[1]", "content[2].citations")
    assert written.body["id"] == "chatcmpl-r1"
    message = written.body["choices"][0]["message"]
    assert message["content"] == "ab"
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": "x"},
        {"choices": [{}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [1]},
    ],
)
def test_what_is_no_completion_is_an_upstream_error(body: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError) as caught:
        OPENAI_CHAT.read_reply(body)
    assert caught.value.status == 502


def test_an_error_that_comes_with_a_200_is_the_providers_refusal() -> None:
    with pytest.raises(UpstreamRejected) as caught:
        OPENAI_CHAT.read_reply({"error": {"message": "busy", "code": 429}})
    assert (caught.value.status, caught.value.message) == (429, "busy")


@given(st.binary(max_size=20) | st.sampled_from([b"[]", b"{}", b'{"choices":[{"message":[]}]}', b"<html>"]))
def test_scanning_never_raises(body: bytes) -> None:
    assert isinstance(OPENAI_CHAT.scan_reply(body), Facts)


def test_a_scan_reads_the_facts_of_a_reply() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    body = msgspec.json.encode(answer({"content": "hey", "tool_calls": [call]}, finish="tool_calls", usage=usage))
    assert OPENAI_CHAT.scan_reply(body) == Facts(
        served_model="gpt",
        usage=Usage(input_tokens=3, output_tokens=2),
        stop_reason="tool_call",
        tool_names=("f",),
        output_chars=5,
    )


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content": st.none() | st.text() | st.just([{"type": "text", "text": "hi"}]),
            "refusal": st.none() | st.just("") | WORDS,
            "reasoning_content": st.none() | st.just("") | WORDS,
            "reasoning": st.none() | st.just([]) | WORDS,
            "tool_calls": st.none() | st.just([]),
        },
    ),
    st.sampled_from([None, "stop", "length", "content_filter", "newer"]),
    st.sampled_from([{}, {"usage": None}, {"usage": {"prompt_tokens": 3}}, {"model": ""}, {"model": None}]),
)
def test_a_scan_of_plain_text_finds_what_reading_finds(
    message: dict[str, Any], finish: str | None, fields: dict[str, Any]
) -> None:
    body = answer(message, finish=finish, **fields)
    scanned = OPENAI_CHAT.scan_reply(msgspec.json.encode(body))
    assert scanned == facts_of(OPENAI_CHAT.read_reply(body))
