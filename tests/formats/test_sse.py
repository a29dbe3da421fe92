from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.formats.sse import Frames, parse_frame, write_frame

STREAM = (
    b"data: a\r\n\r\n: ping\r\revent: x\rdata:b\r\rdata: \xf0\x9f\x98\x80\ndata: c\n\nid: 1\r\ndata: d\r\n\r\ndata: cut"
)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(at), len(stream)]
    return [stream[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same_frames_and_loses_no_byte(at: list[int]) -> None:
    whole, pieces = Frames(), Frames()
    expected = whole.feed(STREAM)
    found = [frame for chunk in cut(STREAM, at) for frame in pieces.feed(chunk)]
    assert found == expected
    assert len(found) == 5
    assert b"".join(found) + pieces.rest() == STREAM
    assert pieces.rest() == b""


def test_a_frame_is_searched_once_however_small_its_chunks() -> None:
    frames = Frames()
    for _ in range(200_000):  # a second search of all that came before would take minutes
        assert frames.feed(b"xxxx") == []
    assert len(frames.feed(b"\n\n")[0]) == 800_002


@pytest.mark.parametrize(
    ("frame", "event", "data"),
    [
        (b"event: x\ndata: a\ndata:b\n\n", "x", b"a\nb"),
        (b": comment\n\n", None, b""),
        (b"\xef\xbb\xbfdata: first\r\n\r\n", None, b"first"),
        (b"id: 1\nretry: 5\ndata:  two spaces\n\n", None, b" two spaces"),
        (b"data\r\r", None, b""),
    ],
)
def test_a_frame_is_read_as_the_standard_says(frame: bytes, event: str | None, data: bytes) -> None:
    assert parse_frame(frame) == (event, data)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n")).map(str.encode), st.sampled_from([None, "error"])
)
def test_what_is_written_reads_back(data: bytes, event: str | None) -> None:
    assert parse_frame(write_frame(data, event)) == (event, data)
    assert parse_frame(write_frame(data + b"\nmore", event)) == (event, data + b"\nmore")
