"""The gateway of this suite: Ray Serve, with providers that all lead to the scripted upstream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.conformance.credentials import REGION
from tests.conformance.sdks import Sdk, all_sdks
from tests.conformance.upstream import ConformanceUpstream
from tests.conftest import RunningGateway

DIALECTS = ("openai", "anthropic", "bedrock")
# What the models behind the rows can do; the ids of the scenarios belong to no family.
_THINKS = {"thinking": "budget", "cache_markers": True}


def provider_rows(url: str) -> dict[str, dict[str, Any]]:
    """The `providers:` of a gateway that shall serve this suite; `url` is the root of the scripted upstream.

    Its environment must hold `credentials.ENVIRONMENT`.
    """
    private = {"allow_private_network": True}
    openai = {"dialect": "openai", "base_url": f"{url}/v1", "api_key_env": "LAB_API_KEY", **private}
    anthropic = {"dialect": "anthropic", "base_url": url, "api_key_env": "LAB_API_KEY", **private}
    bedrock = {"dialect": "bedrock", "base_url": url, "region": REGION, **private}
    families = ["chat", "responses", "embeddings"]
    return {
        "lab-openai": {**openai, "families": families, "capabilities": {"thinking": "adaptive"}},
        "lab-anthropic": {**anthropic, "capabilities": _THINKS},
        "lab-bedrock": {**bedrock, "capabilities": _THINKS},
        "lab-bedrock-bearer": {**bedrock, "api_key_env": "LAB_BEDROCK_TOKEN"},
    }


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

    @cached_property
    def sdks(self) -> dict[str, Sdk]:
        return {sdk.name: sdk for sdk in all_sdks(self.url, self.key)}
