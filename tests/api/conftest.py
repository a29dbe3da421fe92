"""The application in this process, over a real store, with an upstream that answers by script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from orqen_ray.api.app import create_app
from orqen_ray.config import Settings
from orqen_ray.service import Service, open_service
from orqen_ray.types import Call, UpstreamReply

Script = Callable[[Call], tuple[int, Mapping[str, str], list[bytes]]]

ROWS: dict[str, dict[str, Any]] = {
    "lab-openai": {
        "dialect": "openai",
        "base_url": "http://lab.invalid/v1",
        "models": [{"id": "m", "input_usd_per_mtok": 2.0, "output_usd_per_mtok": 10.0}],
    },
    "lab-anthropic": {"dialect": "anthropic", "base_url": "http://lab.invalid"},
    "lab-bedrock": {"dialect": "bedrock", "base_url": "http://lab.invalid"},
}


def json_reply(body: bytes, status: int = 200) -> Script:
    return lambda call: (status, {"content-type": "application/json"}, [body])


@dataclass
class ScriptedUpstream:
    """Implements `Upstream`: answers by `script`, and keeps what it was sent."""

    script: Script = field(default_factory=lambda: json_reply(b"{}"))
    calls: list[Call] = field(default_factory=list)

    async def send(self, call: Call) -> UpstreamReply:
        self.calls.append(call)
        status, headers, chunks = self.script(call)

        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        return UpstreamReply(status=status, headers=headers, chunks=body())

    async def connected(self) -> frozenset[str]:
        return frozenset({*ROWS, "sandbox"})


@pytest.fixture
def upstream() -> ScriptedUpstream:
    return ScriptedUpstream()


@pytest.fixture
async def service(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    storage = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/orqen.db", "traces_uri": f"{tmp_path}/traces"}
    retries = {"max_retries": 1, "backoff_s": 0.001}
    settings = Settings.model_validate(
        {"storage": storage, "providers": ROWS, "retries": retries, "limits": {"max_body_mib": 1}}
    )
    service = await open_service(settings, upstream, ship_traces=False)
    yield service
    await service.aclose()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Carries a valid key."""
    _, secret = await service.keys.create("test")
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        yield client
