"""The forwarder pool as the ingress sees it: an `Upstream` whose network is behind a Ray Serve handle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextvars import Context
from copy import copy
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from orqen_ray.errors import GatewayError, UpstreamTimeout, UpstreamUnavailable
from orqen_ray.store.outage import forget_failure
from orqen_ray.types import Call, UpstreamReply

CONNECTED_FRESH_S = 2.0
CONNECTED_TIMEOUT_S = 5.0
DEADLINE_SLACK_S = 1.0
"""By how much the pool's own word that a deadline has passed is waited for."""

Frames = Any  # DeploymentResponseGenerator[Frame]; Ray's class is not subscriptable at run time


@dataclass(frozen=True, slots=True)
class Head:
    """The first frame of an answer; the body follows as `bytes`, an error at any place as a `GatewayError`.

    `key` and `other_keys` as in `UpstreamReply`.
    """

    status: int
    headers: Mapping[str, str]
    key: str | None = None
    other_keys: bool = False


Frame = Head | bytes | GatewayError


class RemoteForwarder:
    """Sends calls to the pool. Errors of the provider cross as data; losing the pool is `UpstreamUnavailable`.

    `head_timeout_s` and `idle_timeout_s` bound the wait for the head and for each frame. They stand behind the pool's
    own time-outs, for a pool that is wedged or has no replica, so they should be a little longer.
    """

    def __init__(self, pool: DeploymentHandle[Any], *, head_timeout_s: float, idle_timeout_s: float) -> None:
        # Replica-to-replica gRPC with plain pickle; each attribute access builds a handle, hence once, here.
        by_value: dict[str, Any] = {
            "_by_reference": False,
            "request_serialization": "pickle",
            "response_serialization": "pickle",
        }
        self._send = pool.options(method_name="send", stream=True, **by_value)
        self._connected = pool.options(method_name="connected", **by_value)
        self._head_timeout_s = head_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._names: frozenset[str] = frozenset()
        self._fresh_until = 0.0
        self._refresh: asyncio.Task[frozenset[str]] | None = None

    async def send(self, call: Call) -> UpstreamReply:
        """See `Upstream.send`. A cancelled send is cancelled in the pool too."""
        chunks = _Chunks(self._send.remote(call), self._idle_timeout_s)
        try:
            head = await chunks.next_frame(self._head_wait_s(call))
        except BaseException:
            await chunks.aclose()
            raise
        if not isinstance(head, Head):
            await chunks.aclose()
            raise UpstreamUnavailable("The forwarder pool ended the answer before it began; send the request again.")
        return UpstreamReply(
            status=head.status, headers=head.headers, chunks=chunks, key=head.key, other_keys=head.other_keys
        )

    def _head_wait_s(self, call: Call) -> float:
        if call.deadline_s is None:
            return self._head_timeout_s
        return min(self._head_timeout_s, call.deadline_s + DEADLINE_SLACK_S)

    async def connected(self) -> frozenset[str]:
        """See `Upstream.connected`; at most `CONNECTED_FRESH_S` old.

        Raises:
            UpstreamUnavailable: the pool does not answer.
        """
        if time.monotonic() < self._fresh_until:
            return self._names
        if self._refresh is None or self._refresh.done():
            # In no request's context: Serve would cancel the question with the request that happened to ask it.
            self._refresh = asyncio.create_task(self._ask_names(), context=Context())
            self._refresh.add_done_callback(forget_failure)
        # All who wait share one question and its failure: asked one after another, they would wait ever longer.
        refresh = self._refresh
        await asyncio.wait({refresh})
        if (error := refresh.exception()) is not None:
            raise copy(error)
        return refresh.result()

    async def _ask_names(self) -> frozenset[str]:
        self._names = await _bounded(self._connected.remote(), CONNECTED_TIMEOUT_S)
        self._fresh_until = time.monotonic() + CONNECTED_FRESH_S
        return self._names

    async def aclose(self) -> None:
        """The pool belongs to Ray Serve: nothing to close."""


class _Chunks(AsyncIterator[bytes]):
    """The body of one answer. Closing it, or cancelling the reader, cancels the call in the pool.

    A class, not a generator: closing a generator that was never started would run none of its code.
    """

    def __init__(self, frames: Frames, idle_timeout_s: float) -> None:
        self._frames = frames
        self._idle_timeout_s = idle_timeout_s
        self._done = False

    async def __anext__(self) -> bytes:
        if self._done:
            raise StopAsyncIteration
        try:
            frame = await self.next_frame(self._idle_timeout_s)
        except BaseException:
            await self.aclose()
            raise
        if not isinstance(frame, bytes):
            self._done = True
            raise StopAsyncIteration
        return frame

    async def next_frame(self, timeout_s: float) -> Frame | None:
        """The next frame, None at the end.

        Raises:
            GatewayError: sent by the pool, or standing for the loss of it.
        """
        frame: Frame | None = await _bounded(anext(self._frames, None), timeout_s)
        if isinstance(frame, GatewayError):
            raise frame
        return frame

    async def aclose(self) -> None:
        if not self._done:
            self._done = True
            self._frames.cancel()


async def _bounded(answer: Any, timeout_s: float) -> Any:
    """Await what a handle returned; whatever Ray raises becomes an error that a caller may see."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except GatewayError:
        raise
    except TimeoutError as error:
        raise UpstreamTimeout(f"The forwarder pool did not answer within {timeout_s:g} s.") from error
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, GatewayError):
            raise cause from None
        raise UpstreamUnavailable("The forwarder pool is not available; try again shortly.") from error
