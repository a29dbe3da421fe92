"""`POST /v1/optimize/preview`: the plan of a request in any of the three formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from starlette.routing import Route

from orqen_ray.api.endpoint import Endpoint, JsonAnswer, Request, inbound_of
from orqen_ray.conversation import JsonObject
from orqen_ray.errors import BadRequest
from orqen_ray.formats.format import Format
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.formats.reading import decode_object
from orqen_ray.formats.registry import FORMATS
from orqen_ray.preview import preview
from orqen_ray.service import Service


def preview_route(service: Service) -> Route:
    """The route; errors are OpenAI's, whatever format the request has."""

    async def serve(request: Request) -> JsonAnswer:
        query = parse_qs(request.query)
        format_ = _format(query.get("format", [""])[0], request.headers, decode_object(request.body))
        model = query.get("model", [None])[0] if format_.name == "bedrock_converse" else None
        inbound = replace(inbound_of(request), format=format_, url_model=model)
        return JsonAnswer(body=await preview(service.gateway, inbound))

    return Route("/v1/optimize/preview", Endpoint(service, OPENAI_CHAT, serve), methods=["POST"])


def _format(named: str, headers: Mapping[str, str], body: JsonObject) -> Format:
    """The format that is named, or else the one that the body can only be."""
    if named:
        found = next((format_ for name, format_ in FORMATS.items() if name == named), None)
        if found is None:
            raise BadRequest(f"expected one of {', '.join(FORMATS)}", param="format")
        return found
    if {"toolConfig", "inferenceConfig", "additionalModelRequestFields"} & body.keys() or "model" not in body:
        return FORMATS["bedrock_converse"]
    if "anthropic-version" in headers or "system" in body or any(map(_is_anthropic, _list(body.get("tools")))):
        return FORMATS["anthropic_messages"]
    return FORMATS["openai_chat"]


def _is_anthropic(tool: Any) -> bool:
    return isinstance(tool, dict) and "input_schema" in tool


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
