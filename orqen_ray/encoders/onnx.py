"""Encoders as quantized ONNX files, run by onnxruntime on the CPU; `offline/export_onnx.py` makes them.

A folder holds `model.onnx` and `tokenizer.json`. Activations are quantized by one scale for a whole run, so texts that
ran together would change each other's vectors: each text runs by itself, which on a CPU costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from orqen_ray.encoders.protocol import Scores, Vectors
from orqen_ray.encoders.workers import MAX_QUEUED_TOKENS, Workers, estimated_tokens, readable

DEFAULT_FOLDER = Path(__file__).with_name("models") / "default"
MAX_TOKENS = 256
_MAX_CHARS_PER_TOKEN = 16
"""Of longer texts the rest is not even tokenized."""


class OnnxEmbedder:
    """An `Embedder`. Makes a session, so it belongs in a thread when made in a server.

    Args:
        folder: of the model.
        threads: how many texts run at a time, each on one thread: short texts gain nothing from sharing more.
        max_tokens: what is read of a text.
        max_queued_tokens: what may wait; above it, `EncoderUnavailable`.
    """

    def __init__(
        self,
        folder: Path = DEFAULT_FOLDER,
        *,
        threads: int = 1,
        max_tokens: int = MAX_TOKENS,
        max_queued_tokens: int = MAX_QUEUED_TOKENS,
    ) -> None:
        self._graph = _Graph(folder, max_tokens)
        self.name = self._graph.name
        self.dimensions = self._graph.width
        self._workers: Workers[str, NDArray[np.float32]] = Workers(
            lambda texts: [self._graph.run(text) for text in texts],
            lambda text: estimated_tokens(len(text), max_tokens),
            threads=threads,
            max_queued_tokens=max_queued_tokens,
        )

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`. A cancelled call's texts that have not run yet never run."""
        rows = await self._workers.map(texts)
        return np.stack(rows) if rows else np.zeros((0, self.dimensions), np.float32)


class OnnxReranker:
    """A `Reranker`. Arguments as of `OnnxEmbedder`."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        max_tokens: int = MAX_TOKENS,
        max_queued_tokens: int = MAX_QUEUED_TOKENS,
    ) -> None:
        self._graph = _Graph(folder, max_tokens)
        self.name = self._graph.name
        self._workers: Workers[tuple[str, str], np.float32] = Workers(
            lambda pairs: [self._graph.run(*pair) for pair in pairs],
            lambda pair: estimated_tokens(len(pair[0]) + len(pair[1]), max_tokens),
            threads=threads,
            max_queued_tokens=max_queued_tokens,
        )

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """See `Reranker.score`. A cancelled call's pairs that have not run yet never run."""
        return np.array(await self._workers.map(pairs), np.float32)


class _Graph:
    """One session and its tokenizer. `run` may be called in several threads."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        model = (folder / "model.onnx").read_bytes()
        self.name = f"{folder.name}-{hashlib.sha256(model).hexdigest()[:8]}-int8-{max_tokens}"
        self._max_chars = max_tokens * _MAX_CHARS_PER_TOKEN
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._session = onnxruntime.InferenceSession(model, _options(), providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]
        self.width = self._session.get_outputs()[0].shape[-1]

    def run(self, text: str, pair: str | None = None) -> Any:
        """The output's row for one text, or its number for a pair of texts that are read together."""
        second = None if pair is None else readable(pair, self._max_chars)
        encoding: Encoding = self._tokenizer.encode(readable(text, self._max_chars), second)
        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        feed = {name: np.array([columns[name]], np.int64) for name in self._inputs}
        return self._session.run(None, feed)[0][0]


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it keeps the memory of the longest text; no slower without
    options.enable_mem_pattern = False  # each length would leave a pattern behind
    options.log_severity_level = 3
    return options
