"""An embedder for tests, and tools and conversations to score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from orqen_ray.conversation import Conversation, Message, Text, Tool, ToolCall, ToolResult
from orqen_ray.encoders.protocol import EncoderUnavailable, Vectors
from orqen_ray.tools.words import terms


class HashedWords:
    """Texts as sums of their words' hashes: alike when they share words."""

    name, dimensions = "hashed-words", 256

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def query(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for at, text in enumerate(texts):
            for term in [*terms(text), ""]:
                rows[at, int(hashlib.md5(term.encode()).hexdigest(), 16) % self.dimensions] += 1
        unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    async def vectors(self, texts: Sequence[str], timeout_s: float | None) -> Vectors:
        return await self.query(texts)


class Gone:
    """An encoder that is not there."""

    async def query(self, texts: Sequence[str]) -> Vectors:
        raise EncoderUnavailable("gone")

    async def vectors(self, texts: Sequence[str], timeout_s: float | None) -> Vectors:
        raise EncoderUnavailable("gone")


def tool(name: str, description: str = "", *parameters: str, **changes: object) -> Tool:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return Tool(name=name, description=description, parameters=schema, **changes)  # type: ignore[arg-type]


TOPICS = (
    "weather forecast", "flight booking", "hotel rooms", "stock prices", "recipe ideas", "movie tickets", "bus routes",
    "currency rates", "news headlines", "chess games", "tax forms", "gym classes", "plant care", "car rental",
    "music charts", "museum hours", "parcel tracking", "blood tests", "land registry", "tide tables",
)  # fmt: skip


def many(count: int = 60) -> list[Tool]:
    """Tools of as many kinds."""
    verbs = ("get", "search", "update")
    return [
        tool(f"{verbs[at % 3]}_{TOPICS[at % 20].replace(' ', '_')}_{at}", f"{verbs[at % 3]} {TOPICS[at % 20]}", "query")
        for at in range(count)
    ]


def user(text: str) -> Message:
    return Message(role="user", blocks=(Text(text=text),))


def called(name: str, arguments: str = "{}", result: str = "ok", is_error: bool = False) -> tuple[Message, Message]:
    """A call and its result."""
    call = ToolCall(id=f"call_{name}", name=name, arguments=arguments)
    answer = ToolResult(call_id=call.id, blocks=(Text(text=result),), is_error=is_error)
    return Message(role="assistant", blocks=(call,)), Message(role="user", blocks=(answer,))


def conversation(*messages: Message, tools: Sequence[Tool] = (), **changes: object) -> Conversation:
    return Conversation(format="openai_chat", model="any", messages=messages, tools=tuple(tools), **changes)  # type: ignore[arg-type]
