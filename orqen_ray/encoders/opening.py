"""Encoders as the settings ask for them: read in a thread while the process serves, each model once in a process."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from orqen_ray.encoders.protocol import Embedder, EncoderUnavailable, Reranker, Scores, Vectors

Encoder = TypeVar("Encoder")

_log = logging.getLogger(__name__)
_models: dict[tuple[str, str, str, int], Future[Any]] = {}
_models_lock = threading.Lock()


class EncoderOptions(Protocol):
    """Of the section `encoders` of the settings, what says which encoders are opened, and how."""

    @property
    def embedder(self) -> str:
        """`default`, the folder of a model, or its name."""

    @property
    def reranker(self) -> str | None:
        """The folder of a model or its name; None for none."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""

    @property
    def threads(self) -> int | None:
        """How many texts are encoded at a time; None: the caller knows."""


def open_embedder(options: EncoderOptions, threads: int = 1) -> OpeningEmbedder:
    """Begin to read the embedder; until it is there, it raises `EncoderUnavailable`.

    Args:
        threads: where the options do not say how many.

    Raises:
        ValueError: it cannot be opened here, and what would mend that.
    """
    return OpeningEmbedder(_opening("Embedder", options.embedder, options, threads))


def open_reranker(options: EncoderOptions, threads: int = 1) -> OpeningReranker | None:
    """Begin to read the reranker, where the options name one; see `open_embedder`."""
    if options.reranker is None:
        return None
    return OpeningReranker(_opening("Reranker", options.reranker, options, threads))


class _Opening(Generic[Encoder]):
    def __init__(self, model: Future[Encoder]) -> None:
        self._model = model

    async def opened(self) -> None:
        """See `Opening.opened`."""
        await asyncio.wait([asyncio.wrap_future(self._model)])

    def _encoder(self) -> Encoder:
        if not self._model.done():
            raise EncoderUnavailable("still opening")
        if self._model.exception() is not None:
            raise EncoderUnavailable("could not be opened; the log says why")
        return self._model.result()


class OpeningEmbedder(_Opening[Embedder]):
    """An `Embedder` that may still be opening."""

    @property
    def name(self) -> str:
        """See `Embedder.name`."""
        return self._encoder().name

    @property
    def dimensions(self) -> int:
        """See `Embedder.dimensions`."""
        return self._encoder().dimensions

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`."""
        return await self._encoder().embed(texts)


class OpeningReranker(_Opening[Reranker]):
    """A `Reranker` that may still be opening."""

    @property
    def name(self) -> str:
        """See `Embedder.name`."""
        return self._encoder().name

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """See `Reranker.score`."""
        return await self._encoder().score(pairs)


def _opening(kind: Literal["Embedder", "Reranker"], model: str, options: EncoderOptions, threads: int) -> Future[Any]:
    """The model that is there, or is being read, in this process; one that failed is tried again."""
    key = (kind, model, options.device, options.threads or threads)
    read = _read_onnx if _is_onnx(model, options.device) else _read_torch
    with _models_lock:
        opening = _models.get(key)
        if opening is None or (opening.done() and opening.exception() is not None):
            opening = _models[key] = Future()
            opening.set_running_or_notify_cancel()  # from here on, one who waits and leaves does not cancel it
            threading.Thread(target=_read, args=(opening, read, key), name="encoder-opening").start()
    return opening


def _is_onnx(model: str, device: str) -> bool:
    """Whether `model` is a folder with an ONNX file; else sentence-transformers must know it."""
    if model == "default" or Path(model, "model.onnx").is_file():
        if device != "cpu":
            raise ValueError(f"{model} is an ONNX file, for the CPU: name a sentence-transformers model for {device}")
        return True
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(f"{model} has no model.onnx, and other models need `pip install 'orqen-ray[encoders]'`")
    return False


def _read(opening: Future[Any], read: Callable[[str, str, str, int], Any], key: tuple[str, str, str, int]) -> None:
    try:
        opening.set_result(read(*key))
    except Exception as error:  # noqa: BLE001  # of a model's library; the gateway serves without
        _log.error("an encoder could not be opened, so tools are not routed by meaning: %s", error)
        opening.set_exception(error)


# Imported only by processes that encode: onnxruntime takes 23 MB, torch seconds and hundreds of MB.


def _read_onnx(kind: str, model: str, _device: str, threads: int) -> Any:
    from orqen_ray.encoders import onnx

    folder = onnx.DEFAULT_FOLDER if model == "default" else Path(model)
    return getattr(onnx, f"Onnx{kind}")(folder, threads=threads)


def _read_torch(kind: str, model: str, device: str, threads: int) -> Any:
    from orqen_ray.encoders import torch_model

    return getattr(torch_model, f"Torch{kind}")(model, device=device, threads=threads)
