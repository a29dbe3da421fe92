"""Appends trace rows to Parquet files in the background, so that no request ever waits for a disk."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from orqen_ray.traces.location import day_directory, local_directory
from orqen_ray.traces.schema import TRACE_SCHEMA, Trace

_log = logging.getLogger(__name__)


class TraceWriter:
    """Collects rows and writes them every `flush_rows` rows or `flush_interval_s` seconds. One per process.

    Rows not yet flushed when the process is killed are lost. Those of a failed flush are tried again with the next.
    """

    def __init__(
        self, uri: str, flush_rows: int = 1000, flush_interval_s: float = 5.0, max_pending_rows: int = 100_000
    ) -> None:
        """Args: uri: a folder, or its `file://` URL. Raises ValueError for any other scheme."""
        self._directory = local_directory(uri)
        self._flush_rows = flush_rows
        self._flush_interval_s = flush_interval_s
        self._max_pending_rows = max_pending_rows
        self._pending: list[Trace] = []
        self._flushing = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.dropped_rows = 0
        """Rows given up so far: over the bound, unwritable, or written after the end."""

    def write(self, trace: Trace) -> None:
        """Take a row; never blocks, never raises. Above `max_pending_rows` the row is dropped and counted."""
        if self._closing or len(self._pending) + self._flushing >= self._max_pending_rows:
            self.dropped_rows += 1
            return
        self._pending.append(trace)
        if len(self._pending) >= self._flush_rows:
            self._wake.set()

    async def start(self) -> None:
        """Raises OSError, which names the folder, when it cannot be made."""
        await asyncio.to_thread(self._directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        if self._task is None:
            self._task = asyncio.create_task(self._flush_until_closed(), name="trace-writer")

    async def aclose(self) -> None:
        """Flush what is left, once, and stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None
        await self.flush()
        self.dropped_rows += len(self._pending)
        self._pending = []

    async def flush(self) -> None:
        """Write the pending rows now, one file a day. Rows that could not be written stay pending."""
        rows, self._pending = self._pending, []
        by_day: defaultdict[date, list[Trace]] = defaultdict(list)
        for row in rows:
            by_day[row.started_at.astimezone(UTC).date()].append(row)
        self._flushing = len(rows)
        for day, day_rows in by_day.items():
            try:
                await asyncio.to_thread(_write_file, day_directory(self._directory, day), day_rows)
            except OSError as error:
                _log.error("traces: %d rows not written, will try again: %s", len(day_rows), error.strerror)
                self._pending = day_rows + self._pending
            except (pa.ArrowException, ValueError, TypeError) as error:
                _log.error("traces: %d rows dropped, not of the schema: %s", len(day_rows), type(error).__name__)
                self.dropped_rows += len(day_rows)
            self._flushing -= len(day_rows)

    async def _flush_until_closed(self) -> None:
        while not self._closing:
            try:
                async with asyncio.timeout(self._flush_interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self.flush()


def _write_file(directory: Path, rows: Sequence[Trace]) -> None:
    """Write one file under a name of its own; it appears whole or not at all."""
    columns = {name: [getattr(row, name) for row in rows] for name in TRACE_SCHEMA.names}
    table = pa.table(columns, schema=TRACE_SCHEMA)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%H%M%S}-{uuid4().hex}.parquet"
    draft = directory / f".{name}.tmp"
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(directory / name)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
