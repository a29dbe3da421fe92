from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Conversation,
    Event,
    Message,
    Opaque,
    Ping,
    Refusal,
    Reply,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.formats.events import events_of
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.formats.sse import Frames, parse_frame
from tests.formats.conversations import WORDS
from tests.formats.test_openai_reply import replies

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}
CALLER = Conversation(
    format="openai_chat", model="m", messages=(Message(role="user", blocks=()),), stream=True, include_usage=True
)


def frame(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "gpt", "choices": choices}
    return b"data: " + json.dumps({**chunk, **fields}, ensure_ascii=False).encode() + b"\n\n"


def call(index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> bytes:
    function = {"name": name, "arguments": arguments}
    delta: dict[str, Any] = {"function": {key: value for key, value in function.items() if value is not None}}
    if index is not None:
        delta["index"] = index
    if call_id is not None:
        delta |= {"id": call_id, "type": "function"}
    return frame({"tool_calls": [delta]})


def read(*frames: bytes) -> list[Event]:
    reader = OPENAI_CHAT.stream_reader()
    return [*reader.feed(b"".join(frames)), *reader.end()]


def blocks_of(events: list[Event]) -> list[Block]:
    """The blocks that a client would put together; the events must open and close them one by one."""
    blocks: list[Block] = []
    parts: list[str] = []
    open_index: int | None = None
    for event in events:
        match event:
            case BlockStart(index=index, block=block):
                assert open_index is None and index == len(blocks)
                open_index, parts = index, []
                blocks.append(block)
            case BlockDelta(index=index, text=text):
                assert index == open_index
                parts.append(text)
            case BlockStop(index=index):
                assert index == open_index
                open_index = None
                blocks[-1] = _filled(blocks[-1], "".join(parts))
    assert open_index is None
    return blocks


def _filled(block: Block, text: str) -> Block:
    match block:
        case ToolCall():
            return ToolCall(id=block.id, name=block.name, arguments=text, custom=block.custom)
        case Text():
            return Text(text=text)
        case Thinking():
            return Thinking(text=text)
        case Refusal():
            return Refusal(text=text)
    raise AssertionError(block)


FULL = (
    b": keep-alive\n\n",
    frame({"role": "assistant", "content": ""}),
    frame({"reasoning_content": "hm"}),
    frame({"content": "na\u00efve \U0001f600"}),
    frame({"content": " text"}),
    call(0, "a", "f", ""),
    call(1, "b", "g", '{"y"'),
    call(0, arguments='{"x":'),
    call(1, arguments=":2}"),
    call(0, arguments="1}"),
    frame({}, "tool_calls"),
    frame(usage=USAGE),
    b"data: [DONE]\n\n",
)


def test_a_full_stream_gives_each_block_in_order_and_the_end_once() -> None:
    events = read(*FULL)
    assert events[:2] == [Ping(), ReplyStart(id="chatcmpl-1", model="gpt")]
    assert blocks_of(events) == [
        Thinking(text="hm"),
        Text(text="na\u00efve \U0001f600 text"),
        ToolCall(id="a", name="f", arguments='{"x":1}'),
        ToolCall(id="b", name="g", arguments='{"y":2}'),
    ]
    usage = Usage(input_tokens=4, cache_read_tokens=5, output_tokens=4)
    assert events[-1] == ReplyEnd(stop_reason="tool_call", usage=usage)
    assert sum(isinstance(event, ReplyEnd) for event in events) == 1


@given(st.lists(st.integers(0, sum(map(len, FULL))), max_size=20))
def test_any_cut_of_a_stream_gives_the_same_events(at: list[int]) -> None:
    stream = b"".join(FULL)
    reader = OPENAI_CHAT.stream_reader()
    events: list[Event] = []
    for start, end in zip([0, *sorted(at)], [*sorted(at), len(stream)], strict=True):
        events += reader.feed(stream[start:end])
    assert [*events, *reader.end()] == read(*FULL)


def test_text_goes_out_as_soon_as_it_comes() -> None:
    reader = OPENAI_CHAT.stream_reader()
    assert reader.feed(frame({"content": "a"}))[1:] == [
        BlockStart(index=0, block=Text(text="")),
        BlockDelta(index=0, kind="text", text="a"),
    ]
    assert reader.feed(call(0, "i", "f", '{"x')) == [
        BlockStop(index=0),
        BlockStart(index=1, block=ToolCall(id="i", name="f", arguments="")),
        BlockDelta(index=1, kind="arguments", text='{"x'),
    ]


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param((call(0, "a", "f", "{}"), call(1, "b", "g", "{}")), id="whole calls"),
        pytest.param((call(None, "a", "f", "{}"), call(None, "b", "g", "{}")), id="no index"),
        pytest.param((call(0, "a", "f", "{}"), call(0, "b", "g", "{}")), id="always index 0"),
        pytest.param(
            (call(0, "a", "f"), call(0, "a", "f", "{"), call(0, "a", "f", "}"), call(1, "b", "g", "{}")), id="id again"
        ),
        pytest.param(
            (call(0, "a"), call(0, name="f"), call(0, arguments="{}"), call(1, "b", "g", "{}")), id="name later"
        ),
        pytest.param((call(0, "a", "f", {}), call(1, "b", "g", "{}")), id="object"),
        pytest.param(
            (call(None, "a", "f", "{"), call(arguments="}"), call(None, "b", "g", "{}")), id="neither on more"
        ),
    ],
)
def test_calls_are_told_apart_however_the_server_marks_them(frames: tuple[bytes, ...]) -> None:
    events = read(*frames, frame({}, "tool_calls"), b"data: [DONE]\n\n")
    assert blocks_of(events) == [
        ToolCall(id="a", name="f", arguments="{}"),
        ToolCall(id="b", name="g", arguments="{}"),
    ]


def test_calls_without_ids_get_lasting_ones() -> None:
    frames = (call(None, None, "f", "{}"), call(None, None, "f", "{}"), frame({}, "stop"), b"data: [DONE]\n\n")
    first, second = blocks_of(read(*frames))
    assert isinstance(first, ToolCall) and isinstance(second, ToolCall) and first.id != second.id
    assert blocks_of(read(*frames)) == [first, second]
    assert read(*frames)[-1] == ReplyEnd(stop_reason="tool_call")


def test_a_call_without_arguments_does_not_swallow_the_next() -> None:
    events = read(call(0, "a", "f", ""), call(1, "b", "g", "{}"), frame({}, "tool_calls"), b"data: [DONE]\n\n")
    assert [block.arguments for block in blocks_of(events) if isinstance(block, ToolCall)] == ["", "{}"]


@pytest.mark.parametrize(
    ("frames", "failure"),
    [
        ((), StreamFailure(message="the provider's stream broke off", kind="stream_broken")),
        ((b"data: [DONE]\n\n",), StreamFailure(message="the provider's stream broke off", kind="stream_broken")),
        ((frame({"content": "a"}),), StreamFailure(message="the provider's stream broke off", kind="stream_broken")),
        (
            (frame({"content": "a"}), frame({"content": "b"})[:-9]),
            StreamFailure(message="the provider's stream broke off", kind="stream_broken"),
        ),
        (
            (b'data: {"error":{"message":"busy","type":"overloaded_error","code":503}}\n\n', frame({"content": "a"})),
            StreamFailure(message="busy", status=503, kind="overloaded_error"),
        ),
        (
            (b'event: error\ndata: {"message":"slow down","type":"rate_limit_error"}\n\n',),
            StreamFailure(message="slow down", status=429, kind="rate_limit_error"),
        ),
        (
            (b"data: {]\n\n",),
            StreamFailure(message="the provider's stream cannot be read as chat chunks", kind="stream_unreadable"),
        ),
        (
            (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',),
            StreamFailure(message="the provider's stream cannot be read as chat chunks", kind="stream_unreadable"),
        ),
        (
            (b'data: {"choices":7}\n\n',),
            StreamFailure(message="the provider's stream cannot be read as chat chunks", kind="stream_unreadable"),
        ),
    ],
)
def test_a_stream_that_ends_badly_says_so_once_and_last(frames: tuple[bytes, ...], failure: StreamFailure) -> None:
    events = read(*frames)
    assert events[-1] == failure
    assert sum(isinstance(event, StreamFailure | ReplyEnd) for event in events) == 1


@pytest.mark.parametrize("tail", [(), (frame(usage=USAGE)[:-2],), (b"data: [DONE]",)])
def test_a_finished_stream_may_close_without_done(tail: tuple[bytes, ...]) -> None:
    events = read(frame({"content": "a"}), frame({}, "stop"), *tail)
    assert isinstance(events[-1], ReplyEnd)
    assert blocks_of(events) == [Text(text="a")]


@given(st.binary(max_size=60) | st.sampled_from([b'data: {"choices":[{"delta":{"content":[1]}}]}\n\n']))
def test_no_bytes_make_the_reader_raise(stream: bytes) -> None:
    assert isinstance(read(stream)[-1], StreamFailure)


def test_usage_is_found_where_groq_puts_it() -> None:
    events = read(frame({"content": "a"}), frame({}, "stop", x_groq={"usage": USAGE}), b"data: [DONE]\n\n")
    assert events[-1] == ReplyEnd(stop_reason="end", usage=Usage(input_tokens=4, cache_read_tokens=5, output_tokens=4))


def test_parts_of_mistrals_reasoning_models_are_read() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "x"}]
    events = read(frame({"content": parts}), frame({}, "stop"), b"data: [DONE]\n\n")
    assert blocks_of(events) == [Thinking(text="hm"), Text(text="x")]


def test_the_sequence_that_stopped_the_model_is_kept_where_a_server_tells_it() -> None:
    chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}]}
    events = read(b"data: " + json.dumps(chunk).encode() + b"\n\n", b"data: [DONE]\n\n")
    assert events[-1] == ReplyEnd(stop_reason="stop_sequence", stop_sequence="END")


# --- Writing ----------------------------------------------------------------------------------------------------


def write(events: list[Event], caller: Conversation = CALLER) -> list[bytes]:
    writer = OPENAI_CHAT.stream_writer(caller, "m", "chatcmpl-9")
    return [parse_frame(part)[1] for part in Frames().feed(b"".join(writer.write(event) for event in events))]


@settings(deadline=None)
@given(replies())
def test_a_written_stream_is_the_sdks_and_reads_back_the_same(reply: Reply) -> None:
    writer = OPENAI_CHAT.stream_writer(CALLER, "m", "chatcmpl-9")
    stream = b"".join(writer.write(event) for event in events_of(reply))
    *chunks, done = Frames().feed(stream)
    assert parse_frame(done)[1] == b"[DONE]"
    seen = [ChatCompletionChunk.model_validate_json(parse_frame(chunk)[1]) for chunk in chunks]
    assert {(chunk.id, chunk.model, chunk.created) for chunk in seen} == {("chatcmpl-9", "m", seen[0].created)}
    assert seen[0].choices[0].delta.role == "assistant"
    events = read(stream)
    assert tuple(blocks_of(events)) == reply.blocks
    assert events[-1] == ReplyEnd(stop_reason=reply.stop_reason, usage=reply.usage)


@pytest.mark.parametrize("asked", [True, False])
def test_the_usage_chunk_comes_only_when_the_caller_asked(asked: bool) -> None:
    caller = Conversation(format="openai_chat", model="m", messages=(), stream=True, include_usage=asked)
    reply = Reply(id="i", model="m", blocks=(Text(text="x"),), usage=Usage(input_tokens=1))
    chunks = [json.loads(data) for data in write(events_of(reply), caller)[:-1]]
    assert [chunk["choices"] == [] for chunk in chunks].count(True) == int(asked)
    assert all(("usage" in chunk) is asked for chunk in chunks)


def test_parallel_calls_are_numbered_and_an_empty_one_still_has_json_arguments() -> None:
    calls = (ToolCall(id="a", name="f", arguments=""), ToolCall(id="b", name="g", arguments='{"x":1}'))
    reply = Reply(id="i", model="m", blocks=(Text(text="t"), *calls), stop_reason="tool_call")
    deltas = [
        delta
        for data in write(events_of(reply))[:-1]
        for choice in json.loads(data)["choices"]
        for delta in choice["delta"].get("tool_calls", ())
    ]
    assert deltas == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": "{}"}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"index": 1, "function": {"arguments": '{"x":1}'}},
    ]


def test_a_failure_is_an_error_frame_and_the_last_one() -> None:
    failure = StreamFailure(message="busy", status=529, kind="overloaded_error")
    (data,) = write([failure])
    error = {"message": "busy", "type": "server_error", "param": None, "code": "overloaded_error"}
    assert json.loads(data) == {"error": error}


@given(WORDS)
def test_pings_signatures_and_what_is_redacted_disturb_no_client(text: str) -> None:
    writer = OPENAI_CHAT.stream_writer(CALLER, "m", "r")
    assert writer.write(Ping()) == b": ping\n\n"
    assert writer.write(BlockStart(index=0, block=Thinking(redacted=text))) == b""
    assert writer.write(BlockDelta(index=0, kind="signature", text=text)) == b""
    assert writer.write(BlockDelta(index=0, kind="other", raw={})) == b""
    assert writer.write(BlockStop(index=0)) == b""


def test_an_empty_finish_reason_is_none() -> None:
    events = read(
        frame({"content": "a"}, ""),
        frame({"content": "b"}, ""),
        frame({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}, ""),
        frame({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]}, ""),
        frame({}, "tool_calls"),
    )
    assert [event for event in events if isinstance(event, BlockDelta)] == [
        BlockDelta(index=0, kind="text", text="a"),
        BlockDelta(index=0, kind="text", text="b"),
        BlockDelta(index=1, kind="arguments", text='{"a":1}'),
    ]


def test_arguments_that_are_too_deep_to_be_checked_are_no_bug() -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    events = read(call(0, "a", "f", deep), call(1, "b", "g", "{}"), frame({}, "tool_calls"))
    assert BlockDelta(index=0, kind="arguments", text=deep) in events and isinstance(events[-1], ReplyEnd)


def test_a_call_that_the_provider_answers_itself_is_not_shown() -> None:
    writer = OPENAI_CHAT.stream_writer(CALLER, "m", "r")
    hidden = Opaque(kind="toolUse", raw={"toolUse": {"type": "server_tool_use"}})
    assert writer.write(BlockStart(index=0, block=hidden)) == b""
    assert writer.write(BlockDelta(index=0, kind="arguments", text="{}")) == b""
