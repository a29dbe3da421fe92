"""What is kept of a request: each part of it, whatever becomes of the others, and nothing that fails the request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orqen_ray.exchange import Exchange
from orqen_ray.metrics import Metrics
from orqen_ray.recording import record
from orqen_ray.traces.row import Trace
from orqen_ray.traces.writer import TraceWriter


class Broken(TraceWriter):
    def write(self, trace: Trace) -> None:
        raise RuntimeError("broken")


class Kept(TraceWriter):
    def __init__(self, folder: str) -> None:
        super().__init__(folder, ship=False)
        self.rows: list[Trace] = []

    def write(self, trace: Trace) -> None:
        self.rows.append(trace)


def spends(spent: list[tuple[str, int]], *, fails: bool = False) -> Any:
    def spend(key_id: str, tokens: int) -> None:
        if fails:
            raise RuntimeError("broken")
        spent.append((key_id, tokens))

    return spend


def exchange() -> Exchange:
    return Exchange(request_id="r", key_id="k", session_id="s", inbound_format="openai_chat", status=200)


def counted(metrics: Metrics) -> float | None:
    labels = {"format": "openai_chat", "provider": "none", "status": "200"}
    return metrics.registry.get_sample_value("orqen_requests_total", labels)


def test_a_trace_log_that_fails_costs_neither_the_request_nor_its_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spent: list[tuple[str, int]] = []
    metrics = Metrics()
    record(exchange(), Broken(str(tmp_path), ship=False), metrics, spends(spent))
    assert spent == [("k", 0)] and counted(metrics) == 1
    assert "its row was not recorded" in caplog.text


def test_a_budget_that_fails_costs_neither_the_request_nor_its_row(tmp_path: Path) -> None:
    traces, metrics = Kept(str(tmp_path)), Metrics()
    record(exchange(), traces, metrics, spends([], fails=True))
    assert len(traces.rows) == 1 and counted(metrics) == 1
