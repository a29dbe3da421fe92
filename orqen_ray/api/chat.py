"""The chat calls of the three SDKs, and the calls that pass through as they are."""

from __future__ import annotations

from dataclasses import replace

from starlette.routing import Route

from orqen_ray.api.endpoint import Endpoint, JsonAnswer, Request, Serve, inbound_of
from orqen_ray.errors import NotFound
from orqen_ray.formats.anthropic_messages.format import ANTHROPIC_MESSAGES
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE
from orqen_ray.formats.families import FAMILIES
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.passthrough import count, family_call, invoke
from orqen_ray.relay import Answer
from orqen_ray.service import Service


def chat_routes(service: Service) -> list[Route]:
    """Routes of `contract.md` that reach a provider."""
    gateway = service.gateway

    async def converse(request: Request) -> Answer:
        return await gateway.converse(inbound_of(request))

    async def converse_stream(request: Request) -> Answer:
        return await gateway.converse(replace(inbound_of(request), url_stream=True))

    async def count_tokens(request: Request) -> Answer | JsonAnswer:
        counted = await count(gateway, inbound_of(request))
        if isinstance(counted, int):
            return JsonAnswer(body={"input_tokens": counted}, headers={"x-orqen-estimated": "input_tokens"})
        return counted

    async def family(request: Request) -> Answer:
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        below = path.partition("/v1/")[2]
        name = below.partition("/")[0]
        if name not in FAMILIES:  # a known name, but percent-encoded
            raise NotFound(f"no such path: {path[:200]}; the calls of this gateway are listed in docs/api.md")
        return await family_call(gateway, inbound_of(request), f"/{below}", name, method=request.scope["method"])

    def invoked(operation: str) -> Serve:
        async def call(request: Request) -> Answer:
            return await invoke(gateway, inbound_of(request), operation)

        return call

    def bedrock(path: str, serve: Serve) -> Route:
        return _route(f"/model/{{model_id:path}}/{path}", Endpoint(service, BEDROCK_CONVERSE, serve))

    family_endpoint = Endpoint(service, OPENAI_CHAT, family, forms=True)
    return [
        _route("/v1/chat/completions", Endpoint(service, OPENAI_CHAT, converse)),
        _route("/v1/messages", Endpoint(service, ANTHROPIC_MESSAGES, converse)),
        _route("/v1/messages/count_tokens", Endpoint(service, ANTHROPIC_MESSAGES, count_tokens)),
        bedrock("converse", converse),
        bedrock("converse-stream", converse_stream),
        bedrock("invoke", invoked("invoke")),
        bedrock("invoke-with-response-stream", invoked("invoke-with-response-stream")),
        bedrock("count-tokens", invoked("count-tokens")),
        *(_route(f"/v1/{name}", family_endpoint) for name in sorted(FAMILIES)),
        *(_route(f"/v1/{name}/{{rest:path}}", family_endpoint, "GET", "POST", "DELETE") for name in sorted(FAMILIES)),
    ]


def _route(path: str, endpoint: Endpoint, *methods: str) -> Route:
    return Route(path, endpoint, methods=list(methods) or ["POST"])
