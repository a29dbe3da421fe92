"""The outermost ASGI layer of an ingress replica: what Ray Serve would obey from any caller is taken out first."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from secrets import token_hex
from typing import Any

from starlette.middleware import Middleware

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Serve obeys these from any client: a time limit, "do not watch for my disconnect", the choice of a replica.
# https://docs.ray.io/en/latest/serve/http-guide.html; names match with `_` and `-` alike.
SERVE_HEADERS = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id", b"x-session-id"}
)
REQUEST_ID = b"x-request-id"
SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

# Serve then starts no tasks of its own that watch for the client to go away.
UNWATCHED = (b"x-request-disconnect-disabled", b"?1")


class Edge:
    """Strips Serve's own request headers, and gives each request one sane `X-Request-ID` that all behind it use.

    Args:
        unwatched: the application watches for disconnects by itself, and can: it is in this process and on this loop.
    """

    def __init__(self, app: AsgiApp, unwatched: bool = False) -> None:
        self._app = app
        self._own = [UNWATCHED] if unwatched else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        def send_one_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = _first_id_only(message.get("headers", ()))
            return send(message)

        kept = [(name, value) for name, value in scope["headers"] if _wanted(name, value)]
        request_id = next((value for name, value in kept if name == REQUEST_ID), None)
        if request_id is None:  # Serve would make a UUID of its own, which takes longer
            kept.insert(0, (REQUEST_ID, b"req_" + token_hex(12).encode()))
        scope["headers"] = kept + self._own
        await self._app(scope, receive, send_one_id)


def middlewares() -> list[Middleware]:
    """What `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names: the layers around Serve's own HTTP server."""
    return [Middleware(Edge, unwatched=_on_the_loop_of_a_replica())]


def _on_the_loop_of_a_replica() -> bool:
    """Whether this process is a replica that runs the application on its server's own loop, and not Serve's proxy."""
    from ray.serve._private.constants import RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD
    from ray.serve.context import _get_internal_replica_context

    replica = _get_internal_replica_context()  # type: ignore[no-untyped-call]
    return replica is not None and not RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD


def _wanted(name: bytes, value: bytes) -> bool:
    if name == REQUEST_ID:
        return SANE_REQUEST_ID.fullmatch(value) is not None
    return name.replace(b"_", b"-") not in SERVE_HEADERS


def _first_id_only(headers: Any) -> list[tuple[bytes, bytes]]:
    # Serve appends its X-Request-ID after the application's: the application's is the one that its traces know.
    kept: list[tuple[bytes, bytes]] = []
    seen = False
    for name, value in headers:
        is_id = name.lower() == REQUEST_ID
        if not (is_id and seen):
            kept.append((name, value))
        seen = seen or is_id
    return kept
