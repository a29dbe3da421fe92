"""The AWS event-stream codec against botocore's own decoder."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.formats.eventstream import (
    Frame,
    FrameError,
    Frames,
    frame_headers,
    frame_payload,
    parse_frame,
    write_frame,
)

HEADERS = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=60), max_size=4)
FRAMES = st.lists(st.tuples(HEADERS, st.binary(max_size=200)), min_size=1, max_size=4)
EXAMPLE = write_frame({":event-type": "messageStart"}, b'{"role":"assistant"}')


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(n % (len(data) + 1) for n in cuts), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(FRAMES)
def test_botocore_reads_what_is_written(frames: list[tuple[dict[str, str], bytes]]) -> None:
    buffer: Any = EventStreamBuffer()
    buffer.add_data(b"".join(write_frame(headers, payload) for headers, payload in frames))
    assert [(message.headers, message.payload) for message in buffer] == frames


@given(FRAMES, st.lists(st.integers(min_value=0, max_value=5000), max_size=8))
def test_any_cut_gives_the_same_frames(frames: list[tuple[dict[str, str], bytes]], cuts: list[int]) -> None:
    wire = [write_frame(headers, payload) for headers, payload in frames]
    splitter = Frames()
    got = [raw for chunk in cut(b"".join(wire), cuts) for raw in splitter.feed(chunk)]
    assert got == wire
    assert splitter.rest() == b"" and splitter.error is None
    assert [parse_frame(raw) for raw in got] == [Frame(headers=h, payload=p) for h, p in frames]


def test_the_parts_of_a_frame_are_found_without_parsing_it() -> None:
    assert b"messageStart" in frame_headers(EXAMPLE)
    assert frame_payload(EXAMPLE) == b'{"role":"assistant"}'


@pytest.mark.parametrize("at", range(len(EXAMPLE)))
def test_a_damaged_byte_is_reported_and_never_waited_for(at: int) -> None:
    damaged = EXAMPLE[:at] + bytes([EXAMPLE[at] ^ 1]) + EXAMPLE[at + 1 :]
    splitter = Frames()
    frames = splitter.feed(damaged)
    if at < 12:
        assert frames == [] and isinstance(splitter.error, FrameError)
        assert splitter.rest() == damaged
    else:
        assert frames == [damaged] and isinstance(parse_frame(damaged), FrameError)


@pytest.mark.parametrize("size", range(len(EXAMPLE)))
def test_a_truncated_frame_is_an_error(size: int) -> None:
    assert isinstance(parse_frame(EXAMPLE[:size]), FrameError)


def test_bytes_after_damage_are_kept_whole() -> None:
    splitter = Frames()
    assert splitter.feed(EXAMPLE + b"<html>not an event stream") == [EXAMPLE]
    assert splitter.feed(b" at all</html>") == []
    assert splitter.rest() == b"<html>not an event stream at all</html>"
