"""The journey of one request, top to bottom: the file to read first.

    bytes -> read -> select model -> optimize -> build -> forward -> answer -> record

A provider that speaks the caller's format gets the caller's bytes and the caller gets the provider's: a scanner only
reads along. Any other provider is reached through the neutral conversation. Optimization is the seam in the middle: a
conversation that comes out as the same object means that nothing was edited.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from orqen_ray.conversation import Conversation, JsonObject
from orqen_ray.errors import BadRequest, GatewayError, UpstreamUnavailable
from orqen_ray.exchange import Exchange, without_indexes
from orqen_ray.formats.faithful import faithful_body, own_fields, request_credentials
from orqen_ray.formats.format import Format
from orqen_ray.formats.paths import chat_path
from orqen_ray.formats.reading import bounded_depth, decode_object
from orqen_ray.formats.registry import FORMATS
from orqen_ray.formats.tool_names import legal_tool_names
from orqen_ray.metrics import Metrics
from orqen_ray.providers.catalog import Catalog, Resolved
from orqen_ray.providers.headers import allowed_request_headers
from orqen_ray.recording import record
from orqen_ray.relay import Answer, Route, answer
from orqen_ray.sessions import session_id
from orqen_ray.traces.writer import TraceWriter
from orqen_ray.types import Call, Upstream, UpstreamReply

RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A request as it came in: authenticated, its body read, nothing else done.

    `headers` has lower-case names; `url_model` and `url_stream` are what Bedrock's URL says.
    """

    format: Format
    body: bytes
    headers: Mapping[str, str]
    key_id: str
    request_id: str
    query: str = ""
    url_model: str | None = None
    url_stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retries before the first byte: `backoff_s` doubles each time, with jitter, up to `backoff_max_s`."""

    max_retries: int = 2
    backoff_s: float = 0.2
    backoff_max_s: float = 5.0

    def delay_s(self, attempt: int, retry_after: str | None) -> float | None:
        """How long to wait after `attempt` (from 1), or None when there shall be no further one."""
        if attempt > self.max_retries:
            return None
        try:
            asked_s = float(retry_after or 0)
        except ValueError:  # an HTTP date: the caller can wait for it better than we can
            return None
        if not asked_s <= self.backoff_max_s:  # NaN is no time to wait either
            return None
        jittered_s = random.uniform(0.5, 1.0) * self.backoff_s * 2.0 ** (attempt - 1)
        return max(asked_s, min(jittered_s, self.backoff_max_s))


class Gateway:
    """Serves chat requests of all formats. One per process; holds no state of a request."""

    def __init__(
        self,
        catalog: Catalog,
        upstream: Upstream,
        traces: TraceWriter,
        retry: RetryPolicy,
        metrics: Metrics | None = None,
    ) -> None:
        self.catalog = catalog
        self.upstream = upstream
        self._traces = traces
        self._retry = retry
        self._metrics = metrics or Metrics()

    async def converse(self, inbound: Inbound) -> Answer:
        """Answer a chat request. The caller of this method must close the answer.

        Raises:
            GatewayError: there is no answer; the trace row is written.
        """
        exchange = Exchange(
            request_id=inbound.request_id, key_id=inbound.key_id, session_id="", inbound_format=inbound.format.name
        )
        try:
            payload = decode_object(inbound.body)
            with bounded_depth():
                conversation = self._read(inbound, payload)
            exchange.requested_model = conversation.model
            exchange.session_id = session_id(inbound.headers, inbound.key_id, conversation)
            credentials = request_credentials(payload) if inbound.format.name == "openai_chat" else None
            target = await self.resolve(conversation.model, with_bedrock=credentials is not None)
            edited = self._optimize(conversation)
            exchange.note_request(conversation, edited)
            exchange.note_target(target)
            with bounded_depth():
                call, route = self._build(inbound, payload, conversation, edited, target, exchange)
            call = replace(call, credentials=credentials if route.provider.name == "bedrock_converse" else None)
            reply = await self.forward(call, exchange)
            return await answer(reply, route, exchange, self.record)
        except BaseException as error:
            self.fail(exchange, error)
            raise

    async def resolve(self, model: str, *, with_bedrock: bool = False) -> Resolved:
        """The provider that serves `model`; `with_bedrock`: the request brings its own credentials for Bedrock.

        Raises:
            UnknownModel, ProviderNotConnected, BadRequest: see `Catalog.resolve`.
        """
        connected = await self.upstream.connected()
        return self.catalog.resolve(model, connected | {"bedrock"} if with_bedrock else connected)

    async def forward(self, call: Call, exchange: Exchange) -> UpstreamReply:
        """Send, and send again while the provider is busy or gone: only before the first byte of an answer."""
        exchange.overhead_ms = exchange.elapsed_ms()
        while True:
            started_ms = exchange.elapsed_ms()
            try:
                reply = await self.upstream.send(call)
            except UpstreamUnavailable as error:
                exchange.note_attempt(call, started_ms, error=error)
                delay_s = self._retry.delay_s(len(exchange.attempts), None)
                if delay_s is None:
                    raise
            else:
                exchange.first_byte_ms = exchange.elapsed_ms()
                exchange.note_attempt(call, started_ms, reply=reply)
                delay_s = None
                if reply.status in RETRYABLE_STATUSES and reply.headers.get("x-should-retry") != "false":
                    delay_s = self._retry.delay_s(len(exchange.attempts), reply.headers.get("retry-after"))
                if delay_s is None:
                    return reply
                await reply.aclose()
            await asyncio.sleep(delay_s)

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        """Record a request that gets no answer, and give its error the headers that it has earned so far."""
        exchange.fail(error)
        if isinstance(error, GatewayError):
            error.headers = {**error.headers, **exchange.headers()}
        self.record(exchange)

    def record(self, exchange: Exchange) -> None:
        """Keep what became of the request; never fails it."""
        record(exchange, self._traces, self._metrics)

    def _read(self, inbound: Inbound, payload: JsonObject) -> Conversation:
        own = own_fields(payload) if inbound.format.name == "openai_chat" else ()
        readable = {name: value for name, value in payload.items() if name not in own} if own else payload
        conversation = inbound.format.read_request(readable, inbound.url_model)
        if inbound.url_stream:
            return replace(conversation, stream=True)
        return conversation

    def _optimize(self, conversation: Conversation) -> Conversation:
        """Steps 3 and 5-7 of the journey (understand, route tools, compress, validate) come here; not yet built."""
        return conversation

    def _build(
        self,
        inbound: Inbound,
        payload: JsonObject,
        conversation: Conversation,
        edited: Conversation,
        target: Resolved,
        exchange: Exchange,
    ) -> tuple[Call, Route]:
        provider, dialect = target.provider, FORMATS[target.provider.dialect]
        capabilities = self.catalog.capabilities(provider.name, target.model_id)
        same_format = dialect.name == inbound.format.name
        asked_usage = False
        tool_names: Mapping[str, str] = {}
        if same_format and edited is conversation:
            faithful = faithful_body(inbound.body, payload, conversation, target.model_id, capabilities)
            body, asked_usage = faithful.body, faithful.asked_usage
        else:
            if not same_format:
                if not edited.messages:  # Converse may name a stored prompt instead, which nobody else can read
                    raise BadRequest("must hold at least one message", param="messages")
                edited, tool_names = legal_tool_names(edited, dialect.name)
            written = dialect.write_request(edited, target.model_id, capabilities)
            body, exchange.dropped = msgspec.json.encode(written.body), without_indexes(written.dropped)
        exchange.request_bytes = len(body)
        call = Call(
            provider=provider.name,
            path=chat_path(dialect.name, target.model_id, stream=conversation.stream),
            query=inbound.query if same_format else "",
            body=body,
            headers=allowed_request_headers(dialect.name, inbound.headers if same_format else {}),
            stream=conversation.stream,
            model=target.model_id,
            conversation=exchange.session_id,
        )
        route = Route(
            caller=inbound.format,
            provider=dialect,
            conversation=conversation,
            asked_usage=asked_usage,
            tool_names=tool_names,
        )
        return call, route
