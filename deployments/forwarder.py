"""The provider pool: the gateway's forwarder on nodes of its own, where egress and provider secrets can be isolated."""

from __future__ import annotations

from collections.abc import AsyncIterator

from deployments.remote import Frame, Head
from orqen_ray.config import Settings
from orqen_ray.errors import GatewayError
from orqen_ray.logs import configure_logs
from orqen_ray.service import open_database, open_forwarder, open_metrics
from orqen_ray.types import Call


class ForwarderPool:
    """One replica of the pool. Streams an answer as frames: the head, then the bytes as they arrive."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        configure_logs(**settings.logs.model_dump())
        metrics = open_metrics("forwarder")
        self._database = await open_database(settings, metrics)
        self._forwarder = await open_forwarder(settings, self._database, metrics=metrics)

    async def send(self, call: Call) -> AsyncIterator[Frame]:
        """Forward one call; a cancelled call, at any point, closes the connection to the provider.

        No timer gathers bytes: while one frame is written, the HTTP client buffers, and the next read takes all.
        """
        try:
            reply = await self._forwarder.send(call)
        except GatewayError as error:
            yield error
            return
        try:
            yield Head(reply.status, dict(reply.headers), reply.key, reply.other_keys)
            async for chunk in reply.chunks:
                yield chunk
        except GatewayError as error:
            yield error
        finally:
            await reply.aclose()

    async def connected(self) -> frozenset[str]:
        return await self._forwarder.connected()

    async def check_health(self) -> None:
        await self._forwarder.connected()

    async def __del__(self) -> None:
        await self._forwarder.aclose()
        await self._database.aclose()
