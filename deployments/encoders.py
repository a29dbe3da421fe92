"""The encoders as deployments of their own, and as the ingress sees them: never its failure, and never for long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from orqen_ray.config import Settings
from orqen_ray.encoders.opening import open_embedder, open_reranker
from orqen_ray.encoders.protocol import EncoderUnavailable, Scores, Vectors
from orqen_ray.logs import configure_logs

REPLICA_THREADS = 2
"""Texts at a time in a replica, where the settings do not say."""
CALL_TIMEOUT_S = 5.0
"""For a call whose caller knows no deadline: one that has one cancels it."""
START_WITHIN_S = 10.0

BY_VALUE: dict[str, Any] = {
    "_by_reference": False,
    "request_serialization": "pickle",
    "response_serialization": "pickle",
}

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Model:
    """Which model a replica holds: see `Embedder`. A reranker has 0 dimensions."""

    name: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a replica made, and of which model: replicas may differ while the pool is being changed."""

    model: Model
    values: Vectors | Scores


class EmbedderPool:
    """One replica. Calls are not gathered by Serve: the encoder's own threads take them in turns, in batches that leave
    a text's vector alone, and drop what a cancelled call still waits for.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        configure_logs(**settings.logs.model_dump())
        self._embedder = open_embedder(settings.encoders, REPLICA_THREADS)
        await self._embedder.opened()
        self._model = Model(self._embedder.name, self._embedder.dimensions)

    async def model(self) -> Model:
        return self._model

    async def encode(self, texts: list[str]) -> Encoded | EncoderUnavailable:
        """Vectors. An overloaded encoder is no error of the replica, so it is answered, not raised."""
        try:
            return Encoded(self._model, await self._embedder.embed(texts))
        except EncoderUnavailable as error:
            return error

    async def check_health(self) -> None:
        """A replica answers, or Serve replaces it; one that is full is well."""


class RerankerPool:
    """One replica; see `EmbedderPool`."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        configure_logs(**settings.logs.model_dump())
        reranker = open_reranker(settings.encoders, REPLICA_THREADS)
        if reranker is None:
            raise ValueError("encoders.reranker names no model")
        self._reranker = reranker
        await self._reranker.opened()
        self._model = Model(self._reranker.name, 0)

    async def model(self) -> Model:
        return self._model

    async def encode(self, pairs: list[tuple[str, str]]) -> Encoded | EncoderUnavailable:
        """Scores; see `EmbedderPool.encode`."""
        try:
            return Encoded(self._model, await self._reranker.score(pairs))
        except EncoderUnavailable as error:
            return error

    async def check_health(self) -> None:
        """See `EmbedderPool.check_health`."""


class _RemoteEncoder:
    def __init__(self, pool: DeploymentHandle[Any], timeout_s: float = CALL_TIMEOUT_S) -> None:
        # Each attribute access builds a handle, hence once, here.
        self._encode = pool.options(method_name="encode", **BY_VALUE)
        self._ask = pool.options(method_name="model", **BY_VALUE)
        self._timeout_s = timeout_s
        self._known: Model | None = None
        self._asking: asyncio.Task[None] | None = None

    async def opened(self) -> None:
        """Until the pool has said which model it holds, or `START_WITHIN_S` are over."""
        self._begin_asking()
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=START_WITHIN_S)

    @property
    def name(self) -> str:
        """See `Embedder.name`: that of the model which answered last."""
        return self._model().name

    def _model(self) -> Model:
        if self._known is None:
            self._begin_asking()
            raise EncoderUnavailable("the pool has not answered yet")
        return self._known

    async def _encoded(self, items: Sequence[Any]) -> Any:
        answer: Encoded | EncoderUnavailable = await _bounded(self._encode.remote(list(items)), self._timeout_s)
        if isinstance(answer, EncoderUnavailable):
            raise answer
        if self._known is not None and self._known != answer.model:
            self._known = answer.model
            raise EncoderUnavailable("the pool's model has changed")
        self._known = answer.model
        return answer.values

    def _begin_asking(self) -> None:
        if self._known is None and (self._asking is None or self._asking.done()):
            # In no request's context: Serve would cancel the question with the request that happened to ask it.
            self._asking = asyncio.create_task(self._learn(), context=Context())

    async def _learn(self) -> None:
        try:
            self._known = await _bounded(self._ask.remote(), START_WITHIN_S)
        except EncoderUnavailable:
            pass  # asked again with the next request


class RemoteEmbedder(_RemoteEncoder):
    """An `Embedder` behind a handle. Whatever goes wrong is `EncoderUnavailable`; a cancelled call ends there, too."""

    @property
    def dimensions(self) -> int:
        """See `Embedder.dimensions`."""
        return self._model().dimensions

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`."""
        vectors: Vectors = await self._encoded(texts)
        return vectors


class RemoteReranker(_RemoteEncoder):
    """A `Reranker` behind a handle; see `RemoteEmbedder`."""

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """See `Reranker.score`."""
        scores: Scores = await self._encoded(pairs)
        return scores


async def _bounded(response: Any, timeout_s: float) -> Any:
    try:
        async with asyncio.timeout(timeout_s):
            return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except TimeoutError as error:
        response.cancel()
        raise EncoderUnavailable(f"the pool did not answer within {timeout_s:g} s") from error
    except Exception as error:  # whatever Ray raises: a dead replica, no replica, a full queue
        raise EncoderUnavailable(f"the pool is not available: {type(error).__name__}") from error
