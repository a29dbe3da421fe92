"""The gateway of this suite: Ray Serve, with providers that all lead to the scripted upstream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import update

from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys
from orqen_ray.store.tables import KEYS
from tests.conformance.credentials import REGION
from tests.conformance.sdks import Sdk, all_sdks
from tests.conformance.upstream import ConformanceUpstream
from tests.conftest import RunningGateway

DIALECTS = ("openai", "anthropic", "bedrock")
# What the models behind the rows can do; the ids of the scenarios belong to no family.
_THINKS = {"thinking": "budget", "cache_markers": True}
_BINDS = {"thinking": "adaptive", "cache_markers": True, "prefix_bound": True}
_TAKES_TOOLS = {"mid_conversation_system": True, "mid_conversation_tools": True}


def provider_rows(url: str) -> dict[str, dict[str, Any]]:
    """The `providers:` of a gateway that shall serve this suite; `url` is the root of the scripted upstream.

    Its environment must hold `credentials.ENVIRONMENT`.
    """
    private = {"allow_private_network": True}
    openai = {"dialect": "openai", "base_url": f"{url}/v1", "api_key_env": "LAB_API_KEY", **private}
    anthropic = {"dialect": "anthropic", "base_url": url, "api_key_env": "LAB_API_KEY", **private}
    bedrock = {"dialect": "bedrock", "base_url": url, "region": REGION, **private}
    keys = {"api_key_env": ["LAB_API_KEY", "LAB_OTHER_KEY"]}
    families = ["chat", "responses", "embeddings"]
    return {
        "lab-openai": {**openai, "families": families, "capabilities": {"thinking": "adaptive"}},
        "lab-anthropic": {**anthropic, "capabilities": _THINKS},
        "lab-bedrock": {**bedrock, "capabilities": _THINKS},
        "lab-bedrock-bearer": {**bedrock, "api_key_env": "LAB_BEDROCK_TOKEN"},
        "native-anthropic": {**anthropic, "capabilities": {**_THINKS, **_TAKES_TOOLS}},
        "bound-anthropic": {**anthropic, **keys, "capabilities": {**_BINDS, **_TAKES_TOOLS}},
        "bound-bedrock": {**bedrock, **keys, "capabilities": _BINDS},
    }


# Machines that run tests are slow at times, and a decision that comes late is another decision.
PATIENT = {"optimization": {"holdout_ratio": 0, "budget_ms": 10_000}, "encoders": {"timeout_ms": 10_000}}


async def few_tools_key(database: Database, k_target: int) -> str:
    """The secret of a new key whose requests get so many of their tools, and those that are always kept.

    With one, those alone that the request names: what is learned meanwhile of the tools' use decides nothing.
    """
    record, secret = await Keys(database).create("few tools")
    async with database.begin(write=True) as connection:
        found = update(KEYS).where(KEYS.c.id == record.id)
        await connection.execute(found.values(k_target_override=k_target))
    return secret


@dataclass(frozen=True)
class Lab:
    """The gateway, the provider behind it, and the folder of the gateway's data."""

    gateway: RunningGateway
    upstream: ConformanceUpstream
    folder: Path

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def key(self) -> str:
        return self.gateway.admin_key

    def few_tools_key(self, k_target: int) -> str:
        """See `few_tools_key`."""

        async def create() -> str:
            database = Database(f"sqlite+aiosqlite:///{self.folder}/orqen.db")
            try:
                return await few_tools_key(database, k_target)
            finally:
                await database.aclose()

        return asyncio.run(create())

    @cached_property
    def sdks(self) -> dict[str, Sdk]:
        return {sdk.name: sdk for sdk in all_sdks(self.url, self.key)}
