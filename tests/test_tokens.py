"""Counting tokens on this machine."""

from __future__ import annotations

from orqen_ray.conversation import Conversation, Message, Text
from orqen_ray.tokens import count_tokens


def conversation_of(text: str) -> Conversation:
    return Conversation(
        format="anthropic_messages", model="m", messages=(Message(role="user", blocks=(Text(text=text),)),)
    )


def test_a_text_of_more_than_a_million_characters_is_counted() -> None:
    word_tokens = count_tokens(conversation_of("hello " * 1000)) / 1000
    tokens = count_tokens(conversation_of("hello " * 200_000))
    assert abs(tokens / 200_000 - word_tokens) < 0.02
