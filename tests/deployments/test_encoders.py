"""The encoders' pool and its client: the same vectors as in process, and never an error but `EncoderUnavailable`."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from ray import serve

from deployments.encoders import EmbedderPool, Encoded, Model, RemoteEmbedder
from orqen_ray.config import Settings
from orqen_ray.encoders.opening import open_embedder
from orqen_ray.encoders.protocol import EncoderUnavailable

MODEL = Model("tiny", 2)
ONES = np.ones((1, 2), np.float32)


class Response:
    """What a handle returns: a value, an error to raise, or None for a wait without end."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        if self._value is None:
            yield from asyncio.Event().wait().__await__()
        if isinstance(self._value, ConnectionError):
            raise self._value
        return pickle.loads(pickle.dumps(self._value))

    def cancel(self) -> None:
        self.cancelled = True


class Pool:
    """A handle whose calls of `encode` are answered with `answers`, one after the other."""

    def __init__(self, *answers: Any, model: Model | ConnectionError = MODEL) -> None:
        self.responses = [Response(answer) for answer in answers]
        self._next = iter(self.responses)
        self.model = model

    def options(self, *, method_name: str, **_: Any) -> Any:
        return self if method_name == "encode" else Models(self)

    def remote(self, texts: list[str]) -> Response:
        return next(self._next)


class Models:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def remote(self) -> Response:
        return Response(self._pool.model)


def _embedder(pool: Pool, timeout_s: float = 5) -> RemoteEmbedder:
    handle: Any = pool
    return RemoteEmbedder(handle, timeout_s)


async def test_the_pool_gives_the_vectors_that_the_process_itself_would_make() -> None:
    settings = Settings()
    deployment: Any = serve.deployment(EmbedderPool)
    pool = serve.run(deployment.bind(settings), _local_testing_mode=True)
    remote = RemoteEmbedder(pool)
    with pytest.raises(EncoderUnavailable):
        _ = remote.name
    await remote.opened()
    local = open_embedder(settings.encoders)
    await local.opened()
    texts = ["get weather: forecast of a city", "", "日本 😀"]
    assert np.array_equal(await remote.embed(texts), await local.embed(texts))
    assert (remote.name, remote.dimensions) == (local.name, local.dimensions)


async def test_a_pool_that_is_late_is_left_and_its_work_is_cancelled() -> None:
    pool = Pool(None)
    with pytest.raises(EncoderUnavailable, match="within 0.01 s"):
        await _embedder(pool, 0.01).embed(["a"])
    assert pool.responses[0].cancelled


async def test_a_caller_who_leaves_cancels_the_work() -> None:
    pool = Pool(None)
    embedding = asyncio.create_task(_embedder(pool).embed(["a"]))
    await asyncio.wait([embedding], timeout=0.01)
    embedding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await embedding
    assert pool.responses[0].cancelled


async def test_a_pool_that_is_lost_or_full_is_unavailable_and_shows_nothing_of_itself() -> None:
    lost = ConnectionError("actor 7 at 10.0.0.3 died")
    embedder = _embedder(Pool(lost, EncoderUnavailable("overloaded"), model=lost))
    with pytest.raises(EncoderUnavailable) as raised:
        await embedder.embed(["a"])
    assert "10.0.0.3" not in str(raised.value)
    with pytest.raises(EncoderUnavailable, match="overloaded"):
        await embedder.embed(["a"])
    await embedder.opened()
    with pytest.raises(EncoderUnavailable):
        _ = embedder.name


async def test_vectors_of_two_models_are_not_mixed_while_the_pool_changes() -> None:
    other = Model("other", 2)
    embedder = _embedder(Pool(Encoded(MODEL, ONES), Encoded(other, ONES), Encoded(other, ONES)))
    await embedder.embed(["a"])
    assert embedder.name == "tiny"
    with pytest.raises(EncoderUnavailable, match="changed"):
        await embedder.embed(["a"])
    assert np.array_equal(await embedder.embed(["a"]), ONES) and embedder.name == "other"
