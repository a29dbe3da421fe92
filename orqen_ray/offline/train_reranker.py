"""Trains a cross-encoder to tell a tool that a conversation's next call needs from those that only look like it.

    python -m orqen_ray.offline.train_reranker MODEL EMBEDDER DATA FOLDER [--leave-out metatool,toolalpaca]

Pointwise, as in Nogueira & Cho 2019 ("Passage Re-ranking with BERT"): each row's tool against tools of its set that the
embedder (an exported folder) finds near the row, so that what the embedder knows already is not learned again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from orqen_ray.encoders.onnx import OnnxEmbedder
from orqen_ray.encoders.protocol import Embedder
from orqen_ray.offline.encoder_data import Row, rows
from orqen_ray.offline.train_embedder import Recipe, descend

logger = logging.getLogger(__name__)

NEAR = (1, 16)
"""Places among the nearest tools that wrong ones are drawn from; the very nearest is often right, but not labelled."""
RERANKER_RECIPE = Recipe(batch=12, learning_rate=5e-5, max_tokens=192)


async def hard_negatives(
    embedder: Embedder, examples: Sequence[Row], pool: Sequence[Row], count: int, seed: int = 0
) -> list[list[str]]:
    """For each row, `count` tools' texts from its set that are near it and not among the right ones.

    Args:
        embedder: whose nearest tools are drawn from.
        examples: the rows.
        pool: rows whose tools are the tools there are; the examples among them.
        count: fewer where the set is small.
        seed: of the draw.
    """
    clusters: dict[str, dict[str, int]] = defaultdict(dict)
    for row in pool:
        clusters[row.source][row.tool] = row.cluster
    draw = random.Random(seed)
    vectors = {source: await embedder.embed(list(tools)) for source, tools in clusters.items()}
    found = []
    for row in examples:
        tools = clusters[row.source]
        texts = list(tools)
        near = vectors[row.source] @ (await embedder.embed([row.query]))[0]
        order = [texts[index] for index in np.argsort(-near, kind="stable")]
        wrong = [text for text in order if tools[text] not in row.right][NEAR[0] : NEAR[1]]
        found.append(draw.sample(wrong, min(count, len(wrong))))
    return found


def train(
    model: str, examples: Sequence[Row], negatives: Sequence[Sequence[str]], folder: Path, recipe: Recipe
) -> list[float]:
    """One epoch; writes the model and its tokenizer to `folder`.

    Returns:
        The loss of each step.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    transformer = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, local_files_only=True)
    transformer.train()

    def loss_of(part: slice) -> torch.Tensor:
        triples = [(row.query, row.tool, 1.0) for row in examples[part]]
        triples += [
            (row.query, tool, 0.0) for row, tools in zip(examples[part], negatives[part], strict=True) for tool in tools
        ]
        inputs = tokenizer(
            [query for query, _, _ in triples],
            [tool for _, tool, _ in triples],
            padding=True,
            truncation=True,
            max_length=recipe.max_tokens,
            return_tensors="pt",
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
            logits = transformer(**inputs).logits[:, 0].float()
        right = torch.tensor([label for _, _, label in triples])
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, right)

    losses = descend(transformer, len(examples), recipe, loss_of)
    folder.mkdir(parents=True, exist_ok=True)
    transformer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return losses


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's folder, or its name among the models already downloaded")
    parser.add_argument("embedder", type=Path, help="an exported embedder, trained without the same sets")
    parser.add_argument("data", type=Path, help="a folder of tool-selection sets")
    parser.add_argument("folder", type=Path, help="where to write the trained model")
    parser.add_argument("--leave-out", default="", help="sets not to train on, with commas between")
    parser.add_argument("--pairs", type=int, default=2400, help="at most so many rows")
    parser.add_argument("--negatives", type=int, default=3, help="of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    left_out = [name for name in arguments.leave_out.split(",") if name]
    everything = rows(arguments.data, left_out, seed=arguments.seed)
    examples = everything[: arguments.pairs]
    negatives = asyncio.run(
        hard_negatives(OnnxEmbedder(arguments.embedder), examples, everything, arguments.negatives, arguments.seed)
    )
    train(arguments.model, examples, negatives, arguments.folder, RERANKER_RECIPE)


if __name__ == "__main__":
    main()
