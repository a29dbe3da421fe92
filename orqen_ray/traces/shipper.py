"""The spool's shipper, a process of its own: segments become Parquet files, small files large ones, old days nothing.

Started by `supervisor.py` as `python -m orqen_ray.traces.shipper`; it ends when its standard input does. It may be
killed at any point: a segment's file has the segment's name, so doing a step again changes nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa

from orqen_ray.traces.archive import ROW_GROUP_ROWS, SUFFIX, Archive, day_name, sync_directory
from orqen_ray.traces.compaction import FILES_TO_MERGE, Stopped, compact_day
from orqen_ray.traces.convert import by_day, table_of
from orqen_ray.traces.location import DAY_PREFIX
from orqen_ray.traces.spool import open_spool, remove_drafts, sealed, segments_in, whole_lines

IDLE_S = 2.0
_MAX_BACKOFF_S = 60.0
_HOUSEKEEPING_S = 3600.0
_LATE_ROWS = timedelta(hours=2)  # a stream that started before midnight is written when it ends
_END_WITHIN_S = 10.0
_NICENESS = 10

_log = logging.getLogger("orqen_ray.traces.shipper")


class Shipper:
    """Empties one spool into one archive. The only one of its spool (see `spool.lock_leadership`)."""

    def __init__(
        self,
        spool: Path,
        open_archive: Callable[[], Archive],
        retention_days: int | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        """Args: open_archive: called when there is something to write, and again while that fails."""
        self._spool = spool
        self._archive_opener = open_archive
        self._retention_days = retention_days
        self._stopping = stopping or threading.Event()
        self._spool_id = open_spool(spool)
        self._archive: Archive | None = None
        self._new_files: Counter[str] = Counter()
        self._housekept_s: float | None = None
        self._failing: str | None = None
        self._backoff_s = IDLE_S
        self.shipped_rows = 0

    def run(self) -> None:
        """Work until told to stop; then ship what is sealed, and return."""
        while True:
            last = self._stopping.is_set()
            if last and self._failing is not None:  # what did not go for a while will not go in the last seconds
                return
            wait_s = self.run_once()
            if last:
                return
            self._stopping.wait(wait_s)

    def run_once(self, *, housekeeping: bool | None = None) -> float:
        """Do all that is to be done now; `housekeeping`: now, or not, instead of once an hour.

        Returns:
            Seconds to wait before the next time: longer and longer while disk or S3 is away.
        """
        try:
            self._ship_all()  # first, and all: what was shipped has left the spool before anything is merged
            if not self._stopping.is_set():
                self._keep_house(housekeeping)
        except Stopped:
            return 0.0
        except OSError as error:
            return self._failed(error)
        finally:
            for pool in (pa.default_memory_pool(), pa.system_memory_pool()):
                pool.release_unused()  # what a burst needed is not held while there is nothing to do
        if self._failing is not None:
            _log.warning("traces: the log can be written to again")
        self._failing, self._backoff_s = None, IDLE_S
        return IDLE_S

    def _failed(self, error: OSError) -> float:
        reason = " ".join(str(error).split())[:300]
        if self._failing is None:  # once, and not for each attempt, whose words may differ
            _log.warning("traces: the log cannot be written to now, rows wait in %s: %s", self._spool, reason)
        self._failing = reason
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        return self._backoff_s

    def _ship_all(self) -> None:
        for path in segments_in(self._spool):
            with sealed(path) as free:
                if free:
                    self._ship(path)
        remove_drafts(self._spool)

    def _ship(self, path: Path) -> None:
        """One file for each day of the segment's rows, then the segment goes, for good before anything is merged."""
        table = table_of(whole_lines(path.read_bytes()))
        for day, rows in by_day(table):
            with self._open_archive().writing(day_name(day), f"{path.stem}{SUFFIX}") as writer:
                writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
            self._new_files[day_name(day)] += 1
        path.unlink()
        sync_directory(self._spool)
        self.shipped_rows += table.num_rows

    def _keep_house(self, asked: bool | None) -> None:
        due = self._housekept_s is None or time.monotonic() - self._housekept_s > _HOUSEKEEPING_S
        if due if asked is None else asked:
            archive = self._open_archive()
            first = self._housekept_s is None
            if first:
                archive.remove_drafts(self._spool_id)
            self._drop_old_days(archive)
            # A shipper before this one may have left any day half merged; later, only yesterday can be unfinished.
            days = archive.days() if first else [*self._new_files, day_name(_today() - timedelta(days=1))]
            for day in dict.fromkeys(days):
                self._compact(archive, day)
            self._housekept_s = time.monotonic()
        for day, count in list(self._new_files.items()):
            if count >= FILES_TO_MERGE:
                self._compact(self._open_archive(), day)

    def _compact(self, archive: Archive, day: str) -> None:
        date_ = _date_of(day)
        whole = date_ is not None and date_ < (datetime.now(UTC) - _LATE_ROWS).date()
        try:
            compact_day(archive, self._spool_id, day, whole=whole, stopped=self._stopping.is_set)
        except pa.ArrowException as error:  # a damaged file: it is left as it is, and so is its day
            _log.error("traces: %s cannot be merged: %s", day, str(error)[:200])
        self._new_files.pop(day, None)

    def _drop_old_days(self, archive: Archive) -> None:
        if self._retention_days is None:
            return
        oldest = _today() - timedelta(days=self._retention_days)
        for day in archive.days():
            date_ = _date_of(day)
            if date_ is not None and date_ < oldest:
                archive.delete_day(day)

    def _open_archive(self) -> Archive:
        if self._archive is None:
            self._archive = self._archive_opener()
        return self._archive


def _today() -> date:
    return datetime.now(UTC).date()


def _date_of(day: str) -> date | None:
    """None for a folder whose name is no day."""
    try:
        return date.fromisoformat(day.removeprefix(DAY_PREFIX))
    except ValueError:
        return None


def _stop_at_end_of_input(stopping: threading.Event) -> None:
    """The parent closed the pipe, or is no more. What takes too long then is left to the next shipper."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stopping.set()
    time.sleep(_END_WITHIN_S)
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--retention-days", type=int)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    os.nice(_NICENESS)  # requests come first
    pa.set_cpu_count(1)
    stopping = threading.Event()
    threading.Thread(target=_stop_at_end_of_input, args=(stopping,), daemon=True).start()
    open_archive = partial(Archive, options.uri, options.spool / "drafts")
    Shipper(options.spool, open_archive, options.retention_days, stopping).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
