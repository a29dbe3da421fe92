"""Calls that no plan applies to: sent to the provider that owns the model, byte for byte, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace

import msgspec

from orqen_ray.attempts import Candidate
from orqen_ray.candidates import Inbound
from orqen_ray.conversation import Conversation
from orqen_ray.errors import BadRequest
from orqen_ray.exchange import Exchange
from orqen_ray.formats.anthropic_messages.request_in import read_count_request
from orqen_ray.formats.families import BEDROCK_INVOKE, OPENAI_FAMILY, json_model, multipart_model
from orqen_ray.formats.format import Format
from orqen_ray.formats.paths import bedrock_path
from orqen_ray.formats.rawjson import splice
from orqen_ray.formats.reading import bounded_depth, decode_object
from orqen_ray.gateway import Gateway
from orqen_ray.providers.catalog import Provider, Resolved
from orqen_ray.providers.headers import allowed_request_headers
from orqen_ray.relay import Answer, Route, answer
from orqen_ray.sessions import given_session_id
from orqen_ray.tokens import count_tokens
from orqen_ray.types import Call

_COUNT_PATH = "/v1/messages/count_tokens"
_STORING = frozenset({"responses", "videos"})
"""Families whose calls name what an earlier call left at the provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    """What goes to a provider; `model` as the caller named it."""

    model: str
    target: Resolved
    path: str
    body: bytes
    format: Format
    method: str = "POST"
    own_account: bool = False
    """It may speak of what is stored at the provider, or sealed by it: always the first of its keys."""


async def family_call(gateway: Gateway, inbound: Inbound, path: str, family: str, *, method: str = "POST") -> Answer:
    """A call of another OpenAI family (`/responses`, `/embeddings`, ...) to the provider that owns the model.

    A call without a body (`GET /responses/{id}`) goes to the one connected provider that offers the family.

    Raises:
        BadRequest: no model, or no provider that offers the family.
    """
    return await _send(gateway, inbound, _family_call(gateway, inbound, path, family, method))


async def _family_call(gateway: Gateway, inbound: Inbound, path: str, family: str, method: str) -> _Outgoing:
    body = inbound.body
    if not body:
        target = Resolved(provider=await _only_provider(gateway, family), model_id="")
        return _Outgoing(
            model="", target=target, path=path, body=b"", format=OPENAI_FAMILY, method=method, own_account=True
        )
    form = _is_form(inbound)
    if form:  # its parser takes its time
        content_type = inbound.headers["content-type"]
        model, start, end = await asyncio.to_thread(multipart_model, body, content_type)
    else:
        model = json_model(decode_object(body))
    target = await gateway.resolve(model)
    if not _offers(target.provider, family):
        raise BadRequest(
            f"the provider {target.provider.name!r} of {model!r} does not offer {family}; name another model",
            param="model",
        )
    if model != target.model_id:
        new = target.model_id
        body = body[:start] + new.encode() + body[end:] if form else splice(body, {"model": msgspec.json.encode(new)})
    return _Outgoing(
        model=model,
        target=target,
        path=path,
        body=body,
        format=OPENAI_FAMILY,
        method=method,
        own_account=family in _STORING,
    )


def _is_form(inbound: Inbound) -> bool:
    return inbound.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _offers(provider: Provider, family: str) -> bool:
    return provider.dialect == "openai_chat" and family in provider.families


async def _only_provider(gateway: Gateway, family: str) -> Provider:
    connected = await gateway.upstream.connected()
    offers = [gateway.catalog.providers[name] for name in sorted(connected)]
    offers = [provider for provider in offers if _offers(provider, family)]
    if len(offers) != 1:
        names = ", ".join(provider.name for provider in offers) or "none"
        raise BadRequest(f"this call names no model, so one connected provider must offer {family}; connected: {names}")
    return offers[0]


async def invoke(gateway: Gateway, inbound: Inbound, operation: str) -> Answer:
    """Bedrock's InvokeModel and its kin: the body is the model's own format, so only Bedrock can read it.

    Raises:
        BadRequest: the model is not Bedrock's.
    """
    return await _send(gateway, inbound, _invoke(gateway, inbound, operation))


async def _invoke(gateway: Gateway, inbound: Inbound, operation: str) -> _Outgoing:
    model = inbound.url_model or ""
    target = await gateway.resolve(model)
    if target.provider.dialect != "bedrock_converse":
        raise BadRequest(
            f"{operation} reaches Bedrock models only, and {model!r} belongs to {target.provider.name!r}; use converse"
        )
    path = bedrock_path(target.model_id, operation)
    return _Outgoing(model=model, target=target, path=path, body=inbound.body, format=BEDROCK_INVOKE, own_account=True)


async def count(gateway: Gateway, inbound: Inbound) -> Answer | int:
    """Tokens of an Anthropic request as it would be sent: the provider's answer, or an estimate where it has none.

    An estimate reaches no provider and leaves no trace row.

    Raises:
        GatewayError: the request cannot be read, or no provider owns the model.
    """
    payload = decode_object(inbound.body)
    with bounded_depth():
        conversation = read_count_request(payload, None)
    target = await gateway.resolve(conversation.model)
    provider = target.provider
    edited = (await gateway.plan(inbound, conversation, target, keep=False)).conversation
    if provider.dialect != "anthropic_messages" or "count_tokens" not in provider.families:
        return await asyncio.to_thread(count_tokens, edited)
    edits = gateway.candidates.edits(inbound, payload, conversation, edited) or {}
    changed = {} if conversation.model == target.model_id else {"model": msgspec.json.encode(target.model_id)}
    format_ = replace(inbound.format, scan_reply=OPENAI_FAMILY.scan_reply)
    body = splice(inbound.body, {**edits, **changed})

    async def counting() -> _Outgoing:
        return _Outgoing(model=conversation.model, target=target, path=_COUNT_PATH, body=body, format=format_)

    return await _send(gateway, inbound, counting())


async def _send(gateway: Gateway, inbound: Inbound, plan: Awaitable[_Outgoing]) -> Answer:
    """Send what `plan` gives. A plan that fails leaves a trace row too."""
    exchange = Exchange(
        request_id=inbound.request_id,
        key_id=inbound.key_id,
        session_id=given_session_id(inbound.headers) or "",
        inbound_format=inbound.format.name,
        estimate_usage=False,
    )
    try:
        outgoing = await plan
        exchange.billed = outgoing.method == "POST"
        provider = outgoing.target.provider
        exchange.requested_model, exchange.request_bytes = outgoing.model, len(outgoing.body)
        exchange.unread_body = b"" if _is_form(inbound) else outgoing.body
        exchange.note_target(outgoing.target)
        call = Call(
            provider=provider.name,
            path=outgoing.path,
            method=outgoing.method,
            query=inbound.query,
            body=outgoing.body,
            headers=allowed_request_headers(provider.dialect, inbound.headers),
            stream=True,
            model=outgoing.target.model_id,
            conversation="" if outgoing.own_account else exchange.of_caller(exchange.session_id or inbound.request_id),
            key_bound=outgoing.own_account,
        )
        nothing = Conversation(format=inbound.format.name, model=outgoing.model, messages=())
        route = Route(caller=outgoing.format, provider=outgoing.format, conversation=nothing)
        candidate = Candidate(target=outgoing.target, call=call, route=route)
        reply = await gateway.forward(candidate, exchange)
        return await answer(reply, route, exchange, gateway.record)
    except BaseException as error:
        gateway.fail(exchange, error)
        raise
