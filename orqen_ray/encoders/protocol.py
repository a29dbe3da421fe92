"""What an encoder is: texts to unit vectors, or pairs of texts to scores, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Shape (texts, dimensions); each row has length 1, so a dot product is a cosine."""
Scores = NDArray[np.float32]
"""Shape (pairs,), each between 0 and 1."""


class EncoderUnavailable(Exception):
    """An encoder is not ready, overloaded or gone. Never a caller's error: its request goes on without."""


class Embedder(Protocol):
    """Texts to vectors. A text's vector does not depend on what it is embedded with."""

    @property
    def name(self) -> str:
        """Model, its revision and its precision: vectors of two names must not be compared.

        Raises:
            EncoderUnavailable: not known yet.
        """
        ...

    @property
    def dimensions(self) -> int:
        """Length of a vector. Raises as `name` does."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One vector for each text, in order.

        Raises:
            EncoderUnavailable: not ready, overloaded or gone; the caller goes on without.
        """
        ...


class Reranker(Protocol):
    """Pairs of texts, read together, to how well they belong together. See `Embedder` for `name` and errors."""

    @property
    def name(self) -> str:
        """See `Embedder.name`."""
        ...

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """One score for each (conversation, tool) pair, in order."""
        ...


@runtime_checkable
class Opening(Protocol):
    """An encoder that is made elsewhere, or in a thread, while the process already serves."""

    async def opened(self) -> None:
        """Until it can be used, or never will."""
        ...
