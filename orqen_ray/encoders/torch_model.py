"""Any sentence-transformers model, in half precision on a GPU. Imported only when such a model is asked for.

The kernels that torch takes depend on the shape of what they compute, and so do the last bits of what comes out. A text
is therefore always run in the same shape: on a GPU in a full batch of its length class, on a CPU by itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer

from orqen_ray.encoders.protocol import Scores, Vectors
from orqen_ray.encoders.workers import MAX_QUEUED_TOKENS, Workers, estimated_tokens, readable

MAX_TOKENS = 256
MAX_BATCH_TOKENS = 8192
_LENGTHS = (16, 32, 64, 128)
_MAX_CHARS = MAX_TOKENS * 16
_GPU_QUEUE = 16
"""Times as much may wait for a GPU."""

Features = dict[str, torch.Tensor]


class TorchEmbedder:
    """An `Embedder`.

    Args:
        model: name or folder, as sentence-transformers takes it.
        device: `cpu` or `cuda`.
        threads: texts at a time on a CPU; a GPU takes one batch after the other.
    """

    def __init__(self, model: str, *, device: str = "cpu", threads: int = 1) -> None:
        self._model = SentenceTransformer(model, device=device)
        self._runner = _Runner(self._model, self._model.tokenizer, self._vectors, device)
        self.name = self._runner.name(model)
        self.dimensions = int(self._runner.run(["a"])[0].shape[0])
        self._workers: Workers[str, NDArray[np.float32]] = self._runner.workers(threads, len)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`."""
        rows = await self._workers.map(texts)
        return np.stack(rows) if rows else np.zeros((0, self.dimensions), np.float32)

    def _vectors(self, features: Features) -> torch.Tensor:
        return torch.nn.functional.normalize(self._model(features)["sentence_embedding"].float(), dim=1)


class TorchReranker:
    """A `Reranker` with one label; its logit becomes a score through a sigmoid. Arguments as of `TorchEmbedder`."""

    def __init__(self, model: str, *, device: str = "cpu", threads: int = 1) -> None:
        self._model = CrossEncoder(model, device=device)
        self._runner = _Runner(self._model, self._model.tokenizer, self._scores, device)
        self.name = self._runner.name(model)
        self._workers: Workers[tuple[str, str], NDArray[np.float32]] = self._runner.workers(
            threads, lambda pair: len(pair[0]) + len(pair[1])
        )

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """See `Reranker.score`."""
        return np.array(await self._workers.map(pairs), np.float32)

    def _scores(self, features: Features) -> torch.Tensor:
        return torch.sigmoid(self._model.model(**features).logits[:, 0].float())


class _Runner:
    """Runs a model over texts, or pairs of texts, each in the one shape that its length gives it."""

    def __init__(self, model: Any, tokenizer: Any, forward: Any, device: str) -> None:
        self._on_gpu = device != "cpu"
        if self._on_gpu:
            model = model.bfloat16() if torch.cuda.is_bf16_supported() else model.half()
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._tokenizing = (
            threading.Lock()
        )  # lengths are set on the tokenizer itself, which refuses a second thread then
        self._forward = forward
        self._device = device

    def name(self, model: str) -> str:
        """With a digest of samples of the weights: a model's name may be given to others later."""
        digest = hashlib.sha256()
        for tensor in self._model.state_dict().values():
            digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
        precision = str(next(self._model.parameters()).dtype).removeprefix("torch.")
        return f"{Path(model).name}-{digest.hexdigest()[:8]}-{precision}-{MAX_TOKENS}"

    def workers(self, threads: int, chars: Any) -> Workers[Any, Any]:
        return Workers(
            self.run,
            lambda item: estimated_tokens(chars(item), MAX_TOKENS),
            threads=1 if self._on_gpu else threads,
            max_batch_tokens=MAX_BATCH_TOKENS if self._on_gpu else 0,
            max_queued_tokens=MAX_QUEUED_TOKENS * (_GPU_QUEUE if self._on_gpu else 1),
        )

    @torch.inference_mode()
    def run(self, items: Sequence[str | tuple[str, str]]) -> list[Any]:
        """One row, or number, for each text or pair, in order."""
        classes: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            classes[self._length(item)].append(index)
        results: list[Any] = [None] * len(items)
        for length, members in classes.items():
            size = max(1, MAX_BATCH_TOKENS // length) if self._on_gpu else 1
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                filled = batch + batch[:1] * (size - len(batch))
                features = self._features([items[index] for index in filled], length)
                output = self._forward(features).cpu().numpy()
                for index, row in zip(batch, output[: len(batch)], strict=True):
                    results[index] = row
        return results

    def _length(self, item: str | tuple[str, str]) -> int:
        tokens = self._features([item], None)["input_ids"].shape[1]
        if not self._on_gpu:
            return int(tokens)
        return next((length for length in _LENGTHS if tokens <= length), MAX_TOKENS)

    def _features(self, items: Sequence[str | tuple[str, str]], length: int | None) -> Features:
        pairs = [(item, None) if isinstance(item, str) else item for item in items]
        firsts = [readable(first, _MAX_CHARS) for first, _ in pairs]
        seconds = [readable(second, _MAX_CHARS) for _, second in pairs if second is not None]
        with self._tokenizing:
            encoded = self._tokenizer(
                firsts,
                seconds or None,
                padding="max_length" if length else False,
                truncation=True,
                max_length=length or MAX_TOKENS,
                return_tensors="pt",
            )
        return {name: tensor.to(self._device) for name, tensor in encoded.items()}
