"""Programs that the benchmark starts: until they are ready, what they use, and to their end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 120.0
STOP_WITHIN_S = 40.0
CALM_WITHIN_S = 60.0
CALM_FOR_S = 0.2
CALM_CPU = 0.25
"""Of a core. Above what Ray uses while nothing is asked of it."""


class CannotStart(Exception):
    """Why a contestant has no column."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all below it: memory that would be free without them, shared pages in their share; CPU time."""

    pss_mib: float
    rss_mib: float
    cpu_s: float
    processes: int


@dataclass(frozen=True, slots=True)
class Running:
    """A program with all that it has started; `printed` is the file into which it prints."""

    process: subprocess.Popen[bytes]
    printed: Path

    def family(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def usage(self) -> Usage:
        members = [found for each in self.family() if (found := _usage_of(each))]
        pss_mib, rss_mib, cpu_s = (sum(each[i] for each in members) for i in range(3))
        return Usage(pss_mib, rss_mib, cpu_s, len(members))

    def cpu_s(self) -> float:
        """Without memory, which takes long to count."""
        return sum(_cpu_s(each) for each in self.family())

    def pause(self) -> None:
        """Stop all of it where it is, so that it costs nothing while others are measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, signal_number: signal.Signals) -> None:
        for each in self.family():
            try:
                each.send_signal(signal_number)
            except psutil.NoSuchProcess:
                continue

    def wait_until_calm(self) -> None:
        """What is left to do of calls that nobody waits for any more is done, or a long time has passed."""
        deadline = time.monotonic() + CALM_WITHIN_S
        before_s = self.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(CALM_FOR_S)
            now_s = self.cpu_s()
            if now_s - before_s < CALM_FOR_S * CALM_CPU:
                return
            before_s = now_s


def memory_of(process: psutil.Process) -> float:
    """MiB that belong to this process alone."""
    return float(process.memory_full_info().uss) / 2**20


def _usage_of(process: psutil.Process) -> tuple[float, float, float] | None:
    try:
        memory = process.memory_full_info()
        return memory.pss / 2**20, memory.rss / 2**20, _cpu_s(process)
    except psutil.Error:
        return None


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer a contestant, or send its calls through a proxy."""
    foreign = re.compile(r"ORQEN_|RAY_|AWS_|LITELLM_|OPENAI_|\w+_API_KEY$|\w+_proxy$", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if not foreign.match(name)} | {"PYTHONUNBUFFERED": "1"}


@contextmanager
def started(
    command: Sequence[str],
    folder: Path,
    name: str,
    environment: Mapping[str, str] | None = None,
    stop_with: signal.Signals = signal.SIGTERM,
) -> Iterator[Running]:
    """Run `command` in a session of its own; at the end it and exactly what it started are gone."""
    printed = folder / f"{name}.log"
    with printed.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**clean_environment(), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Running(process, printed)
    try:
        yield running
    finally:
        _stop(running, stop_with)


def _stop(running: Running, stop_with: signal.Signals) -> None:
    running.resume()
    family = running.family()
    if running.process.poll() is None:
        running.process.send_signal(stop_with)
        try:
            running.process.wait(timeout=STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
    if running.process.stdin is not None:
        running.process.stdin.close()
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=STOP_WITHIN_S)


def wait_for_print(running: Running, pattern: str) -> str:
    """The first group of `pattern` in what the program prints.

    Raises:
        CannotStart: it ended or took too long; with the end of what it printed.
    """

    def found() -> str | None:
        match = re.search(pattern, running.printed.read_text(errors="replace"), re.MULTILINE)
        return match[1] if match else None

    return _wait(running, found)


def wait_for_port(running: Running) -> int:
    """The port that the program prints, alone on a line. Raises CannotStart."""
    return int(wait_for_print(running, r"^(\d+)$"))


def wait_for_answer(running: Running, url: str) -> None:
    """Until `url` answers at all. Raises CannotStart."""

    def answers() -> str | None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return url
        except urllib.error.HTTPError:
            return url
        except OSError:
            return None

    _wait(running, answers)


def _wait(running: Running, found: Callable[[], str | None]) -> str:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if (value := found()) is not None:
            return value
        if running.process.poll() is not None:
            break
        time.sleep(0.1)
    tail = running.printed.read_text(errors="replace").strip().splitlines()[-3:]
    raise CannotStart(f"did not start: {' | '.join(tail)}"[:500])
