"""Whether a provider's host answers at all: a request without credentials, which costs nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from yarl import URL

from orqen_ray.providers.addresses import AddressRefused, private_socket, public_socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachability:
    """Attributes:
    problem: why there was no HTTP answer; None when there was one, whatever its status.
    clock_offset_s: how far this machine's clock is ahead of the host's; None when its answer told no time.
    """

    host: str
    took_ms: float
    problem: str | None = None
    clock_offset_s: float | None = None


async def reach(base_url: str, *, allow_private_network: bool, timeout_s: float = 5.0) -> Reachability:
    """Ask for the head of `base_url`, under the same rules for addresses as any call."""
    url = URL(base_url)
    started_s = time.perf_counter()
    problem, offset_s = None, None
    connector = aiohttp.TCPConnector(socket_factory=private_socket if allow_private_network else public_socket)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.head(url, allow_redirects=False) as answer,
        ):
            offset_s = _clock_offset_s(answer.headers.get("date", ""))
    except TimeoutError:
        problem = f"no answer within {timeout_s:g} s"
    except aiohttp.ClientConnectorDNSError:
        problem = "its name cannot be resolved"
    except aiohttp.ClientConnectorError as error:
        problem = "it cannot be connected to"
        if isinstance(error.os_error, AddressRefused):
            problem = "its address is private, and its row does not allow that"
        elif isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            problem = "TLS failed, or its certificate is not trusted"
    except (aiohttp.ClientError, OSError):
        problem = "it does not speak HTTP"
    took_ms = (time.perf_counter() - started_s) * 1000
    return Reachability(host=url.host or "", took_ms=took_ms, problem=problem, clock_offset_s=offset_s)


def _clock_offset_s(date: str) -> float | None:
    try:
        told = parsedate_to_datetime(date)
    except ValueError:
        return None
    # Whole seconds are told, cut off: half of one is the best guess. A date without a zone is UTC.
    told = told if told.tzinfo else told.replace(tzinfo=UTC)
    return (datetime.now(UTC) - told).total_seconds() - 0.5
