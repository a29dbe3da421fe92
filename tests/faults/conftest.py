"""A gateway that things are done to: two ingress replicas, a forwarder pool, and a provider that fails on demand."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import RunningGateway, family_of, running_gateway
from tests.faults.provider import FaultyProvider, faulty_provider
from tests.faults.table import ROWS, table

IDLE_S = 2.0
GRAPH = {"forwarder": {"placement": "pool"}, "ingress": {"min_replicas": 2, "max_replicas": 2}}


@dataclass(frozen=True)
class FaultyGateway:
    """A gateway whose provider `faulty` leads to `provider`; its data are in `folder`."""

    gateway: RunningGateway
    provider: FaultyProvider
    folder: Path
    database_url: str = ""

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def key(self) -> str:
        return self.gateway.admin_key

    def model(self, fault: str) -> str:
        """A model string; each fault and caller has a provider row of its own, so that none opens another's circuit."""
        return f"faulty-{fault.replace(':', '-')}/{fault}"

    def processes(self, deployment: str) -> list[psutil.Process]:
        """The replicas of a deployment."""
        title = f"ray::ServeReplica:orqen:{deployment}"
        return [
            each
            for each in family_of(self.gateway.process.pid)
            if " ".join(each.info["cmdline"] or ()).startswith(title)
        ]

    def wait_closed(self, model: str, within_s: float) -> None:
        """The provider's side of the last request for `model` ends within the time."""
        wait_until(lambda: self.provider.last(model).closed_at is not None, within_s)

    def wait_steady(self, value: Callable[[], int], within_s: float = 20) -> int:
        """`value()` once it has not changed for a second."""
        last, since, deadline = value(), time.monotonic(), time.monotonic() + within_s
        while time.monotonic() - since < 1.0:
            assert time.monotonic() < deadline, f"still changing: {last}"
            time.sleep(0.05)  # polled: what is counted is in another thread
            if (now := value()) != last:
                last, since = now, time.monotonic()
        return last


def wait_until(true: Callable[[], bool], within_s: float) -> None:
    """Poll what no event tells: the state of other processes."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.02)


CALLERS = ("", "-openai", "-anthropic", "-boto3", "-circuit", "-slow")
FAULTS = (
    "429", "500", "503", "529", "stall", "reset", "garbage", "garbage-body", "truncated", "stall-stream",
    "reset-stream", "garbage-stream", "truncated-stream", "ended-stream", "error-stream", "flood", "stream", "ok",
)  # fmt: skip


def fault_settings(url: str) -> dict[str, Any]:
    """Short waits, one retry, and a provider row for each fault."""
    row = {"dialect": "openai", "base_url": f"{url}/v1", "auth": "none", "allow_private_network": True}
    return {
        "providers": {f"faulty-{fault}{caller}": row for fault in FAULTS for caller in CALLERS},
        "timeouts": {"first_byte_s": IDLE_S, "idle_s": IDLE_S, "total_s": 60},
        "retries": {"max_retries": 1, "backoff_s": 0.05},
        "circuit_breaker": {"cooldown_s": 1, "cooldown_max_s": 1},
    }


@pytest.fixture(scope="package")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyGateway]:
    folder = tmp_path_factory.mktemp("faults")
    environment = {"ORQEN_BOOTSTRAP_KEY": f"sk-orq-{secrets.token_hex(32)}"}
    with faulty_provider() as provider:
        settings = fault_settings(provider.url) | GRAPH
        with running_gateway(folder, settings, environment) as gateway:
            yield FaultyGateway(gateway, provider, folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("faults")
        terminalreporter.write_line(table())
