"""Takes trace rows from the gateway and puts each into the spool before the caller has the last byte of its answer.

A row is one `write` into the page cache, a few microseconds on the event loop, as a web server writes its access log.
A thread does all that can wait for a disk: new segments, what the disk refused at first, and the shipper's life.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from orqen_ray.metrics import Metrics
from orqen_ray.traces.location import local_directory, spool_directory
from orqen_ray.traces.row import Trace
from orqen_ray.traces.spool import Segment, open_spool, spooled_bytes
from orqen_ray.traces.supervisor import ShipperOptions, Supervisor

_TICK_S = 1.0
_MAX_ROW_BYTES = 256 << 10
_DRAINED_ROWS = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """What the spool may hold, what may wait in memory while the disk refuses, and when a segment is sealed."""

    max_spool_bytes: int = 1 << 30
    max_pending_rows: int = 10_000
    max_pending_bytes: int = 16 << 20
    seal_bytes: int = 4 << 20
    seal_s: float = 10.0


class TraceWriter:
    """Appends rows to this process's segment of the spool. One per process.

    A row that `write` took survives the death of the process, unless the disk refused it: such rows wait in memory, up
    to a bound, until the disk takes them. What does not fit is dropped and counted. A request never fails for a row.
    """

    def __init__(
        self,
        uri: str,
        spool_dir: str | None = None,
        *,
        limits: SpoolLimits | None = None,
        retention_days: int | None = None,
        ship: bool = True,
        metrics: Metrics | None = None,
        shipper_environment: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ValueError when nothing can ever be written to `uri`.

        Args:
            ship: without it, rows stay in the spool.
            shipper_environment: the variables of the shipper's process; None for those of this one.
        """
        self._local = local_directory(uri)
        self._directory = spool_directory(uri, spool_dir)
        self._limits = limits or SpoolLimits()
        options = ShipperOptions(
            spool=self._directory, uri=uri, retention_days=retention_days, environment=shipper_environment
        )
        self._supervisor = Supervisor(options) if ship else None
        rows = (metrics or Metrics()).trace_rows
        self._written, self._dropped = rows.labels("written"), rows.labels("dropped")
        self._encode = msgspec.json.Encoder().encode
        self._lock = threading.Lock()  # held for one append, or to swap segments: never while a file is opened
        self._tending = threading.Lock()
        self._segment: Segment | None = None
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._spooled_bytes = 0
        self._spool_id = ""
        self._refused: str | None = None
        self._closed = False
        self._wake = threading.Event()
        self._keeper: threading.Thread | None = None
        self.dropped_rows = 0
        """Rows given up so far: over a bound, not encodable, or written after the end."""

    def write(self, trace: Trace) -> None:
        """Take a row; never raises. When it returns, the row is in the spool, waits in memory, or is counted."""
        try:
            line = self._encode(trace) + b"\n"
        except (TypeError, ValueError, OverflowError) as error:
            _log.error("traces: a row cannot be written: %s", type(error).__name__)
            line = b""
        with self._lock:
            taken = self._take(line)
        if not taken:
            self.dropped_rows += 1
            self._dropped.inc()

    async def start(self) -> None:
        """Raises OSError, which names the folder, when the log's folder or the spool's cannot be made."""
        if self._keeper is None:
            await asyncio.to_thread(self._open)
            self._keeper = threading.Thread(target=self._keep, name="trace-keeper", daemon=True)
            self._keeper.start()

    async def flush(self) -> None:
        """Bring what waits in memory to the disk, and seal the segment so that its rows can be shipped."""
        await asyncio.to_thread(self._tend)
        await asyncio.to_thread(self._tend, seal=True)

    async def aclose(self) -> None:
        """Seal what there is and have it shipped, for as long as an orderly stop has time; the rest stays in the spool.

        Idempotent.
        """
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        self._wake.set()
        await asyncio.to_thread(self._close)

    def _take(self, line: bytes) -> bool:
        size_bytes = len(line)
        if self._closed or not 0 < size_bytes <= _MAX_ROW_BYTES:
            return False
        if self._spooled_bytes + self._pending_bytes + size_bytes > self._limits.max_spool_bytes:
            return False
        if self._segment is not None and not self._pending:
            if self._append(line):
                return True
            self._wake.set()
        if (
            len(self._pending) >= self._limits.max_pending_rows
            or self._pending_bytes + size_bytes > self._limits.max_pending_bytes
        ):
            return False
        self._pending.append(line)
        self._pending_bytes += size_bytes
        return True

    def _append(self, line: bytes) -> bool:
        """Append to the open segment; give that up when the disk refuses."""
        assert self._segment is not None
        try:
            self._segment.append(line)
        except OSError as error:
            self._note_refusal(error)
            self._give_up_segment()
            return False
        self._written.inc()
        self._spooled_bytes += len(line)
        if self._segment.size_bytes >= self._limits.seal_bytes:
            self._wake.set()
        return True

    def _give_up_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                segment.close()
            except OSError as error:
                self._note_refusal(error)

    def _note_refusal(self, error: OSError) -> None:
        """Say once, not for each row, why the spool refuses rows."""
        reason = error.strerror or type(error).__name__
        if reason != self._refused:
            _log.error("traces: the spool takes no rows (%s); they wait in memory, up to a bound: %s", reason, error)
        self._refused = reason

    def _open(self) -> None:
        if self._local is not None:
            self._local.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._spool_id = open_spool(self._directory)
        segment = Segment(self._directory, self._spool_id)
        spooled = spooled_bytes(self._directory)
        with self._lock:
            self._segment, self._spooled_bytes = segment, spooled

    def _keep(self) -> None:
        while not self._closed:
            self._wake.wait(_TICK_S)
            self._wake.clear()
            try:
                self._tend()
            except Exception:  # noqa: BLE001  # the thread must outlive whatever happens; rows wait meanwhile
                _log.exception("traces: the spool could not be tended; trying again")

    def _tend(self, *, seal: bool = False) -> None:
        """Everything that may wait for a disk."""
        with self._tending:
            try:
                self._renew_segment(seal=seal)
                spooled = spooled_bytes(self._directory)
            except OSError as error:
                self._note_refusal(error)
            else:
                with self._lock:
                    self._spooled_bytes = spooled
                self._drain()
            if self._supervisor is not None and not self._closed:
                self._supervisor.tend()

    def _renew_segment(self, *, seal: bool) -> None:
        """Replace the open segment when it is large or old enough to be shipped, or was given up."""
        old = self._segment
        if old is not None and not self._due(old, seal=seal):
            return
        new = None if self._closed else Segment(self._directory, self._spool_id or open_spool(self._directory))
        with self._lock:
            if self._segment is not old:  # given up meanwhile; the next tick sees to it
                old = None
            self._segment = new
        if old is not None:
            old.close()
            if self._supervisor is not None:
                self._supervisor.wanted = True

    def _due(self, segment: Segment, *, seal: bool) -> bool:
        old = time.monotonic() - segment.opened_s >= self._limits.seal_s
        return segment.size_bytes > 0 and (seal or old or segment.size_bytes >= self._limits.seal_bytes)

    def _drain(self) -> None:
        """Append what waited, oldest first, a few rows at a time: the event loop may want the lock, too."""
        while self._pending:
            with self._lock:
                for _ in range(min(len(self._pending), _DRAINED_ROWS)):
                    if self._segment is None or not self._append(self._pending[0]):
                        return
                    self._pending_bytes -= len(self._pending.popleft())
            self._refused = None

    def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.join()
        try:
            if self._pending and self._segment is None:
                self._segment = Segment(self._directory, self._spool_id or open_spool(self._directory))
            self._drain()
        except OSError as error:
            self._note_refusal(error)
        if self._segment is not None and self._segment.size_bytes and self._supervisor is not None:
            self._supervisor.wanted = True
        self._give_up_segment()
        self.dropped_rows += len(self._pending)
        self._dropped.inc(len(self._pending))
        self._pending.clear()
        if self._supervisor is not None:
            self._supervisor.close()
