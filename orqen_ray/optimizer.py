"""Joins the parts that optimize: encoders, scorer, what is learned, pins, and the planner over them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from orqen_ray.config import Settings
from orqen_ray.encoders.cache import VectorCache
from orqen_ray.encoders.protocol import Embedder, Reranker
from orqen_ray.metrics import Metrics
from orqen_ray.planning.planner import Limits, Planner
from orqen_ray.planning.routing import Router
from orqen_ray.planning.switches import Switches
from orqen_ray.policy import Snapshots, default_snapshot
from orqen_ray.store.database import Database
from orqen_ray.store.pins import SharedPins, open_pins
from orqen_ray.store.tool_use import ToolUses
from orqen_ray.store.tool_vectors import ToolVectors
from orqen_ray.tokens import load_vocabulary
from orqen_ray.tools.scoring import Scorer
from orqen_ray.tools.use import UseLearner

_LAST_REFRESH_S = 3.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Optimizer:
    """What one process needs to plan requests. `planning` is the gateway's."""

    planning: tuple[Planner, Switches]
    _snapshots: Snapshots
    _pins: SharedPins
    _vectors: VectorCache | None
    _refresh: asyncio.Task[None]

    async def aclose(self) -> None:
        """Store what was pinned and learned."""
        self._refresh.cancel()
        await asyncio.wait({self._refresh})
        try:
            async with asyncio.timeout(_LAST_REFRESH_S):
                await self._snapshots.refresh()
        except TimeoutError:
            _log.warning("what was learned of the use of tools last is not stored: the database does not answer")
        await self._pins.aclose()
        if self._vectors is not None:
            await self._vectors.aclose()


async def open_optimizer(
    settings: Settings, database: Database, metrics: Metrics, embedder: Embedder | None, reranker: Reranker | None
) -> Optimizer:
    """Open it over the store, with what all processes have learned so far."""
    learner = UseLearner()
    snapshots = Snapshots(default_snapshot(), ToolUses(database), learner)
    await snapshots.refresh()
    await asyncio.to_thread(load_vocabulary)
    optimization = settings.optimization
    pins = open_pins(database, settings.storage.redis_url, optimization.pin_ttl_s, metrics)
    vectors = None if embedder is None else VectorCache(embedder, ToolVectors(database))
    planner = Planner(
        Router(Scorer(vectors, reranker)),
        snapshots,
        pins,
        metrics,
        learner=learner,
        holdout_ratio=optimization.holdout_ratio,
        limits=Limits(
            warm_s=optimization.budget_ms / 1000,
            cold_s=max(optimization.budget_ms, settings.encoders.timeout_ms) / 1000,
        ),
    )
    switches = Switches(
        tools=optimization.tools,
        schemas=optimization.schemas,
        context=optimization.context,
        restore=optimization.restore,
    )
    refresh = asyncio.create_task(snapshots.keep_fresh())
    return Optimizer(planning=(planner, switches), _snapshots=snapshots, _pins=pins, _vectors=vectors, _refresh=refresh)
