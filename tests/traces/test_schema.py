"""The columns: made from the row, documented, narrow enough to be true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from orqen_ray.traces.row import Trace
from orqen_ray.traces.schema import TRACE_SCHEMA

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")


def test_the_schema_has_the_columns_of_the_row_each_with_a_description() -> None:
    assert [*TRACE_SCHEMA.names, "prices_usd_per_mtok"] == list(Trace.__struct_fields__)
    assert all(len(column.metadata[b"description"]) > 10 for column in TRACE_SCHEMA)
    assert TRACE_SCHEMA.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert TRACE_SCHEMA.field("tools_called").type == pa.list_(pa.string())
    assert TRACE_SCHEMA.field("input_tokens").type == pa.int32()
    assert [column.name for column in TRACE_SCHEMA if column.nullable][:2] == ["dialect", "provider"]


def test_each_attempt_has_its_own_columns() -> None:
    attempt = TRACE_SCHEMA.field("attempt_log").type.value_type
    assert [(field.name, str(field.type)) for field in attempt] == [
        ("provider", "string"),
        ("model", "string"),
        ("key", "string"),
        ("status", "int32"),
        ("error_code", "string"),
        ("started_ms", "double"),
        ("took_ms", "double"),
    ]


@pytest.mark.parametrize("column", list(TRACE_SCHEMA), ids=lambda column: column.name)
def test_every_column_is_documented_with_its_type_and_description(column: pa.Field) -> None:
    line = documented(column)
    assert line in PAGE, f"docs/traces.md lacks the line: {line}"


def documented(column: pa.Field) -> str:
    """The column's line in docs/traces.md."""
    kind = str(column.type).replace("element: ", "").replace("item: ", "")
    kind = f"{kind}, may be null" if column.nullable else kind
    return f"| `{column.name}` | {kind} | {column.metadata[b'description'].decode()} |"


def test_no_column_is_documented_that_does_not_exist() -> None:
    listed = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert listed == TRACE_SCHEMA.names


@pytest.mark.parametrize("module", ["orqen_ray.api.app", "orqen_ray.service", "orqen_ray.passthrough"])
def test_a_process_that_answers_requests_loads_neither_arrow_nor_the_price_list(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"pyarrow", "genai_prices"} & set(loaded.stdout.split()) == set()
    assert "orqen_ray.traces.writer" in loaded.stdout.split()
