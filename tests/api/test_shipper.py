"""The trace log's child process as a gateway starts it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.api.conftest import ROWS, ScriptedUpstream
from tests.api.lab import lab_gateway

SECRETS = {
    "ORQEN_SECRET_KEY": "a-secret-key-of-at-least-32-characters",
    "ORQEN_BOOTSTRAP_KEY": f"sk-orq-{'0' * 64}",
    "OPENAI_API_KEY": "sk-openai",
    "LAB_KEY": "sk-lab",
    "RAY_AUTH_TOKEN": "token",
}


async def test_the_shipper_gets_no_secret_that_it_has_no_use_for(
    tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECRETS, "AWS_SECRET_ACCESS_KEY": "for-s3"}.items():
        monkeypatch.setenv(name, value)
    lab_row = {"dialect": "openai", "base_url": "http://lab.invalid/v1", "api_key_env": "LAB_KEY"}
    async with lab_gateway(tmp_path, upstream, {**ROWS, "lab-openai": lab_row}) as lab:
        body = {"model": "lab-openai/m", "messages": [{"role": "user", "content": "hi"}]}
        assert (await lab.client.post("/v1/chat/completions", json=body)).status_code == 200
        await lab.service._traces.flush()
        children: list[psutil.Process] = []
        async with asyncio.timeout(10):
            while not children:
                await asyncio.to_thread(lab.service._traces._tend)
                found = psutil.Process().children()
                children = [each for each in found if "orqen_ray.traces.shipper" in each.cmdline()]
        environment = children[0].environ()
    assert environment["AWS_SECRET_ACCESS_KEY"] == "for-s3" and "PATH" in environment
    assert not set(SECRETS.values()) & set(environment.values())
