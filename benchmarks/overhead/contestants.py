"""The contestants: how each is started on a free port, reached and stopped."""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.overhead.mock import MODEL
from benchmarks.overhead.processes import (
    ROOT,
    CannotStart,
    Running,
    clean_environment,
    started,
    wait_for_answer,
    wait_for_port,
    wait_for_print,
)
from deployments.flags import free_ports

PEERS = ROOT / "benchmarks" / "peers"
CACHE = ROOT / "build" / "bench"
PORTKEY = PEERS / "node_modules" / "@portkey-ai" / "gateway"
LITELLM_VENV = CACHE / "litellm"
INSTALL_WITHIN_S = 600


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that answers chat calls at `url`; `headers` go with each of them."""

    name: str
    url: str
    version: str
    headers: Mapping[str, str] = field(default_factory=dict)
    running: Running | None = None

    def replica(self, deployment: str) -> psutil.Process:
        """This gateway's process that runs `deployment`."""
        assert self.running is not None
        title = f"ray::ServeReplica:orqen:{deployment}"
        return next(each for each in self.running.family() if " ".join(each.cmdline()).startswith(title))


Start = Callable[[str, Path], AbstractContextManager[Contestant]]
"""From the mock's base URL and a folder for files to a running contestant. Raises CannotStart."""


@contextmanager
def mock(folder: Path) -> Iterator[str]:
    """The provider: its base URL."""
    with started([sys.executable, "-m", "benchmarks.overhead.mock"], folder, "mock") as running:
        yield f"http://127.0.0.1:{wait_for_port(running)}"


@contextmanager
def direct(mock_url: str, folder: Path) -> Iterator[Contestant]:
    yield Contestant("direct", mock_url, "-")


@contextmanager
def bare(mock_url: str, folder: Path) -> Iterator[Contestant]:
    command = [sys.executable, "-m", "benchmarks.overhead.bare", mock_url]
    with started(command, folder, "bare") as running:
        url = f"http://127.0.0.1:{wait_for_port(running)}"
        wait_for_answer(running, url)
        versions = [f"{name} {version(name)}" for name in ("starlette", "uvicorn", "aiohttp")]
        yield Contestant("bare", url, ", ".join(versions), running=running)


def orqen(name: str, placement: str) -> Start:
    """This gateway as `make serve` starts it."""

    @contextmanager
    def start(mock_url: str, folder: Path) -> Iterator[Contestant]:
        row = {
            "dialect": "openai",
            "base_url": f"{mock_url}/v1",
            "auth": "none",
            "allow_private_network": True,
            "models": [MODEL],
        }
        data = folder / name
        data.mkdir()
        settings = {
            "storage": {"database_url": f"sqlite+aiosqlite:///{data}/orqen.db", "traces_uri": f"{data}/traces"},
            "providers": {"lab": row},
            "forwarder": {"placement": placement},
        }
        config = data / "orqen.yaml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        key = f"sk-orq-{secrets.token_hex(32)}"
        environment = {"ORQEN_CONFIG": str(config), "ORQEN_PORT": "0", "ORQEN_BOOTSTRAP_KEY": key}
        command = [sys.executable, "-m", "deployments.serve"]
        with started(command, folder, name, environment, stop_with=signal.SIGINT) as running:
            url = wait_for_print(running, r"serves on (http://\S+)")
            about = f"{version('orqen-ray')}, ray {version('ray')}"
            yield Contestant(name, url, about, {"authorization": f"Bearer {key}"}, running)

    return start


@contextmanager
def portkey(mock_url: str, folder: Path) -> Iterator[Contestant]:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise CannotStart("node and npm are not here")
    pinned = json.loads((PEERS / "package.json").read_text())["dependencies"]["@portkey-ai/gateway"]
    if not (PORTKEY / "package.json").exists() or _release(PORTKEY) != pinned:
        _install(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], PEERS)
    port = free_ports(1)[0]
    command = ["node", str(PORTKEY / "build" / "start-server.js"), f"--port={port}", "--headless"]
    with started(command, folder, "portkey") as running:
        url = f"http://127.0.0.1:{port}"
        wait_for_answer(running, url)
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        headers = {
            "authorization": "Bearer any",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{mock_url}/v1",
        }
        yield Contestant("portkey", url, f"{pinned}, node {node}", headers, running)


@contextmanager
def litellm(mock_url: str, folder: Path) -> Iterator[Contestant]:
    program = LITELLM_VENV / "bin" / "litellm"
    pins = PEERS / "litellm.txt"
    stamp = LITELLM_VENV / ".pins"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        shutil.rmtree(LITELLM_VENV, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(LITELLM_VENV)], ROOT)
        pip = [str(LITELLM_VENV / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        _install([*pip, "-r", str(pins)], ROOT)
        stamp.write_text(pins.read_text())
    release = next(line.split("==")[1] for line in pins.read_text().splitlines() if line.startswith("litellm"))
    params = {"model": f"openai/{MODEL}", "api_base": f"{mock_url}/v1", "api_key": "any"}
    config = folder / "litellm.yaml"
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": MODEL, "litellm_params": params}],
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    logging = folder / "litellm-logging.json"
    logging.write_text(json.dumps({"version": 1, "disable_existing_loggers": False, "root": {"level": "ERROR"}}))
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a price list from the network
    }
    port = free_ports(1)[0]
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with started([*command, "--log_config", str(logging)], folder, "litellm", environment) as running:
        url = f"http://127.0.0.1:{port}"
        wait_for_answer(running, f"{url}/health/liveliness")
        yield Contestant("litellm", url, f"{release}, python {platform.python_version()}", running=running)


CONTESTANTS: Mapping[str, Start] = {
    "direct": direct,
    "ingress": orqen("ingress", "ingress"),
    "pool": orqen("pool", "pool"),
    "portkey": portkey,
    "litellm": litellm,
    "bare": bare,
}


def _release(package: Path) -> str:
    return str(json.loads((package / "package.json").read_text())["version"])


def _install(command: list[str], folder: Path) -> None:
    print(f"installing: {' '.join(Path(word).name for word in command)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        raise CannotStart("cannot be installed: took too long") from None
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise CannotStart(f"cannot be installed: {last[:200]}")
