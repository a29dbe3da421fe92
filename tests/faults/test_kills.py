"""kill -9 under load: nobody hangs, the gateway recovers, and the traces hold every answer that a caller has."""

from __future__ import annotations

import asyncio
from collections import Counter

import psutil
import pytest

from orqen_ray.traces.reader import read_traces
from tests.conftest import family_of
from tests.faults.conftest import FaultyGateway, wait_until
from tests.faults.load import Load
from tests.faults.table import note

KILLED = ("Ingress", "Forwarder", "writer")
BEFORE, AFTER = 100, 200
RECOVERS_WITHIN_S = 60.0


def victims(faulty: FaultyGateway, which: str) -> list[psutil.Process]:
    if which == "writer":
        family = family_of(faulty.gateway.process.pid)
        return [each for each in family if any("traces.shipper" in part for part in each.info["cmdline"] or ())]
    return faulty.processes(which)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("which", KILLED)
async def test_a_process_is_killed_under_load(faulty: FaultyGateway, which: str) -> None:
    async with Load(faulty.url, faulty.key, model=faulty.model("stream"), prefix=f"kill-{which}") as load:
        await load.until(BEFORE)
        # The writer's child starts with the first rows that are old enough to be shipped.
        await asyncio.to_thread(wait_until, lambda: bool(victims(faulty, which)), 30)
        victim = (await asyncio.to_thread(victims, faulty, which))[0]
        killed_s = asyncio.get_running_loop().time()
        victim.kill()
        await load.until(AFTER, within_s=RECOVERS_WITHIN_S)
    answered = [each.ended_s for each in load.complete if each.ended_s > killed_s]
    assert load.hung == 0
    missing, twice = await asyncio.to_thread(compare_with_traces, faulty, load)
    assert not missing, f"{len(missing)} of {len(load.complete)} acknowledged rows are lost"
    assert not twice, f"{len(twice)} rows are there twice"
    longest_gap_s = max(b - a for a, b in zip([killed_s, *sorted(answered)], sorted(answered), strict=False))
    figures = (
        f"{len(load.ended)} requests, {len(load.complete)} answered, 0 hung, rows lost 0, twice 0; "
        f"failed: {dict(load.failures) or 'none'}; longest pause {longest_gap_s * 1000:.0f} ms"
    )
    note(f"kill -9: {which}", "an error at once, or its answer", figures)


def compare_with_traces(faulty: FaultyGateway, load: Load) -> tuple[set[str], list[str]]:
    """Requests whose callers have the whole answer and that left no row; and those that left more than one."""
    rows = read_traces(f"{faulty.folder}/traces", columns=["request_id"])
    counted = Counter(rows.column("request_id").to_pylist())
    ids = {each.request_id for each in load.complete}
    return ids - counted.keys(), [request_id for request_id in ids if counted[request_id] > 1]
