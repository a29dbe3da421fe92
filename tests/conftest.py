"""One gateway for the whole run, started as a user starts it: `python -m deployments.serve` on a free port."""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import pytest

from tests.scripted import ScriptedUpstream, scripted_upstream
from tests.servers import postgres, postgres_server, redis_server, redis_session  # noqa: F401  # fixtures

ROOT = Path(__file__).parent.parent
START_WITHIN_S = 100.0
STOP_WITHIN_S = 40.0


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway in processes of its own; `printed` grows with what it prints."""

    url: str
    admin_key: str
    process: subprocess.Popen[str]
    printed: list[str]

    def replica(self, deployment: str) -> psutil.Process:
        """The process of one replica of a deployment."""
        title = f"ray::ServeReplica:orqen:{deployment}"
        family = family_of(self.process.pid)  # one that ends meanwhile has no command line any more
        return next(each for each in family if " ".join(each.info["cmdline"] or ()).startswith(title))

    def stop(self) -> None:
        """Press Ctrl-C: it must end well and leave no process and no port. Every gateway of the tests is stopped so."""
        family = family_of(self.process.pid)
        ports = {port for _, port in listening(family)}
        assert any(each.info["name"] == "haproxy" for each in family) and len(ports) > 3
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=STOP_WITHIN_S) == 0, "".join(self.printed)
        assert [each for each in family if each.is_running()] == []
        assert ports & {port for _, port in listening()} == set()


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all below it, with `info` read: one that ends meanwhile is no error."""
    below = {each.pid for each in psutil.Process(pid).children(recursive=True)}
    found = psutil.process_iter(["name", "cmdline"])
    return [each for each in found if each.pid in below or each.pid == pid]


def listening(family: Iterable[psutil.Process] | None = None) -> set[tuple[str, int]]:
    """Addresses and ports on which these processes, or any at all, listen."""
    pids = None if family is None else {each.pid for each in family}
    return {
        (each.laddr.ip, each.laddr.port)
        for each in psutil.net_connections("tcp")
        if each.laddr and each.status == psutil.CONN_LISTEN and (pids is None or each.pid in pids)
    }


@contextmanager
def running_gateway(
    folder: Path, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator[RunningGateway]:
    """Start a gateway with `settings`, its data in `folder`, on a free port; stop it in the end.

    Its encoder runs in the ingress, for the sake of the machine, unless `settings` say where.
    """
    storage = {"database_url": f"sqlite+aiosqlite:///{folder}/orqen.db", "traces_uri": f"{folder}/traces"}
    config = folder / "orqen.yaml"
    placed = {"storage": storage, "encoders": {"placement": "ingress"}, **settings}
    config.write_text(json.dumps(placed))  # JSON is YAML
    variables = {**gateway_environment(), "ORQEN_CONFIG": str(config), "ORQEN_PORT": "0", **(environment or {})}
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.serve"],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed: list[str] = []
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    reader = threading.Thread(target=_drain, args=(process.stdout, printed, lines), daemon=True)
    reader.start()
    try:
        url = _url(lines, printed)
        key = variables.get("ORQEN_BOOTSTRAP_KEY") or _new_key(printed)
        running = RunningGateway(url, key, process, printed)
        yield running
        running.stop()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=STOP_WITHIN_S)
        reader.join(timeout=STOP_WITHIN_S)
        process.stdout.close()


def gateway_environment() -> dict[str, str]:
    """This process's environment without what would steer a gateway or lend it a provider's key."""
    foreign = re.compile(r"ORQEN_|RAY_|AWS_|\w+_API_KEY$")
    return {name: value for name, value in os.environ.items() if not foreign.match(name)} | {"PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def upstream() -> Iterator[ScriptedUpstream]:
    """A provider on loopback that the shared gateway knows as `lab`."""
    with scripted_upstream() as server:
        yield server


@pytest.fixture(scope="session")
def operator_providers(upstream: ScriptedUpstream) -> dict[str, Any]:
    """The `providers:` of the shared gateway. Add rows here; base URLs must be known before the gateway starts."""
    return {"lab": lab_row(upstream)}


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, operator_providers: dict[str, Any]) -> Iterator[RunningGateway]:
    """The shared gateway: as `make serve` starts it, forwarders in the ingress, encoders in a pool."""
    environment = {"ORQEN_BOOTSTRAP_KEY": f"sk-orq-{secrets.token_hex(32)}"}
    settings = {"providers": operator_providers, "retries": {"max_retries": 0}, "encoders": {}}
    with running_gateway(tmp_path_factory.mktemp("gateway"), settings, environment) as running:
        yield running


@pytest.fixture(scope="session")
def gateway_url(gateway: RunningGateway) -> str:
    return gateway.url


@pytest.fixture(scope="session")
def admin_key(gateway: RunningGateway) -> str:
    return gateway.admin_key


def lab_row(upstream: ScriptedUpstream) -> dict[str, Any]:
    """A provider's row for `upstream`, in OpenAI's dialect, without credentials."""
    return {
        "dialect": "openai",
        "base_url": f"{upstream.url}/v1",
        "auth": "none",
        "allow_private_network": True,
        "models": ["plain", "endless"],
    }


def _drain(output: TextIO, printed: list[str], lines: queue.Queue[str | None]) -> None:
    for line in output:
        printed.append(line)
        lines.put(line)
    lines.put(None)


def _url(lines: queue.Queue[str | None], printed: list[str]) -> str:
    while (line := lines.get(timeout=START_WITHIN_S)) is not None:
        if found := re.search(r"serves on (\S+)", line):
            return found[1]
    raise AssertionError(f"the gateway ended before it served:\n{''.join(printed)}")


def _new_key(printed: list[str]) -> str:
    found = re.search(r"sk-orq-[0-9a-f]{64}", "".join(printed))
    assert found, "no admin key was printed"
    return found[0]
