"""The journey of one request, top to bottom: the file to read first.

    bytes -> read -> select model -> optimize -> build -> forward -> answer -> record

A provider that speaks the caller's format gets the caller's bytes and the caller gets the provider's: a scanner only
reads along. Any other provider is reached through the neutral conversation. Optimization is the seam in the middle: a
conversation that comes out as the same object means that nothing was edited.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from orqen_ray.attempts import Attempts, Candidate, RetryPolicy
from orqen_ray.conversation import Conversation, JsonObject
from orqen_ray.errors import BadRequest, GatewayError
from orqen_ray.exchange import OWN_PREFIX, Exchange, without_indexes
from orqen_ray.formats.faithful import faithful_body, own_fields, request_credentials
from orqen_ray.formats.format import Format
from orqen_ray.formats.paths import chat_path
from orqen_ray.formats.reading import bounded_depth, decode_object
from orqen_ray.formats.registry import FORMATS
from orqen_ray.formats.tool_names import legal_tool_names
from orqen_ray.metrics import Metrics
from orqen_ray.models.feasibility import (
    Target,
    holds_sealed_reasoning,
    obstacles,
    same_account,
    without_sealed_reasoning,
)
from orqen_ray.providers.catalog import Catalog, Resolved
from orqen_ray.providers.headers import allowed_request_headers
from orqen_ray.recording import record
from orqen_ray.relay import Answer, Route, answer
from orqen_ray.sessions import session_id
from orqen_ray.traces.writer import TraceWriter
from orqen_ray.types import Call, Credentials, Upstream, UpstreamReply

logger = logging.getLogger(__name__)

_REASONING = "messages.thinking"


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


class Gateway:
    """Serves chat requests of all formats. One per process; holds no state of a request."""

    def __init__(
        self,
        catalog: Catalog,
        upstream: Upstream,
        traces: TraceWriter,
        retry: RetryPolicy,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
        metrics: Metrics | None = None,
        spend: Callable[[str, int], None] = lambda key_id, tokens: None,
    ) -> None:
        """
        Args:
            fallbacks: model string -> the models to try in its place, in this order.
            spend: told after each request which key has used how many billed tokens.
        """
        self.catalog = catalog
        self.upstream = upstream
        self._traces = traces
        self._metrics = metrics or Metrics()
        self._attempts = Attempts(upstream, retry, self._metrics)
        self._fallbacks = fallbacks or {}
        self._spend = spend

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
            exchange.note_stage("read")
            exchange.requested_model = conversation.model
            exchange.session_id = session_id(inbound.headers, inbound.key_id, conversation)
            credentials = request_credentials(payload) if inbound.format.name == "openai_chat" else None
            target = await self.resolve(conversation.model, with_bedrock=credentials is not None)
            edited = self._optimize(conversation)
            exchange.note_request(conversation, edited)
            exchange.note_target(target)
            exchange.note_stage("select")
            asked = _Asked(inbound, payload, conversation, edited, exchange, credentials)
            first = self._build(asked, target)
            exchange.note_stage("build")
            candidate, reply = await self._attempts.answer(exchange, first, self._others(asked, target))
            return await answer(reply, candidate.route, exchange, self.record)
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

    async def forward(self, candidate: Candidate, exchange: Exchange) -> UpstreamReply:
        """Send to this one provider, and send again while it is busy or gone: only before the first byte."""
        return (await self._attempts.answer(exchange, candidate))[1]

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        """Record a request that gets no answer, and give its error the headers that it has earned so far."""
        exchange.fail(error)
        if isinstance(error, GatewayError):
            # One error may be many requests', who all waited for the same look-up.
            others = {name: value for name, value in error.headers.items() if not name.startswith(OWN_PREFIX)}
            error.headers = {**others, **exchange.headers()}
        self.record(exchange)

    def record(self, exchange: Exchange) -> None:
        """Keep what became of the request, and what it cost its key; never fails it."""
        record(exchange, self._traces, self._metrics, self._spend)

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

    async def _others(self, asked: _Asked, first: Resolved) -> AsyncGenerator[Candidate]:
        """The models to try in place of `first`, those that can read the conversation; built when their turn comes."""
        home = self._target(first)
        tried = [home]
        for model in self._fallbacks.get(asked.conversation.model, ()):
            try:
                resolved = await self.resolve(model, with_bedrock=asked.credentials is not None)
                target = self._target(resolved)
                tokens = asked.exchange.estimated_usage().input_tokens
                reasons: tuple[str, ...] = obstacles(asked.edited, target, input_tokens=tokens, home=home)
                # What a bare id means depends on which of its owners is connected.
                if any(same_account(target, each) for each in tried):
                    reasons = ("tried",)
                if not reasons:
                    other = self._build(asked, resolved, without_reasoning=True)
                    tried.append(target)
                    yield other
            except GatewayError as error:
                reasons = (error.code,)
            except Exception:  # the caller shall hear of the failure that it has, not of one more
                logger.exception("a fallback could not be tried")
                reasons = ("internal",)
            if reasons:
                asked.exchange.excluded[model] = reasons

    def _target(self, resolved: Resolved) -> Target:
        provider, model_id = resolved.provider, resolved.model_id
        return Target(
            provider=provider.name,
            dialect=provider.dialect,
            model_id=model_id,
            capabilities=self.catalog.capabilities(provider.name, model_id),
            context_tokens=provider.context_tokens(model_id),
        )

    def _build(self, asked: _Asked, target: Resolved, *, without_reasoning: bool = False) -> Candidate:
        with bounded_depth():
            return self._candidate(asked, target, without_reasoning)

    def _candidate(self, asked: _Asked, target: Resolved, without_reasoning: bool) -> Candidate:
        inbound, conversation, edited = asked.inbound, asked.conversation, asked.edited
        provider, dialect = target.provider, FORMATS[target.provider.dialect]
        capabilities = self.catalog.capabilities(provider.name, target.model_id)
        same_format = dialect.name == inbound.format.name
        asked_usage = False
        tool_names: Mapping[str, str] = {}
        dropped: tuple[str, ...] = ()
        if without_reasoning and (rest := without_sealed_reasoning(edited)) is not edited:
            edited, dropped = rest, (_REASONING,)
        if same_format and edited is conversation:
            faithful = faithful_body(inbound.body, asked.payload, conversation, target.model_id, capabilities)
            body, asked_usage = faithful.body, faithful.asked_usage
        else:
            if not same_format:
                if not edited.messages:  # Converse may name a stored prompt instead, which nobody else can read
                    raise BadRequest("must hold at least one message", param="messages")
                edited, tool_names = legal_tool_names(edited, dialect.name)
            written = dialect.write_request(edited, target.model_id, capabilities)
            body, dropped = msgspec.json.encode(written.body), without_indexes((*dropped, *written.dropped))
        call = Call(
            provider=provider.name,
            path=chat_path(dialect.name, target.model_id, stream=conversation.stream),
            query=inbound.query if same_format else "",
            body=body,
            headers=allowed_request_headers(dialect.name, inbound.headers if same_format else {}),
            credentials=asked.credentials if dialect.name == "bedrock_converse" else None,
            stream=conversation.stream,
            model=target.model_id,
            conversation=asked.exchange.of_caller(asked.exchange.session_id),
            key_bound=capabilities.prefix_bound and holds_sealed_reasoning(edited),
        )
        route = Route(
            caller=inbound.format,
            provider=dialect,
            conversation=conversation,
            asked_usage=asked_usage,
            tool_names=tool_names,
        )
        return Candidate(target=target, call=call, route=route, dropped=dropped, chat=True)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a caller wants, from which a call is built for each model that is tried."""

    inbound: Inbound
    payload: JsonObject
    conversation: Conversation
    edited: Conversation
    exchange: Exchange
    credentials: Credentials | None
