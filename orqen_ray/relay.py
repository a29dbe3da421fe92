"""The way back: a provider's answer as the caller's bytes, untouched where the formats agree, converted where not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from orqen_ray.conversation import Conversation, Event, Facts, JsonObject, Reply, ReplyEnd, StreamFailure
from orqen_ray.errors import GatewayError, UpstreamError, UpstreamRejected
from orqen_ray.exchange import Exchange, without_indexes
from orqen_ray.formats.events import Watch, events_of, facts_of
from orqen_ray.formats.format import Format, StreamWriter, failure_of
from orqen_ray.formats.tool_names import own_name, own_name_event
from orqen_ray.types import UpstreamReply

STREAM_TYPES = ("text/event-stream", "application/vnd.amazon.eventstream")
# Sounds and films have no end that must be waited for, and nothing in them to be read.
MEDIA_TYPES = ("audio/", "video/", "image/", "application/octet-stream")
MAX_ERROR_BYTES = 1 << 20
_MAX_EVENT_BYTES = 64 << 20
_MAX_REPLY_BYTES = 256 << 20
# What a provider notes about itself: no caller of another format misses it, so it is not worth a header in each answer.
_BOOKKEEPING = frozenset({"metrics", "system_fingerprint", "service_tier", "object", "trace", "performanceConfig"})


@dataclass(slots=True)
class Answer:
    """What the caller gets: a whole `body`, or chunks to be read once. `aclose` ends the call.

    The trace row is written once: by `record` when all is known and only the last byte is still to be sent, so that who
    has a whole answer has its row, too; else by `aclose`.
    """

    status: int
    headers: dict[str, str]
    body: bytes | AsyncIterator[bytes]
    _reply: UpstreamReply
    _exchange: Exchange
    _record: Callable[[Exchange], None]
    _closed: bool = False
    _recorded: bool = False
    sent_bytes: int = 0
    """How much of the body the caller was sent; whoever sends it counts."""

    def record(self, *, client_disconnected: bool = False) -> None:
        """Write the trace row; idempotent."""
        if not self._recorded:
            self._recorded = True
            self._exchange.response_bytes = self.sent_bytes
            self._exchange.client_disconnected = client_disconnected
            self._record(self._exchange)

    async def aclose(self, *, client_disconnected: bool = False) -> None:
        """Idempotent. `client_disconnected`: the caller left before the last byte."""
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self.body, "aclose", None)
            if close is not None:
                await close()
            await self._reply.aclose()
        finally:
            self.record(client_disconnected=client_disconnected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Between whom an answer travels: `caller`'s format, `provider`'s, and the request as the caller sent it."""

    caller: Format
    provider: Format
    conversation: Conversation
    asked_usage: bool = False
    tool_names: Mapping[str, str] = field(default_factory=dict)
    """The names of tools as the provider was told them -> as the caller knows them, where the two differ."""

    @property
    def same(self) -> bool:
        return self.caller.name == self.provider.name


async def answer(reply: UpstreamReply, route: Route, exchange: Exchange, record: Callable[[Exchange], None]) -> Answer:
    """The answer to give for `reply`.

    Raises:
        UpstreamRejected: the provider refused, in another format than the caller's (the reply is closed).
        UpstreamError: the reply cannot be read (the reply is closed).
    """
    exchange.status = reply.status
    try:
        headers = {**reply.headers, **exchange.headers()}
        body = await _body(reply, route, exchange, headers)
    except BaseException as error:
        await reply.aclose()
        if isinstance(error, GatewayError):
            error.headers = {name: value for name, value in reply.headers.items() if name != "content-type"}
        raise
    return Answer(exchange.status, headers, body, reply, exchange, record)


async def _body(
    reply: UpstreamReply, route: Route, exchange: Exchange, headers: dict[str, str]
) -> bytes | AsyncIterator[bytes]:
    """The body, with `headers` put right for it. Returns when the status can no longer change."""
    if reply.status >= 400:
        return await _error_body(reply, route, exchange)
    content_type = reply.headers.get("content-type", "").lower()
    streamed = content_type.startswith(STREAM_TYPES)
    if route.same and content_type.startswith(MEDIA_TYPES):
        return _media(reply, exchange)
    if route.same:
        return _relayed(reply, route, exchange) if streamed else await _plain_body(reply, route, exchange)
    if not streamed and not route.conversation.stream:
        headers["content-type"] = "application/json"
        return await _converted_body(reply, route, exchange, headers)
    writer = _writer(route, exchange)
    headers["content-type"] = writer.content_type
    converted = _converted(reply, route, exchange, writer, streamed=streamed)
    # The first bytes are awaited here, so that an error before them still gets an HTTP status of its own.
    first = await anext(converted, b"")
    return Resumed(first, converted)


async def _error_body(reply: UpstreamReply, route: Route, exchange: Exchange) -> bytes:
    body = await read_body(reply, limit_bytes=MAX_ERROR_BYTES)
    exchange.error_code = UpstreamRejected.code
    if route.same and _is_json_object(body):
        return body
    raise refusal(reply, route, exchange, body)


def refusal(reply: UpstreamReply, route: Route, exchange: Exchange, body: bytes) -> UpstreamRejected:
    """The provider's error, for a caller that cannot be sent its bytes."""
    error = route.provider.read_error(reply.status, reply.headers, body)
    if reply.status in (401, 403):  # else the caller would suspect its own key
        error.message = f"the provider {exchange.provider!r} refuses the gateway's credentials: {error.message}"
    return error


async def _plain_body(reply: UpstreamReply, route: Route, exchange: Exchange) -> bytes:
    body = await read_body(reply)
    if "json" in reply.headers.get("content-type", "") and _is_cut_off(body):
        raise UpstreamError("the provider's answer broke off before its end")
    exchange.facts = route.provider.scan_reply(body)
    return body


async def _converted_body(reply: UpstreamReply, route: Route, exchange: Exchange, headers: dict[str, str]) -> bytes:
    body = decode_body(await read_body(reply))
    try:
        neutral = route.provider.read_reply(body)
        neutral = replace(neutral, blocks=tuple(own_name(block, route.tool_names) for block in neutral.blocks))
        exchange.facts = facts_of(neutral)
        if neutral.usage is None:
            neutral = replace(neutral, usage=exchange.estimated_usage())
        encoded = written_reply(neutral, route, exchange, exchange.request_id)
    except RecursionError as exc:
        raise UpstreamError("the provider's answer is nested too deeply") from exc
    headers.update(exchange.headers())
    return encoded


def written_reply(neutral: Reply, route: Route, exchange: Exchange, response_id: str) -> bytes:
    """The reply in the caller's format; what that cannot carry is noted."""
    written = route.caller.write_reply(neutral, route.conversation.model, response_id)
    lost = [f"reply.{path}" for path in without_indexes(written.dropped) if path not in _BOOKKEEPING]
    exchange.dropped = (*exchange.dropped, *lost)
    return msgspec.json.encode(written.body)


async def _relayed(reply: UpstreamReply, route: Route, exchange: Exchange) -> AsyncIterator[bytes]:
    """The provider's own bytes, frame by frame, read in passing."""
    scanner = route.provider.stream_scanner(route.asked_usage)
    failure: str | None = None
    held_bytes = 0
    try:
        async for chunk in reply.chunks:
            out = scanner.feed(chunk)
            held_bytes = checked_event(0 if out else held_bytes + len(chunk))
            if out:
                yield out
            if scanner.broken is not None:
                raise UpstreamError(scanner.broken)
        told = scanner.facts.failure
        rest = scanner.end()
        if told is None and (cut_off := scanner.facts.failure):
            raise UpstreamError(cut_off)  # an event that was cut in two is of no use to anyone, so it is left out
        if rest:
            yield rest
    except GatewayError as error:
        failure = error.message
        yield _writer(route, exchange).write(failure_of(error))
    finally:
        exchange.facts = replace(scanner.facts, failure=failure) if failure else scanner.facts


async def _converted(
    reply: UpstreamReply, route: Route, exchange: Exchange, writer: StreamWriter, *, streamed: bool
) -> AsyncGenerator[bytes, None]:
    watch = Watch()
    started = False
    try:
        async for events in _event_batches(reply, route, streamed=streamed):
            out = bytearray()
            for event in events:
                if isinstance(event, StreamFailure) and not started and not out:
                    raise UpstreamRejected(event.message, status=error_status(event.status), kind=event.kind)
                event = own_name_event(event, route.tool_names)
                watch.observe(event)
                out += writer.write(_with_usage(event, watch, exchange))
            if out:
                started = True
                yield bytes(out)
    except GatewayError as error:
        if not started:
            raise
        watch.failure = error.message
        yield writer.write(failure_of(error))
    finally:
        exchange.facts = watch.facts


async def _event_batches(reply: UpstreamReply, route: Route, *, streamed: bool) -> AsyncIterator[list[Event]]:
    if not streamed:  # a stream was asked for, and the provider answered in one piece
        yield events_of(route.provider.read_reply(decode_body(await read_body(reply))))
        return
    reader = route.provider.stream_reader()
    held_bytes = 0
    async for chunk in reply.chunks:
        events = reader.feed(chunk)
        held_bytes = checked_event(0 if events else held_bytes + len(chunk))
        yield events
    yield reader.end()


def _with_usage(event: Event, watch: Watch, exchange: Exchange) -> Event:
    """Clients read usage as the size of the context, so an estimate is better than none."""
    if isinstance(event, ReplyEnd) and event.usage is None:
        exchange.facts = watch.facts
        return replace(event, usage=watch.usage or exchange.estimated_usage())
    return event


def _writer(route: Route, exchange: Exchange) -> StreamWriter:
    return route.caller.stream_writer(route.conversation, route.conversation.model, exchange.request_id)


def error_status(status: int) -> int:
    return status if 400 <= status < 600 else 502


class Resumed:
    """A stream whose first chunk was taken from it already.

    A class and not a generator: a generator that was never started closes nothing when it is closed.
    """

    def __init__(self, first: bytes, rest: AsyncIterator[bytes]) -> None:
        self._first = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, b""
        return first or await anext(self._rest)

    async def aclose(self) -> None:
        close = getattr(self._rest, "aclose", None)
        if close is not None:
            await close()


async def _media(reply: UpstreamReply, exchange: Exchange) -> AsyncIterator[bytes]:
    """Bytes as they come; they have no place for an error, so the caller's connection breaks off as the provider's."""
    try:
        async for chunk in reply.chunks:
            yield chunk
    except GatewayError as error:
        exchange.facts = Facts(failure=error.message)
        raise


def checked_event(held_bytes: int) -> int:
    """`held_bytes` itself, unless an event that has not ended yet is too large to wait for."""
    if held_bytes > _MAX_EVENT_BYTES:
        raise UpstreamError(f"the provider sent an event of more than {_MAX_EVENT_BYTES >> 20} MiB")
    return held_bytes


async def read_body(reply: UpstreamReply, *, limit_bytes: int | None = None) -> bytes:
    """The whole body, or as much of it as `limit_bytes` allows."""
    body = bytearray()
    async for chunk in reply.chunks:
        body += chunk
        if limit_bytes is not None and len(body) > limit_bytes:
            break
        if len(body) > _MAX_REPLY_BYTES:
            raise UpstreamError(f"the provider's answer is larger than {_MAX_REPLY_BYTES >> 20} MiB")
    return bytes(body)


def decode_body(body: bytes) -> JsonObject:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as exc:
        raise UpstreamError("the provider's answer is not JSON") from exc
    if not isinstance(value, dict):
        raise UpstreamError("the provider's answer is not a JSON object")
    return value


def _is_cut_off(body: bytes) -> bool:
    """Whether a JSON text has no end. What is odd in another way is the caller's to read, as it came."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        return body.strip() != b"" and "truncated" in str(error)
    except (ValueError, RecursionError):
        return False
    return False


def _is_json_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body, type=dict[str, msgspec.Raw]), dict)
    except (ValueError, RecursionError):
        return False
