"""The capability card: what routing knows of one tool, read once from its definition, whatever that holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from orqen_ray.conversation import Tool
from orqen_ray.tools.content import Memory
from orqen_ray.tools.words import split_name, terms

SideEffect = Literal["read", "write", "unknown"]

_CARD_BYTES = 5_000
"""About what a card holds, most of it words."""
_NAME_CHARS, _DESCRIPTION_CHARS, _EXAMPLES_CHARS, _PARAMETERS_CHARS = 120, 400, 200, 150
_READ_CHARS = 1_500
"""How much of a description is read for words: what a tool is for stands at its beginning."""
_SCHEMA_NODES, _PARAMETERS_MAX, _ENUMS_MAX, _EXAMPLES_MAX, _TERMS_MAX = 400, 64, 64, 16, 400

READ_VERBS = frozenset(
    "analyze browse calculate check compare compute convert count describe detect diff download estimate evaluate "
    "explain export fetch find get glob grep inspect list load lookup look ls monitor open predict preview query rank "
    "read recommend retrieve scan search show summarize suggest track translate validate verify view".split()
)
WRITE_VERBS = frozenset(
    "accept activate add append apply approve archive assign authenticate bash block book buy cancel change checkout "
    "clear close commit configure connect copy create deactivate delete deploy disable drop edit enable execute "
    "exchange follow fork import insert install invite invoke issue kill launch like log login logout merge modify "
    "mount move mv notify order overwrite pause pay place play post press publish purchase push put refund register "
    "reject remove rename reply reschedule reserve reset restart return revoke rm run save schedule send set share "
    "shutdown start stop submit subscribe terminate touch transfer trigger turn uninstall unlock update upload upsert "
    "withdraw write".split()
)
_SERVER = re.compile(r"(mcp__.+?)__|(.{2,60})[./:](?=[^./:]+$)")
_TOPIC = re.compile(r"([\w][\w &-]{1,38}):\s")
_UTILITY = re.compile(
    r"(?:tool )?(?:think|thinking|think tool|sequential ?thinking|reason|plan|calculate|calculator|compute|eval|"
    r"(?:get )?(?:the )?current (?:date|time|date time|datetime|user|account)|(?:get )?(?:time|date|datetime|now)|"
    r"clock|get me|me|who ?am ?i|get (?:my |own )?(?:user )?(?:profile|self)|(?:get )?my (?:profile|user|account))"
)
_AUTH = re.compile(r"\b(?:log ?in|sign ?in|authenticate|authorize|auth|get (?:access )?token|access token)\b")
_ID = re.compile(r"(.*?)[ _]?(?:ids?|uuid|identifier|key|slug|code|number)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What routing knows of a tool.

    Attributes:
        words: its name as words. `text`: what is embedded, some 128 tokens at most: the name as words, the
            description, examples of requests, names of parameters.
        terms: stemmed words for the keyword index, the name's twice.
        group: what it belongs to (an MCP server, a namespace, the topic before a colon in its description); "" if
            it does not say.
        side_effect: whether a call changes something, by its verb.
        parameters, enums: names and values anywhere in its schema. `needs`: what it must be given an id of
            ("user", "reservation"), stemmed.
        utility: what no request names: think, calculate, clock, "me", a human. `auth`: it signs in or gets a token.
        builtin: the provider's own tool. `keep`: the caller wants it kept.
    """

    name: str
    words: str
    text: str
    terms: tuple[str, ...]
    group: str
    side_effect: SideEffect
    parameters: tuple[str, ...]
    enums: tuple[str, ...]
    needs: tuple[str, ...]
    utility: bool
    auth: bool
    builtin: bool
    keep: bool


_cards: Memory[Card] = Memory(max_bytes=60_000_000)


def card_of(tool: Tool) -> Card:
    """The card of a tool; made once for each content. Never raises; bounded in time whatever the definition holds."""
    return _cards.of(content_of(tool), lambda: _read(tool), _CARD_BYTES)


def content_of(tool: Tool) -> bytes:
    """All of a definition that a model or a score could depend on, as bytes; equal for equal definitions."""
    parts = (tool.name, tool.description, tool.parameters, tool.examples, tool.keep, tool.custom, tool.raw)
    settings = (tool.strict, tool.defer_loading)
    try:
        return msgspec.json.encode((parts, settings))
    except (TypeError, ValueError, RecursionError):  # lone surrogates, or nested too deeply
        named = f"{tool.name}\0{tool.description}\0{tool.keep}\0{tool.examples}".encode(errors="backslashreplace")
        try:
            return named + repr((tool.parameters, tool.raw, settings)).encode(errors="backslashreplace")
        except RecursionError:
            return named


def _read(tool: Tool) -> Card:
    name = tool.name[: _NAME_CHARS * 2]
    description = " ".join((tool.description or "")[:_READ_CHARS].split())
    schema = tool.parameters if tool.parameters is not None else _own_schema(tool.raw)
    parameters, enums, required = _parameters(schema)
    group = _group(name, description)
    own_name = split_name(name.removeprefix(group)) if group and name.startswith(group) else split_name(name)
    own_name = own_name or split_name(name) or name
    examples = tuple(example[:_EXAMPLES_CHARS] for example in tool.examples[:_EXAMPLES_MAX])
    said = [*terms(name), *terms(name), *terms(description), *terms(" ".join(parameters)), *terms(" ".join(enums))]
    for example in examples:
        said += terms(example)
    return Card(
        name=tool.name,
        words=split_name(name),
        text=_text(split_name(name) or name, description, parameters, examples),
        terms=tuple(said[:_TERMS_MAX]),
        group=group,
        side_effect=_side_effect(own_name, description),
        parameters=parameters,
        enums=enums,
        needs=tuple(sorted({noun for parameter in required for noun in id_of(parameter)})),
        utility=_UTILITY.fullmatch(own_name if group.startswith("mcp__") else split_name(name)) is not None,
        auth=_AUTH.search(own_name) is not None and len(own_name.split()) <= 3,
        builtin=tool.raw is not None,
        keep=tool.keep,
    )


def id_of(parameter: str) -> tuple[str, ...]:
    """What a parameter wants the id of: `user_id` -> ("user",); `id` and `query` -> ()."""
    found = _ID.fullmatch(split_name(parameter))
    nouns = terms(found.group(1)) if found else []
    return (nouns[-1],) if nouns else ()


def _text(words: str, description: str, parameters: tuple[str, ...], examples: tuple[str, ...]) -> str:
    text = words[:_NAME_CHARS]
    if description:
        text += f": {description[:_DESCRIPTION_CHARS]}"
    if examples:
        text += f"; {'; '.join(examples)[:_EXAMPLES_CHARS]}"
    named = ", ".join(filter(None, map(split_name, parameters)))[:_PARAMETERS_CHARS]
    return (f"{text}; {named}" if named else text).encode(errors="replace").decode()


def _group(name: str, description: str) -> str:
    server = _SERVER.match(name)
    if server is not None:
        return str(server.group(1) or server.group(2))
    topic = _TOPIC.match(description)
    return topic.group(1) if topic is not None and len(topic.group(1).split()) <= 4 else ""


def _side_effect(words: str, description: str) -> SideEffect:
    said = [word for word in description[:80].lower().split()[:2] if word not in ("return", "returns")]
    for word in (*words.split()[:3], *said):
        for verb in (word, word.removesuffix("s"), word.removesuffix("es")):
            if verb in WRITE_VERBS:
                return "write"
            if verb in READ_VERBS:
                return "read"
    return "unknown"


def _own_schema(raw: Mapping[str, Any] | None) -> object:
    """Where a provider's own tool may say what it takes."""
    return raw.get("input_schema") or raw.get("parameters") if raw is not None else None


def _parameters(schema: object) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of parameters, values of enums, and the top level's required names, of what may be no schema at all."""
    names: dict[str, None] = {}
    enums: dict[str, None] = {}
    for node in _objects(schema):
        properties, values = node.get("properties"), node.get("enum")
        if isinstance(properties, dict):
            for name, _ in zip(properties, range(_PARAMETERS_MAX), strict=False):
                names.setdefault(str(name)[:_NAME_CHARS])
        if isinstance(values, list):
            enums.update((str(value)[:_NAME_CHARS], None) for value in values[:_ENUMS_MAX] if isinstance(value, str))
    required = schema.get("required") if isinstance(schema, dict) else None
    wanted = [str(name) for name in required[:_PARAMETERS_MAX]] if isinstance(required, list) else []
    return tuple(names)[:_PARAMETERS_MAX], tuple(enums)[:_ENUMS_MAX], tuple(wanted)


def _objects(schema: object) -> Iterator[dict[str, Any]]:
    """The objects inside a schema, outer ones first, as far as a bounded walk sees them."""
    queue: list[object] = [schema]
    for node in queue:
        if isinstance(node, dict):
            yield node
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        for child in inner:
            if len(queue) >= _SCHEMA_NODES:
                break
            if isinstance(child, dict | list):
                queue.append(child)
