"""One kind of call over HTTP: authenticate, read, serve, relay to the end, and cancel when the client goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from starlette.types import Receive, Scope, Send

from orqen_ray.api.wire import check_content, headers_of, read_body, request_id_of, secret_of
from orqen_ray.candidates import Inbound
from orqen_ray.conversation import JsonObject
from orqen_ray.errors import BadRequest, GatewayError
from orqen_ray.formats.format import Format
from orqen_ray.logs import CURRENT, CurrentRequest
from orqen_ray.recording import record_unforwarded
from orqen_ray.relay import Answer
from orqen_ray.service import Service
from orqen_ray.store.keys import KeyRecord

logger = logging.getLogger(__name__)

_LEFT = 499  # the caller went away before an answer
_HOP_BY_HOP = frozenset({"content-length", "transfer-encoding", "connection", "x-request-id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An authenticated request with its body."""

    scope: Scope
    headers: Mapping[str, str]
    body: bytes
    key: KeyRecord
    request_id: str
    format: Format

    @property
    def query(self) -> str:
        return str(self.scope.get("query_string", b""), "latin-1")

    @property
    def path_params(self) -> dict[str, str]:
        return dict(self.scope.get("path_params", {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonAnswer:
    """An answer that the gateway gives by itself."""

    body: JsonObject
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Serve = Callable[[Request], Awaitable[Answer | JsonAnswer]]


class Endpoint:
    """An ASGI application for one path. Errors take the shape of `format`, so that its SDK raises its own class."""

    def __init__(
        self,
        service: Service,
        format_: Format | Callable[[Mapping[str, str]], Format],
        serve: Serve,
        *,
        forms: bool = False,
    ) -> None:
        self._service = service
        self._format = format_
        self._serve = serve
        self._forms = forms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        request_id = request_id_of(headers)
        format_ = self._format(headers) if not isinstance(self._format, Format) else self._format
        client = _Client(send, request_id)
        current = CurrentRequest(request_id)
        entered = CURRENT.set(current)
        self._service.metrics.open_requests.inc()
        try:
            await self._answer(scope, receive, client, headers, format_)
        finally:
            if not current.recorded:
                record_unforwarded(format_.name, client.status or _LEFT, self._service.metrics)
            self._service.metrics.open_requests.dec()
            CURRENT.reset(entered)

    async def _answer(
        self, scope: Scope, receive: Receive, client: _Client, headers: Mapping[str, str], format_: Format
    ) -> None:
        request_id = client.request_id
        try:
            key = await self._service.authenticate(secret_of(headers))
            if scope["method"] == "POST":
                await self._service.admit(key)
            check_content(headers, forms=self._forms)
            body = await read_body(receive, headers, self._service.max_body_bytes)
            request = Request(scope=scope, headers=headers, body=body, key=key, request_id=request_id, format=format_)
            await _until_disconnect(receive, self._relay(request, client), client)
        except GatewayError as error:
            if client.started:  # a body without a place for an error: breaking off is the only way to say it
                raise
            await client.send_error(format_, error)
        except Exception:  # the outermost frame: a bug must not show itself to the caller
            logger.exception("a request failed")
            if client.started:  # the server logs what it is raised, so that must not hold what the caller sent
                raise GatewayError("internal error") from None
            await client.send_error(format_, GatewayError(f"internal error; the request id is {request_id}"))

    async def _relay(self, request: Request, client: _Client) -> None:
        answer = await self._serve(request)
        if isinstance(answer, JsonAnswer):
            await client.send_json(answer.status, answer.headers, answer.body)
            return
        gone = True
        try:
            await client.send_answer(answer)
            gone = False
        except GatewayError:  # it was the provider that went away
            gone = False
            raise
        finally:
            await answer.aclose(client_disconnected=gone)


def inbound_of(request: Request) -> Inbound:
    """The request as the gateway takes it.

    Raises:
        BadRequest: the model in the URL is empty.
    """
    model = request.path_params.get("model_id")
    if model is not None and not model.strip():
        raise BadRequest("the URL names no model; expected /model/{id}/converse")
    return Inbound(
        format=request.format,
        body=request.body,
        headers=request.headers,
        key_id=request.key.id,
        request_id=request.request_id,
        query=request.query,
        url_model=model,
        optimization=request.key.optimization,
        k_target=request.key.k_target_override,
    )


async def _until_disconnect(receive: Receive, work: Awaitable[None], client: _Client) -> None:
    """Run `work`, cancelling it as soon as the client goes away, also while nothing has been sent yet."""
    worker = asyncio.current_task()
    assert worker is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        if not client.finished:
            left = True
            worker.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not left or worker.uncancel():  # the server cancels us, as it may besides
            raise
    finally:
        watcher.cancel()


class _Client:
    """The sending half of the connection."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 0
        self.started = False
        self.finished = False

    async def send_answer(self, answer: Answer) -> None:
        body = answer.body
        if isinstance(body, bytes):
            answer.sent_bytes = len(body)
            answer.record()  # before the last byte: who has the answer can rely on its row
            await self._send_whole(answer.status, answer.headers, body)
            return
        streaming = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        await self._start(answer.status, {**answer.headers, **streaming})
        await self._send_chunks(body, answer)
        answer.record()
        self.finished = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunks(self, chunks: AsyncIterator[bytes], answer: Answer) -> None:
        async for chunk in chunks:
            answer.sent_bytes += len(chunk)
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def send_json(self, status: int, headers: Mapping[str, str], body: JsonObject) -> None:
        await self._send_whole(status, {"content-type": "application/json", **headers}, msgspec.json.encode(body))

    async def send_error(self, format_: Format, error: GatewayError) -> None:
        wire = format_.write_error(error, self.request_id)
        headers = {name.lower(): value for name, value in (*error.headers.items(), *wire.headers.items())}
        await self.send_json(wire.status, headers, wire.body)

    async def _send_whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        await self._start(status, headers, content_length=len(body))
        self.finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: Mapping[str, str], content_length: int | None = None) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers.items() if _allowed(name, value)]
        raw.append((b"x-request-id", self.request_id.encode()))
        if content_length is not None:
            raw.append((b"content-length", str(content_length).encode()))
        self.started, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def _allowed(name: str, value: str) -> bool:
    """Whether a header may go out; a provider may have sent what no header of ours can hold."""
    return name not in _HOP_BY_HOP and value.isascii() and value.isprintable()
