"""ConverseStream, both ways and in passing, judged by botocore's event stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from botocore.exceptions import EventStreamError
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.parsers import create_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Conversation,
    Event,
    Opaque,
    Ping,
    Refusal,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE
from orqen_ray.formats.eventstream import write_frame

ASKED = Conversation(format="bedrock_converse", model="m", messages=())
USAGE = {"inputTokens": 3, "outputTokens": 4, "totalTokens": 9, "cacheReadInputTokens": 2}


def frame(kind: str, **payload: Any) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return write_frame(headers, msgspec.json.encode(payload))


def delta(index: int, **fields: Any) -> bytes:
    return frame("contentBlockDelta", contentBlockIndex=index, delta=fields)


def stop(index: int) -> bytes:
    return frame("contentBlockStop", contentBlockIndex=index)


def exception(kind: str, message: str) -> bytes:
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return write_frame(headers, msgspec.json.encode({"message": message}))


START = frame("messageStart", role="assistant")
CALL = frame("contentBlockStart", contentBlockIndex=2, start={"toolUse": {"toolUseId": "t1", "name": "f"}})
STREAM = [
    START,
    delta(0, reasoningContent={"text": "hm"}),
    delta(0, reasoningContent={"signature": "sig"}),
    stop(0),
    delta(1, text="héllo "),
    delta(1, text="wörld", p="padding"),
    delta(1, citation={"title": "t"}),
    stop(1),
    CALL,
    delta(2, toolUse={"input": '{"a":'}),
    delta(2, toolUse={"input": "1}"}),
    stop(2),
    delta(3, reasoningContent={"redactedContent": "AAAA"}),
    stop(3),
    frame("brandNewEvent", x=1),
    frame("messageStop", stopReason="tool_use"),
    frame("metadata", usage=USAGE, metrics={"latencyMs": 5}),
]
EVENTS: list[Event] = [
    ReplyStart(id="", model=""),
    BlockStart(index=0, block=Thinking()),
    BlockDelta(index=0, kind="thinking", text="hm"),
    BlockDelta(index=0, kind="signature", text="sig"),
    BlockStop(index=0),
    BlockStart(index=1, block=Text(text="")),
    BlockDelta(index=1, kind="text", text="héllo "),
    BlockDelta(index=1, kind="text", text="wörld"),
    BlockDelta(index=1, kind="other", raw={"citation": {"title": "t"}}),
    BlockStop(index=1),
    BlockStart(index=2, block=ToolCall(id="t1", name="f", arguments="")),
    BlockDelta(index=2, kind="arguments", text='{"a":'),
    BlockDelta(index=2, kind="arguments", text="1}"),
    BlockStop(index=2),
    BlockStart(index=3, block=Thinking(redacted="AAAA")),
    BlockStop(index=3),
    ReplyEnd(stop_reason="tool_call", usage=Usage(input_tokens=3, output_tokens=4, cache_read_tokens=2)),
]


def read(*chunks: bytes) -> list[Event]:
    reader = BEDROCK_CONVERSE.stream_reader()
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return [*events, *reader.end()]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(n % (len(data) + 1) for n in cuts), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


CUTS = st.lists(st.integers(0, 10_000), max_size=10)

# --- Reading ----------------------------------------------------------------------------------------------------


@given(CUTS)
def test_any_cut_of_a_stream_gives_the_same_events(cuts: list[int]) -> None:
    assert read(*cut(b"".join(STREAM), cuts)) == EVENTS


def test_a_stream_without_metadata_ends_with_its_connection() -> None:
    assert read(*STREAM[:-1])[-1] == ReplyEnd(stop_reason="tool_call")


def test_blocks_left_open_are_closed_at_the_end() -> None:
    events = read(START, delta(0, text="a"), frame("messageStop", stopReason="new_reason"))
    assert events[-2:] == [BlockStop(index=0), ReplyEnd(stop_reason="end")]


@pytest.mark.parametrize("count", range(len(STREAM) - 2))
def test_a_stream_that_breaks_off_is_a_failure(count: int) -> None:
    *_, last = read(*STREAM[:count])
    assert isinstance(last, StreamFailure) and "broke off" in last.message


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("internalServerException", 500),
        ("modelStreamErrorException", 424),
        ("throttlingException", 429),
        ("validationException", 400),
        ("serviceUnavailableException", 503),
        ("brandNewException", 502),
    ],
)
def test_an_exception_in_mid_stream(kind: str, status: int) -> None:
    events = read(START, exception(kind, "why"), delta(0, text="never seen"))
    assert events == [ReplyStart(id="", model=""), StreamFailure(message="why", status=status, kind=kind)]


def test_an_error_outside_the_service_model_has_only_headers() -> None:
    headers = {":message-type": "error", ":error-code": "InternalError", ":error-message": "oops"}
    assert read(write_frame(headers, b"")) == [StreamFailure(message="oops", kind="InternalError")]


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        START[:-1] + b"\x00",
        write_frame({":message-type": "event", ":event-type": "messageStop"}, b"{"),
        frame("messageStop"),
        frame("contentBlockDelta", contentBlockIndex="one", delta={}),
        frame("contentBlockStart", contentBlockIndex=0, start={"toolUse": {"name": "f"}}),
    ],
)
def test_bytes_that_cannot_be_read_give_one_failure(bad: bytes) -> None:
    events = read(START, bad, START, b"more")
    assert len(events) == 2 and isinstance(events[1], StreamFailure) and events[1].status == 502


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from(STREAM), max_size=6))
def test_reading_never_raises(chunks: list[bytes]) -> None:
    assert isinstance(read(*chunks)[-1], ReplyEnd | StreamFailure)


# --- In passing -------------------------------------------------------------------------------------------------


@given(CUTS, st.binary(max_size=30))
def test_the_scanner_returns_the_same_bytes_whatever_they_are(cuts: list[int], tail: bytes) -> None:
    data = b"".join(STREAM) + tail
    scanner = BEDROCK_CONVERSE.stream_scanner(False)
    assert b"".join(scanner.feed(chunk) for chunk in cut(data, cuts)) + scanner.end() == data


def test_the_scanner_gives_out_whole_frames_only() -> None:
    scanner = BEDROCK_CONVERSE.stream_scanner(False)
    assert scanner.feed(STREAM[0] + STREAM[1][:20]) == STREAM[0]
    assert scanner.feed(STREAM[1][20:]) == STREAM[1]


def test_the_scanner_says_at_once_that_it_reads_no_event_stream_and_keeps_it_back() -> None:
    scanner = BEDROCK_CONVERSE.stream_scanner(False)
    assert scanner.broken is None
    assert scanner.feed(START + b"<html>not an event stream") == START
    assert scanner.broken is not None and "corrupt" in scanner.broken


def scan(*frames: bytes) -> Any:
    scanner = BEDROCK_CONVERSE.stream_scanner(False)
    scanner.feed(b"".join(frames))
    scanner.end()
    return scanner.facts


def test_the_scanner_reads_the_facts() -> None:
    facts = scan(*STREAM)
    assert facts.usage == Usage(input_tokens=3, output_tokens=4, cache_read_tokens=2)
    assert (facts.stop_reason, facts.tool_names, facts.failure) == ("tool_call", ("f",), None)
    assert facts.output_chars == len("hm") + len("héllo wörld") + len('{"a":1}')


def test_the_scanner_sees_failures() -> None:
    assert scan(START, exception("throttlingException", "slow")).failure == "slow"
    assert "broke off" in scan(START, delta(0, text="a")).failure
    assert "corrupt" in scan(START, b"not an event stream").failure


# --- Writing ----------------------------------------------------------------------------------------------------


class RawStream:
    """What botocore reads a stream from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self) -> Iterator[bytes]:
        yield from cut(self._data, [7, 100])


@pytest.fixture(scope="module")
def service() -> Any:
    return ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2"))


def parse(service: Any, data: bytes) -> Iterator[dict[str, Any]]:
    shape = service.operation_model("ConverseStream").output_shape
    response = {
        "status_code": 200,
        "headers": {},
        "body": RawStream(data),
        "context": {"operation_name": "ConverseStream"},
    }
    yield from create_parser("rest-json").parse(response, shape)["stream"]


def write(events: list[Event]) -> bytes:
    writer = BEDROCK_CONVERSE.stream_writer(ASKED, "m", "id")
    assert writer.content_type == "application/vnd.amazon.eventstream"
    return b"".join(writer.write(event) for event in events)


def test_a_stream_read_and_written_means_the_same() -> None:
    assert read(write(EVENTS)) == EVENTS


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[Event], dict[int, tuple[str, str]]]:
    """Events of parallel blocks in any order that keeps each block's own, and each block's kind and text."""
    kinds: dict[str, Block] = {"text": Text(text=""), "thinking": Thinking(), "refusal": Refusal(text="")}
    queues: list[list[Event]] = []
    truth: dict[int, tuple[str, str]] = {}
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([*kinds, "arguments", "foreign"]))
        parts = draw(st.lists(st.text(max_size=3), max_size=3))
        call = ToolCall(id=f"call.{index}", name=f"f{index}", arguments="")
        foreign = Opaque(kind="server_tool_use", raw={"type": "server_tool_use"})
        block = kinds.get(kind) or (call if kind == "arguments" else foreign)
        named: Any = "other" if kind == "foreign" else kind
        deltas: list[Event] = [BlockDelta(index=index, kind=named, text=part) for part in parts]
        stops: list[Event] = [BlockStop(index=index)] if draw(st.booleans()) else []
        queues.append([BlockStart(index=index, block=block), *deltas, *stops])
        truth[index] = (kind, "".join(parts))
    events: list[Event] = [ReplyStart(id="x", model="gpt-x")]
    order = draw(st.permutations([i for i, queue in enumerate(queues) for _ in queue]))
    taken = [iter(queue) for queue in queues]
    begun: list[int] = []
    for i in order:
        begun += [i] if i not in begun else []
        events.append(next(taken[i]))
        events += [Ping()] if draw(st.booleans()) else []
    return [*events, ReplyEnd(stop_reason="end", usage=Usage(input_tokens=1))], {i: truth[i] for i in begun}


@settings(deadline=None, max_examples=200)
@given(case=interleaved())
def test_interleaved_blocks_come_out_whole_and_in_order(
    service: Any, case: tuple[list[Event], dict[int, tuple[str, str]]]
) -> None:
    events, truth = case
    parsed = list(parse(service, write(events)))
    assert parsed[0] == {"messageStart": {"role": "assistant"}}
    assert parsed[-2] == {"messageStop": {"stopReason": "end_turn"}}
    assert parsed[-1]["metadata"]["usage"]["inputTokens"] == 1 and parsed[-1]["metadata"]["metrics"] == {"latencyMs": 0}
    expected = []
    for kind, text in truth.values():
        if kind == "arguments":
            expected.append((kind, text or "{}"))
        elif kind != "foreign" and text:
            expected.append(("thinking" if kind == "thinking" else "text", text))
    blocks: list[tuple[str, str]] = []
    closed = True
    for event in parsed[1:-2]:
        ((name, value),) = event.items()
        index = value["contentBlockIndex"]
        if closed:
            blocks.append(("", ""))
        closed = name == "contentBlockStop"
        assert index == len(blocks) - 1
        for kind, part in _parts(value):
            blocks[-1] = (kind, blocks[-1][1] + part)
    assert closed and blocks == expected


def _parts(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    found = value.get("delta", {})
    if "text" in found:
        yield "text", found["text"]
    if "toolUse" in found:
        yield "arguments", found["toolUse"]["input"]
    if "reasoningContent" in found:
        yield "thinking", found["reasoningContent"]["text"]


def test_a_block_goes_out_as_it_comes_and_not_at_its_end(service: Any) -> None:
    writer = BEDROCK_CONVERSE.stream_writer(ASKED, "m", "id")
    writer.write(ReplyStart(id="", model=""))
    writer.write(BlockStart(index=0, block=Text(text="")))
    first = writer.write(BlockDelta(index=0, kind="text", text="now"))
    assert list(parse(service, first)) == [{"contentBlockDelta": {"delta": {"text": "now"}, "contentBlockIndex": 0}}]


def test_tool_ids_obey_bedrocks_rule(service: Any) -> None:
    events: list[Event] = [BlockStart(index=0, block=ToolCall(id="call:1", name="f", arguments="{}"))]
    start = list(parse(service, write(events)))[1]["contentBlockStart"]["start"]["toolUse"]
    assert start["name"] == "f" and ":" not in start["toolUseId"]


def test_usage_told_at_the_start_is_given_at_the_end(service: Any) -> None:
    events: list[Event] = [ReplyStart(id="", model="", usage=Usage(input_tokens=8)), ReplyEnd(stop_reason="end")]
    assert list(parse(service, write(events)))[-1]["metadata"]["usage"]["inputTokens"] == 8


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "validationException"),
        (404, "validationException"),
        (424, "modelStreamErrorException"),
        (429, "throttlingException"),
        (500, "internalServerException"),
        (502, "modelStreamErrorException"),
        (503, "serviceUnavailableException"),
        (504, "modelStreamErrorException"),
        (529, "serviceUnavailableException"),
    ],
)
def test_a_failure_raises_in_boto3(service: Any, status: int, kind: str) -> None:
    failure = StreamFailure(message="why", status=status)
    data = write([ReplyStart(id="", model=""), failure, ReplyEnd(stop_reason="end")])
    stream = parse(service, data)
    assert next(stream) == {"messageStart": {"role": "assistant"}}
    with pytest.raises(EventStreamError) as caught:
        next(stream)
    assert caught.value.response["Error"] == {"Code": kind, "Message": "why"}
    assert kind in service.shape_for("ConverseStreamOutput").members
    assert next(stream, None) is None
