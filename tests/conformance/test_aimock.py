"""The rows of the matrix that a third-party provider can answer."""

from __future__ import annotations

import pytest

from tests.conformance.aimock import CITY, PROGRAM
from tests.conformance.asks import ASKS
from tests.conformance.cells import AIMOCK_ROWS, PAIRS, cell
from tests.conformance.lab import Lab
from tests.conformance.scenarios import TEXT
from tests.conformance.test_matrix import STOPS

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="no aimock: `npm ci` in tests/node installs it")
CELLS = [(row, *pair) for row in AIMOCK_ROWS for pair in PAIRS if "aimock" in cell(row, *pair).tested]


@pytest.mark.parametrize(("row", "sdk_name", "dialect"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_a_third_party_provider_answers(lab: Lab, row: str, sdk_name: str, dialect: str) -> None:
    model = "tools" if row.startswith("tools") else "plain"
    sdk = lab.sdks[sdk_name]
    body = ASKS[sdk_name](model, f"mock-{dialect}/{model}")
    got = sdk.stream(body) if row.endswith("stream") else sdk.ask(body)
    assert got.headers["x-orqen-provider"] == f"mock-{dialect}"
    if model == "tools":
        assert [call[1:] for call in got.calls] == [("get_weather", CITY)]
        assert got.stop == STOPS[sdk_name]["tools"]
    else:
        assert (got.text, got.calls, got.stop) == (TEXT, [], STOPS[sdk_name]["end"])
