"""A database that goes away and comes back, under requests: what is known goes on working."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from orqen_ray.api.app import create_app
from orqen_ray.config import Settings
from orqen_ray.service import Service, open_service
from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys
from tests.api.conftest import ROWS, ScriptedUpstream
from tests.servers import Postgres

NOTICED_S = 3.0
"""Well below the five seconds after which a connection to the database is given up; above what a busy machine adds."""

BODY = b'{"model": "lab-openai/m", "messages": [{"role": "user", "content": "hi"}]}'


@pytest.fixture
async def pg_service(tmp_path: Path, upstream: ScriptedUpstream, postgres: Postgres) -> AsyncIterator[Service]:
    url = await asyncio.to_thread(postgres.new_database)
    storage = {"database_url": url, "traces_uri": f"{tmp_path}/traces"}
    service = await open_service(Settings.model_validate({"storage": storage, "providers": ROWS}), upstream)
    yield service
    await service.aclose()


def client_of(service: Service) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


async def ask(client: httpx.AsyncClient, secret: str) -> tuple[int, float]:
    """The status, and the seconds that it took."""
    started_s = time.monotonic()
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    reply = await client.post("/v1/chat/completions", content=BODY, headers=headers)
    return reply.status_code, time.monotonic() - started_s


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_an_outage_of_the_database_costs_no_request_of_a_known_key(
    pg_service: Service,
    postgres: Postgres,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, secret = await pg_service.keys.create("known", daily_token_budget=10**6)
    doomed, doomed_secret = await pg_service.keys.create("doomed")
    _, late_secret = await pg_service.keys.create("never seen by this process")
    answers: list[tuple[int, float]] = []
    async with client_of(pg_service) as client:
        for known in (secret, doomed_secret):
            answers.append(await ask(client, known))
        await asyncio.to_thread(postgres.kill if how == "kill" else postgres.freeze)
        while not pg_service.database.reads.away:  # the cached answer ends, then the calls to the database fail
            answers.append(await ask(client, secret))
            answers.append(await ask(client, doomed_secret))
        for _ in range(50):
            answers.append(await ask(client, secret))
        status, took_s = await ask(client, late_secret)
        assert (status, took_s < NOTICED_S) == (503, True)
        checked_until_s = time.monotonic() + 1.5  # beyond the second in which nobody asks
        while time.monotonic() < checked_until_s:
            assert (await client.get("/readyz")).status_code == 200
        if how == "freeze":
            postgres.thaw()
        await asyncio.to_thread(postgres.start)
        other = Database(pg_service.database.url)
        await Keys(other).revoke(doomed.id)
        revoked_s = time.monotonic()
        await other.aclose()
        while (await ask(client, doomed_secret))[0] != 401:
            answers.append(await ask(client, secret))
            assert time.monotonic() - revoked_s < 5
        while (await ask(client, late_secret))[0] != 200:
            assert time.monotonic() - revoked_s < 5
    assert {status for status, _ in answers} == {200}
    assert max(took_s for _, took_s in answers) < NOTICED_S
    said = [message for message in caplog.messages if "the database cannot be read" in message]
    assert len(said) == 2 and "over after" in said[1]


async def test_a_process_that_knows_no_key_is_not_ready_without_the_database(
    pg_service: Service,
    postgres: Postgres,
) -> None:
    async with client_of(pg_service) as client:
        assert (await client.get("/readyz")).status_code == 200
        await asyncio.to_thread(postgres.stop)
        assert (await client.get("/readyz")).status_code == 503
        await asyncio.to_thread(postgres.start)
        deadline_s = time.monotonic() + 10
        while (await client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline_s
