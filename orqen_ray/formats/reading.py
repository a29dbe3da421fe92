"""Small readers of decoded JSON that say, in a BadRequest, which field was wrong and what was expected."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from orqen_ray.conversation import Conversation, JsonObject, ToolCall, ToolResult
from orqen_ray.errors import BadRequest

# "model" with any of its letters escaped.
_MODEL_KEY = re.compile(rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"', re.ASCII)
_NAMES: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    type(None): "null",
}


def decode_object(body: bytes) -> JsonObject:
    """The JSON object in `body`.

    Raises:
        BadRequest: empty, not UTF-8, not JSON, too deep, or not an object.
    """
    if not body.strip():
        raise BadRequest("the body is empty; expected a JSON object")
    try:
        value = msgspec.json.decode(body)
    except RecursionError as exc:
        raise BadRequest("the body is nested too deeply") from exc
    except UnicodeDecodeError as exc:
        raise BadRequest(f"the body is not UTF-8: byte {exc.start} cannot be decoded") from exc
    except msgspec.DecodeError as exc:
        raise BadRequest(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, not {name_of(value)}")
    if "model" in value:
        _refuse_two_models(body)
    return value


def _refuse_two_models(body: bytes) -> None:
    """Of a repeated key this gateway reads the last and a provider, given the same bytes, perhaps the first.

    Then another model would be billed than the one that was checked, priced and traced.
    """
    if body.count(b'"model"') < 2 and not (b"\\u00" in body and len(_MODEL_KEY.findall(body)) > 1):
        return
    top_level: list[str] = []

    def keys_of(pairs: list[tuple[str, Any]]) -> None:
        top_level[:] = [key for key, _ in pairs]  # the outermost object is read last

    try:
        json.loads(body, object_pairs_hook=keys_of, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as exc:
        raise BadRequest("the body is nested too deeply") from exc
    if top_level.count("model") > 1:
        raise BadRequest("is there more than once", param="model")


class bounded_depth:  # a context manager is called like a function; this one runs for each request
    """What could be decoded may still be too deep to be written again, from further down the stack.

    Raises:
        BadRequest: instead of RecursionError.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        if isinstance(error, RecursionError):
            raise BadRequest("the body is nested too deeply") from error


def name_of(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    return _NAMES.get(type(value), type(value).__name__)


def expected(path: str, what: str, value: object) -> BadRequest:
    return BadRequest(f"expected {what}, got {name_of(value)}", param=path)


def as_object(value: object, path: str) -> JsonObject:
    if not isinstance(value, dict):
        raise expected(path, "an object", value)
    return value


def as_list(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise expected(path, "an array", value)
    return value


def as_str(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise expected(path, "a string", value)
    return value


def required(body: Mapping[str, Any], key: str, path: str) -> Any:
    if key not in body:
        raise BadRequest("is required", param=join(path, key))
    return body[key]


def optional_str(body: Mapping[str, Any], key: str, path: str) -> str | None:
    value = body.get(key)
    return None if value is None else as_str(value, join(path, key))


def optional_bool(body: Mapping[str, Any], key: str, path: str) -> bool | None:
    value = body.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise expected(join(path, key), "true or false", value)


def optional_int(body: Mapping[str, Any], key: str, path: str) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise expected(join(path, key), "an integer", value)
    return value


def optional_number(body: Mapping[str, Any], key: str, path: str) -> int | float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise expected(join(path, key), "a number", value)
    return value


def as_base64(value: object, path: str) -> str:
    """`value` itself, once it is known to be base64 text."""
    text = as_str(value, path)
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest(f"is not base64: {exc}", param=path) from exc
    return text


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def rest(body: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of `body` that are not `known`."""
    return {key: value for key, value in body.items() if key not in known}


def check_tool_results(conversation: Conversation) -> Conversation:
    """`conversation` itself, once each tool result answers a call that stands before it.

    Raises:
        BadRequest: an orphan result.
    """
    called: set[str] = set()
    for i, message in enumerate(conversation.messages):
        for block in message.blocks:
            if isinstance(block, ToolCall):
                called.add(block.id)
            elif isinstance(block, ToolResult) and block.call_id not in called:
                call_id = block.call_id[:80]
                raise BadRequest(
                    f"this tool result answers the call {call_id!r}, which no earlier assistant message makes",
                    param=f"messages[{i}]",
                )
    return conversation
