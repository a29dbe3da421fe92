"""AWS event streams (`application/vnd.amazon.eventstream`): cut bytes into frames, read one, write one."""

from __future__ import annotations

import struct
from binascii import crc32
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.eventstream import EventStreamBuffer, ParserError

CONTENT_TYPE = "application/vnd.amazon.eventstream"

_PRELUDE = struct.Struct("!III")  # total length, length of the headers, CRC of these eight bytes
_OVERHEAD = _PRELUDE.size + 4  # a CRC of the whole frame closes it
_MAX_FRAME = (24 * 1024 + 128) * 1024 + _OVERHEAD  # payload and headers as AWS limits them; so does botocore
_STRING = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame, both checksums verified. Header names keep their colon, as `:event-type`."""

    headers: Mapping[str, Any]
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameError:
    """Why bytes are not a frame."""

    message: str


class Frames:
    """Cuts chunks into frames; where the chunks are cut makes no difference.

    Attributes:
        error: set once the bytes stop being an event stream; nothing is cut after that, `rest` has all of it.
    """

    __slots__ = ("_buffer", "error")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.error: FrameError | None = None

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, byte for byte."""
        buffer = self._buffer
        buffer += chunk
        frames: list[bytes] = []
        start = 0
        while self.error is None and len(buffer) - start >= _PRELUDE.size:
            # The prelude has a CRC of its own: a corrupt length must not make us wait for bytes that never come.
            total, headers, crc = _PRELUDE.unpack_from(buffer, start)
            if crc32(buffer[start : start + 8]) != crc:
                self.error = FrameError(message="the event stream is corrupt: the checksum of a frame's head is wrong")
            elif not _OVERHEAD + headers <= total <= _MAX_FRAME:
                self.error = FrameError(message=f"the event stream is corrupt: a frame of {total} bytes")
            elif len(buffer) - start < total:
                break
            else:
                frames.append(bytes(buffer[start : start + total]))
                start += total
        del buffer[:start]
        return frames

    def rest(self) -> bytes:
        """What came after the last whole frame; it is given out once."""
        left = bytes(self._buffer)
        self._buffer.clear()
        return left


def parse_frame(raw: bytes) -> Frame | FrameError:
    """The frame that is exactly `raw`."""
    buffer = EventStreamBuffer()
    buffer.add_data(raw)
    try:
        message: Any = buffer.next()
    except StopIteration:
        return FrameError(message="the event stream is corrupt: a frame is cut short")
    except (ParserError, KeyError, struct.error, UnicodeDecodeError) as exc:
        return FrameError(message=f"the event stream is corrupt: {exc}")
    return Frame(headers=message.headers, payload=message.payload)


def frame_headers(raw: bytes) -> bytes:
    """The undecoded headers of a frame that `Frames` has cut."""
    return raw[_PRELUDE.size : _PRELUDE.size + _PRELUDE.unpack_from(raw)[1]]


def frame_payload(raw: bytes) -> bytes:
    """The payload of a frame that `Frames` has cut, its checksum unread."""
    return raw[_PRELUDE.size + _PRELUDE.unpack_from(raw)[1] : -4]


def write_frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One frame with string headers."""
    head = b"".join(_write_header(name.encode(), value.encode()) for name, value in headers.items())
    lengths = struct.pack("!II", _OVERHEAD + len(head) + len(payload), len(head))
    frame = b"".join((lengths, struct.pack("!I", crc32(lengths)), head, payload))
    return frame + struct.pack("!I", crc32(frame))


def _write_header(name: bytes, value: bytes) -> bytes:
    return struct.pack("!B", len(name)) + name + struct.pack("!BH", _STRING, len(value)) + value
