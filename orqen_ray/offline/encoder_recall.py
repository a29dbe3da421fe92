"""How many of the needed tools an encoder alone puts among its first, on sets that it has or has not seen.

    python -m orqen_ray.offline.encoder_recall DATA FOLDER... --sets metatool,toolalpaca [--reranker FOLDER]

A tool is as near as the nearest view of the conversation. With a reranker, the tools of the band, those that the
embedder ranks neither first nor last, are put in the order of its scores, or of both together.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orqen_ray.encoders.onnx import OnnxEmbedder, OnnxReranker
from orqen_ray.encoders.protocol import Reranker
from orqen_ray.offline.disk_vectors import DiskVectors
from orqen_ray.offline.tool_data import ToolData, load_tool_data
from orqen_ray.tools.cards import card_of
from orqen_ray.tools.views import views_of

KEPT = (5, 10, 20, 30)
BAND = (3, 40)
MAX_TOKENS = 128
PAIR_TOKENS = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A conversation and its candidates.

    Attributes:
        views: its texts that tools are compared with, the last request first.
        tools: the candidates' texts.
        needed: places of the needed tools among them.
    """

    views: tuple[str, ...]
    tools: tuple[str, ...]
    needed: frozenset[int]


def questions(data: ToolData, name: str, candidates: int = 100, limit: int = 300) -> list[Question]:
    """At most `limit` conversations of a set that need a tool, always the same ones."""
    queries = [query for query in data.queries[name] if query.gold]
    found = []
    for query in random.Random(0).sample(queries, min(limit, len(queries))):
        names = data.candidates(name, query, candidates)
        views = views_of(data.conversation(query, ()))
        found.append(
            Question(
                views=tuple(filter(None, (views.last, views.recent, *views.clauses))),
                tools=tuple(card_of(data.tool(each)).text for each in names),
                needed=frozenset(map(names.index, query.gold)),
            )
        )
    return found


def recalls(orders: Sequence[NDArray[np.int64]], asked: Sequence[Question]) -> dict[int, float]:
    """Mean share of the needed tools among the first k, for each k of `KEPT`."""
    pairs = [(order.tolist(), question.needed) for order, question in zip(orders, asked, strict=True)]
    return {k: float(np.mean([len(need & {*order[:k]}) / len(need) for order, need in pairs])) for k in KEPT}


async def nearness(vectors: DiskVectors, question: Question) -> NDArray[np.float32]:
    """Cosine of each candidate with the nearest view."""
    views, tools = await vectors.query(question.views), await vectors.vectors(question.tools)
    near: NDArray[np.float32] = (tools @ views.T).max(axis=1)
    return near


async def reranked(reranker: Reranker, question: Question, near: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
    """Orders of the candidates: of the embedder, of the reranker within the band, and of the sum of both places."""
    dense = np.argsort(-near, kind="stable")
    first, last = BAND
    band = dense[first:last]
    scores = await reranker.score([(question.views[0], question.tools[index]) for index in band])
    places = np.argsort(np.argsort(-scores, kind="stable"))
    both = np.argsort(places + np.arange(len(band)), kind="stable")
    orders = {"dense": np.arange(len(band)), "band": np.argsort(places), "both": both}
    return {kind: np.concatenate([dense[:first], band[order], dense[last:]]) for kind, order in orders.items()}


async def _report(arguments: argparse.Namespace) -> None:
    data = load_tool_data(arguments.data)
    models = {folder: OnnxEmbedder(folder, max_tokens=MAX_TOKENS) for folder in arguments.folders}
    vectors = {folder: DiskVectors(model, arguments.cache) for folder, model in models.items()}
    reranker = OnnxReranker(arguments.reranker, max_tokens=PAIR_TOKENS) if arguments.reranker else None
    for name in arguments.sets.split(","):
        asked = questions(data, name, limit=arguments.limit)
        for folder, known in vectors.items():
            near = [await nearness(known, question) for question in asked]
            orders = [{"dense": np.argsort(-each, kind="stable")} for each in near]
            if reranker is not None:
                orders = [await reranked(reranker, question, each) for question, each in zip(asked, near, strict=True)]
            for kind in orders[0]:
                figures = recalls([order[kind] for order in orders], asked)
                said = " ".join(f"R@{k} {value:.3f}" for k, value in figures.items())
                print(f"{name:16} {folder.name:32} {kind:6} {said}", flush=True)  # noqa: T201
            known.save()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--sets", required=True, help="with commas between")
    parser.add_argument("--limit", type=int, default=300, help="conversations of a set")
    parser.add_argument("--cache", type=Path, help="a folder to keep vectors in")
    parser.add_argument("--reranker", type=Path)
    asyncio.run(_report(parser.parse_args()))


if __name__ == "__main__":
    main()
