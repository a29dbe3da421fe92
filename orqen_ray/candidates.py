"""From a request and its plan to the call that a provider gets, for each model that may answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from orqen_ray.attempts import Candidate
from orqen_ray.conversation import Conversation, JsonObject, Message, Text, Tool, lasting
from orqen_ray.errors import BadRequest
from orqen_ray.exchange import Exchange, without_indexes
from orqen_ray.formats.faithful import edited_fields, faithful_body
from orqen_ray.formats.format import Format
from orqen_ray.formats.paths import chat_path
from orqen_ray.formats.reading import bounded_depth
from orqen_ray.formats.registry import FORMATS
from orqen_ray.formats.tool_names import legal_tool_names
from orqen_ray.models.feasibility import Target, holds_sealed_reasoning, without_sealed_reasoning
from orqen_ray.planning.applying import Destination, changes_tools
from orqen_ray.planning.plan import Plan
from orqen_ray.providers.catalog import Catalog, Resolved
from orqen_ray.providers.headers import allowed_request_headers
from orqen_ray.relay import Route
from orqen_ray.types import Call, Capabilities, Credentials

_REASONING = "messages.thinking"
_BILLING = "system.x-anthropic-billing-header"
_ADDITION_BETAS = ("mid-conversation-tool-changes-2026-07-01", "inline-tools-2026-09-15")
"""https://platform.claude.com/docs/build-with-claude/mid-conversation-system-messages."""
_MAX_WRITTEN_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A request as it came in: authenticated, its body read, nothing else done.

    `headers` has lower-case names; `url_model` and `url_stream` are what Bedrock's URL says. `optimization` and
    `k_target` are the key's own switches.
    """

    format: Format
    body: bytes
    headers: Mapping[str, str]
    key_id: str
    request_id: str
    query: str = ""
    url_model: str | None = None
    url_stream: bool = False
    optimization: Mapping[str, bool] | None = None
    k_target: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller wants, from which a call is built for each model that is tried."""

    inbound: Inbound
    payload: JsonObject
    conversation: Conversation
    exchange: Exchange
    credentials: Credentials | None


class Candidates:
    """Builds calls. One per process."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # The tools of a plan are the same objects at every turn: JSON by their tuple, which is kept so that its id is.
        self._written: OrderedDict[tuple[int, str], tuple[tuple[Tool, ...], bytes]] = OrderedDict()
        self._written_bytes = 0

    def destination(self, resolved: Resolved) -> Destination:
        provider = resolved.provider
        capabilities = self._catalog.capabilities(provider.name, resolved.model_id)
        return Destination(dialect=provider.dialect, capabilities=capabilities)

    def target(self, resolved: Resolved) -> Target:
        provider, model_id = resolved.provider, resolved.model_id
        return Target(
            provider=provider.name,
            dialect=provider.dialect,
            model_id=model_id,
            capabilities=self._catalog.capabilities(provider.name, model_id),
            context_tokens=provider.context_tokens(model_id),
        )

    def build(self, asked: Asked, target: Resolved, plan: Plan, *, without_reasoning: bool = False) -> Candidate:
        """The call that sends `plan` to `target`.

        Raises:
            GatewayError: this conversation cannot be written for it.
        """
        with bounded_depth():
            return self._build(asked, target, plan, without_reasoning)

    def edits(
        self, inbound: Inbound, payload: JsonObject, conversation: Conversation, edited: Conversation
    ) -> dict[str, bytes] | None:
        """The fields of the caller's body that change with `edited`; see `edited_fields`."""
        if edited is conversation:
            return {}
        return edited_fields(
            inbound.body,
            payload,
            conversation,
            edited,
            lambda tools: self._tools(tools, inbound.format),
            lambda messages: _messages(messages, inbound.format),
        )

    def _build(self, asked: Asked, target: Resolved, plan: Plan, without_reasoning: bool) -> Candidate:
        inbound, conversation, edited = asked.inbound, asked.conversation, plan.conversation
        provider, dialect = target.provider, FORMATS[target.provider.dialect]
        capabilities = self._catalog.capabilities(provider.name, target.model_id)
        same_format = dialect.name == inbound.format.name
        asked_usage = False
        tool_names: Mapping[str, str] = {}
        dropped: tuple[str, ...] = ()
        if without_reasoning and (rest := without_sealed_reasoning(edited)) is not edited:
            dropped = (_REASONING,) if rest.reasoning == edited.reasoning else (_REASONING, "thinking")
            edited = rest
        edits = self.edits(inbound, asked.payload, conversation, edited) if same_format else None
        if edits is not None:
            faithful = faithful_body(inbound.body, asked.payload, conversation, target.model_id, capabilities, edits)
            body, asked_usage = faithful.body, faithful.asked_usage
        else:
            if not same_format:
                if not edited.messages:  # Converse may name a stored prompt instead, which nobody else can read
                    raise BadRequest("must hold at least one message", param="messages")
                if (system := lasting(edited.system)) is not edited.system:
                    edited = replace(edited, system=system)
                    dropped = (*dropped, _BILLING)
                edited, tool_names = legal_tool_names(edited, dialect.name)
            elif dialect.name == "openai_chat" and not edited.include_usage and capabilities.stream_usage:
                asked_usage = edited.stream
                edited = replace(edited, include_usage=edited.stream)
            written = dialect.write_request(edited, target.model_id, capabilities)
            body, dropped = msgspec.json.encode(written.body), without_indexes((*dropped, *written.dropped))
        headers = allowed_request_headers(dialect.name, inbound.headers if same_format else {})
        if dialect.name == "anthropic_messages" and plan.restores and changes_tools(edited):
            headers = _with_betas(headers)
        call = Call(
            provider=provider.name,
            path=chat_path(dialect.name, target.model_id, stream=conversation.stream),
            query=inbound.query if same_format else "",
            body=body,
            headers=headers,
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

    def _tools(self, tools: tuple[Tool, ...], format_: Format) -> bytes:
        """`tools` as a JSON array of `format_`, which is the caller's own."""
        key = (id(tools), format_.name)
        known = self._written.get(key)
        if known is not None:
            self._written.move_to_end(key)
            return known[1]
        only = Conversation(format=format_.name, model="", messages=(_ANY,), tools=tools)
        body = format_.write_request(only, "", _NOTHING_KNOWN).body
        written = msgspec.json.encode(body["toolConfig"]["tools"] if "toolConfig" in body else body["tools"])
        self._written[key] = tools, written
        self._written_bytes += len(written)
        while self._written_bytes > _MAX_WRITTEN_BYTES:
            self._written_bytes -= len(self._written.popitem(last=False)[1][1])
        return written


def _messages(messages: tuple[Message, ...], format_: Format) -> list[JsonObject]:
    only = Conversation(format=format_.name, model="", messages=messages)
    return list(format_.write_request(only, "", _NOTHING_KNOWN).body["messages"])


_ANY = Message(role="user", blocks=(Text(text="."),))
_NOTHING_KNOWN = Capabilities()


def _with_betas(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Headers that let tools be added among the messages."""
    said = [value for name, value in headers if name == "anthropic-beta"]
    betas = dict.fromkeys(word.strip() for value in said for word in value.split(",") if word.strip())
    betas |= dict.fromkeys(_ADDITION_BETAS)
    return (*(pair for pair in headers if pair[0] != "anthropic-beta"), ("anthropic-beta", ",".join(betas)))
