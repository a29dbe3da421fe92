"""Merges a day's small Parquet files into larger ones, a batch of rows at a time.

A merged file names in its metadata the files it replaces, and takes its place before they are deleted: a reader that
meets both leaves those out, and a shipper that was killed in between deletes them when it starts again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orqen_ray.traces.archive import REPLACES, ROW_GROUP_ROWS, SUFFIX, Archive, File
from orqen_ray.traces.convert import complete
from orqen_ray.traces.schema import TRACE_SCHEMA

MERGED = "-merged-"
FILES_TO_MERGE = 16
_MAX_INPUT_BYTES = 128 << 20
_MAX_MERGED_BYTES = 512 << 20
_BATCH_ROWS = 4096


class Stopped(Exception):
    """The shipper is told to stop; what was half done is as if it had not begun."""


def compact_day(archive: Archive, spool_id: str, day: str, *, whole: bool, stopped: Callable[[], bool]) -> None:
    """Merge the files of `day` that came out of this spool, until there is nothing to gain.

    Not while the segment of one of them is still in the spool: it would be shipped once more.

    Args:
        whole: the day is over: merge all into as few as can be. Else only where many of about one size have gathered.

    Raises:
        OSError: the disk or S3 is away; to be tried again.
        Stopped: see `stopped`, which is asked after each batch.
    """
    while True:
        files = [file for file in archive.files(day) if file.name.startswith(f"{spool_id}-")]
        if _remove_replaced(archive, files):
            continue
        group = _group(files, whole=whole)
        if not group:
            return
        _merge(archive, spool_id, group, stopped)


def replaced_names(archive: Archive, files: list[File]) -> frozenset[str]:
    """Which of the files of one day are only still there because their deletion has not come yet."""
    if len(files) < 2:
        return frozenset()
    return frozenset().union(*(archive.replaced_by(file) for file in files if MERGED in file.name))


def _remove_replaced(archive: Archive, files: list[File]) -> bool:
    replaced = replaced_names(archive, files)
    left = [file for file in files if file.name in replaced]
    for file in left:
        archive.delete(file)
    return bool(left)


def _group(files: list[File], *, whole: bool) -> list[File]:
    """The files to merge next: of about one size, so that a row is written a few times and not once for each merge."""
    small = [file for file in files if file.size_bytes < _MAX_INPUT_BYTES]
    if whole:
        return _within(small) if len(small) > 1 else []
    sizes: dict[int, list[File]] = {}
    for file in small:
        sizes.setdefault(file.size_bytes.bit_length() // 4, []).append(file)
    ready = [group for group in sizes.values() if len(group) >= FILES_TO_MERGE]
    return _within(min(ready, key=lambda group: group[0].size_bytes)) if ready else []


def _within(files: list[File]) -> list[File]:
    taken: list[File] = []
    total = 0
    for file in files:
        total += file.size_bytes
        if len(taken) > 1 and total > _MAX_MERGED_BYTES:
            break
        taken.append(file)
    return taken


def _merge(archive: Archive, spool_id: str, files: list[File], stopped: Callable[[], bool]) -> None:
    names = "\n".join(file.name for file in files)
    schema = TRACE_SCHEMA.with_metadata({REPLACES: names.encode()})
    # The same files make the same name: a merge that was cut off between two steps is done over, not twice.
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    with archive.writing(files[0].day, f"{spool_id}{MERGED}{digest}{SUFFIX}", schema) as writer:
        for rows in _row_groups(_in_order(archive, files)):
            if stopped():
                raise Stopped
            writer.write_table(rows.cast(schema), row_group_size=ROW_GROUP_ROWS)
    for file in files:
        archive.delete(file)


def _row_groups(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `ROW_GROUP_ROWS`."""
    held: list[pa.Table] = []
    held_rows = 0
    for batch in batches:
        held.append(batch)
        held_rows += batch.num_rows
        if held_rows >= ROW_GROUP_ROWS:
            table = pa.concat_tables(held)
            yield table.slice(0, ROW_GROUP_ROWS)
            held, held_rows = [table.slice(ROW_GROUP_ROWS)], held_rows - ROW_GROUP_ROWS
    if held_rows:
        yield pa.concat_tables(held)


class _Input:
    """A sorted file, read a batch at a time; `reached` is where its next row is at the earliest."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self._batches = parquet.iter_batches(_BATCH_ROWS, use_threads=False)
        self.reached: datetime = _first(parquet) or datetime.min.replace(tzinfo=UTC)

    def read(self) -> pa.Table | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        table = complete(pa.Table.from_batches([batch]))
        self.reached = table["started_at"][-1].as_py()
        return table


def _first(parquet: pq.ParquetFile) -> datetime | None:
    """When the first row started, as the file's own statistics say."""
    group = parquet.metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    statistics = next(column.statistics for column in columns if column.path_in_schema == "started_at")
    return statistics.min if statistics is not None and statistics.has_min_max else None


def _in_order(archive: Archive, files: list[File]) -> Iterator[pa.Table]:
    """The rows of all files by `started_at`, with no more of them in memory than overlap in time."""
    with ExitStack() as stack:
        inputs = [_Input(stack.enter_context(archive.open(file))) for file in files]
        held = TRACE_SCHEMA.empty_table()
        while inputs:
            behind = min(inputs, key=lambda each: each.reached)
            batch = behind.read()
            if batch is None:
                inputs.remove(behind)
                continue
            held = pa.concat_tables([held, batch]).sort_by("started_at")
            until = min(each.reached for each in inputs)
            ready = pc.sum(pc.less(held["started_at"], pa.scalar(until, TRACE_SCHEMA.field("started_at").type))).as_py()
            if ready:
                yield held.slice(0, ready)
                held = held.slice(ready)
        yield held
