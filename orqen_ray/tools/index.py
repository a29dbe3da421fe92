"""The index: the gateway's one tool, which names the tools that were left out and lets the model ask for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from orqen_ray.conversation import Tool

MORE_TOOLS = "orqen_more_tools"
"""The name of the gateway's tool. Where a caller has a tool of that name itself, nothing is left out."""

_MAX_WORDS_CHARS = 72
_CHARS_PER_WORDS_CHAR = 8
"""A line says of a tool at most an eighth of what its definition says, so that small tools get short lines."""

_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_SENTENCE = re.compile(r"(?<=[.!?;])\s")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)+)"')
_MAX_DEPTH = 4

_DESCRIPTION = (
    "Brings in more tools. Those listed under `names` exist, but cannot be called yet. When one of them is needed, "
    "call this tool first, with the names of all that are needed; they are there at once."
)
_LISTED = "Names out of this list; each line names a tool and says what it does.\n"


def line_of(tool: Tool) -> str:
    """What the index says of a tool: its name and a few words of its description, in one line.

    Never longer than the definition itself; the same for the same tool.

    >>> line_of(Tool(name="find_hotel", description="Find hotels in a city. Prices are in euros.", parameters={}))
    'find_hotel: Find'
    """
    name = _one_line(tool.name)
    room = min(_MAX_WORDS_CHARS, _size_chars(tool) // _CHARS_PER_WORDS_CHAR)
    words = _cut(_SENTENCE.split(_one_line((tool.description or "")[: 4 * _MAX_WORDS_CHARS]), maxsplit=1)[0], room)
    return f"{name}: {words}" if words else name


def index_tool(left_out: Iterable[Tool]) -> Tool:
    """The gateway's tool, with one line for each tool of `left_out`: the same bytes for the same tools."""
    return index_of(map(line_of, left_out))


def index_of(lines: Iterable[str]) -> Tool:
    """The gateway's tool from the lines of the tools that were left out, for who has them already.

    The lines stand in the description of `names`: OpenAI and those who copy it take no more than 1,024 characters in
    that of a function. The names are not enumerated: a model that gets one wrong shall be answered, not held to a list.
    """
    listed = _LISTED + "\n".join(lines)
    names = {"type": "array", "items": {"type": "string"}, "description": listed}
    parameters = {"type": "object", "properties": {"names": names}, "required": ["names"]}
    return Tool(name=MORE_TOOLS, description=_DESCRIPTION, parameters=parameters)


def asked_names(arguments: str) -> tuple[str, ...]:
    """The names in the arguments of a call of the gateway's tool, in whatever shape the model wrote them; each once.

    Never raises. Text that is no JSON (a call that was cut off) gives what stands in quotes.

    >>> asked_names('{"names": ["a", "b"]}'), asked_names('"a, b"'), asked_names('{"names": ["a", "b')
    (('a', 'b'), ('a', 'b'), ('a',))
    """
    try:
        value = msgspec.json.decode(arguments)
    except (ValueError, RecursionError):
        value = [text for text in _QUOTED.findall(arguments) if text not in ("names", "name")]
    return tuple(dict.fromkeys(name for name in map(str.strip, _strings(value, _MAX_DEPTH)) if name))


def _strings(value: Any, depth: int) -> Iterator[str]:
    if depth == 0:
        return
    match value:
        case str() if value.lstrip().startswith(("[", "{")):  # JSON within JSON
            try:
                yield from _strings(msgspec.json.decode(value), depth - 1)
            except (ValueError, RecursionError):
                yield value
        case str():
            yield from value.replace("\n", ",").split(",")
        case list():
            for each in value:
                yield from _strings(each, depth - 1)
        case dict():
            for each in value.values():
                yield from _strings(each, depth - 1)


def _size_chars(tool: Tool) -> int:
    try:
        parameters = msgspec.json.encode(tool.parameters)
    except (TypeError, ValueError, RecursionError):
        parameters = b""
    return len(tool.name) + len(tool.description or "") + len(parameters)


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _cut(text: str, room: int) -> str:
    """The whole words that fit; nothing where none does."""
    if len(text) <= room:
        return text.rstrip(".;")
    cut = text[: room + 1].rsplit(" ", 1)
    return cut[0].rstrip(" .,;:") if len(cut) == 2 else ""
