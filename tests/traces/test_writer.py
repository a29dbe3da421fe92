"""The way into the spool: each row at once, bounded, and never a failure for the caller."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil
import pytest

from orqen_ray.metrics import Metrics
from orqen_ray.traces.reader import read_traces
from orqen_ray.traces.spool import segments_in
from orqen_ray.traces.writer import SpoolLimits, TraceWriter
from tests.traces.rows import EMPTY, FULL, NOON, all_numbers, parquet_files, row, traces_of

ROOT = Path(__file__).parents[2]
NEVER = SpoolLimits(seal_s=3600)


async def opened(folder: Path, limits: SpoolLimits = NEVER, metrics: Metrics | None = None) -> TraceWriter:
    """A writer without a shipper."""
    writer = TraceWriter(str(folder), limits=limits, ship=False, metrics=metrics)
    await writer.start()
    return writer


def counted(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("orqen_trace_rows_total", {"outcome": outcome})


async def test_a_row_is_on_the_disk_when_write_returns(tmp_path: Path) -> None:
    writer = await opened(tmp_path)
    for number in range(3):
        writer.write(row(number))
        (segment,) = segments_in(tmp_path / ".spool")
        assert segment.read_bytes().count(b"\n") == number + 1
    await writer.aclose()


async def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    writer = await opened(tmp_path)
    writer.write(EMPTY)
    writer.write(FULL)
    assert traces_of(read_traces(str(tmp_path))) == [FULL, EMPTY]
    await writer.aclose()
    assert traces_of(read_traces(tmp_path.as_uri())) == [FULL, EMPTY]


async def test_a_row_costs_what_its_provider_or_its_operator_asks(tmp_path: Path) -> None:
    writer = await opened(tmp_path)
    usage = {"input_tokens": 10**6, "output_tokens": 10**6, "usage_source": "provider", "cost_usd": None}
    listed = msgspec.structs.replace(FULL, cache_read_tokens=0, cache_write_tokens=0, started_at=NOON, **usage)
    writer.write(listed)
    writer.write(msgspec.structs.replace(listed, prices_usd_per_mtok=(0.5, 0.25)))
    writer.write(msgspec.structs.replace(listed, usage_source=None))
    await writer.aclose()
    # Sonnet 4.5, prompts of more than 200,000 tokens: https://platform.claude.com/docs/en/about-claude/pricing
    assert read_traces(str(tmp_path))["cost_usd"].to_pylist() == [pytest.approx(6 + 22.5), pytest.approx(0.75), None]


async def test_a_row_costs_what_its_provider_asked_on_its_day(tmp_path: Path) -> None:
    # o3 became cheaper on 10 June 2025, as the price list knows.
    writer = await opened(tmp_path)
    asked = {"provider": "openai", "sent_model": "o3", "input_tokens": 1000, "usage_source": "provider"}
    for month in (5, 7):
        writer.write(msgspec.structs.replace(EMPTY, started_at=datetime(2025, month, 1, tzinfo=UTC), **asked))
    await writer.aclose()
    before, after = read_traces(str(tmp_path))["cost_usd"].to_pylist()
    assert (before, after) == (pytest.approx(0.010), pytest.approx(0.002))


async def test_an_orderly_stop_ships_what_there_is_and_leaves_no_process(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path), limits=NEVER)
    await writer.start()
    writer.write(FULL)
    await writer.aclose()
    assert len(parquet_files(tmp_path)) == 1 and segments_in(tmp_path / ".spool") == []
    assert traces_of(read_traces(str(tmp_path))) == [FULL]
    assert not [each for each in psutil.Process().children() if "orqen_ray.traces.shipper" in each.cmdline()]


async def test_a_writer_without_rows_starts_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    before = psutil.Process().children()
    writer = TraceWriter(str(tmp_path))
    await writer.start()
    await writer.flush()
    assert psutil.Process().children() == before
    await writer.aclose()
    assert segments_in(tmp_path / ".spool") == [] and parquet_files(tmp_path) == []


async def test_a_flush_seals_the_segment_and_rows_go_on_in_another(tmp_path: Path) -> None:
    writer = await opened(tmp_path)
    writer.write(row(0))
    await writer.flush()
    writer.write(row(1))
    assert len(segments_in(tmp_path / ".spool")) == 2
    assert all_numbers(str(tmp_path)) == [0, 1]
    await writer.aclose()


async def test_a_full_spool_drops_rows_and_counts_them(tmp_path: Path) -> None:
    metrics = Metrics()
    writer = await opened(tmp_path, SpoolLimits(max_spool_bytes=1000), metrics)
    for number in range(50):
        writer.write(row(number))
    await writer.aclose()
    kept = all_numbers(str(tmp_path))
    assert kept == list(range(len(kept))) and 0 < len(kept) < 20
    assert writer.dropped_rows == 50 - len(kept) == counted(metrics, "dropped")
    assert counted(metrics, "written") == len(kept)


async def test_rows_that_wait_in_memory_are_bounded_by_number_and_by_size(tmp_path: Path) -> None:
    for limits in (SpoolLimits(max_pending_rows=2), SpoolLimits(max_pending_bytes=300)):
        writer = TraceWriter(str(tmp_path / "t"), limits=limits, ship=False)  # not started: nothing takes the rows yet
        for number in range(5):
            writer.write(row(number))
        assert 0 < writer.dropped_rows < 5
        await writer.aclose()
    assert len(all_numbers(str(tmp_path / "t"))) >= 3


async def test_rows_survive_a_spool_that_cannot_be_written_for_a_while(tmp_path: Path) -> None:
    blocker = tmp_path / "t"
    blocker.write_text("a file where the folder should be")
    writer = TraceWriter(str(blocker), ship=False)
    writer.write(row(0))
    writer.write(row(1))
    await writer.flush()
    assert writer.dropped_rows == 0
    blocker.unlink()
    await writer.flush()
    assert all_numbers(str(blocker)) == [0, 1]
    await writer.aclose()


async def test_a_row_that_cannot_be_written_is_dropped_and_the_writer_lives_on(tmp_path: Path) -> None:
    writer = await opened(tmp_path)
    writer.write(msgspec.structs.replace(FULL, status=object()))
    writer.write(msgspec.structs.replace(FULL, session_id="\ud800"))
    writer.write(msgspec.structs.replace(FULL, session_id="s" * (1 << 20)))
    assert writer.dropped_rows == 3
    writer.write(FULL)
    await writer.aclose()
    assert traces_of(read_traces(str(tmp_path))) == [FULL]


async def test_after_the_end_rows_are_dropped_and_a_second_end_does_nothing(tmp_path: Path) -> None:
    writer = await opened(tmp_path)
    await writer.aclose()
    await writer.aclose()
    writer.write(FULL)
    assert writer.dropped_rows == 1


async def test_only_the_owner_can_read_the_log(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path / "t"), limits=NEVER)
    await writer.start()
    writer.write(FULL)
    (segment,) = segments_in(tmp_path / "t" / ".spool")
    assert (segment.stat().st_mode & 0o777, segment.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    await writer.aclose()
    (file,) = parquet_files(tmp_path / "t")
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("gs://bucket/traces", "storage.traces_uri: only a folder"),
        ("file://elsewhere/traces", "storage.traces_uri: only a folder"),
        ("s3://", "storage.traces_uri: no bucket"),
        ("s3://AKIA:hush@bucket/traces", "storage.traces_uri: credentials have no place in it"),
        ("s3://bucket/traces?secret_key=hush", "storage.traces_uri: unknown option 'secret_key'"),
    ],
)
def test_a_place_that_can_never_work_is_refused_and_no_secret_is_repeated(uri: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as refused:
        TraceWriter(uri)
    assert "hush" not in str(refused.value)


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=str(tmp_path / "t")):
        await TraceWriter(str(tmp_path / "t")).start()


FILL = """
import asyncio, resource, signal, sys
from pathlib import Path
from orqen_ray.traces.writer import SpoolLimits, TraceWriter
from tests.traces.rows import row

async def main(folder, limit_bytes):
    writer = TraceWriter(folder, limits=SpoolLimits(seal_s=3600, max_pending_rows=100), ship=False)
    await writer.start()
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    number = 0
    while writer.dropped_rows == 0:
        writer.write(row(number))
        number += 1
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        (Path(folder).parent / "ballast").unlink()
    await writer.flush()
    writer.write(row(number))
    await writer.aclose()
    print(number, writer.dropped_rows)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_rows_that_no_disk_takes_until_the_end_are_dropped_and_counted(tmp_path: Path) -> None:
    blocker, metrics = tmp_path / "t", Metrics()
    blocker.write_text("a file where the folder should be")
    writer = TraceWriter(str(blocker), ship=False, metrics=metrics)
    for number in range(3):
        writer.write(row(number))
    await writer.aclose()
    assert writer.dropped_rows == 3 == counted(metrics, "dropped") and counted(metrics, "written") == 0


def fill(folder: Path, limit_bytes: int) -> tuple[int, int]:
    """Write until rows are dropped, make room, write once more: how many were written before, and dropped."""
    command = [sys.executable, "-c", FILL, str(folder), str(limit_bytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    number, dropped = map(int, done.stdout.split())
    return number, dropped


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 512 KiB, most of it taken by `ballast`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    (disk / "ballast").write_bytes(bytes(400 << 10))
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full_costs_only_the_rows_that_were_counted(small_disk: Path) -> None:
    number, dropped = fill(small_disk / "t", 0)
    assert number > 100 and dropped == 1
    # The row that was dropped was the last before there was room again.
    assert all_numbers(str(small_disk / "t")) == [each for each in range(number + 1) if each != number - 1]


def test_a_limit_on_the_size_of_files_costs_only_the_rows_that_were_counted(tmp_path: Path) -> None:
    number, dropped = fill(tmp_path / "t", 20_000)
    assert number > 100 and dropped == 1
    assert all_numbers(str(tmp_path / "t")) == [each for each in range(number + 1) if each != number - 1]
