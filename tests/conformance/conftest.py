"""A gateway of this suite's own, because its providers need keys; and the matrix, printed when all is done."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator

import pytest

from tests.conformance import cells
from tests.conformance.aimock import aimock, aimock_rows
from tests.conformance.credentials import ENVIRONMENT
from tests.conformance.lab import PATIENT, Lab, provider_rows
from tests.conformance.upstream import conformance_upstream
from tests.conftest import running_gateway


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("conformance")
    environment = {**ENVIRONMENT, "ORQEN_BOOTSTRAP_KEY": f"sk-orq-{secrets.token_hex(32)}"}
    with conformance_upstream() as upstream, aimock(folder) as aimock_url:
        rows = provider_rows(upstream.url) | (aimock_rows(aimock_url) if aimock_url else {})
        # The scripted failures are many and mean nothing.
        settings = {
            "providers": rows,
            "retries": {"max_retries": 0},
            "circuit_breaker": {"failures": 1000},
            **PATIENT,
        }
        with running_gateway(folder, settings, environment) as gateway:
            lab = Lab(gateway, upstream, folder)
            yield lab
            for sdk in lab.sdks.values():
                sdk.client.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    values = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if "row" in values:
        by = "aimock" if item.path.stem == "test_aimock" else "scripted"
        shown = (str(values["row"]), str(values["sdk_name"]), str(values["dialect"]), by)
        if report.failed:
            cells.FAILED.add(shown)
        elif report.when == "call" and report.passed:
            cells.PASSED.add(shown)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if cells.PASSED:
        terminalreporter.section("conformance")
        terminalreporter.write_line(cells.matrix(run=True))
    for line in cells.FIGURES:
        terminalreporter.write_line(line)
