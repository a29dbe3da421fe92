"""The limit for Python: a proxy of one process that reads a body, sends it on, copies the answer back and nothing else.

python -m benchmarks.overhead.bare UPSTREAM_URL      prints its port
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PASSED = ("content-type", "authorization")


def create_app(upstream: str) -> Starlette:
    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> Response:
        if not sessions:
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False))
        body = await request.body()
        headers = {name: request.headers[name] for name in PASSED if name in request.headers}
        answer = await sessions[0].post(upstream + request.url.path, data=body, headers=headers)
        content_type = answer.headers.get("content-type", "")
        if not content_type.startswith("text/event-stream"):
            return Response(await answer.read(), answer.status, {"content-type": content_type})

        async def chunks() -> AsyncIterator[bytes]:
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        return StreamingResponse(chunks(), answer.status, {"content-type": content_type})

    return Starlette(routes=[Route("/{path:path}", forward, methods=["POST"])])


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(create_app(sys.argv[1]), loop="uvloop", http="httptools", log_level="error", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
