"""A provider in OpenAI's dialect that fails in the way that the model's name says."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MESSAGE = {"role": "assistant", "content": "hello"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
FLOOD_BYTES = 200 << 20
CHUNKS = 20

Writer = asyncio.StreamWriter


@dataclass(slots=True)
class Connection:
    """One request as the provider saw it; `closed_at` is when its caller had gone, or the answer was complete."""

    model: str
    sent_bytes: int = 0
    closed_at: float | None = None


@dataclass(slots=True)
class FaultyProvider:
    """`url` is its root; `calls` counts the requests by model."""

    url: str
    calls: Counter[str] = field(default_factory=Counter)
    open: set[int] = field(default_factory=set)
    seen: list[Connection] = field(default_factory=list)

    def last(self, model: str) -> Connection:
        return next(each for each in reversed(self.seen) if each.model == model)


def whole(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {length or len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def refusal(status: int, kind: str, *headers: str) -> bytes:
    error = {"message": f"the provider says {status}", "type": kind, "param": None, "code": None}
    return whole(status, json.dumps({"error": error}).encode(), *headers)


def ok(model: str) -> bytes:
    choice = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
    reply = {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": USAGE}
    return whole(200, json.dumps(reply).encode())


def event(model: str, content: str | None, finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _stream(writer: Writer, model: str) -> None:
    writer.write(HEAD)
    for _ in range(CHUNKS):
        writer.write(framed(event(model, "word ")))
        await asyncio.sleep(0.005)  # a provider's pace
    usage = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [], "usage": USAGE}
    writer.write(framed(event(model, None, "stop")) + framed(b"data: " + json.dumps(usage).encode() + b"\n\n"))
    writer.write(framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def _flood(writer: Writer, model: str, connection: Connection) -> None:
    writer.write(HEAD)
    piece = framed(event(model, "x" * 60_000))
    while connection.sent_bytes < FLOOD_BYTES:
        writer.write(piece)
        await writer.drain()
        connection.sent_bytes += len(piece)
    writer.write(framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _reset(writer: Writer) -> None:
    """Break off with an RST, not a FIN."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# What each model does after its request was read; one that is in both tables answers streams by the second.
PLAIN: dict[str, bytes] = {
    "429": refusal(429, "rate_limit_exceeded", "retry-after: 7"),
    "500": refusal(500, "server_error"),
    "503": refusal(503, "server_error"),
    "529": refusal(529, "overloaded_error"),
    "garbage": b"\x00\xff\xfe what is this\r\n\r\n",
    "garbage-body": whole(200, b"<html>it works</html>"),
    "truncated": whole(200, b'{"id": "c", "choices": [', length=1000),
}
FIRST = HEAD + framed(event("m", "hel"))
BROKEN_STREAMS: dict[str, bytes] = {
    "garbage-stream": FIRST + framed(b"data: {broken\n\n") + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n",
    "error-stream": HEAD + framed(b'data: {"error": {"message": "overloaded", "type": "server_error"}}\n\n'),
    "ended-stream": FIRST + b"0\r\n\r\n",
}


@contextmanager
def faulty_provider() -> Iterator[FaultyProvider]:
    """Serve on a loopback port, on a loop in a thread of its own."""
    provider = FaultyProvider(url="")
    started = threading.Event()
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            while True:
                await _one(provider, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024, limit=64 << 20)
        provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await server.serve_forever()

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(run())
        except asyncio.CancelledError:
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield provider
    finally:
        loop.call_soon_threadsafe(_cancel_all, loop)
        thread.join(10)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


async def _one(provider: FaultyProvider, reader: asyncio.StreamReader, writer: Writer) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(int(line.partition(":")[2]) for line in head.split("\r\n") if line.startswith("content-length"))
    body: dict[str, Any] = json.loads(await reader.readexactly(length))
    connection = Connection(body["model"])
    provider.seen.append(connection)
    provider.calls[connection.model] += 1
    try:
        await _answer(writer, reader, connection, stream=bool(body.get("stream")))
    finally:
        connection.closed_at = time.monotonic()


async def _answer(writer: Writer, reader: asyncio.StreamReader, connection: Connection, *, stream: bool) -> None:
    model = connection.model
    fault = model.partition(":")[0]
    if fault == "stall" or fault == "stall-stream":
        writer.write(FIRST if fault == "stall-stream" else b"")
        await reader.readexactly(1)  # until the caller leaves
    elif fault == "reset" or fault == "reset-stream":
        writer.write(FIRST if fault == "reset-stream" else b"")
        await writer.drain()
        await asyncio.sleep(0.05)  # an RST takes with it what the other side has not read yet
        _reset(writer)
        raise ConnectionResetError
    elif fault == "truncated-stream":
        writer.write(FIRST)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(framed(event(model, "lo"))[:30])
        await writer.drain()
        raise ConnectionResetError
    elif fault in PLAIN or fault in BROKEN_STREAMS:
        writer.write({**PLAIN, **BROKEN_STREAMS}[fault])
        await writer.drain()
        if fault in ("garbage", "truncated", "error-stream"):
            raise ConnectionResetError  # closes the connection
    elif fault == "flood":
        await _flood(writer, model, connection)
    elif stream:
        await _stream(writer, model)
    else:
        writer.write(ok(model))
    await writer.drain()
