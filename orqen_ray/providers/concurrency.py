"""How many calls may be open at a time to a provider, in this process; the others wait in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from orqen_ray.errors import Overloaded
from orqen_ray.providers.catalog import Provider

_RETRY_AFTER_S = 1.0


class Slot:
    """A place among the open calls of a provider; given back once, however often it is freed."""

    __slots__ = ("_semaphore",)

    def __init__(self, semaphore: asyncio.Semaphore | None) -> None:
        self._semaphore = semaphore

    def free(self) -> None:
        semaphore, self._semaphore = self._semaphore, None
        if semaphore is not None:
            semaphore.release()


class Slots:
    """The slots of all providers that have a limit; those without one never wait."""

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._limits = {row.name: row.max_concurrent_requests for row in providers if row.max_concurrent_requests}
        self._semaphores = {name: asyncio.Semaphore(limit) for name, limit in self._limits.items()}

    async def take(self, provider: str, wait_s: float) -> Slot:
        """A slot, at once or within `wait_s`; first come, first served.

        Raises:
            Overloaded: none came free in time.
        """
        semaphore = self._semaphores.get(provider)
        if semaphore is None:
            return Slot(None)
        try:
            async with asyncio.timeout(wait_s if semaphore.locked() else None):
                await semaphore.acquire()
        except TimeoutError:
            raise Overloaded(
                f"the provider {provider!r} has {self._limits[provider]} calls open, as many as its "
                f"max_concurrent_requests allows, and none ended within {wait_s:.1f} s; try again later",
                retry_after_s=_RETRY_AFTER_S,
            ) from None
        return Slot(semaphore)
