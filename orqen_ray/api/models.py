"""`GET /v1/models` in the shape of the SDK that asks."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.routing import Route

from orqen_ray.api.endpoint import Endpoint, JsonAnswer, Request
from orqen_ray.conversation import JsonObject
from orqen_ray.errors import UnknownModel
from orqen_ray.formats.anthropic_messages.format import ANTHROPIC_MESSAGES
from orqen_ray.formats.format import Format
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.service import Service

ROUTING_MODELS = ("orqen/auto", "orqen/cheap", "orqen/fast", "orqen/capable")
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
        if name not in models:
            raise UnknownModel(f"no connected provider lists the model {name[:200]!r}; GET /v1/models lists them")
        return JsonAnswer(body=_openai(name, models[name]) if request.format is OPENAI_CHAT else _anthropic(name))

    return [
        Route("/v1/models", Endpoint(service, _asked_format, list_models), methods=["GET"]),
        Route("/v1/models/{model_id:path}", Endpoint(service, _asked_format, one_model), methods=["GET"]),
    ]


def _asked_format(headers: Mapping[str, str]) -> Format:
    return ANTHROPIC_MESSAGES if "anthropic-version" in headers else OPENAI_CHAT


async def _models(service: Service) -> dict[str, str]:
    """Model string -> provider, the routing strings first. A model that two providers list is named with each."""
    connected = await service.gateway.upstream.connected()
    listed = [(provider.name, model.id) for provider, model in service.catalog.models(connected)]
    models = dict.fromkeys(ROUTING_MODELS, "orqen")
    for provider, model_id in listed:
        if models.setdefault(model_id, provider) != provider:
            models[f"{provider}/{model_id}"] = provider
    return models


def _openai(name: str, provider: str) -> JsonObject:
    return {"id": name, "object": "model", "created": 0, "owned_by": provider}


def _anthropic(name: str) -> JsonObject:
    return {"type": "model", "id": name, "display_name": name, "created_at": _EPOCH}
