"""The light scanner of Anthropic answers that are forwarded untouched."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.conversation import Facts, Reply, StreamFailure, ToolCall
from orqen_ray.formats.anthropic_messages.reply import write_reply
from orqen_ray.formats.anthropic_messages.scan import MessagesScanner, scan_reply
from orqen_ray.formats.anthropic_messages.stream_out import MessagesStreamWriter
from orqen_ray.formats.events import events_of
from tests.formats.anthropic_wire import cut, replies


def streamed(reply: Reply) -> bytes:
    writer = MessagesStreamWriter("claude", "msg_given")
    return b"".join(writer.write(event) for event in events_of(reply))


def scanned(data: bytes, places: list[int]) -> tuple[bytes, Facts]:
    scanner = MessagesScanner()
    out = b"".join(scanner.feed(chunk) for chunk in cut(data, places)) + scanner.end()
    return out, scanner.facts


@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes_come_back_as_they_are(data: bytes, places: list[int]) -> None:
    assert scanned(data, places)[0] == data


@given(reply=replies, places=st.lists(st.integers(0, 4000), max_size=12))
def test_the_facts_of_a_stream_do_not_depend_on_its_cuts(reply: Reply, places: list[int]) -> None:
    data = streamed(reply)
    out, facts = scanned(data, places)
    names = tuple(block.name for block in reply.blocks if isinstance(block, ToolCall))
    assert out == data
    assert (facts.served_model, facts.stop_reason, facts.tool_names) == ("claude", reply.stop_reason, names)
    assert facts.usage is not None and reply.usage is not None
    assert facts.usage == reply.usage
    assert facts.failure is None
    assert facts == scanned(data, [])[1]


@given(reply=replies)
def test_a_whole_answer_gives_the_facts_of_its_stream(reply: Reply) -> None:
    body = msgspec.json.encode(write_reply(reply, "asked", "msg_given").body)
    facts = scan_reply(body)
    names = tuple(block.name for block in reply.blocks if isinstance(block, ToolCall))
    assert (facts.served_model, facts.usage, facts.tool_names) == ("claude", reply.usage, names)
    assert facts.stop_reason == reply.stop_reason


def test_only_whole_frames_are_given_back_before_the_end() -> None:
    scanner = MessagesScanner()
    assert scanner.feed(b"event: ping\ndata: {}\n\nevent: pi") == b"event: ping\ndata: {}\n\n"
    assert scanner.end() == b"event: pi"


def test_a_last_frame_without_its_blank_line_still_counts() -> None:
    last = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens"}}'
    assert scanned(last, [])[1].stop_reason == "max_tokens"


def test_output_is_measured_and_signatures_are_not() -> None:
    head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    text = head + b'{"type":"text_delta","text":"hello"}}\n\n'
    signature = head + b'{"type":"signature_delta","signature":"abcdef"}}\n\n'
    assert scanned(text + signature + text, [])[1].output_chars == 10
    body = b'{"content":[{"type":"text","text":"hello"},{"type":"tool_use","name":"f","input":{"a":1}}]}'
    assert scan_reply(body).output_chars == 5 + 7


def test_an_error_in_mid_stream_is_a_fact() -> None:
    data = MessagesStreamWriter("m", "msg_given").write(StreamFailure(message="busy", status=529))
    assert scanned(data, [])[1].failure == "busy"


MESSAGE_START = b'event: message_start\ndata: {"type":"message_start","message":{"model":"m"}}\n\n'
CUT_OFF = "the provider's stream ended before its end"


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (MESSAGE_START, CUT_OFF),
        (b"event: pi", CUT_OFF),
        (b"", None),
        (MESSAGE_START + b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n', None),
        (MESSAGE_START + b'data: {"type":"message_stop"}\n\n', None),
        (MESSAGE_START + b'data: {"type":"error","error":{"message":"busy"}}\n\n', "busy"),
    ],
)
def test_a_stream_that_breaks_off_is_a_fact_and_its_bytes_stay(data: bytes, failure: str | None) -> None:
    out, facts = scanned(data, [])
    assert out == data
    assert facts.failure == failure


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"content":1}', b"\xff"])
def test_a_body_that_is_no_message_has_no_facts(body: bytes) -> None:
    assert scan_reply(body) == Facts()
