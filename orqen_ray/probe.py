"""One cheap call to a provider: its list of models, which costs nothing, or a few tokens of its cheapest model."""

from __future__ import annotations

import msgspec

from orqen_ray.conversation import Conversation, Message, Text, Usage
from orqen_ray.errors import BadRequest
from orqen_ray.formats.paths import chat_path
from orqen_ray.formats.registry import FORMATS
from orqen_ray.providers.catalog import Catalog, Model, Provider
from orqen_ray.traces.cost import cost_usd
from orqen_ray.types import Call, UpstreamReply

PROBE_DEADLINE_S = 30.0
_MAX_PROBE_TOKENS = 16  # the least that OpenAI's newer models accept


def has_free_call(provider: Provider) -> bool:
    return "models" in provider.families


def probe_call(
    catalog: Catalog, provider: Provider, model: str | None, *, deadline_s: float = PROBE_DEADLINE_S
) -> Call:
    """The call; with `model`, always the one for a few tokens.

    Raises:
        BadRequest: the row has neither a list of models nor a model.
    """
    if model is None and has_free_call(provider):
        path = "/v1/models" if provider.dialect == "anthropic_messages" else "/models"
        return Call(provider=provider.name, method="GET", path=path, body=b"", deadline_s=deadline_s)
    model = model or _cheapest(provider)
    conversation = Conversation(
        format=provider.dialect,
        model=model,
        messages=(Message(role="user", blocks=(Text(text="Hi"),)),),
        max_tokens=_MAX_PROBE_TOKENS,
    )
    written = FORMATS[provider.dialect].write_request(conversation, model, catalog.capabilities(provider.name, model))
    return Call(
        provider=provider.name,
        path=chat_path(provider.dialect, model, stream=False),
        body=msgspec.json.encode(written.body),
        deadline_s=deadline_s,
    )


async def complaint(provider: Provider, reply: UpstreamReply) -> str | None:
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
