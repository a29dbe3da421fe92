"""What was found, as ratios: for the terminal, as JSON, and as docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.overhead.cells import CELLS, LARGEST, SMALLEST, Cell, Figures, Results

OURS = ("ingress", "pool")
PEERS = ("portkey", "litellm", "bare")
LABELS = {
    "direct": "direct",
    "ingress": "Orqen-Ray",
    "pool": "Orqen-Ray, pool",
    "portkey": "Portkey",
    "litellm": "LiteLLM",
    "bare": "bare proxy",
}
MAX_GROWTH = 0.05


@dataclass(frozen=True, slots=True)
class Target:
    """A bound, what was found, and whether it holds; `found` is None where a figure is missing."""

    what: str
    bound: str
    found: float | None
    met: bool | None


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run: its results and what they were made on."""

    results: Results
    cells: Sequence[Cell]
    about: Mapping[str, Any]
    memory: Mapping[str, Mapping[str, float]]
    growth: Mapping[str, float] | None


def targets(run: Run) -> Iterator[Target]:
    """What this gateway, in its default placement, shall reach."""
    one, many = Cell("plain", SMALLEST, 1), Cell("plain", SMALLEST, 16)
    streams, large = Cell("stream", SMALLEST, 16), Cell("plain", LARGEST, 1)
    added, rate = "added_p50_ms", "per_s"
    yield _target(run, f"added p50, {SMALLEST}, 1 client, to Portkey's", one, added, "portkey", at_most=1.1)
    yield _target(run, f"added p50, {SMALLEST}, 1 client, to LiteLLM's", one, added, "litellm", at_most=0.125)
    yield _target(run, f"calls/s, {SMALLEST}, 16 clients, to Portkey's", many, rate, "portkey", at_least=1.0)
    yield _target(run, f"calls/s, {SMALLEST}, 16 clients, to LiteLLM's", many, rate, "litellm", at_least=10.0)
    yield _target(run, "streams/s, 16 clients, to LiteLLM's", streams, rate, "litellm", at_least=20.0)
    yield _target(run, "streams/s, 16 clients, to the bare proxy's", streams, rate, "bare", at_least=0.4)
    yield _target(run, f"added p50, {LARGEST}, 1 client, to Portkey's", large, added, "portkey", at_most=0.5)
    if run.growth is not None:
        grown = run.growth["grown"]
        what = f"memory of the ingress, grown after {run.growth['answers']:,.0f} calls"
        yield Target(what, f"< {MAX_GROWTH:g}", grown, grown < MAX_GROWTH)


def _target(
    run: Run,
    what: str,
    cell: Cell,
    figure: str,
    peer: str,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Target:
    found = ratio(run.results, cell, figure, "ingress", peer)
    if at_most is not None:
        return Target(what, f"<= {at_most:g}", found, None if found is None else found <= at_most)
    assert at_least is not None
    return Target(what, f">= {at_least:g}", found, None if found is None else found >= at_least)


def ratio(results: Results, cell: Cell, figure: str, ours: str, peer: str) -> float | None:
    a, b = results.figures(cell, ours), results.figures(cell, peer)
    if a is None or b is None or cell not in CELLS:
        return None
    over, under = getattr(a, figure), getattr(b, figure)
    return None if over is None or not under else float(over / under)


def text(run: Run) -> str:
    """The tables, in Markdown, which is as readable in a terminal."""
    names = [name for name in LABELS if any(run.results.figures(cell, name) for cell in run.cells)]
    parts = [
        "## Ratios to others\n\nAdded p50: less is better. Answers a second: more is better.",
        _table(_ratio_rows(run)),
        "## Targets",
        _table(_target_rows(run)),
        "## Figures\n\nAdded p50 in ms (for `direct`: p50)",
        _table(_figure_rows(run, names, _added)),
        "p50 / p90 / p99 in ms",
        _table(_figure_rows(run, names, lambda f: f"{_ms(f.p50_ms)} / {_ms(f.p90_ms)} / {_ms(f.p99_ms)}")),
        "Answers a second",
        _table(_figure_rows(run, names, lambda f: _number(f.per_s))),
        "CPU time of the contestant, ms an answer",
        _table(_figure_rows(run, names, lambda f: "" if f.cpu_ms_per_answer is None else _ms(f.cpu_ms_per_answer))),
    ]
    firsts = [cell for cell in run.cells if run.results.first_ms.get(cell)]
    if firsts:
        rows = _figure_rows(run, names, lambda f: "" if f.first_chunk_ms is None else _ms(f.first_chunk_ms), firsts)
        parts += ["Time to the first chunk of a stream, ms", _table(rows)]
    parts += ["Memory of all processes, MiB (PSS: shared pages in their share), and CPU use while idle"]
    parts += [_table(_memory_rows(run))]
    if run.growth:
        parts.append(
            f"The ingress replica itself: {run.growth['before_mib']:.1f} MiB, after {run.growth['answers']:,.0f} calls "
            f"{run.growth['after_mib']:.1f} MiB ({run.growth['grown']:+.1%})."
        )
    left = [
        f"- {LABELS[name]}, {what}: {why}" for name, each in run.results.left_out.items() for what, why in each.items()
    ]
    if left:
        parts += ["Left out:", "\n".join(left)]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _ratio_rows(run: Run) -> list[list[str]]:
    peers = [peer for peer in PEERS if any(run.results.figures(cell, peer) for cell in run.cells)]
    pairs = [(ours, peer) for ours in OURS for peer in peers if any(run.results.figures(c, ours) for c in run.cells)]
    rows = [["cell", "figure", *(f"{LABELS[ours]} / {LABELS[peer]}" for ours, peer in pairs)]]
    for cell in run.cells:
        for figure, word in (("added_p50_ms", "added p50"), ("per_s", "a second")):
            found = [ratio(run.results, cell, figure, ours, peer) for ours, peer in pairs]
            rows.append([str(cell), word, *("-" if value is None else f"{value:.2f}" for value in found)])
    return rows


def _target_rows(run: Run) -> list[list[str]]:
    rows = [["target", "bound", "found", "met"]]
    for each in targets(run):
        found = "-" if each.found is None else f"{each.found:.3g}"
        rows.append([each.what, each.bound, found, {None: "no figure", True: "met", False: "missed"}[each.met]])
    return rows


def _figure_rows(run: Run, names: Sequence[str], show: Any, cells: Sequence[Cell] | None = None) -> list[list[str]]:
    rows = [["cell", *(LABELS[name] for name in names)]]
    for cell in cells or run.cells:
        found = [run.results.figures(cell, name) for name in names]
        rows.append([str(cell), *("-" if figures is None else show(figures) or "-" for figures in found)])
    return rows


def _memory_rows(run: Run) -> list[list[str]]:
    rows = [["", "at the start", "at the end", "processes", "idle CPU, % of a core"]]
    for name, each in run.memory.items():
        rows.append(
            [
                LABELS[name],
                f"{each['start_mib']:.0f}",
                f"{each['end_mib']:.0f}",
                f"{each['processes']:.0f}",
                f"{each['idle_cpu'] * 100:.1f}",
            ]
        )
    return rows


def _added(figures: Figures) -> str:
    return _ms(figures.p50_ms if figures.added_p50_ms is None else figures.added_p50_ms)


def _ms(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def write_json(run: Run, path: Path) -> None:
    """Everything, every sample included."""
    results = run.results
    cells = {
        str(cell): {
            name: {
                **asdict(figures),
                "samples": [asdict(sample) for sample in results.samples[cell][name]],
            }
            for name in LABELS
            if (figures := results.figures(cell, name))
        }
        for cell in run.cells
    }
    whole = {
        "about": run.about,
        "cells": cells,
        "targets": [asdict(target) for target in targets(run)],
        "memory": run.memory,
        "growth": run.growth,
        "left_out": results.left_out,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")


def document(run: Run) -> str:
    """docs/benchmarks.md."""
    about = run.about
    versions = "; ".join(f"{LABELS[name]} {version}" for name, version in about["versions"].items())
    return f"""# Benchmarks: what the gateway adds

`make bench` writes this page. It puts this gateway, other gateways, a bare Python proxy and direct calls before the
same mock provider on loopback, one after the other in each round and cell, and compares. Everything shares the machine:
load, mock and contestant. So read the ratios; the figures themselves belong to the machine.

- **Orqen-Ray** is what `make serve` starts: HAProxy, Ray Serve with one ingress replica, a key to check, a trace of
  each call. **pool**: the same with the forwarder in a process of its own. **bare proxy**: Starlette and aiohttp in one
  process of uvicorn, which copies bytes and does nothing else: the limit for Python.
- Portkey: `node build/start-server.js`. LiteLLM: the proxy with one worker, without a database, logging off.
  Portkey 1.15.2 answers streams with 500 on Node 20 and 22 (`TypeError: immutable`, as it sets a header).
- While one is measured, all others are stopped (SIGSTOP): Ray uses a part of a core also when nothing is asked of it.
- Bodies are chat requests of many messages. A stream has {about["stream_chunks"]} chunks, each a packet of its own.
  `x16` means 16 callers on keep-alive connections, each asking again as soon as it was answered.

Measured {about["date"]} with Python {about["python"]} on {about["machine"]}; load: {about["load"]}; medians of
{about["rounds"]} rounds of {about["seconds"]} s. {versions}.

{text(run)}"""
