"""How well tools are described: what a model, or the routing of tools, would stumble over. Nothing is changed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orqen_ray.conversation import Conversation, FormatName, Tool
from orqen_ray.encoders.protocol import Vectors
from orqen_ray.tools.limits import problems
from orqen_ray.tools.prose import repeats, words
from orqen_ray.tools.schemas import compressed
from orqen_ray.tools.sizes import tool_tokens

SHORT_WORDS = 8
SIMILAR_COSINE = 0.9
SIMILAR_WORDS = 0.8
"""The cosine of two texts' words, each weighed by how few tools have it."""
_WORD_BUCKETS = 2048
_MAX_COMPARED = 5_000
_DIALECTS: tuple[FormatName, ...] = ("openai_chat", "anthropic_messages", "bedrock_converse")

_SAYS_WHEN = re.compile(
    r"\b(when|whenever|if|use|used|useful|before|after|instead|unless|only|to|for|given|based on|returns?)\b", re.I
)
_VAGUE = re.compile(r"\A(handles?|manages?|process(es)?|does|works? with|deals? with)\b", re.I)
_TYPED = frozenset(("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"))
_COSTS = {
    "no description": 100,
    "repeats the name": 60,
    "too short": 40,
    "vague": 15,
    "does not say when to use it": 15,
}
_UNDOCUMENTED_COST = 30
_UNTYPED_COST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """One tool.

    Attributes:
        score: 0 (a model can only guess) to 100 (nothing found).
        findings: what is wrong, in words of `docs/cli.md`.
        undocumented: parameters without a description whose name does not say it either, as paths (`filter.from`).
        untyped: parameters without a type, as paths.
        tokens: of the definition; `compressed_tokens` after `schemas.compressed`.
    """

    name: str
    score: int
    findings: tuple[str, ...]
    undocumented: tuple[str, ...]
    untyped: tuple[str, ...]
    tokens: int
    compressed_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """Two tools that a request could hardly tell apart. `similarity`: a cosine, 1 for the same text."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Attributes:
    compared_by: what collisions were found by: an encoder's name, or `words`.
    refused: format -> why its providers would refuse the set.
    """

    tools: tuple[Audited, ...]
    collisions: tuple[Collision, ...]
    compared_by: str
    refused: Mapping[FormatName, tuple[str, ...]]


def audited(
    tools: Sequence[Tool], vectors: Vectors | None = None, encoder: str = "", similar: float | None = None
) -> Audit:
    """What there is to say about `tools`. `vectors` are those of `text_of` each tool, by `encoder`; None: by words.

    Providers' own tools (web search and the like) are not the caller's to describe, so they are left out.
    """
    asked = Conversation(format="openai_chat", model="", messages=(), tools=tuple(tools))
    limit = similar if similar is not None else SIMILAR_WORDS if vectors is None else SIMILAR_COSINE
    own = [tool for tool in tools if tool.raw is None]
    return Audit(
        tools=tuple(_audited(tool) for tool in own),
        collisions=tuple(_collisions(own, _word_vectors(own) if vectors is None else vectors, limit)),
        compared_by="words" if vectors is None else encoder,
        refused={dialect: found for dialect in _DIALECTS if (found := problems(asked, dialect))},
    )


def text_of(tool: Tool) -> str:
    """What is compared of a tool: its name in words, and its description."""
    return f"{re.sub(r'[_.-]+', ' ', tool.name)}: {tool.description or ''}"


# --- One tool ---------------------------------------------------------------------------------------------------


def _audited(tool: Tool) -> Audited:
    parameters = list(_parameters(tool.parameters))
    undocumented = tuple(path for path, schema in parameters if not _is_described(schema))
    untyped = tuple(path for path, schema in parameters if isinstance(schema, dict) and _TYPED.isdisjoint(schema))
    findings = tuple(_findings(tool))
    share = len(parameters) or 1
    lost = sum(_COSTS[finding] for finding in findings)
    lost += _UNDOCUMENTED_COST * len(undocumented) // share + _UNTYPED_COST * len(untyped) // share
    return Audited(
        name=tool.name,
        score=max(0, 100 - lost),
        findings=findings,
        undocumented=undocumented,
        untyped=untyped,
        tokens=tool_tokens(tool),
        compressed_tokens=tool_tokens(compressed(tool)),
    )


def _findings(tool: Tool) -> Iterator[str]:
    text = (tool.description or "").strip()
    if not text:
        yield "no description"
        return
    if repeats(text, tool.name):
        yield "repeats the name"
    elif len(text.split()) < SHORT_WORDS and text.isascii():  # other scripts write without spaces
        yield "too short"
    if _VAGUE.match(text):
        yield "vague"
    if text.isascii() and not _SAYS_WHEN.search(text):
        yield "does not say when to use it"


def _is_described(schema: Any) -> bool:
    return isinstance(schema, dict) and bool(schema.get("description") or "enum" in schema or "const" in schema)


def _parameters(parameters: Any, max_depth: int = 8) -> Iterator[tuple[str, Any]]:
    """Every named parameter with its path, in the order of the definition."""
    waiting: list[tuple[str, Any, int]] = [("", parameters, 0)]
    while waiting:
        path, schema, depth = waiting.pop()
        if not isinstance(schema, dict) or depth > max_depth:
            continue
        if path and not path.endswith("[]"):
            yield path, schema
        inner: list[tuple[str, Any, int]] = []
        properties = schema.get("properties")
        if isinstance(properties, dict):
            dot = f"{path}." if path else ""
            inner += ((f"{dot}{name}", each, depth + 1) for name, each in properties.items())
        if path:
            inner.append((f"{path}[]", schema.get("items"), depth + 1))
        waiting += reversed(inner)


# --- Tools that look alike --------------------------------------------------------------------------------------


def _collisions(tools: Sequence[Tool], vectors: NDArray[np.float32], similar: float) -> Iterator[Collision]:
    """The pairs above `similar`, the most alike first; of a huge set, only among its first tools."""
    vectors = vectors[:_MAX_COMPARED]
    found: list[Collision] = []
    for i in range(len(vectors) - 1):
        cosines = vectors[i + 1 :] @ vectors[i]
        found += (
            Collision(
                first=tools[i].name, second=tools[i + 1 + int(j)].name, similarity=round(min(float(cosines[j]), 1), 3)
            )
            for j in np.flatnonzero(cosines >= similar)
        )
    return iter(sorted(found, key=lambda pair: (-pair.similarity, pair.first, pair.second)))


def _word_vectors(tools: Sequence[Tool]) -> NDArray[np.float32]:
    """Shape (tools, buckets), unit length: each text's words, the rarer the heavier."""
    counts = np.zeros((min(len(tools), _MAX_COMPARED), _WORD_BUCKETS), dtype=np.float32)
    for row, tool in zip(counts, tools, strict=False):
        row[[zlib.crc32(word.encode()) % _WORD_BUCKETS for word in words(text_of(tool))]] = 1
    weighed = counts * np.log1p(len(counts) / np.maximum(counts.sum(axis=0), 1))
    lengths = np.linalg.norm(weighed, axis=1, keepdims=True)
    return np.asarray(weighed / np.maximum(lengths, 1e-9), dtype=np.float32)
