"""`GET /v1/models` in the shape of the SDK that asks."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.routing import Route

from orqen_ray.api.endpoint import Endpoint, JsonAnswer, Request
from orqen_ray.conversation import JsonObject
from orqen_ray.errors import GatewayError
from orqen_ray.formats.anthropic_messages.format import ANTHROPIC_MESSAGES
from orqen_ray.formats.format import Format
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.providers.catalog import ROUTING_STRINGS
from orqen_ray.service import Service

_EPOCH = "1970-01-01T00:00:00Z"


def model_routes(service: Service) -> list[Route]:
    """The list, and one model of it."""

    async def list_models(request: Request) -> JsonAnswer:
        models = await _models(service)
        if request.format is OPENAI_CHAT:
            return JsonAnswer(body={"object": "list", "data": [_openai(*model) for model in models.items()]})
        data = [_anthropic(name) for name in models]
        page = {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return JsonAnswer(body=page)

    async def one_model(request: Request) -> JsonAnswer:
        name = request.path_params["model_id"]
        models = await _models(service)
        # A model that nobody lists may still have an owner; who it is, or what is missing, `resolve` says best.
        provider = models.get(name) or (await service.gateway.resolve(name)).provider.name
        return JsonAnswer(body=_openai(name, provider) if request.format is OPENAI_CHAT else _anthropic(name))

    return [
        Route("/v1/models", Endpoint(service, _asked_format, list_models), methods=["GET"]),
        Route("/v1/models/{model_id:path}", Endpoint(service, _asked_format, one_model), methods=["GET"]),
    ]


def _asked_format(headers: Mapping[str, str]) -> Format:
    return ANTHROPIC_MESSAGES if "anthropic-version" in headers else OPENAI_CHAT


async def _models(service: Service) -> dict[str, str]:
    """Model string -> provider, the routing strings last; one whose bare id means another has a prefix."""
    connected = await service.gateway.upstream.connected()
    models: dict[str, str] = {}
    for provider, model in service.catalog.models(connected):
        try:
            owner = service.catalog.resolve(model.id, connected).provider.name
        except GatewayError:
            owner = None
        models[model.id if owner == provider.name else f"{provider.name}/{model.id}"] = provider.name
    return models | dict.fromkeys(ROUTING_STRINGS, "orqen")


def _openai(name: str, provider: str) -> JsonObject:
    return {"id": name, "object": "model", "created": 0, "owned_by": provider}


def _anthropic(name: str) -> JsonObject:
    return {"type": "model", "id": name, "display_name": name, "created_at": _EPOCH}
