"""Two ingress processes over PostgreSQL and Redis: what is limited is limited over both."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import httpx
import pytest

from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys
from tests.conftest import RunningGateway, family_of, lab_row, running_gateway
from tests.scripted import ScriptedUpstream
from tests.servers import Postgres, Redis

T = TypeVar("T")

CHAT = {"model": "lab/plain", "messages": [{"role": "user", "content": "hi"}]}
TOKENS = 4  # of one `lab/plain` answer


@pytest.fixture(scope="module")
def database_url(postgres_server: Postgres) -> str:
    postgres_server.start()
    return postgres_server.new_database()


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory,
    upstream: ScriptedUpstream,
    database_url: str,
    redis_session: Redis,
) -> Iterator[RunningGateway]:
    redis_session.start()
    environment = {
        "ORQEN_DATABASE_URL": database_url,
        "ORQEN_REDIS_URL": redis_session.url,
        "ORQEN_SECRET_KEY": secrets.token_hex(32),
        "ORQEN_BOOTSTRAP_KEY": f"sk-orq-{secrets.token_hex(32)}",
    }
    settings = {"providers": {"lab": lab_row(upstream)}, "ingress": {"min_replicas": 2, "max_replicas": 2}}
    with running_gateway(tmp_path_factory.mktemp("two"), settings, environment) as running:
        yield running


def in_store(url: str, work: Callable[[Keys], Awaitable[T]]) -> T:
    async def run() -> T:
        database = Database(url)
        try:
            return await work(Keys(database))
        finally:
            await database.aclose()

    return asyncio.run(run())


async def statuses(url: str, secret: str, times: int) -> Counter[int]:
    """How often which status came, of many requests at once, each on a connection of its own."""
    headers = {"authorization": f"Bearer {secret}", "connection": "close"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=CHAT) for _ in range(times)))
    return Counter(reply.status_code for reply in replies)


def test_the_minute_is_exact_over_both_processes(two_processes: RunningGateway, database_url: str) -> None:
    names = [" ".join(each.info["cmdline"]) for each in family_of(two_processes.process.pid)]
    assert sum(name.startswith("ray::ServeReplica:orqen:Ingress") for name in names) == 2
    _, secret = in_store(database_url, lambda keys: keys.create("rpm", rate_limit_rpm=30))
    assert asyncio.run(statuses(two_processes.url, secret, 80)) == {200: 30, 429: 50}


def test_the_days_budget_is_kept_by_each_process(two_processes: RunningGateway, database_url: str) -> None:
    _, secret = in_store(database_url, lambda keys: keys.create("budget", daily_token_budget=20 * TOKENS))
    passed = 0
    while (seen := asyncio.run(statuses(two_processes.url, secret, 4)))[200]:
        passed += seen[200]
    # At the very least each process holds the key to its budget alone; that they tell each other, tests/store shows.
    assert 20 <= passed <= 2 * (20 + 4)
