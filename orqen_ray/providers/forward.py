"""The one way to the network: a call goes out with its provider's credentials, an answer comes back as it arrives."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from socket import socket
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from orqen_ray.errors import BadRequest, DeadlinePassed, ProviderNotConnected, UpstreamError, UpstreamRefused
from orqen_ray.metrics import Metrics
from orqen_ray.providers import sandbox
from orqen_ray.providers.addresses import AddrInfo, private_socket, public_socket
from orqen_ray.providers.body import Body, Limits, read_error, translated
from orqen_ray.providers.breaker import BreakerPolicy
from orqen_ray.providers.catalog import Catalog, Provider, check_base_url
from orqen_ray.providers.concurrency import Slot, Slots
from orqen_ray.providers.credentials import CredentialSource, redact
from orqen_ray.providers.headers import ANTHROPIC_VERSION, allowed_reply_headers, allowed_request_headers
from orqen_ray.providers.keyring import Chosen, KeyRing
from orqen_ray.providers.signing import sign
from orqen_ray.retry_after import read_wait_s
from orqen_ray.types import Call, Credentials, UpstreamReply

DEFAULT_REGION = "us-east-1"
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}")
_PATH = re.compile(r"/[!-~]*")
_LARGE_BODY_BYTES = 1 << 20
_ERROR_IDLE_S = 10.0
_MAX_HEADER_BYTES = 16 << 10
_KEEPALIVE_S = 30.0
_DNS_TTL_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds: to connect (name look-up and TLS included), until the head of the answer, between two chunks, in all.

    `queue_s`: in the queue of a provider that has as many calls open as it may.
    """

    connect_s: float = 10
    first_byte_s: float = 600
    idle_s: float = 300
    total_s: float = 3600
    queue_s: float = 10


class Forwarder:
    """Implements `Upstream`. One instance to an event loop; its connections are pooled and kept alive."""

    def __init__(
        self,
        catalog: Catalog,
        credentials: CredentialSource,
        timeouts: Timeouts | None = None,
        breaker: BreakerPolicy | None = None,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """
        Args:
            breaker, clock: see `KeyRing`.
            resolver: of host names; None: the system's. Whatever it answers, each address is checked.
        """
        self._catalog = catalog
        self._resolver = resolver
        self._credentials = credentials
        self._timeouts = timeouts or Timeouts()
        self._keys = KeyRing(breaker or BreakerPolicy(), metrics or Metrics(), clock)
        self._slots = Slots(catalog.providers.values())
        self._user_agent = f"orqen-ray/{version('orqen-ray')}"
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._keyless = frozenset(
            name
            for name, row in catalog.providers.items()
            if not row.needs_credentials and (row.configured or row.embedded)
        )

    async def connected(self) -> frozenset[str]:
        """Names of the providers that have credentials, or need none and are configured (the sandbox always is)."""
        return self._keyless | (await self._credentials.names() & self._catalog.providers.keys())

    async def send(self, call: Call) -> UpstreamReply:
        """Send once and return when the head of the answer is there, whatever its status.

        Raises:
            BadRequest: a path or region that cannot be part of a URL.
            ProviderNotConnected: no credentials, or no base URL.
            CircuitOpen, Overloaded: the provider was not called; see `Upstream.send`.
            UpstreamTimeout, UpstreamUnavailable, UpstreamRefused: nothing of an answer was received.
        """
        provider = self._catalog.providers.get(call.provider)
        if provider is None:
            raise BadRequest(
                f"there is no provider {call.provider!r}; GET /v1/models lists the models of the connected ones"
            )
        if provider.embedded:
            return sandbox.answer(call)
        now_s = asyncio.get_running_loop().time()
        deadline_s = now_s + (self._timeouts.total_s if call.deadline_s is None else call.deadline_s)
        stored = await self._credentials.get(provider.name)
        slot = await self._slots.take(provider.name, min(self._timeouts.queue_s, deadline_s - now_s))
        try:
            chosen = self._keys.choose(call, stored)
            try:
                return await self._send(provider, call, stored, chosen, slot, deadline_s)
            except UpstreamError as error:
                error.key, error.other_keys = chosen.label, chosen.other_keys
                chosen.settle(None if isinstance(error, UpstreamRefused | DeadlinePassed) else False)
                raise
            finally:
                chosen.settle(None)
        except BaseException:
            slot.free()
            raise

    async def _send(
        self,
        provider: Provider,
        call: Call,
        stored: Sequence[Credentials],
        chosen: Chosen,
        slot: Slot,
        deadline_s: float,
    ) -> UpstreamReply:
        secret = _credentials_for(provider, call.credentials, chosen.credentials or next(iter(stored), None))
        url = _url(provider, call, secret)
        headers = await self._headers(provider, call, secret, url)
        response = await self._head(provider, call, url, headers, deadline_s)

        def ended(broke_off: bool) -> None:
            slot.free()
            if broke_off and response.status < 500:  # else the call has counted as a failure already
                chosen.broke_off()

        idle_s = self._timeouts.idle_s
        if response.status >= 400:  # what an error says is not worth a long wait
            idle_s = min(idle_s, _ERROR_IDLE_S)
        body = Body(response, provider.name, Limits(idle_s=idle_s, deadline_s=deadline_s), ended)
        if 300 <= response.status < 400:
            await body.aclose()
            raise UpstreamRefused(
                f"the provider {provider.name!r} answered with a redirect ({response.status}), which is not followed: "
                "set its base_url to the final address",
                provider=provider.name,
            )
        chosen.settle(response.status < 500)
        seen = allowed_reply_headers(response.headers)
        chunks: AsyncIterator[bytes] = body
        if response.status == 429 and chosen.circuit is not None:  # a caller's own secret is nobody else's to wait for
            self._keys.rest(call, chosen.label, read_wait_s(seen))
        if response.status >= 400:
            chunks = _once(redact(await read_error(body), secret))
        elif chosen.label is not None:
            self._keys.served(call, chosen.label, stored)
        return UpstreamReply(
            status=response.status, headers=seen, chunks=chunks, key=chosen.label, other_keys=chosen.other_keys
        )

    async def aclose(self) -> None:
        """Close all connections. The forwarder may be used again."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def _head(
        self, provider: Provider, call: Call, url: str, headers: list[tuple[str, str]], deadline_s: float
    ) -> aiohttp.ClientResponse:
        data: bytes | io.BytesIO | None = call.body or None
        if len(call.body) > _LARGE_BODY_BYTES:
            data = io.BytesIO(call.body)  # sent in pieces, so that the loop is not held up
        first_byte_at_s = asyncio.get_running_loop().time() + self._timeouts.first_byte_s
        with translated(provider.name, in_time=first_byte_at_s <= deadline_s):
            async with asyncio.timeout_at(min(deadline_s, first_byte_at_s)):
                return await self._session(provider.allow_private_network).request(
                    call.method, _parsed(url), data=data, headers=headers, allow_redirects=False
                )

    def _session(self, private: bool) -> aiohttp.ClientSession:
        # Two pools: a connection to a private address is never lent to a provider that may not have one.
        if private not in self._sessions:
            self._sessions[private] = _open_session(
                private_socket if private else public_socket, self._timeouts.connect_s, self._resolver
            )
        return self._sessions[private]

    async def _headers(
        self, provider: Provider, call: Call, secret: Credentials | None, url: str
    ) -> list[tuple[str, str]]:
        asked = allowed_request_headers(provider.dialect, call.headers)
        headers = [*provider.headers.items(), *(pair for pair in asked if pair[0] not in provider.headers)]
        names = {name for name, _ in headers}
        if call.body and "content-type" not in names:
            headers.append(("content-type", "application/json"))
        if provider.dialect == "anthropic_messages" and "anthropic-version" not in names:
            headers.append(("anthropic-version", ANTHROPIC_VERSION))
        headers += [("accept-encoding", "identity"), ("user-agent", self._user_agent)]
        return await _authorized(headers, provider, call, secret, url)


def _open_session(
    socket_factory: Callable[[AddrInfo], socket], connect_s: float, resolver: AbstractResolver | None
) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=0,
        keepalive_timeout=_KEEPALIVE_S,
        ttl_dns_cache=_DNS_TTL_S,
        socket_factory=socket_factory,
        resolver=resolver,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_s),
        skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
        trust_env=False,
    )


def _credentials_for(provider: Provider, own: Credentials | None, stored: Credentials | None) -> Credentials | None:
    """The caller's own secret if there is one, else the stored one; an address never comes from a caller."""
    if own is not None and (own.api_key or own.aws):
        return replace(own, base_url=stored.base_url if stored else None)
    if provider.needs_credentials and not (stored and (stored.api_key or stored.aws)):
        raise ProviderNotConnected(
            f"the provider {provider.name!r} has no credentials: run `orqen providers connect {provider.name}`"
        )
    return replace(stored, region=own.region) if stored and own and own.region else stored


def _region(provider: Provider, secret: Credentials | None) -> str:
    region = (secret.region if secret else None) or provider.region or DEFAULT_REGION
    # It becomes a part of the host name, and a caller may give it.
    if not _REGION.fullmatch(region):
        raise BadRequest(f"expected the name of an AWS region such as us-east-1, got {region[:40]!r}")
    return region


@lru_cache(maxsize=1024)
def _parsed(url: str) -> URL:
    return URL(url, encoded=True)


def _url(provider: Provider, call: Call, secret: Credentials | None) -> str:
    base = (secret.base_url if secret else None) or provider.base_url
    if base is None:
        raise ProviderNotConnected(
            f"the provider {provider.name!r} needs providers.{provider.name}.base_url in the configuration"
        )
    try:
        base = check_base_url(base)
    except ValueError as exc:
        raise UpstreamRefused(f"the provider {provider.name!r}: {exc}", provider=provider.name) from exc
    if "{region}" in base:
        region = _region(provider, secret)
        base = base.replace("{region}", region)
        if region.startswith("cn-") and base.endswith(".amazonaws.com"):
            base += ".cn"
    segments = unquote(call.path).split("/")
    if not _PATH.fullmatch(call.path) or any(c in call.path for c in "?#\\") or {".", ".."} & {*segments}:
        raise BadRequest("the path holds characters or segments that cannot be forwarded")
    if not re.fullmatch(r"[!-~]*", call.query) or "#" in call.query:
        raise BadRequest("the query string holds characters that cannot be forwarded")
    return f"{base}{call.path}?{call.query}" if call.query else f"{base}{call.path}"


async def _authorized(
    headers: list[tuple[str, str]], provider: Provider, call: Call, secret: Credentials | None, url: str
) -> list[tuple[str, str]]:
    if secret is None or provider.auth == "none":
        return headers
    key = (secret.api_key or "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise BadRequest(
            f"the key of the provider {provider.name!r} holds characters that cannot be sent; store it again"
        )
    if provider.auth == "sigv4" and not key and secret.aws is not None:
        region, aws = _region(provider, secret), secret.aws

        def signed() -> list[tuple[str, str]]:
            return sign(call.method, url, headers, call.body, credentials=aws, region=region)

        return await asyncio.to_thread(signed) if len(call.body) > _LARGE_BODY_BYTES else signed()
    if not key:
        return headers
    bearer = provider.auth in ("bearer", "sigv4")
    return [*headers, ("authorization", f"Bearer {key}") if bearer else (provider.auth, key)]


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
