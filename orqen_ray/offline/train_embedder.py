"""Fine-tunes a small sentence encoder to place a conversation near the tools that its next call needs.

    python -m orqen_ray.offline.train_embedder MODEL DATA FOLDER [--leave-out metatool,toolalpaca]

A bi-encoder with in-batch negatives (multiple negatives ranking: Henderson et al. 2017, "Efficient Natural Language
Response Suggestion for Smart Reply"): each row's tool shall be nearer to it than the tools of the batch's other rows,
but for those that the row needed too. One epoch is enough: more forgets what the base model knows of other tools.
The same seed, rows, thread count and libraries give the same weights.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from orqen_ray.offline.encoder_data import Row, rows

logger = logging.getLogger(__name__)

CHUNK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        batch: rows of a step; also how many tools a row is told apart from.
        learning_rate: the highest; it rises over the first tenth of the steps and falls to zero.
        max_tokens: of a text; the rest is cut off.
        scale: what cosines are multiplied by before the softmax (1 / temperature).
        weight_decay: of AdamW.
        seed: of dropout; `rows` has its own.
        bfloat16: products in bfloat16, weights in float32: several times faster on CPUs that have it.
    """

    batch: int = 48
    learning_rate: float = 4e-5
    max_tokens: int = 128
    scale: float = 20.0
    weight_decay: float = 0.01
    seed: int = 0
    bfloat16: bool = True


class BiEncoder:
    """A transformer with mean pooling and L2 normalization, and its tokenizer."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self.transformer: Any = AutoModel.from_pretrained(model, local_files_only=True)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors of length 1, shape (texts, dimensions). Texts of like length run together: little is padding."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = torch.cat(
            [
                self._run([texts[index] for index in order[start : start + CHUNK]])
                for start in range(0, len(order), CHUNK)
            ]
        )
        return vectors[torch.argsort(torch.tensor(order))]

    def _run(self, texts: list[str]) -> torch.Tensor:
        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )  # fmt: skip
        states = self.transformer(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def allowed(batch: Sequence[Row]) -> torch.Tensor:
    """Which tools may count as a row's wrong answers, and its own: shape (rows, rows), true on the diagonal."""
    right = torch.tensor([[other.cluster in row.right for other in batch] for row in batch])
    return ~right | torch.eye(len(batch), dtype=torch.bool)


def ranking_loss(queries: torch.Tensor, tools: torch.Tensor, may: torch.Tensor, scale: float) -> torch.Tensor:
    """Mean cross-entropy of each row's own tool among the allowed tools of the batch.

    Args:
        queries: unit vectors, shape (rows, dimensions).
        tools: unit vectors of the rows' tools, the same shape.
        may: see `allowed`.
        scale: of the cosines.
    """
    scores = (queries @ tools.T * scale).masked_fill(~may, float("-inf"))
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(queries)))


def descend(
    transformer: torch.nn.Module, count: int, recipe: Recipe, loss_of: Callable[[slice], torch.Tensor]
) -> list[float]:
    """One epoch over `count` examples, whole batches only.

    Args:
        loss_of: the loss of the examples in a slice.

    Returns:
        The loss of each step.
    """
    steps = count // recipe.batch
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmed(step, steps))
    losses: list[float] = []
    started = time.monotonic()
    for step in range(steps):
        loss = loss_of(slice(step * recipe.batch, (step + 1) * recipe.batch))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 10 == 9:
            mean = sum(losses[-10:]) / 10
            logger.info("step %d of %d, loss %.3f, %.0f s", step + 1, steps, mean, time.monotonic() - started)
    return losses


def train(model: str, examples: Sequence[Row], folder: Path, recipe: Recipe) -> list[float]:
    """One epoch over the examples in their order; writes the model and its tokenizer to `folder`.

    Returns:
        The loss of each step.
    """
    torch.manual_seed(recipe.seed)
    encoder = BiEncoder(model, recipe.max_tokens)
    encoder.transformer.train()

    def loss_of(part: slice) -> torch.Tensor:
        batch = examples[part]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
            vectors = encoder([row.query for row in batch] + [row.tool for row in batch]).float()
        return ranking_loss(vectors[: len(batch)], vectors[len(batch) :], allowed(batch), recipe.scale)

    losses = descend(encoder.transformer, len(examples), recipe, loss_of)
    folder.mkdir(parents=True, exist_ok=True)
    encoder.transformer.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return losses


def warmed(step: int, steps: int) -> float:
    """The share of the learning rate at a step: up over the first tenth, then down to zero."""
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's folder, or its name among the models already downloaded")
    parser.add_argument("data", type=Path, help="a folder of tool-selection sets")
    parser.add_argument("folder", type=Path, help="where to write the trained model")
    parser.add_argument("--leave-out", default="", help="sets not to train on, with commas between")
    parser.add_argument("--pairs", type=int, default=7000, help="at most so many rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    left_out = [name for name in arguments.leave_out.split(",") if name]
    examples = rows(arguments.data, left_out, limit=arguments.pairs, seed=arguments.seed)
    train(arguments.model, examples, arguments.folder, Recipe(seed=arguments.seed))


if __name__ == "__main__":
    main()
