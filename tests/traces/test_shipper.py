"""From the spool into Parquet: once each, whatever dies when."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from orqen_ray.traces.archive import Archive, File, day_name
from orqen_ray.traces.compaction import FILES_TO_MERGE, MERGED
from orqen_ray.traces.convert import table_of
from orqen_ray.traces.reader import read_traces
from orqen_ray.traces.shipper import Shipper
from orqen_ray.traces.spool import Segment, lock_leadership, open_spool, segments_in
from tests.traces.rows import FULL, NOON, all_numbers, numbers, once_each, parquet_files, row, spool_segment, traces_of

PER_SEGMENT = 5


class Died(BaseException):
    """The process is killed here."""


class MortalArchive(Archive):
    """Dies at its n-th change of the log: before it is made when `n` is even, after it when odd."""

    def __init__(self, uri: str, drafts: Path, dies_at: int) -> None:
        super().__init__(uri, drafts)
        self._left = dies_at

    def _put(self, draft: Path, day: str, name: str) -> None:
        self._change(partial(super()._put, draft, day, name))

    def delete(self, file: File) -> None:
        self._change(partial(super().delete, file))

    def _change(self, change: Callable[[], None]) -> None:
        for step in (None, change):
            if step is not None:
                step()
            if self._left == 0:
                raise Died
            self._left -= 1


def archive_opener(folder: Path) -> Callable[[], Archive]:
    return partial(Archive, str(folder), folder / ".spool" / "drafts")


def shipper(folder: Path, retention_days: int | None = None) -> Shipper:
    return Shipper(folder / ".spool", archive_opener(folder), retention_days)


def fill(folder: Path, segments: int, at: datetime = NOON, first: int = 0) -> int:
    """Segments of `PER_SEGMENT` rows each, in an order of time that is not that of the files; how many rows."""
    starts = list(range(first, first + segments * PER_SEGMENT))
    random.Random(segments).shuffle(starts)
    for number in range(0, len(starts), PER_SEGMENT):
        rows = [row(each, at + timedelta(seconds=each)) for each in starts[number : number + PER_SEGMENT]]
        spool_segment(folder / ".spool", rows)
    return len(starts)


def once(folder: Path, count: int) -> bool:
    return Counter(all_numbers(str(folder))) == once_each(count)


def test_segments_become_files_of_their_name_in_the_folder_of_their_day(tmp_path: Path) -> None:
    late = msgspec.structs.replace(FULL, started_at=NOON + timedelta(days=1))
    segment = spool_segment(tmp_path / ".spool", [late, FULL])
    shipper(tmp_path).run_once()
    assert [str(path.relative_to(tmp_path)) for path in parquet_files(tmp_path)] == [
        f"day=2030-01-01/{segment.stem}.parquet",
        f"day=2030-01-02/{segment.stem}.parquet",
    ]
    assert not segment.exists()
    assert traces_of(read_traces(str(tmp_path))) == [FULL, late]


def test_a_shipper_leaves_the_drafts_of_another_spool_alone_and_removes_its_own(tmp_path: Path) -> None:
    mine, other = shipper(tmp_path), Archive(str(tmp_path), tmp_path / "other")
    left = tmp_path / ".drafts" / f"{open_spool(tmp_path / '.spool')}-20300101T000000-1.parquet.1"
    with other.writing("day=2030-01-01", "other-1.parquet") as writer:
        left.touch()
        mine.run_once(housekeeping=True)
        writer.write_table(table_of(msgspec.json.encode(row(0)) + b"\n"))
    assert once(tmp_path, 1) and list((tmp_path / ".drafts").iterdir()) == []


def test_a_draft_is_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".drafts").mkdir()
    (tmp_path / ".drafts" / f"a-1.parquet.{os.getpid()}").symlink_to(victim)
    with Archive(str(tmp_path), tmp_path / "unused").writing("day=2030-01-01", "a-1.parquet") as writer:
        writer.write_table(table_of(msgspec.json.encode(row(0)) + b"\n"))
    assert victim.read_text() == "precious" and once(tmp_path, 1)


def test_a_segment_that_has_an_owner_is_left_alone_and_read_nevertheless(tmp_path: Path) -> None:
    spool = tmp_path / ".spool"
    segment = Segment(spool, open_spool(spool))
    segment.append(msgspec.json.encode(row(0)) + b"\n")
    shipper(tmp_path).run_once()
    assert segment.path.exists() and parquet_files(tmp_path) == [] and once(tmp_path, 1)
    segment.close()
    shipper(tmp_path).run_once()
    assert not segment.path.exists() and len(parquet_files(tmp_path)) == 1 and once(tmp_path, 1)


@pytest.mark.parametrize("tail", [b'{"request_id":"9"', b"{", b"\0" * 100, msgspec.json.encode(row(9))])
def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, tail: bytes) -> None:
    segment = spool_segment(tmp_path / ".spool", [row(0), row(1)])
    with segment.open("ab") as file:
        file.write(tail)
    assert once(tmp_path, 2)
    shipper(tmp_path).run_once()
    assert once(tmp_path, 2) and segments_in(tmp_path / ".spool") == []


def test_lines_that_are_no_rows_cost_only_themselves(tmp_path: Path) -> None:
    lines = [msgspec.json.encode(row(number)) for number in range(20)]
    lines.insert(0, b"nonsense")
    lines.insert(7, b'{"request_id":"x","started_at":"yesterday"}')
    lines.insert(13, b'{"request_id":"x","started_at":"2030-01-01T12:00:00Z","status":99999999999}')
    lines.append(b"[]")
    lines.append(b'{"request_id":"no time"}')
    assert numbers(table_of(b"\n".join(lines) + b"\n")) == list(range(20))


def test_a_line_of_a_newer_gateway_keeps_what_this_one_knows() -> None:
    line = msgspec.json.encode({**msgspec.to_builtins(row(7)), "new_column": {"a": 1}}) + b"\n"
    assert numbers(table_of(line)) == [7]


def test_many_small_files_become_one_in_the_order_of_time(tmp_path: Path) -> None:
    count = fill(tmp_path, FILES_TO_MERGE)
    shipper(tmp_path).run_once()
    (file,) = parquet_files(tmp_path)
    assert MERGED in file.name and once(tmp_path, count)
    times = pq.read_table(file, partitioning=None)["started_at"].to_pylist()
    assert times == sorted(times)


def test_few_files_are_not_merged_before_their_day_is_over(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    fill(tmp_path, 3, now)
    count = fill(tmp_path, 3, now - timedelta(days=3), first=15) * 2
    shipper(tmp_path).run_once()
    assert len(parquet_files(tmp_path)) == 4 and once(tmp_path, count)


def test_rows_are_merged_a_few_times_and_not_with_each_new_file(tmp_path: Path) -> None:
    ships = shipper(tmp_path)
    count = 0
    for _ in range(3):
        for _ in range(FILES_TO_MERGE):
            large = msgspec.structs.replace(row(count, NOON), session_id=random.randbytes(60_000).hex())
            spool_segment(tmp_path / ".spool", [large])
            count += 1
        ships.run_once()
    assert len([path for path in parquet_files(tmp_path) if MERGED in path.name]) == 3 and once(tmp_path, count)


def test_files_of_others_are_never_touched(tmp_path: Path) -> None:
    count = fill(tmp_path, FILES_TO_MERGE - 1)
    shipper(tmp_path).run_once()
    other = Shipper(tmp_path / "other", archive_opener(tmp_path))
    spool_segment(tmp_path / "other", [row(count)])
    other.run_once(housekeeping=True)
    assert len(parquet_files(tmp_path)) == FILES_TO_MERGE and once(tmp_path, count + 1)


def test_whatever_step_it_dies_at_each_row_is_there_once(tmp_path: Path) -> None:
    """Killed at every change of the log in turn, before it or after it, then once more, then left to its work."""
    survived = 0
    while True:
        folder = tmp_path / str(survived)
        count = fill(folder, 5, datetime(2020, 1, 1, tzinfo=UTC))  # a day that is over, so that few files are merged
        uri, spool = str(folder), folder / ".spool"
        died = 0
        for dies_at in (survived, survived % 5):
            mortal = partial(MortalArchive, uri, spool / "drafts", dies_at)
            try:
                Shipper(spool, mortal).run_once(housekeeping=True)
            except Died:
                died += 1
            assert once(folder, count), f"after dying at step {dies_at}"
        shipper(folder).run_once(housekeeping=True)
        assert once(folder, count) and segments_in(spool) == []
        assert len(parquet_files(folder)) == 1 and list(folder.glob(".drafts/*")) == []
        survived += 1
        if died == 0:
            break
    assert survived >= 2 * (5 + 1 + 5)  # five files and the merged one put, five deleted: before and after each


def test_a_reader_beside_a_working_shipper_sees_each_row_once(tmp_path: Path) -> None:
    ships = shipper(tmp_path)
    count = fill(tmp_path, 40)
    stopping = threading.Event()
    worker = threading.Thread(target=ships.run_once, kwargs={"housekeeping": True})
    worker.start()
    reads = 0
    while worker.is_alive() or reads < 2:
        assert once(tmp_path, count)
        reads += 1
    worker.join()
    stopping.set()
    assert once(tmp_path, count) and reads > 1


def test_days_that_are_too_old_are_dropped_whole(tmp_path: Path) -> None:
    today = datetime.now(UTC)
    for number, age in enumerate((0, 6, 7, 8, 400)):
        spool_segment(tmp_path / ".spool", [row(number, today - timedelta(days=age))])
    (tmp_path / "notes").mkdir()
    (tmp_path / "day=0 of mine").mkdir()
    ships = shipper(tmp_path, retention_days=7)
    ships.run_once()
    assert all_numbers(str(tmp_path)) == [0, 1, 2]
    assert day_name((today - timedelta(days=8)).date()) not in {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "notes").exists() and (tmp_path / "day=0 of mine").exists()


@pytest.mark.parametrize("zone", ["Etc/GMT-14", "Etc/GMT+12"])  # at any time, in one of them it is another day
def test_days_are_those_of_utc_wherever_the_machine_is(
    tmp_path: Path, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", zone)
        time.tzset()
        today = datetime.now(UTC)
        for number, age in enumerate((0, 1, 2)):
            spool_segment(tmp_path / ".spool", [row(number, today - timedelta(days=age))])
        shipper(tmp_path, retention_days=1).run_once()
        found = all_numbers(str(tmp_path))
    time.tzset()
    assert found == [0, 1]
    expected = [day_name((today - timedelta(days=age)).date()) for age in (1, 0)]
    assert [path.parent.name for path in parquet_files(tmp_path)] == expected


def test_one_process_at_a_time_leads(tmp_path: Path) -> None:
    open_spool(tmp_path)
    first = lock_leadership(tmp_path)
    assert first is not None and lock_leadership(tmp_path) is None
    os.close(first)
    second = lock_leadership(tmp_path)
    assert second is not None
    os.close(second)


def test_all_processes_of_a_spool_use_one_id(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(open_spool(tmp_path / "new"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and found[0]


def test_a_damaged_file_stops_neither_shipping_nor_other_days(tmp_path: Path) -> None:
    ships = shipper(tmp_path)
    count = fill(tmp_path, FILES_TO_MERGE - 1)
    ships.run_once()
    damaged = parquet_files(tmp_path)[0].with_name(f"{open_spool(tmp_path / '.spool')}{MERGED}0.parquet")
    damaged.write_bytes(b"PAR1 this is none PAR1")
    count += fill(tmp_path, 2, NOON + timedelta(days=1), first=count)
    ships.run_once(housekeeping=True)
    damaged.unlink()
    assert segments_in(tmp_path / ".spool") == [] and once(tmp_path, count)
