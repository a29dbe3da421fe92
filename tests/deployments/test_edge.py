"""What the outermost layer takes out of requests and answers, without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.edge import SANE_REQUEST_ID, Edge, Message, Receive, Scope, Send, middlewares

Headers = list[tuple[bytes, bytes]]


async def _pass_through(request: Headers, response: Headers, *, unwatched: bool = False) -> tuple[Headers, Headers]:
    """The headers as the application sees them, and as the client does."""
    seen: Headers = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": response})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "headers": request}
    await Edge(app, unwatched)(scope, receive, send)
    return seen, sent[0]["headers"]


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"x-session-id",
        b"x_session_id",
    ],
)
async def test_serves_own_headers_do_not_reach_serve(name: bytes) -> None:
    seen, _ = await _pass_through([(name, b"1"), (b"x-orqen-session-id", b"mine")], [])
    assert seen[1:] == [(b"x-orqen-session-id", b"mine")] and seen[0][0] == b"x-request-id"


@pytest.mark.parametrize(
    ("value", "kept"), [(b"req-1:a.b_c", True), (b"a b", False), (b"", False), (b"a" * 129, False)]
)
async def test_only_a_sane_request_id_is_kept(value: bytes, kept: bool) -> None:
    seen, _ = await _pass_through([(b"x-request-id", value)], [])
    ((_, used),) = seen
    assert (used == value) is kept and SANE_REQUEST_ID.fullmatch(used)


async def test_the_first_request_id_of_an_answer_is_the_only_one() -> None:
    answer = [(b"x-request-id", b"ours"), (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"X-Request-ID", b"serves")]
    _, sent = await _pass_through([], answer)
    assert sent == answer[:3]


async def test_a_replica_that_watches_by_itself_tells_serve_so_whatever_the_caller_says() -> None:
    own, theirs = (b"x-request-disconnect-disabled", b"?1"), (b"x-request-disconnect-disabled", b"?0")
    seen, _ = await _pass_through([theirs, (b"x-request-id", b"one")], [], unwatched=True)
    assert seen == [(b"x-request-id", b"one"), own]


def test_outside_a_replica_serve_watches() -> None:
    (layer,) = middlewares()
    assert layer.kwargs == {"unwatched": False}, "as in Serve's own proxy, where the application is in another process"
