"""A client that does not read: over real sockets, the gateway stops reading from the provider, and buffers little."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from orqen_ray.api.app import create_app
from tests.api.lab import lab_gateway
from tests.providers.scripted import CHUNKED_HEAD, framed, scripted

STREAM_BYTES = 200 << 20
FRAME = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"' + b"x" * (64 << 10) + b'"}}]}\n\n'
# What the kernel takes of connections that nobody reads, on both sides of the gateway, and aiohttp and uvicorn do.
BUFFERED_BYTES = 24 << 20


@asynccontextmanager
async def served(app: uvicorn.Config) -> AsyncIterator[int]:
    """The port of a server in this process."""
    server = uvicorn.Server(app)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await serving


@pytest.mark.parametrize("model", ["same/m", "other/m"])
async def test_a_client_that_does_not_read_does_not_fill_the_gateways_memory(tmp_path: Path, model: str) -> None:
    written = 0
    all_written = asyncio.Event()

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        anthropic = model == "other/m"
        writer.write(CHUNKED_HEAD + framed(ANTHROPIC_START if anthropic else FRAME))
        frame = ANTHROPIC_DELTA if anthropic else FRAME
        while written < STREAM_BYTES:
            writer.write(framed(frame))
            await writer.drain()
            written += len(frame)
        all_written.set()

    async with scripted(pours) as provider:
        row = {"auth": "none", "allow_private_network": True}
        rows = {
            "same": {**row, "dialect": "openai", "base_url": provider.url},
            "other": {**row, "dialect": "anthropic", "base_url": provider.url},
        }
        async with lab_gateway(tmp_path, providers=rows) as lab:
            config = uvicorn.Config(create_app(lab.service), log_level="critical", lifespan="off")
            async with served(config) as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
                body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}]})
                key = lab.client.headers["authorization"]
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n"
                writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
                assert b"200" in await reader.readline()
                before = -1
                while written != before:  # until nothing moves any more
                    before = written
                    await asyncio.wait([asyncio.ensure_future(all_written.wait())], timeout=0.3)
                assert 0 < written < BUFFERED_BYTES
                writer.close()
                await asyncio.wait_for(provider.closed.wait(), 5)


ANTHROPIC_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"m","usage":{}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",'
    b'"text":""}}\n\n'
)
ANTHROPIC_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'
    + b"x" * (64 << 10)
    + b'"}}\n\n'
)
