"""Which HTTP client costs the gateway least: each inside a bare one-process proxy, before a fast mock provider.

    python benchmarks/http_stack.py [--seconds 4]

Three processes: the mock, the proxy, and this one, which makes the load. The proxy reads a request, sends it on with
the client under test and copies the answer back chunk by chunk; it does nothing else, so the differences are the
clients'. Compare the ratios: the figures themselves depend on the machine and on what else runs there.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import aiohttp

CLIENTS = ("httpx", "httpx2", "aiohttp")
CONCURRENCY = 16
STREAM_CHUNKS = 100
PLAIN_BODY = b'{"choices":[{"message":{"role":"assistant","content":"hello"}}],"usage":{"prompt_tokens":9}}'
EVENT = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
REQUEST_BODY = b'{"model":"x","messages":[{"role":"user","content":"hello"}]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"

Send = Callable[[str], AsyncIterator[bytes]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def read_request(reader: asyncio.StreamReader) -> str:
    """The path; the body is read and dropped."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    await reader.readexactly(length)
    return head.split(b" ", 2)[1].decode()


async def answer_as_mock(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        if await read_request(reader) == "/plain":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(PLAIN_BODY), PLAIN_BODY))
            continue
        writer.write(HEAD)
        for _ in range(STREAM_CHUNKS):
            writer.write(framed(EVENT))
            await asyncio.sleep(0)  # so that a chunk is a packet of its own, as a provider's is
        writer.write(b"0\r\n\r\n")


def proxy_of(send: Send) -> Handler:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = await read_request(reader)
            writer.write(HEAD)
            async for chunk in send(path):
                writer.write(framed(chunk))
            writer.write(b"0\r\n\r\n")

    return proxy


def sender(client: str, port: int) -> Send:
    url, headers = f"http://127.0.0.1:{port}", {"content-type": "application/json"}
    if client == "aiohttp":
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

        async def by_aiohttp(path: str) -> AsyncIterator[bytes]:
            async with session.post(url + path, data=REQUEST_BODY, headers=headers) as answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        return by_aiohttp
    library: Any = importlib.import_module(client)
    pool: Any = library.AsyncClient(limits=library.Limits(max_connections=None), timeout=60, trust_env=False)

    async def by_httpx(path: str) -> AsyncIterator[bytes]:
        async with pool.stream("POST", url + path, content=REQUEST_BODY, headers=headers) as answer:
            async for chunk in answer.aiter_raw():
                yield chunk

    return by_httpx


def serve(client: str | None, upstream_port: int, pipe: Connection) -> None:
    async def run() -> None:
        handler = answer_as_mock if client is None else proxy_of(sender(client, upstream_port))

        async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(quiet, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def load(port: int, path: str, seconds: float) -> float:
    """Answers a second that `CONCURRENCY` keep-alive connections get."""
    request = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(REQUEST_BODY)}\r\n\r\n".encode() + REQUEST_BODY
    until = time.perf_counter() + seconds
    answered = 0

    async def caller() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            writer.write(request)
            await reader.readuntil(b"\r\n0\r\n\r\n")
            answered += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return answered / (time.perf_counter() - started)


def start(client: str | None, upstream_port: int = 0) -> tuple[multiprocessing.Process, int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(client, upstream_port, theirs), daemon=True)
    process.start()
    return process, int(ours.recv())


def measure(client: str, upstream_port: int, seconds: float) -> tuple[float, float]:
    proxy, port = start(client, upstream_port)
    try:
        asyncio.run(load(port, "/plain", 0.5))
        return asyncio.run(load(port, "/plain", seconds)), asyncio.run(load(port, "/stream", seconds))
    finally:
        proxy.terminate()
        proxy.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4)
    seconds = parser.parse_args().seconds
    mock, upstream_port = start(None)
    clients = [client for client in CLIENTS if importlib.util.find_spec(client)]
    found = {client: measure(client, upstream_port, seconds) for client in clients}
    mock.terminate()
    base_plain, base_streams = found[clients[0]]
    print(f"{CONCURRENCY} callers, {seconds:g} s each; streams of {STREAM_CHUNKS} chunks; x = against {clients[0]}")
    print(f"{'client':10} {'version':10} {'calls/s':>9} {'x':>6} {'streams/s':>10} {'x':>6}")
    for client, (plain, streams) in found.items():
        version = getattr(importlib.import_module(client), "__version__", "?")
        ratios = plain / base_plain, streams / base_streams
        print(f"{client:10} {version:10} {plain:9.0f} {ratios[0]:6.1f} {streams:10.0f} {ratios[1]:6.1f}")


if __name__ == "__main__":
    main()
