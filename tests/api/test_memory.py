"""However many keys, sessions, models and ids callers make up, what a gateway keeps of them has an end."""

from __future__ import annotations

import gc
from datetime import UTC, datetime

import psutil

from orqen_ray.api.app import create_app
from orqen_ray.errors import Unauthenticated
from orqen_ray.service import Service
from orqen_ray.store.authenticator import KeyCache
from orqen_ray.store.keys import KeyRecord
from tests.api.conftest import ScriptedUpstream, json_reply
from tests.api.test_edges import ASK, CHAT, Caller, secret_of
from tests.api.test_hostile_callers import ANSWER

KEYS = 100_000
SESSIONS = 4_000
MAY_GROW_BYTES = 2 << 20


def resident_bytes() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def key_of(number: int) -> str:
    return f"sk-orq-{number:064x}"


async def test_a_hundred_thousand_keys_are_not_all_kept() -> None:
    class Store:
        """Every even key exists."""

        async def find(self, secret: str) -> KeyRecord | None:
            number = int(secret[7:], 16)
            if number % 2:
                return None
            # A name of 1 KB: all 50,000 together would be 50 MB.
            return KeyRecord(id=f"key_{number}", name=f"{number:01000}", preview="p", created_at=datetime.now(UTC))

    cache = KeyCache(Store(), ttl_s=3600)
    settled = 0
    for number in range(KEYS):
        try:
            await cache.authenticate(key_of(number))
        except Unauthenticated:
            assert number % 2
        if number == KEYS // 2:  # more than the cache holds
            settled = resident_bytes()
    assert resident_bytes() - settled < MAY_GROW_BYTES


async def test_sessions_ids_and_paths_leave_nothing_behind(service: Service, upstream: ScriptedUpstream) -> None:
    upstream.script = json_reply(ANSWER)
    app, secret = create_app(service), await secret_of(service)
    ballast = "x" * 240  # what is kept of a session shows

    async def storm(numbers: range) -> None:
        for number in numbers:
            caller, lost = Caller(secret, CHAT, ASK), Caller(secret, f"/v1/no-{number}-{ballast}", ASK)
            session, request = f"s-{number}-{ballast}".encode(), f"r-{number}".encode()
            given = [(b"x-orqen-session-id", session), (b"x-request-id", request)]
            caller.scope["headers"] = [*caller.scope["headers"], *given]
            for each in (caller, lost):
                await app(each.scope, each.receive, each.send)
            assert (caller.sent[0]["status"], lost.sent[0]["status"]) == (200, 404)
            upstream.calls.clear()

    await storm(range(SESSIONS))
    grown: list[int] = []
    for number in range(1, 4):  # what is kept shows each time; an arena that Python takes in between, once
        settled = resident_bytes()
        await storm(range(number * SESSIONS, (number + 1) * SESSIONS))
        grown.append(resident_bytes() - settled)
        if grown[-1] < MAY_GROW_BYTES:
            return
    raise AssertionError(grown)
