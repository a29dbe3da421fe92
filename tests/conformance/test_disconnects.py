"""Clients that leave: the provider must not work on for nobody, and the gateway must forget them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from tests.conformance.asks import ASKS
from tests.conformance.cells import PAIRS
from tests.conformance.lab import Lab
from tests.conftest import family_of

STREAMS = 100
# How each SDK's stream is asked for without the SDK, so that a client can be cut at any moment.
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "boto3": "/model/{}/converse-stream"}


async def test_a_hundred_streams_cut_by_their_clients_leave_nothing_behind(lab: Lab) -> None:
    """Half of them are cut before the provider has said a word, half in a silence after its first ones."""
    before, others = len(lab.upstream.requests), connections(lab)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"authorization": f"Bearer {lab.key}"}
    async with httpx.AsyncClient(base_url=lab.url, headers=headers, limits=limits, timeout=60) as client:
        heard = [asyncio.Event() for _ in range(STREAMS)]
        tasks = [asyncio.create_task(_listen(client, n, heard[n])) for n in range(STREAMS)]
        arrived = await asyncio.to_thread(
            lab.upstream.wait_until, lambda: len(lab.upstream.requests) == before + STREAMS, 30
        )
        assert arrived, f"{len(lab.upstream.requests) - before} of {STREAMS} reached the provider"
        await asyncio.wait_for(asyncio.gather(*(heard[n].wait() for n in range(1, STREAMS, 2))), 30)
        ours = lab.upstream.requests[before:]
        assert not any(received.cut_at for received in ours)
        held = connections(lab) - others
        assert len(held) == STREAMS
        left_at = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(lab.upstream.wait_until, lambda: all(received.cut_at for received in ours), 5)
    late = [received for received in ours if received.cut_at is None or received.cut_at - left_at > 1.0]
    assert not late, f"{len(late)} of {STREAMS} upstream connections were open after a second"
    assert not held & connections(lab)


async def _listen(client: httpx.AsyncClient, n: int, heard: asyncio.Event) -> None:
    sdk, dialect = PAIRS[n % len(PAIRS)]
    model = f"lab-{dialect}/stall-{'within' if n % 2 else 'before'}"
    body: dict[str, Any] = ASKS[sdk]("plain", model)
    path = PATHS[sdk].format(body.pop("modelId", "").replace("/", "%2F"))
    if sdk != "boto3":
        body["stream"] = True
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for _ in response.aiter_raw():
            heard.set()


def connections(lab: Lab) -> set[tuple[str, int]]:
    """The clients' ends of what the gateway's front door holds open; after a reload it is more than one process."""
    port = int(lab.gateway.url.rpartition(":")[2])
    doors = [each for each in family_of(lab.gateway.process.pid) if each.info["name"] == "haproxy"]
    held = [one for door in doors for one in door.net_connections("tcp") if one.raddr and one.laddr.port == port]
    return {(one.raddr.ip, one.raddr.port) for one in held}
