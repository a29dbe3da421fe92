"""Reads the trace log back as one Arrow table: what is in the Parquet files, and what is still in the spool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from orqen_ray.traces.archive import SUFFIX, Archive, File, day_name, is_gone
from orqen_ray.traces.compaction import replaced_names
from orqen_ray.traces.convert import by_day, complete, table_of
from orqen_ray.traces.location import spool_directory
from orqen_ray.traces.schema import TRACE_SCHEMA
from orqen_ray.traces.spool import segments_in, whole_lines

_ATTEMPTS = 10
_STARTED_AT = TRACE_SCHEMA.field("started_at")


def read_traces(
    uri: str,
    since: datetime | None = None,
    until: datetime | None = None,
    columns: Sequence[str] | None = None,
    spool: str | None = None,
) -> pa.Table:
    """All rows, or those started at or after `since` and before `until`, oldest first; none where there is no log.

    Rows count once and none is missing, also while a shipper is at work. The spool is this machine's: rows that other
    machines have not shipped yet are not seen. Columns that older files lack are null there, or 0 or empty where they
    cannot be null. Blocking: a gateway calls it in a thread. Holds the whole result in memory.

    Args:
        since: with a time zone, as `until`. Days outside are not opened.
        columns: names, in the order wanted; all by default. Fewer are faster, above all without `cost_usd`.
        spool: the setting `storage.traces_spool_dir`, where it is set.

    Raises:
        OSError: the disk or S3 is away, or refuses.
        KeyError: no such column.
    """
    directory = spool_directory(uri, spool)
    return read_from(Archive(uri, directory / "drafts"), directory, since, until, columns)


def read_from(
    archive: Archive,
    directory: Path,
    since: datetime | None = None,
    until: datetime | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """What `read_traces` gives, from an archive and the folder of the spool beside it."""
    names = list(TRACE_SCHEMA.names if columns is None else columns)
    wanted = pa.schema([TRACE_SCHEMA.field(name) for name in names])
    for attempt in range(_ATTEMPTS):
        try:
            with ExitStack() as stack:
                segments, files = _consistent(archive, directory, since, until, stack)
                parts = [_recent(segments, files, wanted, since, until), _old(archive, files, wanted, since, until)]
            break
        except OSError as error:  # merged into another one between the listing and the reading
            if attempt == _ATTEMPTS - 1 or not is_gone(error):
                raise
    table = pa.concat_tables(parts).sort_by("started_at")
    return table.select(names)


def _consistent(
    archive: Archive, directory: Path, since: datetime | None, until: datetime | None, stack: ExitStack
) -> tuple[dict[str, BinaryIO], list[File]]:
    """The segments, opened, and the files beside them, as they were at one moment.

    While a segment is in the spool, its rows are in the file of its name, if in any. So the list of files fits that of
    segments when no segment has gone between the two; otherwise both are made again.
    """
    while True:
        before: dict[str, BinaryIO] = {}
        for path in segments_in(directory):
            try:
                before[path.stem] = stack.enter_context(path.open("rb"))
            except FileNotFoundError:
                continue
        files = _files(archive, since, until)
        if before.keys() <= {path.stem for path in segments_in(directory)}:
            return before, files


def _files(archive: Archive, since: datetime | None, until: datetime | None) -> list[File]:
    """The files whose day is asked for, newest first: those are the ones that may soon be merged."""
    first = None if since is None else day_name(since.astimezone(UTC).date())
    last = None if until is None else day_name(until.astimezone(UTC).date())
    files: list[File] = []
    for day in reversed(archive.days()):
        if (first is None or day >= first) and (last is None or day <= last):
            found = archive.files(day)
            replaced = replaced_names(archive, found)
            files += reversed([file for file in found if file.name not in replaced])
    return files


def _recent(
    segments: dict[str, BinaryIO], files: list[File], wanted: pa.Schema, since: datetime | None, until: datetime | None
) -> pa.Table:
    """The rows of the segments, without those days of a segment that are in a file already."""
    shipped = {(file.day, file.name) for file in files}
    schema = _with_started_at(wanted)
    tables = [schema.empty_table()]
    for stem, segment in segments.items():
        table = table_of(whole_lines(segment.read()), priced="cost_usd" in wanted.names)
        for day, rows in by_day(table.filter(_between(since, until))):
            if (day_name(day), f"{stem}{SUFFIX}") not in shipped:
                tables.append(rows.select(schema.names))
    return pa.concat_tables(tables)


def _old(
    archive: Archive, files: list[File], wanted: pa.Schema, since: datetime | None, until: datetime | None
) -> pa.Table:
    schema = _with_started_at(wanted)
    if not files:
        return schema.empty_table()
    paths = [archive.path(file) for file in files]
    # The whole schema, so that the filter may name a column that is not asked for.
    dataset = ds.dataset(paths, schema=TRACE_SCHEMA, format="parquet", filesystem=archive.files_system)
    return complete(dataset.to_table(columns=schema.names, filter=_between(since, until)), schema)


def _with_started_at(wanted: pa.Schema) -> pa.Schema:
    return wanted if "started_at" in wanted.names else wanted.append(_STARTED_AT)


def _between(since: datetime | None, until: datetime | None) -> pc.Expression:
    bounds = list(_bounds(since, until))
    return bounds[0] if len(bounds) == 1 else bounds[0] & bounds[1]


def _bounds(since: datetime | None, until: datetime | None) -> Iterator[pc.Expression]:
    started_at = pc.field("started_at")
    if since is not None:
        yield started_at >= pa.scalar(since, _STARTED_AT.type)
    if until is not None:
        yield started_at < pa.scalar(until, _STARTED_AT.type)
    if since is None and until is None:
        yield started_at.is_valid()
