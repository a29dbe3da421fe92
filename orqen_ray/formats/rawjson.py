"""Edits of single fields of a JSON body that leave every other value as the caller wrote it, byte for byte."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from orqen_ray.errors import BadRequest

_EXTENSION = b"x-orqen-"
_EXTENSIONS = ("x-orqen-examples", "x-orqen-keep")
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])


def top_level(body: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The fields of the JSON object in `body`, in order, their values not decoded.

    Raises:
        BadRequest: not a JSON object.
    """
    try:
        return _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest("the body is not a JSON object") from exc


def array(raw: bytes | msgspec.Raw) -> list[msgspec.Raw]:
    """The elements of a JSON array, not decoded."""
    return _ARRAY.decode(raw)


def splice(body: bytes, replace: Mapping[str, bytes], remove: Collection[str] = ()) -> bytes:
    """`body` with top-level fields set to the JSON in `replace`, or removed.

    Other values keep their bytes and their order; new fields come last. When nothing changes, `body` itself comes back.

    Raises:
        BadRequest: not a JSON object.
    """
    if not replace and not remove:
        return body
    fields = top_level(body)
    changed = {key: value for key, value in replace.items() if key not in fields or bytes(fields[key]) != value}
    removed = [key for key in remove if key in fields]
    if not changed and not removed:
        return body
    fields.update((key, msgspec.Raw(value)) for key, value in changed.items())
    for key in removed:
        del fields[key]
    return msgspec.json.encode(fields)


def strip_tool_extensions(body: bytes) -> bytes:
    """`body` without the gateway's own fields of each tool's `function`; tools that have none keep their bytes.

    When no tool has any, `body` itself is returned; so is a body of the wrong shape, which its reader refuses.
    """
    if _EXTENSION not in body:
        return body
    try:
        tools = _ARRAY.decode(_OBJECT.decode(body)["tools"])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    stripped = [_strip_tool(tool) for tool in tools]
    if all(new is old for new, old in zip(stripped, tools, strict=True)):
        return body
    return splice(body, {"tools": msgspec.json.encode(stripped)})


def _strip_tool(tool: msgspec.Raw) -> msgspec.Raw:
    if _EXTENSION not in bytes(tool):
        return tool
    try:
        fields = _OBJECT.decode(tool)
        function = _OBJECT.decode(fields["function"])
    except (KeyError, msgspec.DecodeError):
        return tool
    kept = {key: value for key, value in function.items() if key not in _EXTENSIONS}
    if len(kept) == len(function):
        return tool
    return msgspec.Raw(msgspec.json.encode({**fields, "function": msgspec.Raw(msgspec.json.encode(kept))}))
