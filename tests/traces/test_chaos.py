"""Real processes, killed at bad moments: every row that was acknowledged is there, and there once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from orqen_ray.traces.spool import has_rows, lock_leadership, segments_in
from tests.traces.rows import all_numbers, parquet_files

ROOT = Path(__file__).parents[2]
WITHIN_S = 60.0
ENDLESS = 10**7


@contextmanager
def gateway(uri: str, spool: Path, first: int = 0, count: int = ENDLESS) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.traces.acknowledging", uri, str(spool), str(first), str(count)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def acknowledged(process: subprocess.Popen[bytes], at_least: int) -> set[int]:
    """Read until so many rows are acknowledged; the process goes on."""
    assert process.stdout is not None
    return {int(process.stdout.readline()) for _ in range(at_least)}


def shippers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    alive = [each for each in children if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in alive if "orqen_ray.traces.shipper" in each.cmdline()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes]) -> set[int]:
    """Kill it; the rows that it had acknowledged and nobody had read."""
    process.kill()
    return rest(process)


def rest(process: subprocess.Popen[bytes]) -> set[int]:
    """What it has acknowledged when it has ended. Its last line may be cut off."""
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait(WITHIN_S)
    return {int(line) for line in output[: output.rfind(b"\n") + 1].split()}


def write_until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> set[int]:
    """Let it write until `condition`; the rows that it acknowledged."""
    known: set[int] = set()

    def met() -> bool:
        known.update(acknowledged(process, 50))
        return condition()

    wait_for(met)
    return known


def passed(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def restart_and_stop(uri: str, spool: Path) -> None:
    """A later life of the gateway, in good order."""
    with gateway(uri, spool, count=0) as process:
        wait_for(lambda: not has_rows(spool))
        output, errors = process.communicate(timeout=WITHIN_S)
        assert (process.returncode, output, errors) == (0, b"", b"")
    assert segments_in(spool) == []


def check(uri: str, spool: Path, known: set[int]) -> None:
    """Each acknowledged row once; at most one more, which was written when the process was killed."""
    found = Counter(all_numbers(uri, spool))
    assert known - found.keys() == set(), "lost"
    assert {number: times for number, times in found.items() if times > 1} == {}
    assert len(found.keys() - known) <= 1


@pytest.mark.parametrize("rows", [1, 777, 5000])
def test_the_writing_process_is_killed_under_load(tmp_path: Path, rows: int) -> None:
    uri, spool = str(tmp_path), tmp_path / ".spool"
    with gateway(uri, spool) as process:
        known = acknowledged(process, rows) | kill(process)
    check(uri, spool, known)
    restart_and_stop(uri, spool)
    check(uri, spool, known)


def test_the_shipper_is_killed_again_and_again(tmp_path: Path) -> None:
    uri, spool = str(tmp_path), tmp_path / ".spool"
    dice = random.Random(7)
    known: set[int] = set()
    with gateway(uri, spool) as process:
        for _ in range(3):
            known |= write_until(process, lambda: bool(shippers(process)))
            (shipper,) = shippers(process)
            known |= write_until(process, passed(dice.uniform(0.3, 1.5)))  # it starts, ships, merges
            shipper.kill()
            known |= write_until(process, lambda: not shippers(process))
        known |= kill(process)
    check(uri, spool, known)
    restart_and_stop(uri, spool)
    check(uri, spool, known)


def test_both_are_killed_and_so_are_those_who_come_after_them(tmp_path: Path) -> None:
    uri, spool = str(tmp_path), tmp_path / ".spool"
    dice = random.Random(8)
    known: set[int] = set()
    for life in range(2):
        with gateway(uri, spool, first=life * ENDLESS) as process:
            known |= write_until(process, passed(dice.uniform(1.5, 3.0)))
            children = shippers(process)
            known |= kill(process)
            for child in children:
                child.kill()
                child.wait(WITHIN_S)
        found = Counter(all_numbers(uri, spool))
        assert known - found.keys() == set() and max(found.values()) == 1
        known |= found.keys()
    restart_and_stop(uri, spool)
    check(uri, spool, known)
    assert parquet_files(tmp_path)


def test_a_shipper_ends_when_its_gateway_is_killed(tmp_path: Path) -> None:
    with gateway(str(tmp_path), tmp_path / ".spool") as process:
        write_until(process, lambda: bool(shippers(process)))
        (shipper,) = shippers(process)
        kill(process)
        shipper.wait(WITHIN_S)


def test_another_process_leads_when_the_leader_is_killed(tmp_path: Path) -> None:
    uri, spool = str(tmp_path), tmp_path / ".spool"
    with gateway(uri, spool) as first, gateway(uri, spool, first=ENDLESS) as second:
        both = (first, second)
        known: set[int] = set()

        def led() -> bool:
            for process in both:
                known.update(acknowledged(process, 50))
            return any(map(shippers, both))

        wait_for(led)
        leader, other = both if shippers(first) else both[::-1]
        assert shippers(other) == []
        known |= kill(leader)
        known |= write_until(other, lambda: bool(shippers(other)))
        known |= kill(other)
    found = Counter(all_numbers(uri, spool))
    assert known - found.keys() == set() and max(found.values()) == 1 and len(found.keys() - known) <= 2


def test_nobody_else_leads_while_the_shipper_of_a_killed_gateway_lives(tmp_path: Path) -> None:
    spool = tmp_path / ".spool"
    with gateway(str(tmp_path), spool) as process:
        write_until(process, lambda: bool(shippers(process)))
        (shipper,) = shippers(process)
        shipper.suspend()
        try:
            kill(process)
            assert lock_leadership(spool) is None
        finally:
            shipper.resume()
        shipper.wait(WITHIN_S)
    free = lock_leadership(spool)
    assert free is not None
    os.close(free)


def test_a_stop_in_good_order_ships_everything_and_ends_the_shipper(tmp_path: Path) -> None:
    uri, spool = str(tmp_path), tmp_path / ".spool"
    with gateway(uri, spool, count=3000) as process:
        wait_for(lambda: bool(shippers(process)) or segments_in(spool) == [])
        children = shippers(process)
        output, errors = process.communicate(timeout=WITHIN_S)
        assert (process.returncode, errors) == (0, b"")
        assert not any(child.is_running() for child in children)
    assert len(output.split()) == 3000 and segments_in(spool) == []
    check(uri, spool, set(range(3000)))


def test_a_gateway_that_stops_by_signal_loses_nothing(tmp_path: Path) -> None:
    uri, spool = str(tmp_path), tmp_path / ".spool"
    with gateway(uri, spool) as process:
        known = acknowledged(process, 1000)
        process.send_signal(signal.SIGTERM)  # which it does not handle: it dies
        known |= rest(process)
    check(uri, spool, known)
