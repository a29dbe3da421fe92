"""A provider in OpenAI's dialect that costs next to nothing: one answer, or one stream, sent again and again.

    python -m benchmarks.overhead.mock      prints its port; ends when its standard input does

A streamed answer is 100 content chunks, each written in a turn of the event loop of its own, so that it is a packet of
its own as from a provider; then the chunk with the usage, and `[DONE]`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import uvloop

STREAM_CHUNKS = 100
MODEL = "m"
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_USAGE = {"prompt_tokens": 900, "completion_tokens": STREAM_CHUNKS, "total_tokens": 900 + STREAM_CHUNKS}
_STREAM_FIELD_WITHIN = 256
"""The benchmark's bodies name `stream` before the messages: only so far is it looked for."""


def _head(content_type: str, framing: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{framing}\r\n\r\n".encode()


def _chunk(choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    event = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }
    return _framed(b"data: " + json.dumps(event).encode() + b"\n\n")


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def plain_answer() -> bytes:
    message = {"role": "assistant", "content": "It rains in London, as it often does in November. " * 4}
    body = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": _USAGE,
    }
    encoded = json.dumps(body).encode()
    return _head("application/json", f"content-length: {len(encoded)}") + encoded


def stream_pieces() -> list[bytes]:
    """What is written in each turn of the loop; the head goes with the first chunk."""

    def content(delta: dict[str, str], reason: str | None = None) -> bytes:
        return _chunk([{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}], None)

    deltas = [content({"content": f" word{i}"}) for i in range(STREAM_CHUNKS - 1)]
    head = _head("text/event-stream; charset=utf-8", "transfer-encoding: chunked")
    first = head + content({"role": "assistant", "content": ""})
    last = [content({}, "stop"), _chunk([], _USAGE), _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"]
    return [first, *deltas, *last]


class Mock(asyncio.Protocol):
    """One connection. Requests are not pipelined, so what has come belongs to one request."""

    plain = plain_answer()
    stream = stream_pieces()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._head = b""
        self._missing_bytes = 0
        self._streamed = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._missing_bytes == 0 or self._head:
            self._begin(self._head + data)
        else:
            self._missing_bytes -= len(data)
            self._answer_if_complete()

    def _begin(self, data: bytes) -> None:
        """Keep the first bytes of a request until its head is whole and `stream`, if it is there, has come."""
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end) if end >= 0 else None
        if length is None:
            self._head, self._missing_bytes = data, 1
            return
        body_from, size = end + 4, int(length[1])
        if len(data) - body_from < min(size, _STREAM_FIELD_WITHIN):
            self._head, self._missing_bytes = data, 1
            return
        self._head = b""
        self._streamed = _STREAM.search(data, body_from, body_from + _STREAM_FIELD_WITHIN) is not None
        self._missing_bytes = size - (len(data) - body_from)
        self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        if self._missing_bytes > 0:
            return
        self._missing_bytes = 0
        if self._streamed:
            self._write_from(0)
        else:
            self._transport.write(self.plain)

    def _write_from(self, i: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self.stream[i])
        if i + 1 < len(self.stream):
            self._loop.call_soon(self._write_from, i + 1)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Mock(loop), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
