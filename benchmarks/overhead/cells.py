"""What is measured: cells of body, clients and kind of answer; and what came of each for each contestant."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.overhead.bodies import SIZES
from benchmarks.overhead.load import Sample

CLIENTS = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load."""

    kind: str
    """`plain` or `stream`."""
    body: str
    clients: int

    def __str__(self) -> str:
        return f"{self.kind} {self.body} x{self.clients}"


SMALLEST = next(iter(SIZES))
LARGEST = list(SIZES)[-1]
CELLS = [
    *(Cell("plain", body, clients) for body in SIZES for clients in CLIENTS if (body, clients) != (LARGEST, 64)),
    *(Cell("stream", SMALLEST, clients) for clients in CLIENTS),
]


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds of one contestant in one cell; times in ms, `added` are those beyond direct calls."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_s: float
    cpu_ms_per_answer: float | None
    added_p50_ms: float | None
    first_chunk_ms: float | None


@dataclass(slots=True)
class Results:
    """Collects the samples of all rounds."""

    samples: dict[Cell, dict[str, list[Sample]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    cpu_s: dict[Cell, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    first_ms: dict[Cell, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    left_out: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Contestant -> cell, or `all` -> why there is no figure."""

    def figures(self, cell: Cell, name: str) -> Figures | None:
        samples = self.samples[cell].get(name)
        if not samples or str(cell) in self.left_out.get(name, ()):
            return None
        p50_ms = _median(sample.p50_ms for sample in samples)
        direct = self.samples[cell].get("direct")
        cpu, first = self.cpu_s[cell].get(name), self.first_ms[cell].get(name)
        return Figures(
            p50_ms=p50_ms,
            p90_ms=_median(sample.p90_ms for sample in samples),
            p99_ms=_median(sample.p99_ms for sample in samples),
            per_s=_median(sample.per_s for sample in samples),
            cpu_ms_per_answer=_median(cpu) * 1e3 if cpu else None,
            added_p50_ms=p50_ms - _median(s.p50_ms for s in direct) if direct and name != "direct" else None,
            first_chunk_ms=_median(first) if first else None,
        )


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
