"""Traces: written in the background, read back, bounded, documented."""

from __future__ import annotations

import asyncio
import os
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orqen_ray.traces.reader import read_traces
from orqen_ray.traces.schema import TRACE_SCHEMA, Trace
from orqen_ray.traces.writer import TraceWriter

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
    sent_model="claude-sonnet-4-6",
    served_model="claude-sonnet-4-6",
    stream=True,
    status=200,
    attempts=2,
    tools_input=32,
    tools_output=32,
    input_tokens=10,
    cache_read_tokens=20,
    cache_write_tokens=30,
    output_tokens=40,
    reasoning_tokens=5,
    usage_source="provider",
    cost_usd=0.0125,
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


def trace_of(row: dict[str, object]) -> Trace:
    return Trace(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})  # type: ignore[arg-type]


async def written(path: Path, *traces: Trace) -> TraceWriter:
    writer = TraceWriter(str(path))
    await writer.start()
    for trace in traces:
        writer.write(trace)
    await writer.aclose()
    return writer


def files_in(path: Path) -> list[Path]:
    return list(path.glob("day=*/*.parquet"))


async def first_file(path: Path) -> None:
    async with asyncio.timeout(10):
        for _ in iter(lambda: bool(files_in(path)), True):
            await asyncio.sleep(0.001)


async def test_rows_come_back_as_they_were_written_one_folder_a_day(tmp_path: Path) -> None:
    await written(tmp_path / "t", EMPTY, FULL)
    table = read_traces(str(tmp_path / "t"))
    assert table.schema.equals(TRACE_SCHEMA)
    assert [trace_of(row) for row in table.to_pylist()] == [FULL, EMPTY]
    assert sorted(os.listdir(tmp_path / "t")) == ["day=2030-01-01", "day=2030-01-02"]


async def test_since_leaves_out_what_started_before(tmp_path: Path) -> None:
    uri = (tmp_path / "t").as_uri()
    await written(tmp_path / "t", *(replace(FULL, started_at=NOON + timedelta(hours=h)) for h in (0, 1, 13)))
    assert read_traces(uri, since=NOON + timedelta(hours=1)).num_rows == 2
    assert read_traces(uri, since=datetime.fromisoformat("2030-01-02T04:00:00+03:00")).num_rows == 1
    assert read_traces(uri, since=NOON + timedelta(days=9)).num_rows == 0


def test_where_there_is_no_log_there_are_no_rows(tmp_path: Path) -> None:
    table = read_traces(str(tmp_path / "none"))
    assert table.num_rows == 0 and table.schema.equals(TRACE_SCHEMA)


async def test_files_of_an_older_gateway_and_unfinished_ones_can_be_lain_beside(tmp_path: Path) -> None:
    await written(tmp_path, FULL)
    (file,) = files_in(tmp_path)
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["served_model"]), file.with_name("old.parquet"))
    file.with_name(".draft.parquet.tmp").write_bytes(b"PAR1 half")
    assert read_traces(str(tmp_path))["served_model"].to_pylist().count(None) == 1


async def test_a_full_batch_is_written_without_waiting_for_the_clock(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path), flush_rows=3, flush_interval_s=3600)
    await writer.start()
    for _ in range(3):
        writer.write(FULL)
    await first_file(tmp_path)
    assert read_traces(str(tmp_path)).num_rows == 3
    await writer.aclose()


async def test_a_lone_row_is_written_after_the_interval(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path), flush_interval_s=0.01)
    await writer.start()
    writer.write(FULL)
    await first_file(tmp_path)
    await writer.aclose()


async def test_above_the_bound_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path), max_pending_rows=2)
    for _ in range(5):
        writer.write(FULL)
    assert writer.dropped_rows == 3
    await writer.aclose()
    assert read_traces(str(tmp_path)).num_rows == 2
    writer.write(FULL)
    assert writer.dropped_rows == 4


async def test_rows_survive_a_folder_that_cannot_be_written_for_a_while(tmp_path: Path) -> None:
    blocker = tmp_path / "t"
    blocker.write_text("a file where the folder should be")
    writer = TraceWriter(str(blocker))
    writer.write(FULL)
    writer.write(EMPTY)
    await writer.flush()
    assert writer.dropped_rows == 0
    blocker.unlink()
    await writer.flush()
    assert read_traces(str(blocker)).num_rows == 2
    await writer.aclose()


async def test_a_row_that_does_not_fit_is_dropped_and_the_writer_lives_on(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path))
    writer.write(replace(FULL, status="what"))  # type: ignore[arg-type]
    await writer.flush()
    assert writer.dropped_rows == 1
    writer.write(FULL)
    await writer.aclose()
    assert read_traces(str(tmp_path)).num_rows == 1


async def test_only_the_owner_can_read_the_log(tmp_path: Path) -> None:
    await written(tmp_path / "t", FULL)
    (file,) = (tmp_path / "t").glob("day=*/*")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("uri", ["s3://bucket/traces", "file://elsewhere/traces"])
def test_a_place_that_is_not_on_this_machine_is_refused_by_the_name_of_the_setting(uri: str) -> None:
    with pytest.raises(ValueError, match="storage.traces_uri"):
        TraceWriter(uri)


def test_the_schema_has_the_columns_of_the_row_each_with_a_description() -> None:
    assert TRACE_SCHEMA.names == [field.name for field in fields(Trace)]
    assert all(len(column.metadata[b"description"]) > 10 for column in TRACE_SCHEMA)
    assert TRACE_SCHEMA.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert TRACE_SCHEMA.field("tools_called").type == pa.list_(pa.string())
    assert [column.name for column in TRACE_SCHEMA if column.nullable][:2] == ["dialect", "provider"]


def test_every_column_is_documented_with_its_type_and_description() -> None:
    page = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    for column in TRACE_SCHEMA:
        kind = f"{column.type}, may be null" if column.nullable else str(column.type)
        kind = kind.replace("<element: string>", "<string>")
        line = f"| `{column.name}` | {kind} | {column.metadata[b'description'].decode()} |"
        assert line in page, f"docs/traces.md lacks the line: {line}"
