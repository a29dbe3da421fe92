"""A provider on a loopback port that answers what the test wrote down and remembers what it was sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from orqen_ray.providers.breaker import BreakerPolicy
from orqen_ray.providers.catalog import load_catalog
from orqen_ray.providers.forward import Forwarder, Timeouts
from orqen_ray.types import Call, Credentials, UpstreamReply

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Received:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass
class Scripted:
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def reply(status: int = 200, body: bytes = b"{}", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)]
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    return Received(method, target, headers, await reader.readexactly(length))


@asynccontextmanager
async def scripted(answer: bytes | Script) -> AsyncIterator[Scripted]:
    """Serve `answer` to each request on a free port; a script gets the connection once the request has been read."""
    server = Scripted()
    open_connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        if (task := asyncio.current_task()) is not None:
            open_connections[task] = writer
        try:
            while True:
                server.requests.append(await _read_request(reader))
                server.arrived.set()
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            server.closed.set()
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, limit=64 << 20)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in open_connections.values():
            writer.close()
        await asyncio.gather(*open_connections, return_exceptions=True)


async def until_eof(reader: asyncio.StreamReader) -> None:
    """Raise as a connection does that the other side closes."""
    if not await reader.read(1):
        raise ConnectionResetError


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await until_eof(reader)


async def say_one_thing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED_HEAD + framed(b"data: 1\n\n"))
    await until_eof(reader)


class FixedCredentials:
    def __init__(self, **by_provider: Credentials | tuple[Credentials, ...]) -> None:
        self._by_provider = {
            name: given if isinstance(given, tuple) else (given,) for name, given in by_provider.items()
        }

    async def get(self, provider: str) -> tuple[Credentials, ...]:
        return self._by_provider.get(provider, ())

    async def names(self) -> frozenset[str]:
        return frozenset(self._by_provider)


@asynccontextmanager
async def forwarder(
    rows: Mapping[str, Mapping[str, Any]],
    timeouts: Timeouts | None = None,
    breaker: BreakerPolicy | None = None,
    clock: Callable[[], float] = time.monotonic,
    **credentials: Credentials | tuple[Credentials, ...],
) -> AsyncIterator[Forwarder]:
    built = Forwarder(load_catalog(rows), FixedCredentials(**credentials), timeouts, breaker, clock=clock)
    try:
        yield built
    finally:
        await built.aclose()


def lab(url: str, **more: Any) -> dict[str, dict[str, Any]]:
    """A row named `lab` for a server on loopback."""
    return {"lab": {"dialect": "openai", "base_url": url, "allow_private_network": True, **more}}


def call(**fields: Any) -> Call:
    return Call(**{"provider": "lab", "path": "/chat/completions", "body": b"{}", **fields})


async def read(answer: UpstreamReply) -> bytes:
    return b"".join([chunk async for chunk in answer.chunks])
