"""A sentence-transformers model as one quantized ONNX file: what the gateway runs without torch.

    python -m orqen_ray.offline.export_onnx MODEL FOLDER [--kind embedder|reranker]

The graph takes `input_ids`, `attention_mask` (and `token_type_ids` where the model has them), int64: (texts, tokens).
An embedder's output `vectors` has shape (texts, dimensions): means over the tokens that are not padding, of length 1.
A reranker's output `scores` has shape (pairs,), each between 0 and 1.

Weights are quantized to int8 by channel, with 7 bits (`reduce_range`): CPUs without VNNI add pairs of products in
16 bits, which 8 bits overflow. Activations are quantized at run time by one scale for the whole batch, so a text's
vector depends a little on its batch: run one text at a time where that matters.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

MAX_MODEL_BYTES = 25_000_000
OPSET = 17
SAMPLES = (
    "Book a table for two in Rome tonight.",
    "get weather: Current weather and forecast of a place; city, days, unit",
    "What is 17 % of 2,450?",
    "search flights: Flights between two airports on a date; origin, destination, date, cabin, passengers",
    "Can you cancel it and tell my sister? Then look for a cheaper one next week, in the same hotel if there is room.",
)


class Vectors(torch.nn.Module):
    """A transformer with mean pooling and L2 normalization."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Vectors of length 1, shape (texts, dimensions)."""
        states = self.transformer(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(means, dim=1)


class Probabilities(torch.nn.Module):
    """A cross-encoder with one label, its logit through a sigmoid."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Scores between 0 and 1, shape (pairs,)."""
        return torch.sigmoid(self.transformer(**inputs).logits[:, 0])


class _Positional(torch.nn.Module):
    """A module of named inputs, called with them in order: what the exporter traces."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The module's one output."""
        output: torch.Tensor = self.module(**dict(zip(self.names, tensors, strict=True)))
        return output


def export(model: str, folder: Path, kind: str = "embedder") -> dict[str, float]:
    """Writes `model.onnx` and `tokenizer.json` (without truncation and padding: the caller bounds lengths).

    Args:
        model: a model's folder, or its name among the models already downloaded.
        folder: where to write; made if it is not there.
        kind: `embedder` or `reranker`.

    Returns:
        `megabytes`, `cosine` (worst of the samples, quantized against float; for a reranker 1 - worst difference) and
        `milliseconds` (a sample's median on one thread).

    Raises:
        ValueError: the quantized model has more than 25 MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module, names, tokenizer = _opened(model, kind)
    inputs = [_tensors(tokenizer, sample, names) for sample in SAMPLES]
    with tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / "exact.onnx"
        _write_exact(module, names, inputs[1], exact, output="vectors" if kind == "embedder" else "scores")
        quantize_dynamic(exact, folder / "model.onnx", weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    size = (folder / "model.onnx").stat().st_size
    if size > MAX_MODEL_BYTES:
        raise ValueError(f"the quantized model has {size} bytes, more than {MAX_MODEL_BYTES}")
    return {"megabytes": size / 1e6, **_compared(module, inputs, names, folder / "model.onnx")}


def _opened(model: str, kind: str) -> tuple[torch.nn.Module, list[str], Tokenizer]:
    auto = AutoModel if kind == "embedder" else AutoModelForSequenceClassification
    transformer = auto.from_pretrained(model, local_files_only=True, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    names: list[str] = [
        name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names
    ]
    wrapped = Vectors(transformer) if kind == "embedder" else Probabilities(transformer)
    return wrapped.eval(), names, tokenizer.backend_tokenizer


def _tensors(tokenizer: Tokenizer, text: str, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    tokenizer.no_padding()
    encoding = tokenizer.encode(text)
    columns = {
        "input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids
    }  # fmt: skip
    return tuple(torch.tensor([columns[name]]) for name in names)


def _write_exact(
    module: torch.nn.Module, names: Sequence[str], sample: tuple[torch.Tensor, ...], path: Path, output: str
) -> None:
    axes = {name: {0: "texts", 1: "tokens"} for name in names} | {output: {0: "texts"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated, but needs no package more
        torch.onnx.export(
            _Positional(module, names).eval(), sample, str(path), input_names=list(names), output_names=[output],
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def _compared(
    module: torch.nn.Module, inputs: Sequence[tuple[torch.Tensor, ...]], names: Sequence[str], path: Path
) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    likeness, seconds = [], []
    for tensors in inputs:
        with torch.no_grad():
            exact: NDArray[np.float32] = module(**dict(zip(names, tensors, strict=True))).numpy()[0]
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        started = time.perf_counter()
        (quantized,) = session.run(None, feed)
        seconds.append(time.perf_counter() - started)
        likeness.append(float(exact @ quantized[0]) if exact.ndim else 1 - abs(float(exact - quantized[0])))
    return {"cosine": min(likeness), "milliseconds": 1000 * float(np.median(seconds))}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["embedder", "reranker"], default="embedder")
    arguments = parser.parse_args()
    for name, value in export(arguments.model, arguments.folder, arguments.kind).items():
        print(f"{name} {value:.4f}")  # noqa: T201


if __name__ == "__main__":
    main()
