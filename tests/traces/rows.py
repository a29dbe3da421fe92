"""Rows to write, and ways to look at what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa

from orqen_ray.traces.reader import read_traces
from orqen_ray.traces.row import Trace
from orqen_ray.traces.spool import Segment, open_spool
from orqen_ray.types import Attempt

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
FULL = Trace(
    request_id="r1",
    started_at=NOON,
    key_id="key_1",
    session_id="s1",
    inbound_format="openai_chat",
    dialect="anthropic_messages",
    provider="anthropic",
    requested_model="claude",
    sent_model="claude-sonnet-4-5",
    served_model="claude-sonnet-4-5-20250929",
    stream=True,
    status=200,
    error_code="upstream_stream_failed",
    error_class="provider",
    attempts=2,
    attempt_log=(
        Attempt(provider="anthropic", model="claude-sonnet-4-5", key="a", status=529, error_code="x", took_ms=9.5),
        Attempt(provider="anthropic", model="claude-sonnet-4-5", key="b", status=200, started_ms=20.25, took_ms=180.0),
    ),
    tools_input=32,
    tools_output=32,
    input_tokens=10,
    cache_read_tokens=20,
    cache_write_tokens=30,
    cache_write_1h_tokens=7,
    output_tokens=40,
    reasoning_tokens=5,
    usage_source="provider",
    cost_usd=0.0125,
    request_bytes=1000,
    response_bytes=2000,
    read_ms=0.5,
    select_ms=0.125,
    build_ms=0.25,
    overhead_ms=1.5,
    first_byte_ms=200.25,
    total_ms=900.0,
    stop_reason="tool_use",
    tools_called=("search", "search"),
    dropped=("seed",),
)
EMPTY = Trace(
    request_id="r2", started_at=NOON + timedelta(days=1), key_id="", session_id="", inbound_format="bedrock_converse"
)


def row(number: int, started_at: datetime = NOON) -> Trace:
    """A small row whose id is its number."""
    return msgspec.structs.replace(EMPTY, request_id=str(number), started_at=started_at)


def traces_of(table: pa.Table) -> list[Trace]:
    return [msgspec.convert(each, Trace) for each in table.to_pylist()]


def numbers(table: pa.Table) -> list[int]:
    return sorted(int(each) for each in table["request_id"].to_pylist())


def all_numbers(uri: str, spool: Path | None = None) -> list[int]:
    """The ids of all rows, by size; one that is there twice is there twice."""
    return numbers(read_traces(uri, spool=str(spool) if spool else None))


def spool_segment(spool: Path, traces: Iterable[Trace]) -> Path:
    """A sealed segment with these rows, as a gateway process leaves it."""
    segment = Segment(spool, open_spool(spool))
    for trace in traces:
        segment.append(msgspec.json.encode(trace) + b"\n")
    segment.close()
    return segment.path


def parquet_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("day=*/*.parquet"))


def once_each(count: int) -> Counter[int]:
    return Counter(range(count))
