"""Vectors of texts kept in a file, so that fitting and evaluating again embeds nothing twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orqen_ray.encoders.protocol import Embedder, Vectors

_SAVE_EVERY = 4_000
_BATCH = 32


class DiskVectors:
    """An embedder's vectors, in half precision in one file of `folder` for each embedder name.

    Stands for the gateway's vector cache (`ToolVectors`) where nobody waits.
    """

    def __init__(self, embedder: Embedder, folder: Path | None) -> None:
        self.name, self.dimensions = embedder.name, embedder.dimensions
        self._embedder = embedder
        self._file = folder / f"{hashlib.sha256(self.name.encode()).hexdigest()[:16]}.npz" if folder else None
        self._known: dict[bytes, Vectors] = {}
        self._unsaved = 0
        if self._file is not None and self._file.exists():
            with np.load(self._file) as kept:
                keys, vectors = kept["keys"], kept["vectors"].astype(np.float32)
            self._known = {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}

    async def vectors(self, texts: Sequence[str], timeout_s: float | None = None) -> Vectors:
        """One vector for each text, in order; embeds those that the file lacks."""
        keys = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
        missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}.items())
        missing.sort(key=lambda pair: len(pair[1]))
        for at in range(0, len(missing), _BATCH):
            part = missing[at : at + _BATCH]
            made = await self._embedder.embed([text for _, text in part])
            self._known.update(zip((key for key, _ in part), made, strict=True))
            self._unsaved += len(part)
            if self._unsaved >= _SAVE_EVERY:
                self.save()
        return np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, self.dimensions), np.float32)

    async def query(self, texts: Sequence[str]) -> Vectors:
        """The same for what a conversation says."""
        return await self.vectors(texts)

    def save(self) -> None:
        """Write what is new to the file."""
        if self._file is None or not self._unsaved:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        keys = np.stack([np.frombuffer(key, np.uint8) for key in self._known])
        part = self._file.with_suffix(".part.npz")
        np.savez(part, keys=keys, vectors=np.stack(list(self._known.values())).astype(np.float16))
        part.replace(self._file)
        self._unsaved = 0
