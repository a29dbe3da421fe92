"""What the gateway counts about itself, for Prometheus; every label has few values."""

from __future__ import annotations

import fcntl
import os
import socket
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

NO_PROVIDER = "none"
"""The provider of a request that ended before one was chosen."""

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEAD_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_OPENMETRICS_TYPE = "application/openmetrics-text"
# Statuses that are no standard ones and yet have a meaning here: the caller left; a provider is overloaded.
_STATUSES = frozenset({*map(int, HTTPStatus), 499, 529})
_CLOCK_SLACK_S = 5.0
# The library's files of a process, large enough for dozens of providers.
_FILES = {"counter": 1 << 18, "histogram": 1 << 20, "gauge_livesum": 1 << 16, "gauge_livemax": 1 << 16}
_shares = False


class Metrics:
    """One per process that shares them. `provider` labels are rows of the catalog; no label holds a model or a key.

    Args:
        directory: where all processes of this node's gateway keep their figures, made if absent; then `exposition`
            tells those of all of them. prometheus_client writes there if PROMETHEUS_MULTIPROC_DIR said so before it
            was imported. Without it, each process tells its own, whatever that variable says.
    """

    def __init__(self, directory: str | None = None) -> None:
        _keep_in(directory)
        self.registry = CollectorRegistry()
        self._shared = None if directory is None else _SharedFiles(Path(directory))
        self._bound: dict[tuple[Any, ...], Any] = {}
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        seconds = partial(Histogram, registry=self.registry)
        by_call = ("format", "provider")

        self.requests = counter("orqen_requests", "Requests that have ended.", (*by_call, "status"))
        self.open_requests = gauge("orqen_open_requests", "Requests now in work.", multiprocess_mode="livesum")
        self.request_seconds = seconds(
            "orqen_request_duration_seconds",
            "From the whole request to the end of its answer.",
            by_call,
            buckets=_SECONDS,
        )
        self.first_byte_seconds = seconds(
            "orqen_first_byte_seconds",
            "From the whole request to the head of the provider's answer.",
            ("provider",),
            buckets=_SECONDS,
        )
        self.overhead_seconds = seconds(
            "orqen_overhead_seconds",
            "From the whole request to the first call to a provider.",
            ("format",),
            buckets=_OVERHEAD_SECONDS,
        )
        self.tokens = counter(
            "orqen_tokens",
            "As the provider bills them, or estimated where it does not say; kind: input, cache_read, cache_write, "
            "output.",
            ("provider", "kind"),
        )
        self.attempts = counter("orqen_upstream_attempts", "Calls to providers.", ("provider", "outcome"))
        self.retries = counter("orqen_retries", "Attempts after the first.", ("provider",))
        self.retries_refused = counter("orqen_retries_refused", "Not made: the budget was spent.", ("provider",))
        self.fallbacks = counter("orqen_fallbacks", "Requests handed to another model.", ("provider",))
        self.open_circuits = gauge(
            "orqen_open_circuits", "Keys not called for a model: they fail.", ("provider",), multiprocess_mode="livemax"
        )
        self.limited = counter("orqen_limited_requests", "Answered 429 by the gateway itself.", ("reason",))
        self.store_failures = counter("orqen_store_failures", "Failed calls to database or redis.", ("store",))
        self.trace_rows = counter("orqen_trace_rows", "Rows written or dropped.", ("outcome",))
        self.pins_lost = counter("orqen_pins_lost", "Later turns of a conversation whose pin was gone.")
        self.restores = counter("orqen_restores", "Turns sent again with tools that the model asked for.")
        self.plans_late = counter("orqen_plans_late", "Conversations sent whole: no time, or a failure.", ("reason",))
        self.prefix_breaks = counter("orqen_prefix_breaks", "Turns that changed what was sent before.", ("cause",))
        self.processes = gauge(
            "orqen_processes", "Processes of the gateway: ingress, forwarder.", ("role",), multiprocess_mode="livesum"
        )

    def count_request(self, format_: str, provider: str | None, status: int) -> None:
        """A request has ended; each is counted once. About 1 us."""
        self._of(self.requests, format_, provider or NO_PROVIDER, _status_label(status)).inc()

    def observe_request(
        self,
        format_: str,
        provider: str | None,
        *,
        total_s: float,
        first_byte_s: float | None,
        overhead_s: float | None,
    ) -> None:
        """How long a request took that was read; None where it did not come so far."""
        provider = provider or NO_PROVIDER
        self._of(self.request_seconds, format_, provider).observe(total_s)
        if overhead_s is not None:
            self._of(self.overhead_seconds, format_).observe(overhead_s)
        if first_byte_s is not None:
            self._of(self.first_byte_seconds, provider).observe(first_byte_s)

    def count_tokens(self, provider: str | None, **tokens: int) -> None:
        """Args: tokens: kind -> how many."""
        for kind, count in tokens.items():
            if count > 0:
                self._of(self.tokens, provider or NO_PROVIDER, kind).inc(count)

    def count_late(self, reason: str) -> None:
        self._of(self.plans_late, reason).inc()

    def count_prefix_break(self, cause: str) -> None:
        self._of(self.prefix_breaks, cause).inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All figures and their content type, in OpenMetrics if `accept` asks for it. Reads files: use a thread."""
        registry = self.registry
        if self._shared is not None:
            registry = CollectorRegistry()
            registry.register(self._shared)
        if _OPENMETRICS_TYPE in accept.lower():
            page: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
            return page, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4

    def _of(self, metric: Any, *labels: str) -> Any:
        """The child of `metric`, kept: to look it up by its labels in the library takes as long as to count."""
        key = (metric, *labels)
        child = self._bound.get(key)
        if child is None:
            child = self._bound[key] = metric.labels(*labels)
        return child


def _keep_in(directory: str | None) -> None:
    """Have the library keep figures in the folder, or in this process alone: it asks the environment, not its caller.

    Of two in one process that share files, each would write over what the other has counted.
    """
    global _shares
    if _shares:
        raise RuntimeError("this process has its Metrics already: hand that one on")
    if directory is None:
        values.ValueClass = values.MutexValue
    elif values.ValueClass is values.MutexValue:
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
    _shares = values.ValueClass is not values.MutexValue


class _SharedFiles(Collector):
    """The figures of all processes of a node. Counters of dead processes stay, their gauges go."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        if status.st_uid != os.getuid() or directory.is_symlink():  # a name in /tmp can be taken by another user
            raise PermissionError(
                f"{directory} belongs to another user: set PROMETHEUS_MULTIPROC_DIR to another folder"
            )
        self._directory = directory
        self._node = socket.gethostname()
        with self._locked(fcntl.LOCK_EX):
            self._forget_the_dead()  # a process that got a dead one's number would go on with its gauges
            self._gather_the_dead()
        for name, size_bytes in _FILES.items():
            # Room on the disk first: to write into a file with a hole, on a full disk, would kill the process.
            _allocate(directory / f"{name}_{os.getpid()}.db", size_bytes)

    def collect(self) -> Iterator[Metric]:
        with self._locked(fcntl.LOCK_SH):
            self._forget_the_dead()
            # A file is empty for the moment between its making and its first use.
            files = [str(path) for path in self._directory.glob("*.db") if _size(path)]
            merged = list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
        for metric in merged:
            # Through a load balancer each answer is another node's: without this, counters would seem to jump.
            metric.samples = [
                sample._replace(labels={**sample.labels, "node": self._node})
                for sample in sorted(metric.samples, key=_sample_order)
            ]
            yield metric

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Between processes: what is read must not be gathered meanwhile."""
        file = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, how)
            yield
        finally:
            os.close(file)

    def _forget_the_dead(self) -> None:
        """Remove the gauges of processes that are gone, also when another process has got their number since.

        Nobody else does: `mark_process_dead` is for a parent that sees its children die, and a replica can be killed.
        """
        for path in self._directory.glob("gauge_live*_*.db"):
            if _is_of_a_dead_process(path):
                path.unlink(missing_ok=True)

    def _gather_the_dead(self) -> None:
        """Add the counts of the dead up in one file each, or every replica that ever was would cost each scrape time.

        Should it be cut off between its last steps, some are counted twice: Prometheus sees one jump.
        """
        for kind in ("counter", "histogram"):
            dead = [path for path in self._directory.glob(f"{kind}_[0-9]*.db") if _is_of_a_dead_process(path)]
            gathered = self._directory / f"{kind}_gathered.db"
            files = [path for path in (*dead, gathered) if _size(path)]
            counts: Counts[str] = Counts()
            for path in files:
                for key, value, _, _ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
                    counts[key] += value
            if dead and counts:
                draft = gathered.with_suffix(".new")
                draft.unlink(missing_ok=True)
                _allocate(draft, sum(map(_size, files)))
                written = MmapedDict(str(draft))  # type: ignore[no-untyped-call]
                for key, value in counts.items():
                    written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
                written.close()  # type: ignore[no-untyped-call]
                draft.rename(gathered)
            for path in dead:
                path.unlink(missing_ok=True)


def _is_of_a_dead_process(path: Path) -> bool:
    try:
        born_s = psutil.Process(int(path.stem.rpartition("_")[2])).create_time()
        return path.stat().st_mtime < born_s - _CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return True
    except FileNotFoundError:
        return False


def _allocate(path: Path, size_bytes: int) -> None:
    """Make an empty file of this size, or leave one that is there. Raises OSError when the disk is full."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, size_bytes)
    finally:
        os.close(file)


def _sample_order(sample: Any) -> tuple[Any, ...]:
    """Series together, each one's buckets in their order, sum and count after them, as the format demands."""
    labels = {name: value for name, value in sample.labels.items() if name != "le"}
    return sorted(labels.items()), sample.name, float(sample.labels.get("le", 0))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@lru_cache(maxsize=1000)
def _status_label(status: int) -> str:
    """`404`, but `7xx` for what no HTTP status is: a provider may answer anything."""
    return str(status) if status in _STATUSES else f"{status // 100}xx"
