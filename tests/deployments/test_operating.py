"""What an operator sees of several processes behind one port: exact counts, and a log without forged lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import (
    ROOT,
    RunningGateway,
    family_of,
    gateway_environment,
    lab_row,
    listening,
    running_gateway,
)
from tests.deployments.test_serving import _ask
from tests.scripted import ScriptedUpstream

WITHIN_S = 30.0
CHATS = {"format": "openai_chat", "provider": "lab", "status": "200"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("busy")


@pytest.fixture(scope="module")
def busy_gateway(folder: Path, upstream: ScriptedUpstream) -> Iterator[RunningGateway]:
    """Two ingress processes and a forwarder process, which log each request as JSON."""
    settings = {
        "providers": {"lab": lab_row(upstream)},
        "ingress": {"min_replicas": 2, "max_replicas": 2},
        "forwarder": {"placement": "pool"},
        "logs": {"format": "json", "requests": True},
    }
    with running_gateway(folder, settings) as running:
        yield running


def scrape(gateway: RunningGateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Each sample of the page, without the node's name."""
    answer = httpx.get(f"{gateway.url}/metrics", headers={"authorization": f"Bearer {gateway.admin_key}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    found = {}
    for name, labels, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", answer.text, re.MULTILINE):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert pairs.pop("node")
        found[name, frozenset(pairs.items())] = float(value)
    return found


def sample(gateway: RunningGateway, metric: str, **labels: str) -> float:
    return scrape(gateway).get((metric, frozenset(labels.items())), 0.0)


def ingresses(gateway: RunningGateway) -> list[psutil.Process]:
    family = family_of(gateway.process.pid)
    return [each for each in family if " ".join(each.info["cmdline"]).startswith("ray::ServeReplica:orqen:Ingress")]


def ask_until_both_have_answered(gateway: RunningGateway) -> int:
    """How many requests that took: the processes name themselves by where their answers come from."""
    asked = 0
    deadline = time.monotonic() + WITHIN_S
    seen: set[str] = set()
    while len(seen) < 2 and time.monotonic() < deadline:
        assert _ask(gateway.url, gateway.admin_key, "lab/plain").status_code == 200
        asked += 1
        seen = {found[1] for line in gateway.printed if (found := re.search(r"Ingress pid=(\d+)", line))}
    assert len(seen) == 2
    return asked


def test_counts_are_exact_across_processes_and_after_one_is_killed(busy_gateway: RunningGateway) -> None:
    counted = sample(busy_gateway, "orqen_requests_total", **CHATS)
    asked = ask_until_both_have_answered(busy_gateway)
    assert [sample(busy_gateway, "orqen_requests_total", **CHATS) for _ in range(6)] == [counted + asked] * 6
    assert sample(busy_gateway, "orqen_processes", role="ingress") == 2
    assert sample(busy_gateway, "orqen_processes", role="forwarder") == 1
    assert sample(busy_gateway, "orqen_tokens_total", provider="lab", kind="input") == 3 * (counted + asked)

    victim = ingresses(busy_gateway)[0]
    victim.kill()
    victim.wait(5)
    assert sample(busy_gateway, "orqen_processes", role="ingress") == 1
    assert sample(busy_gateway, "orqen_requests_total", **CHATS) == counted + asked
    deadline = time.monotonic() + WITHIN_S
    while sample(busy_gateway, "orqen_processes", role="ingress") < 2:
        assert time.monotonic() < deadline, "no new process was counted"
    for _ in range(10):
        assert _ask(busy_gateway.url, busy_gateway.admin_key, "lab/plain").status_code == 200
    assert sample(busy_gateway, "orqen_requests_total", **CHATS) == counted + asked + 10
    assert sample(busy_gateway, "orqen_open_requests") == 0


def test_each_request_is_one_json_line_that_nothing_can_forge(busy_gateway: RunningGateway) -> None:
    forged = 'x\n{"level": "error", "message": "forged"}'
    headers = {"x-request-id": "for-the-log", "authorization": f"Bearer {busy_gateway.admin_key}"}
    body = {"model": forged, "messages": [{"role": "user", "content": "a secret question"}]}
    assert httpx.post(f"{busy_gateway.url}/v1/chat/completions", json=body, headers=headers).status_code == 400
    line = _line(busy_gateway, "for-the-log")
    assert (line["message"], line["status"], line["error_code"]) == ("request", 400, "invalid_request")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    printed = "".join(busy_gateway.printed).split("Admin key, shown this once")[1]
    assert "secret question" not in printed and printed.count(busy_gateway.admin_key) == 1
    assert '"message": "forged"' not in printed


def _line(gateway: RunningGateway, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        for line in gateway.printed:
            if f'"request_id":"{request_id}"' in line:
                found: dict[str, Any] = json.loads(line[line.index("{") :])
                return found
    raise AssertionError("the request was not logged")


def test_the_doctor_finds_the_running_gateway_well_and_its_open_ports(
    busy_gateway: RunningGateway, folder: Path
) -> None:
    port = busy_gateway.url.rpartition(":")[2]
    environment = {**gateway_environment(), "ORQEN_CONFIG": str(folder / "orqen.yaml"), "ORQEN_PORT": port}
    command = [sys.executable, "-c", "from orqen_ray.cli import app; app()", "doctor", "--json"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    found = {finding["check"]: finding for finding in json.loads(ended.stdout)}
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert found["port"]["message"].endswith("and is ready") and found["database"]["state"] == "ok"
    assert found["provider lab"]["state"] in ("ok", "warning")
    raylet = next(each for each in family_of(busy_gateway.process.pid) if each.info["name"] == "raylet")
    ports = {str(port) for address, port in listening([raylet]) if address in ("0.0.0.0", "::")}
    assert found["listeners"]["state"] == "warning"
    assert all(port in found["listeners"]["message"] for port in ports)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/model/lab%2Fplain/converse"])
def test_a_head_that_is_too_large_is_refused_before_the_gateway_sees_it(
    busy_gateway: RunningGateway, path: str
) -> None:
    """In no API's shape, then: docs/api.md says so."""
    headers = {"authorization": "Bearer x"}
    fits = httpx.post(f"{busy_gateway.url}{path}", json={}, headers={**headers, "x-large": "y" * 10_000})
    assert fits.status_code == 401 and fits.json()
    for large in ({"x-large": "y" * 20_000}, {f"x-{number}": "y" for number in range(150)}):
        answer = httpx.post(f"{busy_gateway.url}{path}", json={}, headers={**headers, **large})
        assert answer.status_code == 400 and "x-request-id" not in answer.headers
    query = httpx.post(f"{busy_gateway.url}{path}?{'q' * 20_000}", json={}, headers=headers)
    assert query.status_code == 400
