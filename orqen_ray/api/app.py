"""The HTTP application: every route, and errors for what no route takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from orqen_ray.api.chat import chat_routes
from orqen_ray.api.metrics import metrics_route
from orqen_ray.api.models import model_routes
from orqen_ray.api.preview import preview_route
from orqen_ray.api.wire import headers_of, request_id_of
from orqen_ray.errors import GatewayError, MethodNotAllowed, NotFound
from orqen_ray.formats.anthropic_messages.format import ANTHROPIC_MESSAGES
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE
from orqen_ray.formats.families import FAMILIES
from orqen_ray.formats.format import Format
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.recording import record_unforwarded
from orqen_ray.service import Service

logger = logging.getLogger(__name__)


class Application(FastAPI):
    """Calls to providers whose path is fixed go straight to their endpoints, past FastAPI's layers and its routing.

    An endpoint is an ASGI application that answers every error by itself; the layers would only cost it time, for each
    call and again for each chunk of a stream.
    """

    endpoints: Mapping[str, ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self.endpoints.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(service: Service) -> Application:
    """The application for `service`."""
    # A redirect of `/v1/messages/` would name whatever host the request names, and clients follow it with their key.
    app = Application(title="Orqen-Ray", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    calls = chat_routes(service)
    app.router.routes.extend([*calls, *model_routes(service), preview_route(service), metrics_route(service)])
    app.endpoints = {route.path: route.app for route in calls if not route.param_convertors}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """The whole graph can serve."""
        try:
            await service.ready()
        except Exception as error:  # noqa: BLE001  # whatever it is, the answer is the same: not ready
            logger.warning("not ready: %s", type(error).__name__)
            return JSONResponse({"status": "not ready"}, status_code=503)
        return JSONResponse({"status": "ok"})

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        format_ = _format_of(request.scope["path"], request)
        record_unforwarded(format_.name, error.status_code, service.metrics)
        return _no_route(request, error, format_)

    return app


def _no_route(request: Request, error: HTTPException, format_: Format) -> Response:
    path = request.scope["path"]
    wrong: GatewayError = NotFound(f"no such path: {path[:200]!r}; {_advice(path)}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "POST")
        wrong = MethodNotAllowed(f"{request.method} is not allowed here; try {allowed}")
    request_id = request_id_of(headers_of(request.scope))
    wire = format_.write_error(wrong, request_id)
    headers = {**wire.headers, "content-type": "application/json", "x-request-id": request_id}
    if error.headers and "Allow" in error.headers:
        headers["allow"] = error.headers["Allow"]
    return Response(msgspec.json.encode(wire.body), status_code=wire.status, headers=headers)


def _advice(path: str) -> str:
    """The usual mistake is a base URL with `/v1` where the SDK adds it, or without it where the SDK does not."""
    if path.startswith(("/v1/v1/", "/v1/model/")):
        return "the base URL of the Anthropic SDK and the endpoint_url of boto3 end without /v1"
    if path.startswith(("/chat/", "/models", *(f"/{family}" for family in FAMILIES))):
        return "the base URL of the OpenAI SDK ends with /v1"
    return "docs/api.md lists the calls of this gateway"


def _format_of(path: str, request: Request) -> Format:
    """The format that the caller of a wrong path most likely speaks."""
    if "/model/" in path or request.headers.get("authorization", "").startswith("AWS4-"):
        return BEDROCK_CONVERSE
    if "/messages" in path or "anthropic-version" in request.headers:
        return ANTHROPIC_MESSAGES
    return OPENAI_CHAT
