"""Reads a Messages request."""

from __future__ import annotations

from typing import Any, Literal

from orqen_ray.conversation import Conversation, JsonObject, Message, OutputFormat, Reasoning, Role, ToolChoice
from orqen_ray.errors import BadRequest
from orqen_ray.formats.anthropic_messages.blocks import read_cache, read_content, read_tool
from orqen_ray.formats.reading import (
    as_list,
    as_object,
    as_str,
    check_tool_results,
    join,
    optional_bool,
    optional_int,
    optional_number,
    optional_str,
    required,
    rest,
)

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
_CHOICES: dict[str, Literal["auto", "none", "any", "tool"]] = {
    "auto": "auto",
    "none": "none",
    "any": "any",
    "tool": "tool",
}
_THINKING: dict[str, Literal["on", "adaptive", "off"]] = {"enabled": "on", "adaptive": "adaptive", "disabled": "off"}
_SAMPLING = ("temperature", "top_p", "top_k")
_KNOWN = frozenset(
    {
        *("model", "messages", "system", "max_tokens", "tools", "tool_choice", "stop_sequences", "stream"),
        *("thinking", "output_config", "output_format", "cache_control", "metadata", "service_tier", *_SAMPLING),
    }
)


def read_request(body: JsonObject, model: str | None) -> Conversation:
    """The conversation in a request to `/v1/messages`. `model` is the URL's, when the body has none.

    Fields at their default (null, `stream: false`, an empty list, a tool's `type: custom`) are read as absent; the
    former `output_format` is read as `output_config.format`, which replaced it.

    Raises:
        BadRequest: naming the path of the first field that is wrong.
    """
    conversation = read_count_request(body, model)
    if conversation.max_tokens is None:
        raise BadRequest("is required", param="max_tokens")
    return conversation


def read_count_request(body: JsonObject, model: str | None) -> Conversation:
    """The same for `/v1/messages/count_tokens`, which takes no `max_tokens`."""
    reasoning, output_format, newer = _read_output(body)
    choice, parallel, choice_newer = _read_tool_choice(body)
    marker, marker_newer = read_cache(body, "")
    metadata = _object(body, "metadata")
    if metadata_left := rest(metadata, {"user_id"}):
        newer["metadata"] = metadata_left
    conversation = Conversation(
        format="anthropic_messages",
        model=_read_model(body, model),
        messages=_read_messages(as_list(required(body, "messages", ""), "messages")),
        system=() if body.get("system") is None else read_content(body["system"], "system"),
        tools=tuple(read_tool(tool, f"tools[{i}]") for i, tool in enumerate(_list(body, "tools"))),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        max_tokens=optional_int(body, "max_tokens", ""),
        stop=tuple(as_str(word, f"stop_sequences[{i}]") for i, word in enumerate(_list(body, "stop_sequences"))),
        sampling={name: value for name in _SAMPLING if (value := optional_number(body, name, "")) is not None},
        reasoning=reasoning,
        output_format=output_format,
        stream=bool(optional_bool(body, "stream", "")),
        include_usage=True,
        auto_cache=marker,
        user=optional_str(metadata, "user_id", "metadata"),
        service_tier=optional_str(body, "service_tier", ""),
        extra={**rest(body, _KNOWN), **newer, **choice_newer, **marker_newer},
    )
    return check_tool_results(conversation)


def _list(body: JsonObject, key: str) -> list[Any]:
    value = body.get(key)
    return [] if value is None else as_list(value, key)


def _object(body: JsonObject, key: str, path: str = "") -> JsonObject:
    value = body.get(key)
    return {} if value is None else as_object(value, join(path, key))


def _read_model(body: JsonObject, model: str | None) -> str:
    if body.get("model") is None and model:
        return model
    name = as_str(required(body, "model", ""), "model")
    if not name:
        raise BadRequest("is empty", param="model")
    return name


def _read_messages(messages: list[Any]) -> tuple[Message, ...]:
    if not messages:
        raise BadRequest("at least one message is required", param="messages")
    return tuple(_read_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _read_message(value: object, path: str) -> Message:
    message = as_object(value, path)
    role = as_str(required(message, "role", path), join(path, "role"))
    if role not in _ROLES:
        raise BadRequest(f"unknown role {role[:80]!r}; expected user, assistant or system", param=join(path, "role"))
    # A system message may consist of `output_config` alone.
    content = message.get("content", []) if role == "system" else required(message, "content", path)
    return Message(
        role=_ROLES[role],
        blocks=read_content(content, join(path, "content")),
        extra=rest(message, {"role", "content"}),
    )


def _read_tool_choice(body: JsonObject) -> tuple[ToolChoice | None, bool | None, JsonObject]:
    """The choice, whether calls may be parallel, and the field itself when its type is newer than this code."""
    if body.get("tool_choice") is None:
        return None, None, {}
    choice = as_object(body["tool_choice"], "tool_choice")
    kind = as_str(required(choice, "type", "tool_choice"), "tool_choice.type")
    if kind not in _CHOICES:
        return None, None, {"tool_choice": choice}
    names = (as_str(required(choice, "name", "tool_choice"), "tool_choice.name"),) if kind == "tool" else ()
    single = optional_bool(choice, "disable_parallel_tool_use", "tool_choice")
    known = {"type", "disable_parallel_tool_use", *(("name",) if names else ())}
    read = ToolChoice(mode=_CHOICES[kind], names=names, extra=rest(choice, known))
    return read, None if single is None else not single, {}


def _read_output(body: JsonObject) -> tuple[Reasoning | None, OutputFormat | None, JsonObject]:
    """How to think, the format of the answer, and those parts of `thinking` and `output_config` not known here."""
    newer: JsonObject = {}
    thinking = _object(body, "thinking")
    kind = optional_str(thinking, "type", "thinking")
    mode = _THINKING.get(kind or "")
    if left := rest(thinking, {"budget_tokens", "display", *(("type",) if mode else ())}):
        newer["thinking"] = left
    config = _object(body, "output_config")
    wire = _object(config, "format", "output_config")
    output_format = _read_format(wire, "output_config.format")
    if not wire:
        wire = _object(body, "output_format")
        output_format = _read_format(wire, "output_format")
    left = rest(config, {"effort", "format"})
    if wire and output_format is None:
        left["format"] = wire
    if left:
        newer["output_config"] = left
    reasoning = Reasoning(
        mode=mode,
        budget_tokens=optional_int(thinking, "budget_tokens", "thinking"),
        effort=optional_str(config, "effort", "output_config"),
        display=optional_str(thinking, "display", "thinking"),
    )
    return (None if reasoning == Reasoning() else reasoning), output_format, newer


def _read_format(wire: JsonObject, path: str) -> OutputFormat | None:
    if wire.get("type") != "json_schema" or rest(wire, {"type", "schema"}):
        return None
    schema = as_object(required(wire, "schema", path), join(path, "schema"))
    return OutputFormat(kind="schema", schema=schema)
