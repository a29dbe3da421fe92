"""Both encoders learn, repeat themselves for a seed, and mean the same once they are exported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from orqen_ray.encoders.onnx import OnnxEmbedder, OnnxReranker
from orqen_ray.offline import train_reranker
from orqen_ray.offline.encoder_data import Row
from orqen_ray.offline.export_onnx import export
from orqen_ray.offline.train_embedder import BiEncoder, Recipe, allowed, ranking_loss, train
from tests.offline.small import TOPICS, write_model

RECIPE = Recipe(batch=8, learning_rate=5e-3, max_tokens=64)
EXAMPLES = [
    Row(source="own", query=f"some {topic} please", tool=f"{topic}: finds {topic}", cluster=i, right=frozenset({i}))
    for _ in range(8)
    for i, topic in enumerate(TOPICS)
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models as small as these only lose by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _row(cluster: int, *right: int) -> Row:
    return Row(source="own", query="q", tool=f"t{cluster}", cluster=cluster, right=frozenset({cluster, *right}))


def test_a_tool_that_a_row_also_needed_is_not_its_wrong_answer() -> None:
    may = allowed([_row(1, 2), _row(2, 1), _row(3), _row(1)])
    assert may.tolist() == [
        [True, False, True, False],
        [False, True, True, False],
        [True, True, True, True],
        [False, True, True, True],
    ]


def test_what_is_not_allowed_costs_nothing() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tools = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    alone = ranking_loss(queries, tools, torch.eye(2, dtype=torch.bool), scale=20.0)
    assert alone.item() == pytest.approx(0.0)
    assert ranking_loss(queries, tools, torch.ones(2, 2, dtype=torch.bool), scale=20.0).item() > 0.5


def test_training_brings_requests_to_their_tools_and_repeats_itself(tmp_path: Path) -> None:
    model = write_model(tmp_path / "base")
    losses = train(model, EXAMPLES, tmp_path / "once", RECIPE)
    assert losses[-1] < losses[0] / 2
    assert train(model, EXAMPLES, tmp_path / "again", RECIPE) == losses
    encoder = BiEncoder(str(tmp_path / "once"), 64)
    encoder.transformer.eval()
    with torch.no_grad():
        near = encoder([row.query for row in EXAMPLES[:8]]) @ encoder([row.tool for row in EXAMPLES[:8]]).T
    assert near.argmax(1).tolist() == list(range(8))


def test_an_exported_embedder_gives_the_vectors_of_its_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "base")
    figures = export(model, tmp_path / "onnx")
    assert figures["cosine"] > 0.99
    texts = ["weather", "Tell me, number 7: I want some music please. " * 3]
    encoder = BiEncoder(model, 256)
    encoder.transformer.eval()
    with torch.no_grad():
        exact = encoder(texts).numpy()
    quantized = asyncio.run(OnnxEmbedder(tmp_path / "onnx").embed(texts))
    assert np.allclose(np.linalg.norm(quantized, axis=1), 1, atol=1e-5)
    assert (quantized * exact).sum(axis=1).min() > 0.99


def test_a_reranker_learns_from_near_tools_and_is_exported_as_probabilities(tmp_path: Path) -> None:
    export(write_model(tmp_path / "embedder"), tmp_path / "onnx")
    negatives = asyncio.run(
        train_reranker.hard_negatives(OnnxEmbedder(tmp_path / "onnx"), EXAMPLES, EXAMPLES, 3, seed=1)
    )
    for row, tools in zip(EXAMPLES, negatives, strict=True):
        assert len(tools) == len({*tools}) == 3 and row.tool not in tools
    base = write_model(tmp_path / "base", labels=1)
    losses = train_reranker.train(base, EXAMPLES, negatives, tmp_path / "trained", RECIPE)
    assert losses[-1] < losses[0]
    export(str(tmp_path / "trained"), tmp_path / "exported", kind="reranker")
    scores = asyncio.run(OnnxReranker(tmp_path / "exported").score([(EXAMPLES[0].query, EXAMPLES[0].tool)]))
    assert scores.shape == (1,) and 0 <= scores[0] <= 1
