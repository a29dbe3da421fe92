"""Sets and models small enough to train on in a test."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertTokenizer

TOPICS = ("weather", "flights", "music", "recipes", "stocks", "poems", "maps", "mail")


def tool(name: str, cluster: int) -> dict[str, Any]:
    return {"name": name, "description": f"Finds {name}.", "parameters": None, "group": "g", "cluster": cluster}


def query(number: int, *gold: str) -> dict[str, Any]:
    text = f"Tell me, number {number}: " + ". ".join(f"I want some {name} please" for name in gold)
    return {"id": str(number), "messages": [{"role": "user", "content": text}], "gold": list(gold)}


def write_set(folder: Path, name: str, queries: Sequence[dict[str, Any]], first_cluster: int = 0) -> None:
    """One set whose tools are named by topic, with a prefix where another set has the same topics."""
    names = [topic if not first_cluster else f"{name} {topic}" for topic in TOPICS]
    write_lines(folder / f"{name}.tools.jsonl.gz", [tool(each, first_cluster + i) for i, each in enumerate(names)])
    write_lines(folder / f"{name}.queries.jsonl.gz", queries)


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)


def write_model(folder: Path, labels: int | None = None) -> str:
    """A BERT of one layer with random weights; with `labels`, a cross-encoder."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,:;0123456789"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    words += [*TOPICS, "finds", "tell", "me", "number", "i", "want", "some", "please"]
    folder.mkdir(parents=True)
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512,
    )  # fmt: skip
    if labels is not None:
        config.num_labels = labels
    made: Any = AutoModel if labels is None else AutoModelForSequenceClassification
    made.from_config(config).save_pretrained(folder)
    return str(folder)
