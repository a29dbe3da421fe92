"""One cheap call to a provider, to see whether it takes a key."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from orqen_ray.conversation import Conversation, Message, Text, Usage
from orqen_ray.errors import BadRequest, GatewayError
from orqen_ray.formats.paths import chat_path
from orqen_ray.formats.registry import FORMATS
from orqen_ray.providers.catalog import Catalog, Model, Provider
from orqen_ray.providers.forward import Forwarder
from orqen_ray.traces.cost import cost_usd
from orqen_ray.types import Call, Credentials, UpstreamReply

_DEADLINE_S = 30.0
_MAX_TOKENS = 16  # the least that OpenAI's newer models accept


class _OneKey:
    """A source of credentials that holds one key of one provider, or none."""

    def __init__(self, provider: str, key: Credentials | None) -> None:
        self._provider = provider
        self._key = key

    async def get(self, provider: str) -> Credentials | None:
        return self._key if provider == self._provider else None

    async def names(self) -> frozenset[str]:
        return frozenset({self._provider} if self._key else ())


async def probe(catalog: Catalog, provider: Provider, key: Credentials | None, model: str | None) -> dict[str, Any]:
    """Ask for the list of models, which costs nothing, or else `model` or the cheapest one for a few tokens.

    Returns:
        `provider`, `call`, `ok`, `status` (None without an answer), `took_ms`, `message`.
    Raises:
        BadRequest: there is no model to ask.
    """
    call = _call(catalog, provider, model)
    forwarder = Forwarder(catalog, _OneKey(provider.name, key))
    started_s = time.perf_counter()
    status = None
    try:
        reply = await forwarder.send(call)
        message = await _complaint(provider, reply)
        status = reply.status
    except GatewayError as error:
        message = error.message
    finally:
        await forwarder.aclose()
    return {
        "provider": provider.name,
        "call": f"{call.method} {call.path}",
        "ok": message is None,
        "status": status,
        "took_ms": (time.perf_counter() - started_s) * 1000,
        "message": message,
    }


def _call(catalog: Catalog, provider: Provider, model: str | None) -> Call:
    if model is None and "models" in provider.families:
        path = "/v1/models" if provider.dialect == "anthropic_messages" else "/models"
        return Call(provider=provider.name, method="GET", path=path, body=b"", deadline_s=_DEADLINE_S)
    model = model or _cheapest(provider)
    conversation = Conversation(
        format=provider.dialect,
        model=model,
        messages=(Message(role="user", blocks=(Text(text="Hi"),)),),
        max_tokens=_MAX_TOKENS,
    )
    written = FORMATS[provider.dialect].write_request(conversation, model, catalog.capabilities(provider.name, model))
    return Call(
        provider=provider.name,
        path=chat_path(provider.dialect, model, stream=False),
        body=msgspec.json.encode(written.body),
        deadline_s=_DEADLINE_S,
    )


async def _complaint(provider: Provider, reply: UpstreamReply) -> str | None:
    """What the provider said against the call, in one line; None when it answered it."""
    body = b"".join([chunk async for chunk in reply.chunks])
    if reply.status < 400:
        return None
    said = FORMATS[provider.dialect].read_error(reply.status, reply.headers, body).message
    cure = f"; store other credentials: orqen providers connect {provider.name}" if reply.status in (401, 403) else ""
    visible = "".join(character if character.isprintable() else " " for character in said)
    return f"HTTP {reply.status}: {visible}{cure}"


def _cheapest(provider: Provider) -> str:
    def price_usd(model: Model) -> float:
        own = model.input_usd_per_mtok
        price = cost_usd(provider.name, model.id, Usage(input_tokens=10**6)) if own is None else own
        return float("inf") if price is None else price

    if not provider.models:
        raise BadRequest(f"the row of {provider.name!r} lists no model: name one with --model")
    return min(provider.models, key=price_usd).id
