"""What an encoder is: texts to unit vectors, or pairs of texts to scores, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Shape (texts, dimensions); each row has length 1, so a dot product is a cosine."""
Scores = NDArray[np.float32]
"""Shape (pairs,), each between 0 and 1."""


class EncoderUnavailable(Exception):
    """An encoder is not ready, overloaded or gone. Never a caller's error: its request goes on without."""


class Embedder(Protocol):
    """Texts to vectors. A text's vector does not depend on what it is embedded with.

    Attributes:
        name: model, its revision and its precision: vectors of two names must not be compared.
        dimensions: length of a vector.
    """

    name: str
    dimensions: int

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One vector for each text, in order.

        Raises:
            EncoderUnavailable: not ready, overloaded or gone; the caller goes on without.
        """
        ...


class Reranker(Protocol):
    """Pairs of texts, read together, to how well they belong together. See `Embedder` for `name` and errors."""

    name: str

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """One score for each (conversation, tool) pair, in order."""
        ...
