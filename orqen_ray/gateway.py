"""The journey of one request, top to bottom: the file to read first.

    bytes -> read -> select model -> plan -> build -> forward -> answer -> record

A provider that speaks the caller's format gets the caller's bytes and the caller gets the provider's: a scanner only
reads along. Any other provider is reached through the neutral conversation. The plan is what optimization decides: a
conversation that it gives back as the same object means that nothing was edited.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orqen_ray.attempts import Attempts, Candidate, RetryPolicy
from orqen_ray.candidates import Asked, Candidates, Inbound
from orqen_ray.conversation import Block, Conversation, JsonObject
from orqen_ray.errors import GatewayError
from orqen_ray.exchange import OWN_PREFIX, Exchange
from orqen_ray.formats.faithful import own_fields, request_credentials
from orqen_ray.formats.reading import bounded_depth, decode_object
from orqen_ray.metrics import Metrics
from orqen_ray.models.feasibility import obstacles, same_account
from orqen_ray.planning.plan import Plan, untouched
from orqen_ray.planning.planner import Planner
from orqen_ray.planning.switches import Switches
from orqen_ray.providers.catalog import Catalog, Resolved
from orqen_ray.recording import record
from orqen_ray.relay import Answer, Resumed, Route, answer, read_body
from orqen_ray.restore.continuing import continued
from orqen_ray.restore.offer import Offer
from orqen_ray.restoring import answer_with_restore
from orqen_ray.sessions import given_session_id, session_id
from orqen_ray.traces.writer import TraceWriter
from orqen_ray.types import Upstream, UpstreamReply

logger = logging.getLogger(__name__)

_MAX_REFUSAL_BYTES = 1 << 20


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
        planning: tuple[Planner, Switches] | None = None,
    ) -> None:
        """
        Args:
            fallbacks: model string -> the models to try in its place, in this order.
            spend: told after each request which key has used how many billed tokens.
            planning: what plans requests, and what it may do where nobody says otherwise; None: nothing is edited.
        """
        self.catalog = catalog
        self.candidates = Candidates(catalog)
        self.upstream = upstream
        self._traces = traces
        self._metrics = metrics or Metrics()
        self._attempts = Attempts(upstream, retry, self._metrics)
        self._fallbacks = fallbacks or {}
        self._spend = spend
        self._planner: Planner | None = planning[0] if planning else None
        self._switches = planning[1] if planning else Switches()

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
            conversation = self.read(inbound, payload)
            exchange.note_stage("read")
            exchange.requested_model = conversation.model
            exchange.session_id = session_id(inbound.headers, inbound.key_id, conversation)
            credentials = request_credentials(payload) if inbound.format.name == "openai_chat" else None
            target = await self.resolve(conversation.model, with_bedrock=credentials is not None)
            exchange.note_target(target)
            exchange.note_stage("select")
            exchange.note_plan(untouched(conversation))
            plan = await self.plan(inbound, conversation, target)
            exchange.note_plan(plan)
            exchange.note_stage("plan")
            asked = Asked(
                inbound=inbound,
                payload=payload,
                conversation=conversation,
                exchange=exchange,
                credentials=credentials,
            )
            return await self._answer(asked, target, plan)
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
        if self._planner is not None and exchange.plan is not None and exchange.status < 400:
            exchange.tools_missed = self._planner.learn(exchange.plan, exchange.facts.tool_names, exchange.restored)
        record(exchange, self._traces, self._metrics, self._spend)

    def read(self, inbound: Inbound, payload: JsonObject) -> Conversation:
        """The conversation in a body. Raises BadRequest naming the field that is wrong."""
        own = own_fields(payload) if inbound.format.name == "openai_chat" else ()
        readable = {name: value for name, value in payload.items() if name not in own} if own else payload
        with bounded_depth():
            conversation = inbound.format.read_request(readable, inbound.url_model)
        return replace(conversation, stream=True) if inbound.url_stream else conversation

    async def plan(self, inbound: Inbound, conversation: Conversation, target: Resolved, *, keep: bool = True) -> Plan:
        """What is to be sent of a conversation; `keep`: and remembered.

        Raises:
            BadRequest: the caller's header asks for what does not exist.
        """
        if self._planner is None:
            return untouched(conversation)
        switches = self._switches.narrowed(inbound.optimization or {}, inbound.k_target, inbound.headers)
        return await self._planner.plan(
            conversation,
            self.candidates.destination(target),
            switches,
            key_id=inbound.key_id,
            session=given_session_id(inbound.headers) or "",
            keep=keep,
            size_bytes=len(inbound.body),
        )

    async def _answer(self, asked: Asked, target: Resolved, plan: Plan) -> Answer:
        """Send `plan`, and give the answer; where its model asks for tools that were left out, bring them back."""
        exchange = asked.exchange
        plans = {_name(target): plan}
        first = self.candidates.build(asked, target, plan)
        exchange.note_stage("build")
        candidate, reply = await self._attempts.answer(exchange, first, self._others(asked, target, plans))
        sent = plans[_name(candidate.target)]
        candidate, reply = await self._unbound(asked, sent, candidate, reply)
        exchange.note_plan(sent)
        if not sent.restorable or self._planner is None:
            return await answer(reply, candidate.route, exchange, self.record)
        turn = _Turn(self, self._planner, asked, candidate.target, sent)
        return await answer_with_restore(
            reply, candidate.route, exchange, self.record, turn.offer(), turn.again, turn.later
        )

    async def send(self, asked: Asked, target: Resolved, plan: Plan) -> tuple[Candidate, UpstreamReply]:
        """Send `plan` to this one model."""
        first = self.candidates.build(asked, target, plan)
        candidate, reply = await self._attempts.answer(asked.exchange, first)
        return await self._unbound(asked, plan, candidate, reply)

    async def _unbound(
        self, asked: Asked, plan: Plan, candidate: Candidate, reply: UpstreamReply
    ) -> tuple[Candidate, UpstreamReply]:
        """What came, or where reasoning was refused because what stands before it has changed, an answer without it.

        A caller may have rewritten its history, or a pin may be lost. Source of the words:
        platform.claude.com/docs/build-with-claude/preserved-thinking/fix-bound-to-a-different-conversation.
        """
        if reply.status != 400 or not candidate.call.key_bound:
            return candidate, reply
        try:
            refusal = await read_body(reply, limit_bytes=_MAX_REFUSAL_BYTES)
        except BaseException:
            await reply.aclose()
            raise
        if b"signature" not in refusal:
            reply.chunks = Resumed(refusal, reply.chunks)
            return candidate, reply
        await reply.aclose()
        self._metrics.count_prefix_break("refused")
        again = self.candidates.build(asked, candidate.target, plan, without_reasoning=True)
        return await self._attempts.answer(asked.exchange, again)

    async def _others(self, asked: Asked, first: Resolved, plans: dict[str, Plan]) -> AsyncGenerator[Candidate]:
        """The models to try in place of `first`, those that can read the conversation; built when their turn comes."""
        home = self.candidates.target(first)
        tried = [home]
        for model in self._fallbacks.get(asked.conversation.model, ()):
            try:
                resolved = await self.resolve(model, with_bedrock=asked.credentials is not None)
                target = self.candidates.target(resolved)
                plan = plans[_name(first)]
                if self._planner is not None:
                    plan = self._planner.for_destination(plan, self.candidates.destination(resolved))
                tokens = asked.exchange.estimated_usage().input_tokens
                reasons: tuple[str, ...] = obstacles(plan.conversation, target, input_tokens=tokens, home=home)
                # What a bare id means depends on which of its owners is connected.
                if any(same_account(target, each) for each in tried):
                    reasons = ("tried",)
                if not reasons:
                    other = self.candidates.build(asked, resolved, plan, without_reasoning=True)
                    tried.append(target)
                    plans[_name(resolved)] = plan
                    yield other
            except GatewayError as error:
                reasons = (error.code,)
            except Exception:  # the caller shall hear of the failure that it has, not of one more
                logger.exception("a fallback could not be tried")
                reasons = ("internal",)
            if reasons:
                asked.exchange.excluded[model] = reasons


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn that may be sent again, to the model that answers it."""

    gateway: Gateway
    planner: Planner
    asked: Asked
    target: Resolved
    plan: Plan

    def offer(self) -> Offer:
        bound = self.gateway.candidates.destination(self.target).capabilities.prefix_bound
        return Offer(names=tuple(self.plan.restorable), may_continue=not bound)

    async def again(self, names: tuple[str, ...] | None, said: tuple[Block, ...]) -> tuple[Route, UpstreamReply]:
        """See `restoring.Again`."""
        asked, target = self.asked, self.target
        plan = await self.planner.restored(self.plan, names, self.gateway.candidates.destination(target))
        asked.exchange.note_plan(plan)
        if said:
            plan = replace(plan, conversation=continued(plan.conversation, said, names))
        candidate, reply = await self.gateway.send(asked, target, plan)
        return candidate.route, reply

    async def later(self, names: tuple[str, ...]) -> None:
        """See `restoring.Later`."""
        await self.planner.owe(self.plan, names)


def _name(target: Resolved) -> str:
    return f"{target.provider.name}/{target.model_id}"
