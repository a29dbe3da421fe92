"""An embedder whose answers a test lets go one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from orqen_ray.encoders.protocol import EncoderUnavailable, Vectors


class ScriptedEmbedder:
    """A text's vector holds its length. Waits while `gate` is closed; fails while `failing`."""

    dimensions = 4

    def __init__(self, name: str = "scripted") -> None:
        self.name = name
        self.asked: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = False

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked.append(list(texts))
        await self.gate.wait()
        if self.failing:
            raise EncoderUnavailable("gone")
        return np.array([[len(text)] * self.dimensions for text in texts], np.float32)
