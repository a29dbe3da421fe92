"""How many tokens a tool's definition costs, and what a whole set does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orqen_ray.conversation import Tool
from orqen_ray.tokens import count_text
from orqen_ray.tools.content import Memory, definition

COUNTED_BYTES = 20_000
"""A longer text is estimated: it costs what it costs, whatever is decided."""
COUNTED_SET_BYTES = 1_000_000
"""A larger set is estimated as a whole, so that counting never holds up a request for more than some 50 ms."""
_BYTES_PER_TOKEN = 4
_FRAME_TOKENS = 8
"""About what the words around a definition cost."""

_counted: Memory[int] = Memory(max_bytes=10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Tokens of a request.

    Attributes:
        full: shape (tools,), tokens of each tool's definition as it would be sent in full.
        line: shape (tools,), tokens of each tool's line in the index.
        prompt: tokens of system and messages.
    """

    full: NDArray[np.int64]
    line: NDArray[np.int64]
    prompt: int


def sizes_of(tools: Sequence[Tool], lines: Sequence[str], prompt_tokens: int) -> Sizes:
    """`tools` as they would be sent (compressed, where they are), `lines` as the index would name them.

    Blocking, but bounded: 64 tools never seen cost some 3 ms, known ones some 0.2 ms. The first count of a process
    loads the vocabulary (half a second): see `tokens.load_vocabulary`.
    """
    contents = [definition(tool) for tool in tools]
    large = sum(map(len, contents)) + sum(map(len, lines)) > COUNTED_SET_BYTES
    of_content = _estimate if large else _tokens_of
    full = [_FRAME_TOKENS + of_content(content) for content in contents]
    line = [of_content(text.encode(errors="replace")) for text in lines]
    return Sizes(full=np.array(full, dtype=np.int64), line=np.array(line, dtype=np.int64), prompt=prompt_tokens)


def tool_tokens(tool: Tool) -> int:
    """Tokens of one definition, by `o200k_base`; remembered by content."""
    return _FRAME_TOKENS + _tokens_of(definition(tool))


def text_tokens(text: str) -> int:
    """Tokens of a text, by `o200k_base`; remembered by content."""
    return _tokens_of(text.encode(errors="replace"))


def _tokens_of(content: bytes) -> int:
    if len(content) > COUNTED_BYTES:
        return _estimate(content)
    return _counted.of(content, lambda: count_text(content.decode()))


def _estimate(content: bytes) -> int:
    return -(-len(content) // _BYTES_PER_TOKEN)
