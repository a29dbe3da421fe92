"""A gateway in this process with settings of the test's own, over scripted providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from orqen_ray.api.app import create_app
from orqen_ray.config import Settings
from orqen_ray.service import Service, open_service
from orqen_ray.traces.reader import read_traces
from orqen_ray.types import Upstream
from tests.api.conftest import ROWS

FAST = {"max_retries": 2, "backoff_s": 0.001}


@dataclass
class Lab:
    """`client` carries a valid key."""

    service: Service
    client: httpx.AsyncClient

    async def rows(self) -> list[dict[str, Any]]:
        """The trace. The gateway is closed after it."""
        await self.service.aclose()
        found = read_traces(self.service.settings.storage.traces_uri).sort_by("started_at").to_pylist()
        return list(found)


@asynccontextmanager
async def lab_gateway(
    tmp_path: Path, upstream: Upstream | None = None, providers: Mapping[str, Any] = ROWS, **settings: Any
) -> AsyncIterator[Lab]:
    storage = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/orqen.db", "traces_uri": f"{tmp_path}/traces"}
    whole = {"storage": storage, "providers": providers, "retries": FAST, **settings}
    service = await open_service(Settings.model_validate(whole), upstream)
    _, secret = await service.keys.create("test")
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        try:
            yield Lab(service, client)
        finally:
            await service.aclose()
