"""A database, a Redis and a disk that go away under load and come back: callers do not notice."""

from __future__ import annotations

import asyncio
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys
from tests.conftest import running_gateway
from tests.faults.conftest import FaultyGateway, fault_settings
from tests.faults.load import Load
from tests.faults.provider import faulty_provider
from tests.faults.table import note
from tests.faults.test_kills import compare_with_traces
from tests.servers import Postgres, Redis

SECRET_KEY = "0123456789abcdef0123456789abcdef"
WHILE_AWAY = 300
DISK_MIB = 4


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of a few MiB, where this user may mount one."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    yield folder
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: Postgres, redis_session: Redis, disk: Path
) -> Iterator[FaultyGateway]:
    """A gateway on PostgreSQL and Redis, its traces on the small disk."""
    folder = tmp_path_factory.mktemp("stored")
    environment = {"ORQEN_BOOTSTRAP_KEY": f"sk-orq-{secrets.token_hex(32)}", "ORQEN_SECRET_KEY": SECRET_KEY}
    storage = {
        "database_url": postgres_server.new_database(),
        "redis_url": redis_session.url,
        "traces_uri": f"{disk}/traces",
    }
    with faulty_provider() as provider:
        settings = fault_settings(provider.url) | {"storage": storage}
        with running_gateway(folder, settings, environment) as gateway:
            yield FaultyGateway(gateway, provider, disk, storage["database_url"])


async def new_key(stored: FaultyGateway, rate_limit_rpm: int = 0) -> str:
    """A key made behind the gateway's back, as `orqen keys create` does."""
    database = Database(stored.database_url)
    try:
        return (await Keys(database).create("load", rate_limit_rpm=rate_limit_rpm))[1]
    finally:
        await database.aclose()


@contextmanager
def away(stop: Callable[[], None], start: Callable[[], None]) -> Iterator[None]:
    stop()
    try:
        yield
    finally:
        start()


@pytest.mark.parametrize("how", ["stop", "kill", "freeze"])
async def test_a_database_that_goes_away_costs_no_request_of_a_known_key(
    stored: FaultyGateway, postgres_server: Postgres, how: str
) -> None:
    stop, start = _ways(postgres_server, how)
    async with Load(stored.url, stored.key, model=stored.model("stream"), prefix=f"database-{how}") as load:
        await load.until(50)
        await asyncio.to_thread(stop)
        try:
            await load.until(WHILE_AWAY, within_s=60)
        finally:
            await asyncio.to_thread(start)
        await load.until(50)
    assert not load.failures and load.hung == 0
    slowest_s = max(each.took_s for each in load.ended)
    figures = f"{len(load.ended)} requests, 0 failed, slowest {slowest_s * 1000:.0f} ms"
    note(f"database: {how}", "its answer", figures)
    fresh = await asyncio.to_thread(lambda: asyncio.run(new_key(stored)))
    async with asyncio.timeout(10):
        while (await _status(stored, fresh)) != 200:  # noqa: ASYNC110  # another process's recovery is polled
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("how", ["stop", "freeze"])
async def test_a_redis_that_goes_away_costs_no_request(stored: FaultyGateway, redis_session: Redis, how: str) -> None:
    stop, start = _ways(redis_session, how)
    secret = await asyncio.to_thread(lambda: asyncio.run(new_key(stored, rate_limit_rpm=1_000_000)))
    async with Load(stored.url, secret, model=stored.model("stream"), prefix=f"redis-{how}") as load:
        await load.until(50)
        await asyncio.to_thread(stop)
        try:
            await load.until(WHILE_AWAY, within_s=60)
        finally:
            await asyncio.to_thread(start)
        await load.until(50)
    assert not load.failures and load.hung == 0
    slowest_s = max(each.took_s for each in load.ended)
    note(f"redis: {how}", "its answer", f"{len(load.ended)} requests, 0 failed, slowest {slowest_s * 1000:.0f} ms")


async def test_a_full_disk_costs_no_request_and_its_rows_are_kept_or_counted(stored: FaultyGateway, disk: Path) -> None:
    if not await asyncio.to_thread(disk.is_mount):
        pytest.skip("mounting a small disk needs root")
    filler = disk / "filler"
    async with Load(stored.url, stored.key, model=stored.model("stream"), prefix="disk") as load:
        await load.until(50)
        await asyncio.to_thread(_fill, filler)
        await load.until(WHILE_AWAY)
        assert "the spool takes no rows" in "".join(stored.gateway.printed)
        filler.unlink()
        await load.until(50)
    assert not load.failures and load.hung == 0
    dropped = await _metric(stored, "orqen_trace_rows_total", 'outcome="dropped"')
    async with asyncio.timeout(15):
        while missing := (await asyncio.to_thread(compare_with_traces, stored, load))[0]:
            if len(missing) <= dropped:
                break
            await asyncio.sleep(0.2)
    figures = f"{len(load.ended)} requests, 0 failed; {dropped:.0f} rows dropped and counted, the others kept"
    note("disk: full", "its answer", figures)


def _fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 9, 1):
            try:
                while file.write(b"x" * size) == size:
                    continue
            except OSError:
                continue


def _ways(server: Any, how: str) -> tuple[Callable[[], None], Callable[[], None]]:
    if how == "freeze":
        return server.freeze, server.thaw
    return (server.stop if how == "stop" else server.kill), server.start


async def _status(stored: FaultyGateway, secret: str) -> int:
    async with httpx.AsyncClient(base_url=stored.url, headers={"authorization": f"Bearer {secret}"}) as client:
        return (await client.get("/v1/models")).status_code


async def _metric(stored: FaultyGateway, name: str, labels: str) -> float:
    async with httpx.AsyncClient(base_url=stored.url, headers={"authorization": f"Bearer {stored.key}"}) as client:
        text = (await client.get("/metrics")).text
    found = re.search(rf"^{name}\{{[^}}]*{labels}[^}}]*\}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
