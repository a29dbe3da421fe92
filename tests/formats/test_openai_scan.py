from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.conversation import BlockDelta, BlockStart, Facts, ReplyEnd, ReplyStart, ToolCall, Usage
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from tests.formats.test_openai_stream import FULL, USAGE, call, frame, read

STREAM = b"".join(FULL)
USAGE_FRAME = frame(usage=USAGE)
WITHOUT = STREAM.replace(USAGE_FRAME, b"")


def scan(remove_usage: bool, chunks: list[bytes]) -> tuple[bytes, Facts]:
    scanner = OPENAI_CHAT.stream_scanner(remove_usage)
    forwarded = b"".join([scanner.feed(chunk) for chunk in chunks]) + scanner.end()
    return forwarded, scanner.facts


@given(st.booleans(), st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_cut_forwards_the_same_bytes_less_the_usage_that_the_gateway_asked_for(
    remove_usage: bool, at: list[int]
) -> None:
    edges = [0, *sorted(at), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    forwarded, facts = scan(remove_usage, chunks)
    assert forwarded == (WITHOUT if remove_usage else STREAM)
    assert facts == scan(remove_usage, [STREAM])[1]


def test_the_scanner_sees_what_the_reader_sees() -> None:
    events = read(*FULL)
    usage = Usage(input_tokens=4, cache_read_tokens=5, output_tokens=4)
    assert isinstance(events[-1], ReplyEnd) and events[-1].usage == usage
    assert scan(True, [STREAM])[1] == Facts(
        served_model=next(event.model for event in events if isinstance(event, ReplyStart)),
        usage=usage,
        stop_reason=events[-1].stop_reason,
        tool_names=tuple(
            event.block.name for event in events if isinstance(event, BlockStart) and isinstance(event.block, ToolCall)
        ),
        output_chars=sum(len(event.text) for event in events if isinstance(event, BlockDelta)),
    )


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(frame(prompt_filter_results=[{}]), id="no usage in it"),
        pytest.param(frame(usage=None), id="usage null"),
        pytest.param(frame({}, "stop", usage=USAGE), id="usage beside a choice"),
        pytest.param(frame({"content": '"usage":{"choices":[]} {"error": 1}'}), id="text that looks like it"),
        pytest.param(b"data: [1]\n\n", id="not a chunk"),
        pytest.param(b": ping\n\n", id="comment"),
    ],
)
def test_no_other_frame_is_removed(kept: bytes) -> None:
    stream = [frame({"content": "a"}), kept, USAGE_FRAME, b"data: [DONE]\n\n"]
    assert scan(True, stream)[0] == b"".join([stream[0], kept, stream[3]])


def test_only_one_frame_is_removed() -> None:
    assert scan(True, [USAGE_FRAME, USAGE_FRAME])[0] == USAGE_FRAME


def test_an_error_in_mid_stream_is_forwarded_and_noted() -> None:
    error = b'data: {"error": {"message": "busy"}}\n\n'
    forwarded, facts = scan(True, [frame({"content": "a"}), error])
    assert forwarded.endswith(error)
    assert facts.failure == "busy"


@pytest.mark.parametrize(
    ("stream", "failure"),
    [
        ([frame({"content": "a"})], "the provider's stream broke off"),
        ([], "the provider's stream broke off"),
        ([frame({"content": "a"}), b"data: [DONE]\n\n"], None),
        ([frame({"content": "a"}), frame({}, "stop")], None),
    ],
)
def test_a_stream_that_breaks_off_is_noted(stream: list[bytes], failure: str | None) -> None:
    assert scan(False, stream)[1].failure == failure


def test_what_has_no_blank_line_behind_it_is_still_forwarded_and_read() -> None:
    last = frame({}, "stop", usage=USAGE).rstrip()
    forwarded, facts = scan(True, [frame({"content": "a"}), last])
    assert forwarded.endswith(last)
    assert (facts.stop_reason, facts.usage is not None) == ("end", True)


def test_characters_are_counted_not_bytes() -> None:
    escaped = b'data: {"choices":[{"index":0,"delta":{"content":"\\u00e9\\"\\ud83d\\ude00"}}]}\n\n'
    assert scan(False, [frame({"content": "\u00e9\U0001f600"}), escaped])[1].output_chars == 5


def test_a_repeated_call_counts_twice_and_a_repeated_name_once() -> None:
    stream = [call(0, "a", "f", "{}"), call(0, "a", "f", ""), call(1, "b", "f", "{}"), frame({}, "tool_calls")]
    assert scan(False, stream)[1].tool_names == ("f", "f")


def test_a_refusal_is_told_as_one() -> None:
    stream = [frame({"content": ""}), frame({"refusal": "no"}), frame({}, "stop")]
    facts = scan(False, stream)[1]
    assert facts.stop_reason == "refusal"
    assert replace(facts, served_model=None) == Facts(stop_reason="refusal", output_chars=2)
