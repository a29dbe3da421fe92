"""Tool definitions with fewer tokens and the same meaning.

What constrains a call stays: `required`, `enum`, `const`, types, names, formats, patterns, bounds, references and what
they lead to; so does what only prose says. What goes are annotations that tell a model nothing (https://json-schema.org/
draft/2020-12/json-schema-validation#section-9): titles that repeat the name, `$schema`, `$comment`, long lists of
examples, definitions that nothing refers to, and what `prose.py` takes out of descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import msgspec

from orqen_ray.conversation import JsonObject, Tool
from orqen_ray.tools.content import Memory, definition
from orqen_ray.tools.prose import plain, repeats, without_restatement, words
from orqen_ray.tools.sizes import tool_tokens

_LARGEST_BYTES = 200_000
"""A larger definition is left alone: it must not hold up the request."""
_DEEPEST = 40
"""Below so many levels nothing is changed."""
_EXAMPLES = 2
_EXAMPLE_BYTES = 100
_DEFAULT_BYTES = 200

_ONE_SCHEMA = frozenset((
    "items", "additionalItems", "unevaluatedItems", "additionalProperties", "unevaluatedProperties", "propertyNames",
    "contains", "not", "if", "then", "else", "contentSchema",
))  # fmt: skip
_SCHEMA_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_SCHEMA_MAPS = frozenset((
    "properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies",
))  # fmt: skip
_DEFINITIONS = ("$defs", "definitions")
_TITLE_WORDS = frozenset(("args", "arguments", "input", "params", "parameters", "schema", "request", "model", "tool"))
# What means the same in every draft from 6 on, so that it does not matter which one a schema names.
_DRAFTS = (
    "http://json-schema.org/draft-06/schema", "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema", "https://json-schema.org/draft/2020-12/schema",
)  # fmt: skip
_DRAFT_DEPENDENT = frozenset((
    "$id", "id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "prefixItems",
    "additionalItems", "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "contains",
    "unevaluatedProperties", "minContains", "maxContains", "if", "then", "else",
))  # fmt: skip
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

_compressed: Memory[Tool | None] = Memory(max_bytes=50_000_000)


def compressed(tool: Tool) -> Tool:
    """The tool without what tells the model nothing; the very same object where nothing is saved.

    The same tool gets the same bytes. Blocking: some 100 us for a tool never seen, some 5 us for a known one.
    """
    if tool.raw is not None:
        return tool
    content = definition(tool)
    if not content or len(content) > _LARGEST_BYTES:
        return tool
    # A parsed definition takes some ten times its text.
    key = content + (b"strict" if tool.strict else b"")
    shorter = _compressed.of(key, lambda: _work(tool), value_bytes=10 * len(content))
    if shorter is None:
        return tool
    return replace(tool, description=shorter.description, parameters=shorter.parameters, wire=None)


def _work(tool: Tool) -> Tool | None:
    description = plain(tool.description) if tool.description else None
    parameters = tool.parameters
    if parameters:
        parameters = _without_unused_definitions(parameters)
        if not any(map(_odd, _references(parameters))):
            parameters = _schema(parameters, tool.name, None, bool(tool.strict))
            parameters = _without_draft(parameters)
    shorter = replace(tool, description=description or tool.description, parameters=parameters, wire=None)
    if len(definition(shorter)) >= len(definition(tool)) or tool_tokens(shorter) >= tool_tokens(tool):
        return None
    return shorter


# --- A schema ---------------------------------------------------------------------------------------------------


def _schema(schema: Any, name: str, required: bool | None, strict: bool, depth: int = 0) -> Any:
    """`name` is that of the parameter or definition whose schema it is, `required` whether a call must have it."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return schema
    described = _described(schema, name, required)
    out: JsonObject = {}
    for key, value in described.items():
        if key in _SCHEMA_MAPS and isinstance(value, dict):
            must = _names(described.get("required")) if key == "properties" else None
            out[key] = {
                inner: _schema(each, inner, None if must is None else inner in must, strict, depth + 1)
                for inner, each in value.items()
            }
        elif key in _SCHEMA_LISTS and isinstance(value, list):
            out[key] = [_schema(each, name, None, strict, depth + 1) for each in value]
        elif key in _ONE_SCHEMA:
            out[key] = _schema(value, name, None, strict, depth + 1)
        elif key == "examples" and isinstance(value, list):
            if kept := _short_examples(value, described):
                out[key] = kept
        elif not _tells_nothing(key, value, described, required, strict):
            out[key] = value
    return out


def _described(schema: JsonObject, name: str, required: bool | None) -> JsonObject:
    """The schema with its title and description as short as they can be."""
    title, text = schema.get("title"), schema.get("description")
    out = dict(schema)
    if isinstance(text, str):
        out["description"] = shorter = _shorter(text, schema, required)
        if not shorter or repeats(shorter, name):
            del out["description"]
    if isinstance(title, str):
        known = words(name) | _TITLE_WORDS | (words(text) if isinstance(text, str) else frozenset())
        if words(title) <= known:
            del out["title"]
    return out


def _shorter(text: str, schema: JsonObject, required: bool | None) -> str:
    """Twice, as what is left can itself be shortened; a text that then still could is left as it was."""
    once = plain(without_restatement(text, schema, required))
    if once == text:
        return text
    twice = plain(without_restatement(once, schema, required))
    return twice if plain(without_restatement(twice, schema, required)) == twice else text


def _tells_nothing(key: str, value: Any, schema: JsonObject, required: bool | None, strict: bool) -> bool:
    match key:
        case "$comment":
            return isinstance(value, str)
        case "default":
            # `null` is what a parameter that may be left out has anyway.
            return (value is None and required is False) or not _is_short(value, _DEFAULT_BYTES)
        case "required":
            return value == [] and not strict
        case "example":
            return "enum" in schema or "const" in schema
        case _:
            return False


def _short_examples(examples: list[Any], schema: JsonObject) -> list[Any]:
    if "enum" in schema or "const" in schema or schema.get("type") == "boolean":
        return []
    return [each for each in examples if _is_short(each, _EXAMPLE_BYTES)][:_EXAMPLES]


def _is_short(value: Any, max_bytes: int) -> bool:
    return len(msgspec.json.encode(value)) <= max_bytes


def _names(required: Any) -> frozenset[str]:
    return frozenset(name for name in required if isinstance(name, str)) if isinstance(required, list) else frozenset()


# --- The whole document -----------------------------------------------------------------------------------------


def _without_draft(parameters: JsonObject) -> JsonObject:
    """Without `$schema`, where every keyword means the same in all drafts."""
    draft = parameters.get("$schema")
    if not isinstance(draft, str) or draft.rstrip("#") not in _DRAFTS:
        return parameters
    for each in _subschemas(parameters):
        if not _DRAFT_DEPENDENT.isdisjoint(each) or isinstance(each.get("items"), list):
            return parameters
        if "$ref" in each and len(each.keys() - {"description", "title", "default", *_DEFINITIONS, "$schema"}) > 1:
            return parameters
    return {key: value for key, value in parameters.items() if key != "$schema"}


def _without_unused_definitions(parameters: JsonObject) -> JsonObject:
    """Without the definitions at the top that no reference leads to. Where one is not plain, all are kept."""
    definitions = {key: parameters[key] for key in _DEFINITIONS if isinstance(parameters.get(key), dict)}
    if not definitions:
        return parameters
    rest = {key: value for key, value in parameters.items() if key not in definitions}
    used: set[tuple[str, str]] = set()
    waiting = list(_references(rest))
    while waiting:
        reference = waiting.pop()
        if _odd(reference):
            return parameters
        steps = _steps(reference)
        if not steps or steps[0] not in definitions:
            continue
        if len(steps) == 1:
            return parameters
        if (steps[0], steps[1]) not in used:
            used.add((steps[0], steps[1]))
            waiting += _references(definitions[steps[0]].get(steps[1]))
    out: JsonObject = {}
    for key, value in parameters.items():
        kept = {name: each for name, each in value.items() if (key, name) in used} if key in definitions else value
        if kept or key not in definitions:
            out[key] = kept
    return out


def _references(value: Any) -> Iterator[Any]:
    for each in _objects(value):
        yield from (each[key] for key in _REFERENCES if key in each)
        # A part with an address of its own: references may lead there by any name.
        yield from (key for key in ("$id", "id", "$anchor", "$dynamicAnchor") if isinstance(each.get(key), str))


def _odd(reference: Any) -> bool:
    """Not a path inside the document from schema to schema, so what it leads to is not known to stay in place."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return True
    steps = _steps(reference)
    if steps is None:
        return True
    at = 0
    while at < len(steps):
        inner = steps[at + 1] if at + 1 < len(steps) else ""
        if steps[at] in _SCHEMA_MAPS or steps[at] in _SCHEMA_LISTS and inner.isdecimal():
            at += 2
        elif steps[at] in _ONE_SCHEMA:
            at += 1
        else:
            return True
    return False


def _steps(reference: str) -> list[str] | None:
    """The steps of a JSON pointer (RFC 6901), [] for the whole document, None for an anchor."""
    if reference == "#":
        return []
    if not reference.startswith("#/"):
        return None
    return [unquote(step).replace("~1", "/").replace("~0", "~") for step in reference[2:].split("/")]


def _subschemas(schema: Any) -> Iterator[JsonObject]:
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, dict):
            continue
        yield each
        for key, value in each.items():
            if key in _SCHEMA_MAPS and isinstance(value, dict):
                waiting += value.values()
            elif key in _SCHEMA_LISTS and isinstance(value, list):
                waiting += value
            elif key in _ONE_SCHEMA:
                waiting.append(value)


def _objects(value: Any) -> Iterator[JsonObject]:
    """Every object inside, data included; no recursion, as callers nest as deep as they like."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
