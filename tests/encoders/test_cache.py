"""The cache of tool vectors: each text embedded once, kept within bounds and beyond a restart, never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from orqen_ray.encoders.cache import VectorCache
from orqen_ray.encoders.protocol import EncoderUnavailable
from orqen_ray.store.database import Database
from orqen_ray.store.tool_vectors import ToolVectors
from tests.encoders.scripted import ScriptedEmbedder

TOOLS = [f"tool {'x' * number}" for number in range(100)]


class BrokenStore:
    async def get_many(self, encoder: str, digests: Sequence[str]) -> Mapping[str, bytes]:
        raise ConnectionError("no database")

    async def put_many(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        raise ConnectionError("no database")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ToolVectors]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/orqen.db")
    await database.migrate()
    yield ToolVectors(database)
    await database.aclose()


async def test_vectors_are_in_order_and_a_text_is_embedded_once() -> None:
    embedder = ScriptedEmbedder()
    cache = VectorCache(embedder)
    texts = [TOOLS[3], TOOLS[1], TOOLS[3]]
    assert (await cache.vectors(texts))[:, 0].tolist() == [len(text) for text in texts]
    assert (await cache.vectors([TOOLS[1], TOOLS[2]]))[:, 0].tolist() == [len(TOOLS[1]), len(TOOLS[2])]
    assert embedder.asked == [[TOOLS[3], TOOLS[1]], [TOOLS[2]]]
    assert (await cache.vectors([])).shape == (0, 4)
    assert (await cache.query(["ab"])).shape == (1, 4)


async def test_all_who_wait_share_one_embedding_and_one_who_leaves_ends_it_for_nobody() -> None:
    embedder = ScriptedEmbedder()
    embedder.gate.clear()
    cache = VectorCache(embedder)
    waiting = [asyncio.create_task(cache.vectors(TOOLS[:5])) for _ in range(10)]
    await asyncio.sleep(0.001)
    waiting[0].cancel()
    embedder.gate.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(each, np.ndarray) and each.shape == (5, 4) for each in answers[1:])
    assert len(embedder.asked) == 1


async def test_late_vectors_are_there_for_the_next_request() -> None:
    embedder = ScriptedEmbedder()
    embedder.gate.clear()
    cache = VectorCache(embedder)
    with pytest.raises(EncoderUnavailable, match="late"):
        await cache.vectors(TOOLS, timeout_s=0.001)
    embedder.gate.set()
    assert (await cache.vectors(TOOLS, timeout_s=5)).shape == (100, 4)
    assert sum(map(len, embedder.asked)) == 100


async def test_what_waits_and_what_is_kept_is_bounded() -> None:
    embedder = ScriptedEmbedder()
    cache = VectorCache(embedder, max_entries=10, max_pending=100)
    assert (await cache.vectors(TOOLS)).shape == (100, 4), "a set larger than the cache is answered whole"
    assert len(cache) == 10
    await cache.vectors(TOOLS[90:])
    assert sum(map(len, embedder.asked)) == 100, "those used last are kept"
    embedder.gate.clear()
    with pytest.raises(EncoderUnavailable, match="late"):
        await cache.vectors([f"other {text}" for text in TOOLS], timeout_s=0.001)
    with pytest.raises(EncoderUnavailable, match="overloaded"):
        await cache.vectors(["one more"])
    await cache.aclose()


async def test_an_embedder_that_fails_is_told_to_those_who_wait_and_asked_again_later() -> None:
    embedder = ScriptedEmbedder()
    embedder.failing = True
    cache = VectorCache(embedder)
    with pytest.raises(EncoderUnavailable, match="gone"):
        await cache.vectors(TOOLS)
    embedder.failing = False
    assert (await cache.vectors(TOOLS)).shape == (100, 4)


async def test_a_restart_and_a_second_replica_find_the_vectors(store: ToolVectors) -> None:
    first = ScriptedEmbedder()
    cache = VectorCache(first, store)
    made = await cache.vectors(TOOLS)
    await cache.aclose()
    second = ScriptedEmbedder()
    assert np.array_equal(await VectorCache(second, store).vectors(TOOLS), made)
    assert second.asked == []
    other = ScriptedEmbedder("another model")
    await VectorCache(other, store).vectors(TOOLS)
    assert sum(map(len, other.asked)) == 100, "vectors of two models are never mixed"


async def test_a_store_that_is_away_changes_nothing() -> None:
    cache = VectorCache(ScriptedEmbedder(), BrokenStore())
    assert (await cache.vectors(TOOLS)).shape == (100, 4)
    await cache.aclose()
