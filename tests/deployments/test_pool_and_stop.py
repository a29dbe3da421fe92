"""A second gateway beside the shared one: forwarders in a pool, a replica that dies, starts that fail."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import ROOT, STOP_WITHIN_S, RunningGateway, family_of, gateway_environment, lab_row, running_gateway
from tests.deployments.test_serving import _ask, _leave_a_stream
from tests.scripted import ScriptedUpstream

RECOVERS_WITHIN_S = 30.0
SERVE = [sys.executable, "-m", "deployments.serve"]


@pytest.fixture(scope="module")
def pool_gateway(
    tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream, gateway: RunningGateway
) -> Iterator[RunningGateway]:
    """Its forwarders are a deployment of their own. The shared gateway runs beside it all the while."""
    settings = {"providers": {"lab": lab_row(upstream)}, "forwarder": {"placement": "pool"}, "encoders": {}}
    with running_gateway(tmp_path_factory.mktemp("pool"), settings) as running:
        yield running


def test_a_new_store_gets_one_admin_key_and_start_prints_it_once(pool_gateway: RunningGateway) -> None:
    assert "".join(pool_gateway.printed).count("sk-orq-") == 1
    assert _ask(pool_gateway.url, pool_gateway.admin_key, "lab/plain").status_code == 200


def test_the_pool_forwards_and_the_ingress_holds_no_provider_connection(pool_gateway: RunningGateway) -> None:
    answer = _ask(pool_gateway.url, pool_gateway.admin_key, "lab/plain")
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    assert pool_gateway.replica("Forwarder").pid != pool_gateway.replica("Ingress").pid


def test_a_client_that_leaves_is_left_by_the_pools_provider_within_a_second(
    pool_gateway: RunningGateway, upstream: ScriptedUpstream
) -> None:
    _leave_a_stream(pool_gateway.url, pool_gateway.admin_key, upstream, {})


def test_an_error_of_the_provider_crosses_the_pool_as_itself(pool_gateway: RunningGateway) -> None:
    answer = _ask(pool_gateway.url, pool_gateway.admin_key, "openai/gpt-4o")
    assert answer.status_code == 400
    assert "openai" in answer.json()["error"]["message"]


@pytest.mark.parametrize("deployment", ["Ingress", "Forwarder", "Embedder"])
def test_the_gateway_recovers_from_the_death_of_a_replica(pool_gateway: RunningGateway, deployment: str) -> None:
    replica = pool_gateway.replica(deployment)
    replica.kill()
    replica.wait(5)
    deadline = time.monotonic() + RECOVERS_WITHIN_S
    while time.monotonic() < deadline:
        try:
            if _ask(pool_gateway.url, pool_gateway.admin_key, "lab/plain").status_code == 200:
                return
        except httpx.TransportError:
            continue
    raise AssertionError(f"no answer within {RECOVERS_WITHIN_S} s after {deployment} died")


def test_a_stop_in_the_middle_of_a_start_leaves_nothing(tmp_path: Path) -> None:
    environment = {
        **gateway_environment(),
        "ORQEN_PORT": "0",
        "ORQEN_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/db",
    }
    with open(tmp_path / "printed", "wb") as output:
        watcher = subprocess.Popen(SERVE, cwd=ROOT, env=environment, stdout=output, stderr=output)
        family: list[psutil.Process] = []
        while not any(each.info["name"] == "raylet" for each in family):
            with pytest.raises(subprocess.TimeoutExpired):  # it runs; a moment for those that it starts
                watcher.wait(timeout=0.1)
            family = family_of(watcher.pid)
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(timeout=STOP_WITHIN_S) == 0
    assert [each for each in family if each.is_running()] == []


def test_a_port_that_is_taken_is_said_and_nothing_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            SERVE,
            cwd=ROOT,
            env={**gateway_environment(), "ORQEN_PORT": port},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in ended.stderr
    assert "Traceback" not in ended.stderr
