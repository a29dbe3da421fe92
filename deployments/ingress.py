"""The ingress: the whole gateway in one replica, behind Ray Serve's HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from deployments.encoders import RemoteEmbedder, RemoteReranker
from deployments.remote import RemoteForwarder
from orqen_ray.api.app import create_app
from orqen_ray.config import Settings
from orqen_ray.encoders.protocol import Opening
from orqen_ray.logs import configure_logs
from orqen_ray.service import Service, open_service

HEALTH_TIMEOUT_S = 5.0
POOL_SLACK_S = 5.0
HEALTH_SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/healthz",
    "raw_path": b"/healthz",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
    "client": None,
    "server": None,
}


class Ingress:
    """Forwards and encodes itself, or through the pools whose handles it is given."""

    def __init__(
        self,
        settings: Settings,
        pool: DeploymentHandle[Any] | None = None,
        embedder: DeploymentHandle[Any] | None = None,
        reranker: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._embedder = embedder
        self._reranker = reranker
        self._service: Service | None = None
        self._app: FastAPI | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        configure_logs(**self._settings.logs.model_dump())
        upstream = remote_forwarder(self._settings, self._pool) if self._pool is not None else None
        self._service = await open_service(
            self._settings,
            upstream,
            embedder=None if self._embedder is None else RemoteEmbedder(self._embedder),
            reranker=None if self._reranker is None else RemoteReranker(self._reranker),
        )
        for encoder in (self._service.embedder, self._service.reranker):
            if isinstance(encoder, Opening):
                await encoder.opened()  # the first requests, too, find it; without it they are served all the same
        self._app = create_app(self._service)
        return self._app

    async def check_health(self) -> None:
        """Ask the application itself: a replica whose request path is broken is replaced."""
        if self._app is None:
            return
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            await self._app(dict(HEALTH_SCOPE), receive, send)
        if status != 200:
            raise RuntimeError(f"GET /healthz inside the replica answered {status}, not 200")

    async def __del__(self) -> None:
        if self._service is not None:
            await self._service.aclose()


def remote_forwarder(settings: Settings, pool: DeploymentHandle[Any]) -> RemoteForwarder:
    """The pool behind `pool`, with bounds that leave its own time-outs the first word."""
    waits = settings.timeouts
    head_s = waits.queue_s + waits.connect_s + waits.first_byte_s + POOL_SLACK_S
    return RemoteForwarder(pool, head_timeout_s=head_s, idle_timeout_s=waits.idle_s + POOL_SLACK_S)
