"""Anthropic Messages replies and streams: read, written, cut anywhere, and consumed by the vendor's SDK."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import msgspec
import pytest
from anthropic.types.beta import BetaMessage
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.conversation import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    Image,
    JsonObject,
    Opaque,
    Ping,
    Refusal,
    Reply,
    ReplyEnd,
    ReplyStart,
    Source,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.errors import UpstreamError
from orqen_ray.formats.anthropic_messages.reply import read_reply, write_reply
from orqen_ray.formats.anthropic_messages.stream_in import MessagesStreamReader
from orqen_ray.formats.anthropic_messages.stream_out import MessagesStreamWriter
from orqen_ray.formats.events import events_of
from orqen_ray.formats.sse import Frames, parse_frame
from tests.formats.anthropic_wire import cut, gathered, replies


def wire(events: list[Event]) -> bytes:
    writer = MessagesStreamWriter("claude", "msg_given")
    return b"".join(writer.write(event) for event in events)


def read(data: bytes) -> list[Event]:
    reader = MessagesStreamReader()
    return [*reader.feed(data), *reader.end()]


def frames(data: bytes) -> list[Any]:
    return [msgspec.json.decode(parse_frame(frame)[1]) for frame in Frames().feed(data)]


def frame(event: JsonObject) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), msgspec.json.encode(event))


START = ReplyStart(id="msg_1", model="claude", usage=Usage(input_tokens=3))
END = ReplyEnd(stop_reason="end", usage=Usage(input_tokens=3, output_tokens=5))


@given(reply=replies)
def test_a_reply_written_and_read_again_means_the_same(reply: Reply) -> None:
    out = write_reply(reply, "asked", "msg_given")
    assert out.dropped == ()
    body = msgspec.json.decode(msgspec.json.encode(out.body))
    assert read_reply(body) == reply
    BetaMessage.model_validate(body)


@given(reply=replies)
def test_a_stream_written_and_read_again_means_the_same(reply: Reply) -> None:
    events = events_of(reply)
    assert gathered(read(wire(events))) == gathered(events)


@given(reply=replies, places=st.lists(st.integers(0, 4000), max_size=12))
def test_any_cut_of_a_stream_gives_the_same_events(reply: Reply, places: list[int]) -> None:
    data = wire(events_of(reply))
    reader = MessagesStreamReader()
    events = [event for chunk in cut(data, places) for event in reader.feed(chunk)] + reader.end()
    assert events == read(data)


@given(reply=replies, order=st.randoms(use_true_random=False))
def test_interleaved_blocks_come_out_whole_and_in_order(reply: Reply, order: Any) -> None:
    """The deltas of all blocks are shuffled among each other, as parallel calls are; none stops before the end."""
    events = events_of(reply)
    deltas = [event for event in events if isinstance(event, BlockDelta)]
    queues = [[delta for delta in deltas if delta.index == i] for i in range(len(reply.blocks))]
    mixed: list[Event] = [event for event in events if isinstance(event, ReplyStart | BlockStart)]
    while queues := [queue for queue in queues if queue]:
        mixed.append(order.choice(queues).pop(0))
    data = wire([*mixed, events[-1]])
    assert gathered(read(data)) == gathered(events)
    open_block, opened = None, 0
    for event in frames(data):
        if event["type"] == "content_block_start":
            assert open_block is None and event["index"] == opened
            open_block, opened = event["index"], opened + 1
        elif event["type"] == "content_block_delta":
            assert event["index"] == open_block
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_block
            open_block = None
    assert open_block is None


@given(reply=replies)
def test_the_sdk_gathers_the_message_that_was_meant(reply: Reply) -> None:
    data = wire([*events_of(reply)[:1], Ping(), *events_of(reply)[1:]])
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, content=data, headers={"content-type": "text/event-stream"})
    )
    with anthropic.Anthropic(
        api_key="k", base_url="http://gateway", max_retries=0, http_client=httpx2.Client(transport=transport)
    ) as client:
        hello: Any = [{"role": "user", "content": "hi"}]
        with client.beta.messages.stream(model="claude", max_tokens=9, messages=hello) as stream:
            message = stream.get_final_message()
    kept = message.to_dict(exclude_unset=True, mode="json")
    kept["content"] = [{k: v for k, v in block.items() if v is not None} for block in kept["content"]]  # type: ignore[attr-defined]
    assert read_reply(kept).blocks == reply.blocks
    assert (message.stop_sequence, message.usage.output_tokens) == (reply.stop_sequence, reply.usage.output_tokens)  # type: ignore[union-attr]
    assert read_reply(kept).stop_reason == reply.stop_reason


def test_a_stream_is_what_the_vendor_would_send() -> None:
    events = frames(
        wire([START, BlockStart(index=4, block=Text(text="")), BlockDelta(index=4, kind="text", text="hi"), END])
    )
    usage = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    assert events == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 3, **usage, "output_tokens": 0},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 3, **usage, "output_tokens": 5},
        },
        {"type": "message_stop"},
    ]


def test_text_reaches_the_client_as_it_comes() -> None:
    writer = MessagesStreamWriter("claude", "msg_given")
    writer.write(START)
    writer.write(BlockStart(index=0, block=Text(text="")))
    assert b'"text":"now"' in writer.write(BlockDelta(index=0, kind="text", text="now"))


def test_empty_text_opens_no_block() -> None:
    call = ToolCall(id="", name="f", arguments="{}")
    data = wire([START, BlockStart(index=0, block=Text(text="")), BlockStart(index=1, block=call), END])
    started = [event for event in frames(data) if event["type"] == "content_block_start"]
    assert [(event["index"], event["content_block"]["type"]) for event in started] == [(0, "tool_use")]


def test_a_signature_in_pieces_is_written_whole() -> None:
    events: list[Event] = [START, BlockStart(index=0, block=Thinking())]
    events += [BlockDelta(index=0, kind="signature", text=text) for text in ("ab", "cd")]
    deltas = [event["delta"] for event in frames(wire([*events, END])) if event["type"] == "content_block_delta"]
    assert deltas == [{"type": "signature_delta", "signature": "abcd"}]


def test_blocks_that_the_vendors_answers_cannot_hold_are_left_out() -> None:
    image = Image(source=Source(kind="url", data="https://x/y"))
    foreign = Opaque(kind="audio", raw={"audio": {}})
    reply = Reply(id="chatcmpl-1", model="", blocks=(image, foreign, Text(text="t"), Text(text="")))
    out = write_reply(reply, "asked", "msg_given")
    assert out.body["content"] == [{"type": "text", "text": "t"}]
    assert out.dropped == ("content[0]", "content[1]")
    assert (out.body["id"], out.body["model"]) == ("msg_given", "asked")
    started = [event for event in frames(wire(events_of(reply))) if event["type"] == "content_block_start"]
    assert [event["content_block"]["type"] for event in started] == ["text"]


def test_calls_without_a_legal_id_get_one_and_are_announced() -> None:
    blocks = (ToolCall(id="", name="f", arguments=""), ToolCall(id="a:0", name="g", arguments="{"))
    reply = Reply(id="x", model="m", blocks=blocks, extra={"system_fingerprint": "fp"})
    out = write_reply(reply, "asked", "msg_given")
    ids = [block["id"] for block in out.body["content"]]
    assert [id_.replace("_", "").isalnum() for id_ in ids] == [True, True] and ids[0].startswith("toolu_")
    assert out.body["stop_reason"] == "tool_use"
    assert out.dropped == ("content[1].arguments", "system_fingerprint")
    streamed = [e["content_block"]["id"] for e in frames(wire(events_of(reply))) if e["type"] == "content_block_start"]
    assert streamed == ids


@pytest.mark.parametrize(
    ("upstream", "given_id", "written_id"),
    [
        ("msg_1", "msg_given", "msg_1"),
        ("chatcmpl-1", "msg_given", "msg_given"),
        ("", "0b6a-4f", "msg_0b6a-4f"),
    ],
)
def test_an_answers_id_has_the_vendors_form(upstream: str, given_id: str, written_id: str) -> None:
    reply = Reply(id=upstream, model="m", blocks=())
    assert write_reply(reply, "asked", given_id).body["id"] == written_id
    writer = MessagesStreamWriter("asked", given_id)
    (start,) = frames(writer.write(events_of(reply)[0]))
    assert start["message"]["id"] == written_id


def test_refusals_and_unsigned_reasoning_take_the_vendors_form() -> None:
    reply = Reply(id="x", model="m", blocks=(Thinking(text="hm"), Refusal(text="no")), stop_reason="refusal")
    assert write_reply(reply, "m", "msg_given").body["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "no"},
    ]


@pytest.mark.parametrize(
    "body", [{}, {"content": "text"}, {"content": [1]}, {"error": {"message": "no"}}, {"content": [{}]}]
)
def test_what_is_not_a_message_is_an_upstream_error(body: JsonObject) -> None:
    with pytest.raises(UpstreamError):
        read_reply(body)


def test_stop_reasons_and_fields_newer_than_the_code_come_back() -> None:
    body = {"id": "msg_1", "model": "m", "content": [], "stop_reason": "compaction", "stop_details": {"a": 1}}
    reply = read_reply(body)
    assert (reply.stop_reason, reply.usage) == ("end", None)
    again = write_reply(reply, "m", "msg_given").body
    assert (again["stop_reason"], again["stop_details"]) == ("compaction", {"a": 1})


def test_usage_counts_every_kind_of_token() -> None:
    usage = {
        "input_tokens": 1,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 5},
    }
    reply = read_reply({"content": [], "usage": usage})
    assert reply.usage == Usage(
        input_tokens=1,
        cache_read_tokens=2,
        cache_write_tokens=7,
        cache_write_1h_tokens=4,
        output_tokens=9,
        reasoning_tokens=5,
    )
    assert write_reply(reply, "m", "msg_given").body["usage"] == usage
    assert read_reply({"content": [], "usage": {"input_tokens": None, "output_tokens": "x"}}).usage == Usage()


def stream_of(*events: JsonObject) -> bytes:
    start = {"id": "msg_1", "model": "m", "usage": {"input_tokens": 3, "output_tokens": 1}}
    return b"".join(frame(event) for event in ({"type": "message_start", "message": start}, *events))


STOPPED = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 8}}


def test_a_later_count_of_tokens_completes_the_first() -> None:
    events = read(stream_of(STOPPED, {"type": "message_stop"}))
    assert events[-1] == ReplyEnd(stop_reason="end", usage=Usage(input_tokens=3, output_tokens=8))


def test_what_is_newer_than_the_code_passes_through_a_stream() -> None:
    citation = {"type": "citations_delta", "citation": {"type": "page_location"}}
    data = stream_of(
        {"type": "newer_event"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "newer_block", "a": 1}},
        {"type": "content_block_delta", "index": 0, "delta": citation},
        {"type": "content_block_stop", "index": 0},
        {"type": "ping"},
        STOPPED,
        {"type": "message_stop"},
    )
    events = read(data)
    assert events[1:5] == [
        BlockStart(index=0, block=Opaque(kind="newer_block", raw={"type": "newer_block", "a": 1})),
        BlockDelta(index=0, kind="other", raw=citation),
        BlockStop(index=0),
        Ping(),
    ]
    assert read(wire(events)) == events


def test_a_stream_without_its_last_event_is_complete_once_it_gave_a_reason() -> None:
    assert isinstance(read(stream_of(STOPPED))[-1], ReplyEnd)
    assert isinstance(read(stream_of(STOPPED, {"type": "message_stop"}).rstrip())[-1], ReplyEnd)
    assert isinstance(read(stream_of(STOPPED) + b'event: message_stop\ndata: {"ty')[-1], ReplyEnd)


def test_the_empty_input_that_opens_a_call_is_not_its_arguments() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    events = read(stream_of({"type": "content_block_start", "index": 0, "content_block": call}))
    assert events[1] == BlockStart(index=0, block=ToolCall(id="toolu_1", name="f", arguments=""))


def test_a_delta_of_another_vendor_is_not_written() -> None:
    foreign = BlockDelta(index=0, kind="other", raw={"citation": {"title": "t"}})
    data = wire([START, BlockStart(index=0, block=Text(text="hi")), foreign, END])
    deltas = [event["delta"]["type"] for event in frames(data) if event["type"] == "content_block_delta"]
    assert deltas == ["text_delta"]


@pytest.mark.parametrize("data", [b"", stream_of(), stream_of()[:-1] + b"event: mess"])
def test_a_stream_that_breaks_off_ends_in_one_failure(data: bytes) -> None:
    failures = [event for event in read(data) if isinstance(event, StreamFailure)]
    assert [failure.status for failure in failures] == [502]


@pytest.mark.parametrize(
    "data",
    [
        b"data: {oops\n\n",
        b'data: {"type":"\xff"}\n\n',
        b"data: []\n\n",
        b'data: {"type":"content_block_start","index":"one","content_block":{"type":"text","text":""}}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":"text"}\n\n',
        b'data: {"type":"message_start"}\n\n',
        b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text"}}\n\n',
    ],
)
def test_bytes_that_cannot_be_read_give_one_failure_and_nothing_after(data: bytes) -> None:
    events = read(data + stream_of(STOPPED))
    assert [type(event) for event in events] == [StreamFailure]


@pytest.mark.parametrize(
    ("kind", "status"), [("overloaded_error", 529), ("rate_limit_error", 429), ("newer_error", 500), ("api_error", 500)]
)
def test_an_error_in_mid_stream_keeps_its_kind(kind: str, status: int) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "sorry"}}
    events = read(stream_of(error, STOPPED))
    assert events[1:] == [StreamFailure(message="sorry", status=status, kind=kind)]


def test_a_failure_is_written_as_the_vendors_error_event() -> None:
    data = wire([START, StreamFailure(message="gone", status=502)])
    assert data.endswith(b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"gone"}}\n\n')
    assert b"overloaded_error" in wire([StreamFailure(message="busy", status=529)])
