"""How many tokens a conversation holds, counted on this machine for providers that have no counting call."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import bpe_openai
import msgspec

from orqen_ray.conversation import Block, Conversation, Image, Refusal, Text, Thinking, ToolCall, ToolResult

_PIECE_CHARS = 20_000
_TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 1_500
"""About what a picture of a megapixel costs: platform.claude.com/docs/build-with-claude/vision."""


def count_tokens(conversation: Conversation) -> int:
    """An estimate by OpenAI's `o200k_base` vocabulary, which other vendors' tokenizers differ from by some 10-20 %.

    Blocking: half a second at first and a millisecond for some thousand tokens after, so call it in a thread.
    """
    total = sum(count_text(text) for text in _texts(conversation))
    images = sum(isinstance(block, Image) for block in _blocks(conversation))
    return total + TOKENS_PER_IMAGE * images + _TOKENS_PER_MESSAGE * len(conversation.messages)


def count_text(text: str) -> int:
    """Tokens of one text. Blocking, like `count_tokens`."""
    return sum(len(_encoding().encode_ordinary(piece)) for piece in _pieces(text))


def load_vocabulary() -> None:
    """What the first count would wait half a second for."""
    _encoding()


def inline_pictures(conversation: Conversation) -> list[str]:
    """The base64 text of each picture that the request itself carries."""
    images = (block.source for block in _blocks(conversation) if isinstance(block, Image))
    return [source.data for source in images if source.kind == "base64"]


def _pieces(text: str) -> Iterator[str]:
    """The tokenizer refuses a million characters, and lets no other thread run meanwhile."""
    return (text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS))


@functools.cache
def _encoding() -> bpe_openai.Encoding:
    return bpe_openai.get_encoding("o200k_base")


def _blocks(conversation: Conversation) -> Iterator[Block]:
    yield from _nested(conversation.system)
    for message in conversation.messages:
        yield from _nested(message.blocks)


def _nested(blocks: Iterable[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, ToolResult):
            yield from _nested(block.blocks)


def _texts(conversation: Conversation) -> Iterator[str]:
    for tool in conversation.tools:
        yield msgspec.json.encode([tool.name, tool.description, tool.parameters]).decode()
    for block in _blocks(conversation):
        match block:
            case Text(text=text) | Refusal(text=text) | Thinking(text=text):
                yield text
            case ToolCall(name=name, arguments=arguments):
                yield f"{name} {arguments}"
            case _:
                pass
