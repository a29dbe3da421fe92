"""Server-sent events: cut a byte stream into frames, read one, write one."""

from __future__ import annotations

import re

# A frame ends at a blank line. `\n\r?\n` also finds the end of `\r\n\r\n`; a lone `\r\n` never matches.
_END = re.compile(rb"\n\r?\n|\r\r")
# An end of three bytes may be cut after its second, so the search resumes two bytes back.
_OVERLAP = 2


class Frames:
    """Cuts chunks into frames; where the chunks are cut makes no difference. Each byte is searched once."""

    __slots__ = ("_buffer", "_searched")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, byte for byte, each with the blank line that ends it."""
        buffer = self._buffer
        if not buffer and b"\r" not in chunk:  # what nearly every provider sends; a plain search is much faster
            *whole, rest = chunk.split(b"\n\n")
            if rest:
                buffer += rest
                self._searched = max(0, len(rest) - _OVERLAP)
            return [frame + b"\n\n" for frame in whole]
        buffer += chunk
        ends = [match.end() for match in _END.finditer(buffer, self._searched)]
        if not ends:
            self._searched = max(0, len(buffer) - _OVERLAP)
            return []
        starts = [0, *ends[:-1]]
        frames = [bytes(buffer[start:end]) for start, end in zip(starts, ends, strict=True)]
        del buffer[: ends[-1]]
        self._searched = max(0, len(buffer) - _OVERLAP)
        return frames

    def rest(self) -> bytes:
        """What came after the last whole frame; it is given out once."""
        left = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return left


def parse_frame(frame: bytes) -> tuple[str | None, bytes]:
    """The event name, if one is given, and the data lines joined by newlines. Comments and other fields are skipped.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    if frame.startswith(b"data: ") and frame.find(b"\n") == len(frame) - 2 and b"\r" not in frame:
        return None, frame[6:-2]
    event: str | None = None
    data: list[bytes] = []
    for line in frame.removeprefix(b"\xef\xbb\xbf").splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            event = value.removeprefix(b" ").decode("utf-8", "replace")
    return event, b"\n".join(data)


def write_frame(data: bytes, event: str | None = None) -> bytes:
    """One frame; data of several lines becomes several data lines."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.splitlines())
    return head + b"data: " + data + b"\n\n"
