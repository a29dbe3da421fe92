"""The threads behind an encoder: order, turns, bounds, and who is no longer worked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from orqen_ray.encoders.protocol import EncoderUnavailable
from orqen_ray.encoders.workers import Workers


class Model:
    """Doubles numbers, one batch at a time, while `gate` is open."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.began = threading.Event()

    def run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.began.set()
        assert self.gate.wait(10)
        if 13 in items:
            raise OSError("model file gone")
        return [2 * item for item in items]


def _workers(model: Model, max_batch_tokens: int = 0) -> Workers[int, int]:
    return Workers(model.run, lambda item: 10, max_batch_tokens=max_batch_tokens, max_queued_tokens=50)


async def _started(workers: Workers[int, int], model: Model, items: list[int]) -> asyncio.Task[list[int]]:
    """A call whose first batch runs and waits."""
    task = asyncio.create_task(workers.map(items))
    await asyncio.to_thread(model.began.wait, 10)
    return task


async def test_results_are_in_order_and_callers_take_turns() -> None:
    model = Model()
    workers = _workers(model)
    large = await _started(workers, model, [1, 2, 3])
    small = asyncio.create_task(workers.map([4]))
    await asyncio.sleep(0)
    model.gate.set()
    assert (await large, await small) == ([2, 4, 6], [8])
    assert model.batches.index([4]) < model.batches.index([3])


async def test_a_batch_holds_no_more_tokens_than_it_may() -> None:
    model = Model()
    workers = _workers(model, max_batch_tokens=25)
    first = await _started(workers, model, [0])
    many = asyncio.create_task(workers.map([1, 2, 3]))
    other = asyncio.create_task(workers.map([4, 5]))
    await asyncio.sleep(0)
    model.gate.set()
    assert (await first, await many, await other) == ([0], [2, 4, 6], [8, 10])
    assert max(map(len, model.batches)) == 2
    assert [1, 4] in model.batches, "calls share a batch"


async def test_what_nobody_waits_for_any_more_is_not_run() -> None:
    model = Model()
    workers = _workers(model)
    first = await _started(workers, model, [1, 2, 3])
    second = asyncio.create_task(workers.map([4]))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    model.gate.set()
    assert await second == [8]
    assert model.batches == [[1], [4]]


async def test_too_long_a_queue_turns_callers_away_until_it_is_shorter() -> None:
    model = Model()
    workers = _workers(model)
    first = await _started(workers, model, [1, 2, 3, 4])
    with pytest.raises(EncoderUnavailable, match="overloaded"):
        await workers.map([5, 6, 7])
    model.gate.set()
    assert await first == [2, 4, 6, 8]
    assert await workers.map(list(range(20, 40))) == list(range(40, 80, 2)), "an idle encoder takes any number"


async def test_a_model_that_fails_is_unavailable_and_the_next_call_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    model.gate.set()
    workers = _workers(model)
    with pytest.raises(EncoderUnavailable, match="OSError"):
        await workers.map([12, 13, 14])
    assert "model file gone" in caplog.text
    assert await workers.map([1]) == [2]
    assert await workers.map([]) == []
