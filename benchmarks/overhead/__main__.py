"""`make bench`: this gateway side by side with other gateways, on this machine, in one run, as ratios.

    python -m benchmarks.overhead [--quick] [--only CONTESTANT ...] [--cells WORD ...] [--rounds N] [--seconds N]

All contestants stand before the same mock provider. In each round each cell is measured for one contestant after the
other, so that whatever else the machine does hits all of them; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.overhead import report
from benchmarks.overhead.bodies import SIZES, chat_body
from benchmarks.overhead.cells import CELLS, SMALLEST, Cell, Results
from benchmarks.overhead.contestants import CACHE, CONTESTANTS, Contestant, mock
from benchmarks.overhead.load import LoadFailed, NoAnswer, Sample, first_chunk_ms, generator_name, measure
from benchmarks.overhead.mock import STREAM_CHUNKS
from benchmarks.overhead.processes import ROOT, CannotStart, Usage, memory_of

GROWTH_ANSWERS = 100_000
SETTLE_S = 6
"""After which this gateway has written the trace rows that it keeps."""
IDLE_S = 5
PATIENCE_S = 20
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    options = _options()
    started_s = time.monotonic()
    cells = [cell for cell in CELLS if not options.cells or any(word in str(cell) for word in options.cells)]
    results = Results()
    with tempfile.TemporaryDirectory(prefix="orqen-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        bodies = _write_bodies(folder)
        mock_url = stack.enter_context(mock(folder))
        running = _start(stack, options.only, mock_url, folder, results)
        idle = _idle_cpu(running)
        for contestant in running.values():
            _warm_up(contestant, bodies)
        start = _usages(running)
        growth = None
        if "ingress" in running and options.growth:
            growth = _grow(running["ingress"], bodies[Cell("plain", SMALLEST, 16)], options.growth)
        for contestant in running.values():
            if contestant.running:
                contestant.running.pause()
        for number in range(options.rounds):
            for cell in cells:
                _say(f"round {number + 1} of {options.rounds}: {cell}")
                for contestant in running.values():
                    _measure(contestant, cell, bodies[cell], options.seconds, results)
        end = _usages(running)  # paused processes keep their memory
    memory = {
        each: {
            "start_mib": start[each].pss_mib,
            "end_mib": end[each].pss_mib,
            "rss_start_mib": start[each].rss_mib,
            "processes": end[each].processes,
            "idle_cpu": idle[each],
        }
        for each in start
    }
    about = _about(running, options, time.monotonic() - started_s)
    run = report.Run(results, cells, about, memory, growth)
    _publish(run, full=options.full)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of 1 s, without the 100,000 calls")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), help="these contestants; `direct` always")
    parser.add_argument("--cells", nargs="+", help="cells whose name holds one of these words")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=int, help="of each measurement, default 2")
    options = parser.parse_args()
    options.full = not (options.quick or options.only or options.cells or options.rounds or options.seconds)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1 if options.quick else 2)
    options.growth = 0 if options.quick or options.cells else GROWTH_ANSWERS
    options.only = [name for name in CONTESTANTS if not options.only or name in options.only or name == "direct"]
    return options


def _write_bodies(folder: Path) -> dict[Cell, Path]:
    paths: dict[Cell, Path] = {}
    for cell in CELLS:
        path = folder / f"{cell.kind}-{SIZES[cell.body]}.json"
        path.write_bytes(chat_body(SIZES[cell.body], stream=cell.kind == "stream"))
        paths[cell] = path
    return paths


def _start(
    stack: ExitStack, names: Sequence[str], mock_url: str, folder: Path, results: Results
) -> dict[str, Contestant]:
    running: dict[str, Contestant] = {}
    for name in names:
        _say(f"starting {name}")
        try:
            running[name] = stack.enter_context(CONTESTANTS[name](mock_url, folder))
        except CannotStart as error:
            _say(f"{name} is left out: {error}")
            results.left_out[name]["all"] = str(error)
    return running


def _warm_up(contestant: Contestant, bodies: Mapping[Cell, Path]) -> None:
    for cell in (Cell("plain", SMALLEST, 16), Cell("stream", SMALLEST, 16)):
        try:
            measure(contestant.url, contestant.headers, bodies[cell], cell.clients, 1)
        except LoadFailed:
            continue  # the cell itself will say so


def _measure(contestant: Contestant, cell: Cell, body: Path, seconds: int, results: Results) -> None:
    name = contestant.name
    if str(cell) in results.left_out[name]:
        return
    try:
        with _alone(contestant):
            _sample(contestant, cell, body, seconds, results)
    except LoadFailed as error:
        _say(f"{name} is left out of {cell}: {error}")
        results.left_out[name][str(cell)] = str(error)


@contextmanager
def _alone(contestant: Contestant) -> Iterator[None]:
    """Only this contestant runs, from the moment that it is calm until it is calm again."""
    if contestant.running is None:
        yield
        return
    contestant.running.resume()
    contestant.running.wait_until_calm()
    try:
        yield
    finally:
        contestant.running.wait_until_calm()
        contestant.running.pause()


def _sample(contestant: Contestant, cell: Cell, body: Path, seconds: int, results: Results) -> None:
    name = contestant.name
    before_s = contestant.running.cpu_s() if contestant.running else 0.0
    sample = _patiently(contestant, cell, body, seconds)
    used_s = contestant.running.cpu_s() - before_s if contestant.running else 0.0
    if cell.kind == "stream" and cell.clients == 1:
        first = first_chunk_ms(contestant.url, contestant.headers, body, 1)
        results.first_ms[cell][name].append(first)
    results.samples[cell][name].append(sample)
    if contestant.running:
        results.cpu_s[cell][name].append(used_s / sample.answers)


def _patiently(contestant: Contestant, cell: Cell, body: Path, seconds: int) -> Sample:
    """A sample; of a contestant so slow that no answer comes in time, over a longer time."""
    try:
        return measure(contestant.url, contestant.headers, body, cell.clients, seconds)
    except NoAnswer:
        return measure(contestant.url, contestant.headers, body, cell.clients, max(PATIENCE_S, seconds))


def _grow(contestant: Contestant, body: Path, answers: int) -> dict[str, float]:
    """What `answers` calls add to the memory of the ingress replica, once it is warm."""
    replica = contestant.replica("Ingress")
    measure(contestant.url, contestant.headers, body, 16, 5)
    time.sleep(SETTLE_S)
    before_mib, done = memory_of(replica), 0
    while done < answers:
        _say(f"{done:,} of {answers:,} calls to see whether memory grows")
        done += measure(contestant.url, contestant.headers, body, 16, 10).answers
    time.sleep(SETTLE_S)
    after_mib = memory_of(replica)
    return {"before_mib": before_mib, "after_mib": after_mib, "answers": done, "grown": after_mib / before_mib - 1}


def _usages(running: Mapping[str, Contestant]) -> dict[str, Usage]:
    return {name: each.running.usage() for name, each in running.items() if each.running}


def _idle_cpu(running: Mapping[str, Contestant]) -> dict[str, float]:
    """Share of a core that each uses while nothing is asked of it."""
    time.sleep(IDLE_S)
    before = {name: each.running.cpu_s() for name, each in running.items() if each.running}
    time.sleep(IDLE_S)
    return {name: (each.running.cpu_s() - before[name]) / IDLE_S for name, each in running.items() if each.running}


def _about(running: Mapping[str, Contestant], options: argparse.Namespace, took_s: float) -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "load": generator_name(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "took_s": round(took_s),
        "stream_chunks": STREAM_CHUNKS,
        "versions": {name: each.version for name, each in running.items() if name != "direct"},
    }


def _publish(run: report.Run, *, full: bool) -> None:
    found = report.text(run)
    print(found)
    path = CACHE / "overhead.json"
    report.write_json(run, path)
    _say(f"all figures: {path.relative_to(ROOT)}")
    if full:
        DOCUMENT.write_text(report.document(run))
        _say(f"written: {DOCUMENT.relative_to(ROOT)}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
