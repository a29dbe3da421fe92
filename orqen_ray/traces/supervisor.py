"""Starts the spool's one shipper, starts it again when it dies, and stops it with this process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orqen_ray.traces.spool import has_rows, lock_leadership

HOUSEKEEPING_S = 3600.0
_STOP_GRACE_S = 6.0
_BACKOFF_S = (1.0, 60.0)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShipperOptions:
    """What the shipper is told: the spool to empty, where to, and how many days are kept (None: all).

    `environment`: its variables; None for those of this process.
    """

    spool: Path
    uri: str
    retention_days: int | None = None
    environment: Mapping[str, str] | None = field(default=None, repr=False)

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "orqen_ray.traces.shipper", "--spool", str(self.spool), "--uri", self.uri]
        return command if self.retention_days is None else [*command, "--retention-days", str(self.retention_days)]


class Supervisor:
    """Not for several threads at once. Of all processes that share a spool, one at a time has the shipper.

    The shipper is a process of its own: Arrow's memory and its work at Parquet files stay out of the gateway. It ends
    when the pipe to its parent closes, so it cannot outlive a parent that is killed by more than its grace.
    """

    def __init__(self, options: ShipperOptions) -> None:
        self._options = options
        self._child: subprocess.Popen[bytes] | None = None
        self._leadership: int | None = None
        self._started_s = time.monotonic()
        self._next_start_s = 0.0
        self._backoff_s = _BACKOFF_S[0]
        self._looked = False
        self.wanted = False
        """Whether there is something to ship, or was: from then on this process is ready to lead."""

    def tend(self) -> None:
        """Look after the shipper; call it every second or so."""
        now = time.monotonic()
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return
            if now - self._started_s > _BACKOFF_S[1]:  # it did its work for a while: no reason to wait long
                self._backoff_s = _BACKOFF_S[0]
            _log.warning("traces: the shipper ended with %d; it starts again in %g s", code, self._backoff_s)
            self._let_go()
            self._next_start_s = now + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, _BACKOFF_S[1])
        if not self._looked:  # what an earlier life of the gateway left in the spool
            self._looked = True
            self.wanted |= has_rows(self._options.spool)
        if (self.wanted or now - self._started_s > HOUSEKEEPING_S) and now >= self._next_start_s:
            try:
                self._start()
            except OSError as error:
                self._next_start_s = now + _BACKOFF_S[1]
                _log.warning("traces: the shipper cannot be started, rows stay in the spool: %s", error.strerror)

    def close(self) -> None:
        """Have everything shipped that is sealed, within a few seconds, and end the shipper; idempotent."""
        try:
            if self._child is None and (self.wanted or has_rows(self._options.spool)):
                self._start()
            if self._child is not None:
                self._stop(self._child)
        except OSError as error:
            _log.warning("traces: rows stay in the spool until the next start: %s", error.strerror)
        self._let_go()

    def _start(self) -> None:
        """Start it, unless another process has one."""
        self._leadership = lock_leadership(self._options.spool)
        if self._leadership is None:
            return
        self._started_s = time.monotonic()
        try:
            self._child = subprocess.Popen(
                self._options.command(),
                env=self._options.environment,
                cwd=Path(__file__).parents[2],  # where `-m` finds the package, whatever this process did to its path
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[self._leadership],  # it leads for as long as it lives, even when this process is killed
            )
        except OSError:
            self._let_go()
            raise

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:  # what it leaves half done, the next one does again
            child.kill()
            child.wait()

    def _let_go(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._child = None
        if self._leadership is not None:
            os.close(self._leadership)
            self._leadership = None
