"""Reads content blocks and tool definitions; what is newer than this code becomes `extra` or an `Opaque` block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from orqen_ray.conversation import (
    Block,
    CacheMarker,
    Document,
    Image,
    JsonObject,
    Opaque,
    Source,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChange,
    ToolResult,
)
from orqen_ray.errors import BadRequest
from orqen_ray.formats.reading import (
    as_base64,
    as_list,
    as_object,
    as_str,
    expected,
    join,
    optional_bool,
    optional_str,
    required,
    rest,
)

_BlockReader = Callable[[JsonObject, str], Block]


def read_content(value: object, path: str) -> tuple[Block, ...]:
    """The blocks of a message: a string is one text block, an empty one none.

    Raises:
        BadRequest: a wrong type, a missing field, or base64 that is none.
    """
    if isinstance(value, str):
        return (Text(text=value),) if value else ()
    if not isinstance(value, list):
        raise expected(path, "a string or an array of content blocks", value)
    return tuple(_read_block(block, f"{path}[{i}]", _READERS) for i, block in enumerate(value))


def read_block(value: object, path: str) -> Block:
    return _read_block(value, path, _READERS)


def read_tool(value: object, path: str) -> Tool:
    """A definition by the caller, or, when `type` names one of the vendor's own tools, that tool as it stands."""
    tool = as_object(value, path)
    kind = optional_str(tool, "type", path)
    cache, extra = read_cache(tool, path)
    if kind not in (None, "custom"):
        name = optional_str(tool, "name", path)
        raw = {**rest(tool, {"cache_control"}), **extra}
        return Tool(name=name or str(kind), raw=raw, cache=cache)
    return Tool(
        name=_required_name(tool, path),
        description=optional_str(tool, "description", path),
        parameters=as_object(required(tool, "input_schema", path), join(path, "input_schema")),
        strict=optional_bool(tool, "strict", path),
        defer_loading=optional_bool(tool, "defer_loading", path),
        cache=cache,
        extra={**rest(tool, _TOOL_FIELDS), **extra},
    )


def read_cache(body: Mapping[str, Any], path: str) -> tuple[CacheMarker | None, JsonObject]:
    """The marker in `cache_control`, or that field itself, as an extra one, when its form is newer than this code."""
    marker = body.get("cache_control")
    if marker is None:
        return None, {}
    at = join(path, "cache_control")
    ttl = optional_str(as_object(marker, at), "ttl", at)
    if marker.get("type") != "ephemeral" or rest(marker, {"type", "ttl"}):
        return None, {"cache_control": marker}
    return CacheMarker(ttl=ttl), {}


_TOOL_FIELDS = frozenset({"name", "type", "description", "input_schema", "strict", "defer_loading", "cache_control"})


def _required_name(body: JsonObject, path: str) -> str:
    name = as_str(required(body, "name", path), join(path, "name"))
    if not name:
        raise BadRequest("is empty", param=join(path, "name"))
    return name


def _string(body: JsonObject, key: str, path: str) -> str:
    return as_str(required(body, key, path), join(path, key))


def _common(body: JsonObject, path: str, *known: str) -> dict[str, Any]:
    """The `cache` and `extra` arguments of a block whose own fields are `known`."""
    cache, extra = read_cache(body, path)
    return {"cache": cache, "extra": {**rest(body, {"type", "cache_control", *known}), **extra}}


def _read_block(value: object, path: str, readers: Mapping[str, _BlockReader]) -> Block:
    body = as_object(value, path)
    kind = _string(body, "type", path)
    reader = readers.get(kind, _opaque)
    return reader(body, path)


def _opaque(body: JsonObject, path: str) -> Opaque:
    return Opaque(kind=body["type"], raw=body)


def _text(body: JsonObject, path: str) -> Text:
    return Text(text=_string(body, "text", path), **_common(body, path, "text"))


# The types of source: the field that holds the data, and the neutral kind.
_SOURCES: Mapping[str, tuple[str, Literal["base64", "url", "text", "file_id"]]] = {
    "base64": ("data", "base64"),
    "url": ("url", "url"),
    "text": ("data", "text"),
    "file": ("file_id", "file_id"),
}


def _source(body: JsonObject, path: str) -> tuple[Source | None, JsonObject]:
    """The source and its fields that this code does not know; no source when its type is a newer one."""
    at = join(path, "source")
    source = as_object(required(body, "source", path), at)
    kind = _string(source, "type", at)
    if kind not in _SOURCES:
        return None, {}
    key, neutral = _SOURCES[kind]
    data = _string(source, key, at)
    if kind == "base64":
        as_base64(data, join(at, key))
        _string(source, "media_type", at)
    media_type = optional_str(source, "media_type", at)
    left = rest(source, {"type", key, "media_type"})
    extra = {"source": left} if left else {}
    return Source(kind=neutral, data=data, media_type=media_type), extra


def _image(body: JsonObject, path: str) -> Block:
    source, left = _source(body, path)
    if source is None:
        return _opaque(body, path)
    common = _common(body, path, "source")
    return Image(source=source, cache=common["cache"], extra={**common["extra"], **left})


def _document(body: JsonObject, path: str) -> Block:
    source, left = _source(body, path)
    if source is None:
        return _opaque(body, path)
    common = _common(body, path, "source", "title", "context", "citations")
    citations, newer = _citations(body, path)
    return Document(
        source=source,
        name=optional_str(body, "title", path),
        context=optional_str(body, "context", path),
        citations=citations,
        cache=common["cache"],
        extra={**common["extra"], **left, **newer},
    )


def _citations(body: JsonObject, path: str) -> tuple[bool | None, JsonObject]:
    value = body.get("citations")
    if value is None:
        return None, {}
    at = join(path, "citations")
    enabled = optional_bool(as_object(value, at), "enabled", at)
    return (None, {"citations": value}) if set(value) != {"enabled"} else (enabled, {})


def _thinking(body: JsonObject, path: str) -> Thinking:
    return Thinking(
        text=_string(body, "thinking", path),
        signature=optional_str(body, "signature", path),
        extra=rest(body, {"type", "thinking", "signature"}),
    )


def _redacted(body: JsonObject, path: str) -> Thinking:
    return Thinking(redacted=_string(body, "data", path), extra=rest(body, {"type", "data"}))


def _tool_use(body: JsonObject, path: str) -> ToolCall:
    at = join(path, "input")
    value = as_object(required(body, "input", path), at)
    try:
        arguments = msgspec.json.encode(value).decode()
    except RecursionError as exc:
        raise BadRequest("is nested too deeply", param=at) from exc
    name = _required_name(body, path)
    common = _common(body, path, "id", "name", "input")
    return ToolCall(id=_string(body, "id", path), name=name, arguments=arguments, **common)


def _tool_result(body: JsonObject, path: str) -> ToolResult:
    content = body.get("content")
    at = join(path, "content")
    blocks: tuple[Block, ...] = ()
    if isinstance(content, str):
        blocks = (Text(text=content),) if content else ()
    elif content is not None:
        # Only these kinds are legal in a result; a result within a result would recurse without end.
        blocks = tuple(_read_block(block, f"{at}[{i}]", _IN_RESULT) for i, block in enumerate(as_list(content, at)))
    return ToolResult(
        call_id=_string(body, "tool_use_id", path),
        blocks=blocks,
        is_error=bool(optional_bool(body, "is_error", path)),
        **_common(body, path, "tool_use_id", "content", "is_error"),
    )


def _tool_change(body: JsonObject, path: str) -> Block:
    at = join(path, "tool")
    target = as_object(required(body, "tool", path), at)
    kind = _string(target, "type", at)
    action: Literal["add", "remove"] = "add" if body["type"] == "tool_addition" else "remove"
    common = _common(body, path, "tool")
    if kind == "tool_reference" and not rest(target, {"type", "name"}):
        return ToolChange(action=action, name=_required_name(target, at), **common)
    if kind == "tool_definition" and action == "add" and not rest(target, {"type", "definition"}):
        tool = read_tool(required(target, "definition", at), join(at, "definition"))
        return ToolChange(action="add", name=tool.name, tool=tool, **common)
    return _opaque(body, path)  # a whole MCP toolset, or what comes next


_IN_RESULT: Mapping[str, _BlockReader] = {"text": _text, "image": _image, "document": _document}
_READERS: Mapping[str, _BlockReader] = {
    **_IN_RESULT,
    "thinking": _thinking,
    "redacted_thinking": _redacted,
    "tool_use": _tool_use,
    "tool_result": _tool_result,
    "tool_addition": _tool_change,
    "tool_removal": _tool_change,
}
