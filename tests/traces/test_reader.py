"""The way back: old rows and recent ones together, only the days and columns that are asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqen_ray.traces.archive import Archive, File
from orqen_ray.traces.reader import read_from, read_traces
from orqen_ray.traces.schema import TRACE_SCHEMA
from orqen_ray.traces.shipper import Shipper
from tests.traces.rows import FULL, NOON, all_numbers, numbers, parquet_files, row, spool_segment, traces_of


def ship(folder: Path) -> None:
    Shipper(folder / ".spool", partial(Archive, str(folder), folder / ".spool/drafts")).run_once(housekeeping=False)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row an hour for three days: the even ones in files, the odd ones still in the spool."""
    folder = tmp_path_factory.mktemp("mixed")
    hours = range(72)
    spool_segment(folder / ".spool", [row(hour, NOON + timedelta(hours=hour)) for hour in hours if hour % 2 == 0])
    ship(folder)
    spool_segment(folder / ".spool", [row(hour, NOON + timedelta(hours=hour)) for hour in hours if hour % 2 == 1])
    return folder


def test_where_there_is_no_log_there_are_no_rows(tmp_path: Path) -> None:
    table = read_traces(str(tmp_path / "none"))
    assert table.num_rows == 0 and table.schema.equals(TRACE_SCHEMA)
    assert not (tmp_path / "none").exists()


def test_old_and_recent_rows_come_together_in_the_order_of_time(mixed: Path) -> None:
    table = read_traces(str(mixed))
    assert table["request_id"].to_pylist() == [str(hour) for hour in range(72)]
    assert table.schema.equals(TRACE_SCHEMA)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.none() | st.integers(-2, 75), st.none() | st.integers(-2, 75), st.integers(-12, 14))
def test_since_is_the_first_moment_and_until_the_first_one_after(
    mixed: Path, since: int | None, until: int | None, zone: int
) -> None:
    def moment(hour: int | None) -> datetime | None:
        zoned = datetime.fromisoformat(f"2030-01-01T12:00:00{'+' if zone >= 0 else '-'}{abs(zone):02}:00")
        return None if hour is None else zoned + timedelta(hours=hour + zone)

    found = numbers(read_traces(str(mixed), moment(since), moment(until), columns=["request_id"]))
    assert found == list(range(max(since or 0, 0) if since is not None else 0, min(72 if until is None else until, 72)))


def test_only_the_columns_that_are_asked_for_come_in_their_order(mixed: Path) -> None:
    table = read_traces(str(mixed), columns=["status", "request_id"])
    assert table.schema.names == ["status", "request_id"]
    assert table["request_id"].to_pylist() == [str(hour) for hour in range(72)]
    with pytest.raises(KeyError, match="no_such"):
        read_traces(str(mixed), columns=["no_such"])


def test_days_that_are_not_asked_for_are_not_opened(mixed: Path, tmp_path: Path) -> None:
    spool_segment(tmp_path / ".spool", [row(0)])
    ship(tmp_path)
    damaged = tmp_path / "day=2029-12-31" / "x.parquet"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no Parquet")
    assert numbers(read_traces(str(tmp_path), since=datetime(2030, 1, 1, tzinfo=UTC))) == [0]


def test_files_of_an_older_gateway_are_read_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    spool_segment(tmp_path / ".spool", [FULL])
    ship(tmp_path)
    (file,) = parquet_files(tmp_path)
    old = pq.read_table(file, partitioning=None).drop_columns(["served_model", "cache_write_1h_tokens", "attempt_log"])
    wide = old.schema.get_field_index("input_tokens")
    old = old.set_column(wide, "input_tokens", old["input_tokens"].cast(pa.int64()))
    pq.write_table(old, file.with_name("old.parquet"))
    file.with_name(".draft.parquet").write_bytes(b"PAR1 half")
    rows = traces_of(read_traces(str(tmp_path)))
    (before,) = [each for each in rows if each != FULL]
    assert (before.served_model, before.cache_write_1h_tokens, before.attempt_log) == (None, 0, ())
    assert before.input_tokens == FULL.input_tokens


class WorkedAt(Archive):
    """A shipper does all its work in the moment in which a reader, which has listed the spool, lists the days."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder / ".spool/drafts")
        self._shipper = Shipper(folder / ".spool", partial(Archive, str(folder), folder / ".spool/drafts"))
        self.listed = 0

    def days(self) -> list[str]:
        self.listed += 1
        if self.listed == 1:
            self._shipper.run_once(housekeeping=True)
        return super().days()


def test_what_is_shipped_and_merged_between_two_looks_is_read_once(tmp_path: Path) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)  # a day that is over: its files are merged as soon as there are two
    for number in range(3):
        spool_segment(tmp_path / ".spool", [row(number, long_ago)])
    archive = WorkedAt(tmp_path)
    assert numbers(read_from(archive, tmp_path / ".spool")) == [0, 1, 2]
    assert archive.listed == 2 and len(parquet_files(tmp_path)) == 1


class MergedAt(Archive):
    """The files of a day are merged in the moment in which a reader, which has listed them, opens the first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder / ".spool/drafts")
        self._shipper = Shipper(folder / ".spool", partial(Archive, str(folder), folder / ".spool/drafts"))
        self.opened = 0

    def path(self, file: File) -> str:
        self.opened += 1
        if self.opened == 1:
            self._shipper.run_once(housekeeping=True)
        return super().path(file)


def test_files_that_are_merged_away_before_they_are_read_are_looked_for_again(tmp_path: Path) -> None:
    for number in range(3):
        spool_segment(tmp_path / ".spool", [row(number, datetime(2020, 1, 1, tzinfo=UTC))])
    ship(tmp_path)
    assert len(parquet_files(tmp_path)) == 3
    assert numbers(read_from(MergedAt(tmp_path), tmp_path / ".spool")) == [0, 1, 2]
    assert len(parquet_files(tmp_path)) == 1


def test_a_segment_that_is_in_a_file_of_one_of_its_days_is_read_for_the_other(tmp_path: Path) -> None:
    segment = spool_segment(tmp_path / ".spool", [row(0), row(1, NOON + timedelta(days=1))])
    content = segment.read_bytes()
    ship(tmp_path)
    segment.write_bytes(content)  # as if the shipper had died before it removed the segment,
    parquet_files(tmp_path)[1].unlink()  # and before it had written the second day
    assert all_numbers(str(tmp_path)) == [0, 1]
