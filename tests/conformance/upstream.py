"""A provider on a loopback port that speaks all three dialects, believes nothing, and remembers everything."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from aiohttp import web

from tests.conformance import families, wire_anthropic, wire_bedrock, wire_openai
from tests.conformance.asking import script_of
from tests.conformance.binding import Prefix, opened
from tests.conformance.credentials import account, leaks, rightly_signed
from tests.conformance.scenarios import Refused, Script, Seen, require

WIRES: dict[str, ModuleType] = {"openai": wire_openai, "anthropic": wire_anthropic, "bedrock": wire_bedrock}
_TYPES = {"openai": "text/event-stream; charset=utf-8", "anthropic": "text/event-stream; charset=utf-8",
          "bedrock": "application/vnd.amazon.eventstream"}  # fmt: skip
# Frames leave in pieces of this size: no piece ends where a frame or a character ends, but by chance.
_PIECE_BYTES = 61


@dataclass(slots=True, kw_only=True)
class Received:
    """One request as it came over the wire, and what became of it. Times are `time.monotonic()`."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes
    dialect: str
    model: str = ""
    seen: Seen = field(default_factory=Seen)
    refused: str = ""
    cut_at: float | None = None
    """When the gateway closed the connection before the answer was complete."""

    def __getitem__(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ConformanceUpstream:
    """`url` is its root. `requests` holds what was received, oldest first."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Received] = []
        self._changed = threading.Condition()

    @property
    def last(self) -> Received:
        return self.requests[-1]

    def wait_until(self, holds: Callable[[], Any], within_s: float) -> bool:
        """Wait until `holds`, which is asked again whenever a request arrives or is cut."""
        with self._changed:
            return bool(self._changed.wait_for(holds, within_s))

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # --- Serving: everything below runs on the server's own thread ---

    async def serve(self, request: web.Request) -> web.StreamResponse:
        received = Received(
            method=request.method,
            path=request.raw_path.partition("?")[0],
            query=request.raw_path.partition("?")[2],
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers],
            body=await request.read(),
            dialect=_dialect(request.path),
        )
        self.requests.append(received)
        self._tell()
        try:
            return await self._answer(request, received)
        except Refused as refusal:
            received.refused = str(refusal)
            return _error(received.dialect, 400, str(refusal))
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # a body of another shape than the vendor's
            received.refused = f"{type(error).__name__}: {error}"
            return _error(received.dialect, 400, received.refused)
        except (asyncio.CancelledError, ConnectionError) as cut:
            received.cut_at = time.monotonic()
            self._tell()
            if isinstance(cut, asyncio.CancelledError):
                raise
            return web.Response()  # nobody hears it

    async def _answer(self, request: web.Request, received: Received) -> web.StreamResponse:
        found = leaks(received)
        require(not found, f"this must not reach a provider: {found}")
        if not rightly_signed(received):
            return _error(received.dialect, 401, "Incorrect API key provided")
        operation = request.path.rpartition("/")[2]
        if operation not in ("completions", "messages", "converse", "converse-stream"):
            reply = families.answer(received, operation)
            if isinstance(reply, list):
                return await _stream(request, received.dialect, reply)
            return web.Response(body=reply, content_type="application/json")
        body = received.json
        wire = WIRES[received.dialect]
        received.model = request.path.split("/")[2] if received.dialect == "bedrock" else body["model"]
        bound = received.model.startswith("bound-")
        readable = opened(body, account(received)) if bound else body
        received.seen = wire.read(readable, received.model, received["anthropic-beta"] or "")
        script = script_of(received.model.removeprefix("bound-"), received.seen)
        if bound:
            script = replace(script, signature=Prefix.of(body).seal(account(received)))
        if script.fails:
            return _error(received.dialect, script.fails, f"the scripted provider says {script.fails}")
        streams = operation == "converse-stream" or body.get("stream", False)
        if script.stalls == "before":
            await asyncio.Event().wait()
        if not streams:
            return web.Response(body=wire.whole(script, received.model, body), content_type="application/json")
        frames = wire.frames(script, received.model, body)
        return await _stream(request, received.dialect, frames, script, wire.breaking_frame())


async def _stream(
    request: web.Request, dialect: str, frames: list[bytes], script: Script | None = None, breaking: bytes = b""
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": _TYPES[dialect]})
    await response.prepare(request)
    if script is not None and (script.breaks or script.stalls):
        begun = b"".join(frames[:6])
        if script.breaks == "error":
            begun += breaking
        elif script.breaks == "cut":
            begun = begun[:-9]  # in the middle of a frame
        for piece in _pieces(begun):
            await response.write(piece)
        if script.stalls:
            await asyncio.Event().wait()
        if script.breaks == "cut" and request.transport is not None:
            request.transport.abort()
        return response
    for piece in _pieces(b"".join(frames)):
        await response.write(piece)
    return response


def _pieces(data: bytes) -> Iterable[bytes]:
    return (data[i : i + _PIECE_BYTES] for i in range(0, len(data), _PIECE_BYTES))


def _dialect(path: str) -> str:
    if path.startswith("/model/"):
        return "bedrock"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def _error(dialect: str, status: int, message: str) -> web.Response:
    sent, headers, body = WIRES[dialect].error(status, message)
    return web.Response(status=sent, headers=headers, body=body, content_type="application/json")


@contextmanager
def conformance_upstream() -> Iterator[ConformanceUpstream]:
    """Serve on a free loopback port, on a thread of its own."""
    upstream = ConformanceUpstream()
    loop = asyncio.new_event_loop()
    application = web.Application(client_max_size=64 << 20)
    application.router.add_route("*", "/{path:.*}", upstream.serve)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    loop.run_until_complete(start())
    thread.start()
    try:
        yield upstream
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
