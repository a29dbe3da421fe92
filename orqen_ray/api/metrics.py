"""`GET /metrics`: what the processes of this node have counted, for Prometheus and an admin key."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orqen_ray.api.wire import headers_of, request_id_of, secret_of
from orqen_ray.errors import Forbidden, GatewayError
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.service import Service


def metrics_route(service: Service) -> Route:
    """The page is read from files in a thread, one at a time. Scrapes are not counted themselves."""
    one_at_a_time = asyncio.Lock()

    async def metrics(request: Request) -> Response:
        headers = headers_of(request.scope)
        request_id = request_id_of(headers)
        try:
            if not service.settings.server.open_metrics:
                key = await service.authenticate(secret_of(headers))
                if not key.is_admin:
                    raise Forbidden("/metrics needs an admin key: `orqen keys create --admin prometheus` makes one")
            async with one_at_a_time:
                page, content_type = await asyncio.to_thread(service.metrics.exposition, headers.get("accept", ""))
        except GatewayError as error:
            wire = OPENAI_CHAT.write_error(error, request_id)
            answer = Response(msgspec.json.encode(wire.body), wire.status, {**error.headers, **wire.headers})
            answer.headers["content-type"] = "application/json"
        else:
            answer = Response(page, headers={"content-type": content_type, "cache-control": "no-store"})
        answer.headers["x-request-id"] = request_id
        return answer

    return Route("/metrics", metrics, methods=["GET"])
