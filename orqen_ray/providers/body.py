"""The body of a provider's answer as it arrives, and what can go wrong on the way, in the gateway's own words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp

from orqen_ray.errors import (
    DeadlinePassed,
    GatewayError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from orqen_ray.providers.addresses import AddressRefused

_MAX_ERROR_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`idle_s`: seconds between two chunks; `deadline_s`: the loop's time at which the whole answer must be there."""

    idle_s: float
    deadline_s: float


class Body:
    """The body of an answer as it arrives. It ends once: read to its end, closed, cancelled or failed, and at the
    deadline also when nobody reads, as when the caller does not.

    A class and not a generator: a generator that was never started closes nothing when it is closed.

    Args:
        limits: what bounds the wait for each chunk.
        ended: told once, and whether it was the provider that broke off.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, provider: str, limits: Limits, ended: Callable[[bool], None]
    ) -> None:
        self._response = response
        self._provider = provider
        self._limits = limits
        self._ended: Callable[[bool], None] | None = ended
        self._reading = False
        self._timer = asyncio.get_running_loop().call_at(limits.deadline_s, self._expire)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        now_s = asyncio.get_running_loop().time()
        idle_at_s, deadline_s = now_s + self._limits.idle_s, self._limits.deadline_s
        content = self._response.content
        try:
            with translated(self._provider, in_time=idle_at_s <= deadline_s):
                if now_s >= deadline_s:
                    raise TimeoutError
                chunk = content.read_nowait()  # what is here already needs no timer
                if not chunk and not content.at_eof():
                    self._reading = True
                    async with asyncio.timeout_at(min(deadline_s, idle_at_s)):
                        chunk = await content.readany()
                    self._reading = False
        except BaseException as error:
            self._end(broke_off=isinstance(error, UpstreamError) and not isinstance(error, DeadlinePassed))
            raise
        if not chunk:
            self._end(close=False)
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self._end()

    def _expire(self) -> None:
        if not self._reading:  # else the reader's own timer ends it
            self._end()

    def _end(self, *, broke_off: bool = False, close: bool = True) -> None:
        ended, self._ended = self._ended, None
        self._timer.cancel()
        if close:
            self._response.close()
        if ended is not None:
            ended(broke_off)


async def read_error(body: Body) -> bytes:
    """The body of an error, at most 1 MiB of it; what was there before it broke off."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in body:
            chunks.append(chunk)
            size += len(chunk)
            if size >= _MAX_ERROR_BYTES:
                break
    except UpstreamError:
        pass
    finally:
        await body.aclose()
    return b"".join(chunks)[:_MAX_ERROR_BYTES]


class translated:  # a context manager is called like a function; this one runs for each chunk
    """aiohttp's errors as ours. Their texts hold addresses, so none is shown.

    `in_time`: should there be a time-out, it is the provider's and not that of the whole request.
    """

    __slots__ = ("_in_time", "_provider")

    def __init__(self, provider: str, *, in_time: bool = True) -> None:
        self._provider = provider
        self._in_time = in_time

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        if isinstance(error, aiohttp.ClientError | OSError):
            raise _translation(error, self._provider, self._in_time) from error


def _translation(error: Exception, provider: str, in_time: bool) -> GatewayError:
    named = f"the provider {provider!r}"
    match error:
        case aiohttp.ConnectionTimeoutError():
            return UpstreamTimeout(f"{named} could not be connected to in time", provider=provider)
        case TimeoutError() if not in_time:
            return DeadlinePassed(f"{named} had not answered when the time for the request was over")
        case TimeoutError():
            return UpstreamTimeout(f"{named} did not answer in time", provider=provider)
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, AddressRefused):
            return UpstreamRefused(
                f"the address of {named} is not allowed: a private one needs allow_private_network in its row",
                provider=provider,
            )
        case aiohttp.ClientConnectorError():
            return UpstreamUnavailable(f"no connection to {named}: {_why(error)}", provider=provider)
        case aiohttp.InvalidURL():
            return UpstreamRefused(f"the address of {named} is not a URL", provider=provider)
        case aiohttp.ClientResponseError():
            return UpstreamError(f"{named} answered with what is not HTTP", provider=provider)
    return UpstreamUnavailable(f"{named} closed the connection", provider=provider)


def _why(error: aiohttp.ClientConnectorError) -> str:
    """Why there is no connection, without any address."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "TLS failed, or its certificate is not trusted"
    return "it refuses connections" if isinstance(error.os_error, ConnectionRefusedError) else "it cannot be reached"
