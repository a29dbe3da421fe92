"""Reads a Chat Completions request into a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orqen_ray.conversation import (
    Conversation,
    FormatName,
    JsonObject,
    Message,
    Opaque,
    OutputFormat,
    Reasoning,
    Role,
    Text,
    Tool,
    ToolChoice,
    ToolResult,
)
from orqen_ray.errors import BadRequest
from orqen_ray.formats.openai_chat.blocks import (
    CALL,
    REASONING_FIELDS,
    extra_of,
    read_assistant,
    read_cache,
    read_content,
    unknown,
)
from orqen_ray.formats.reading import (
    as_list,
    as_object,
    as_str,
    check_tool_results,
    expected,
    optional_bool,
    optional_int,
    optional_number,
    optional_str,
    required,
)

NAME: FormatName = "openai_chat"
EXTENSIONS = ("x-orqen-examples", "x-orqen-keep")

# Which top-level fields each part of the head is read from.
SAMPLING: dict[str, Callable[[Mapping[str, Any], str, str], Any]] = {
    "temperature": optional_number,
    "top_p": optional_number,
    "top_k": optional_int,
    "frequency_penalty": optional_number,
    "presence_penalty": optional_number,
    "seed": optional_int,
    "n": optional_int,
    "logprobs": optional_bool,
    "top_logprobs": optional_int,
    "logit_bias": lambda body, key, _: None if body.get(key) is None else as_object(body[key], key),
}
HEAD_FIELDS: dict[str, tuple[str, ...]] = {
    "tool_choice": ("tool_choice",),
    "parallel_tool_calls": ("parallel_tool_calls",),
    "max_tokens": ("max_completion_tokens", "max_tokens"),
    "stop": ("stop",),
    "sampling": tuple(SAMPLING),
    "reasoning": ("reasoning_effort",),
    "output_format": ("response_format",),
    "stream": ("stream",),
    "include_usage": ("stream_options",),
    "auto_cache": ("cache_control",),
    "user": ("user",),
    "service_tier": ("service_tier",),
}
KNOWN = {"model", "messages", "tools", *(key for keys in HEAD_FIELDS.values() for key in keys)}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}

_SPEAKERS = ("user", "assistant", "system")
"""Roles of which nearly every message has a text and nothing else: a long conversation is read six times as fast so."""


def read_request(body: JsonObject, model: str | None) -> Conversation:
    """The conversation in a request body; every message stays in `messages`, `system` is empty.

    Args:
        model: the model that the URL names, if it does.

    Raises:
        BadRequest: a field that is missing or of the wrong type, or a tool message that answers no call.
    """
    model = model or as_str(required(body, "model", ""), "model")
    if not model:
        raise BadRequest("is empty", param="model")
    messages = as_list(required(body, "messages", ""), "messages")
    if not messages:
        raise BadRequest("must hold at least one message", param="messages")
    tools = body.get("tools")
    conversation = Conversation(
        format=NAME,
        model=model,
        messages=tuple(read_message(message, f"messages[{i}]") for i, message in enumerate(messages)),
        tools=()
        if tools is None
        else tuple(read_tool(t, f"tools[{i}]") for i, t in enumerate(as_list(tools, "tools"))),
        **read_head(body),
        wire=body,
    )
    # A call of a newer kind is not read, so a result may answer it unseen.
    if any(isinstance(b, Opaque) and b.kind.startswith(CALL) for m in conversation.messages for b in m.blocks):
        return conversation
    return check_tool_results(conversation)


# --- Messages ---------------------------------------------------------------------------------------------------


def read_message(value: object, path: str) -> Message:
    wire = as_object(value, path)
    if len(wire) == 2 and isinstance(text := wire.get("content"), str) and wire.get("role") in _SPEAKERS:
        return Message(role=_ROLES[wire["role"]], blocks=(Text(text=text),) if text else (), wire=wire)
    wire_role = as_str(required(wire, "role", path), f"{path}.role")
    if wire_role not in _ROLES:
        raise BadRequest(f"unknown role {wire_role[:80]!r}; expected one of {', '.join(_ROLES)}", param=f"{path}.role")
    known = {"role", "content"}
    if wire_role == "assistant":
        known |= {"refusal", "tool_calls", *(key for key in REASONING_FIELDS if isinstance(wire.get(key), str))}
        blocks = read_assistant(wire, path)
    elif wire_role == "tool":
        known.add("tool_call_id")
        call_id = as_str(required(wire, "tool_call_id", path), f"{path}.tool_call_id")
        blocks = (ToolResult(call_id=call_id, blocks=_read_answer(wire, path)),)
    elif wire_role == "function":
        blocks = _read_answer(wire, path)
    else:
        blocks = read_content(required(wire, "content", path), f"{path}.content")
    return Message(
        role=_ROLES[wire_role],
        blocks=blocks,
        wire_role=None if wire_role == _ROLES[wire_role] else wire_role,
        extra=unknown(wire, known),
        wire=wire,
    )


def _read_answer(message: JsonObject, path: str) -> tuple[Any, ...]:
    content = required(message, "content", path)
    return () if content is None else read_content(content, f"{path}.content")


# --- Tools ------------------------------------------------------------------------------------------------------


def read_tool(value: object, path: str) -> Tool:
    wire = as_object(value, path)
    kind = optional_str(wire, "type", path) or "function"
    if kind not in ("function", "custom"):
        name = wire.get("name")
        return Tool(name=name if isinstance(name, str) else kind, raw=wire, wire=wire)
    path = f"{path}.{kind}"
    inner = as_object(required(wire, kind, path.removesuffix(f".{kind}")), path)
    parameters = inner.get("parameters") if kind == "function" else None
    cache = read_cache(wire)
    known = {"type", "defer_loading"} | ({"cache_control"} if cache else set())
    inner_known = {"name", "description", "strict", "parameters", *EXTENSIONS}
    return Tool(
        name=as_str(required(inner, "name", path), f"{path}.name"),
        description=optional_str(inner, "description", path),
        parameters=None if parameters is None else as_object(parameters, f"{path}.parameters"),
        strict=optional_bool(inner, "strict", path),
        defer_loading=optional_bool(wire, "defer_loading", path.removesuffix(f".{kind}")),
        custom=kind == "custom",
        cache=cache,
        examples=_read_examples(inner, path),
        keep=optional_bool(inner, "x-orqen-keep", path) or False,
        extra=extra_of(wire, known, kind, inner, inner_known),
        wire=wire,
    )


def _read_examples(function: JsonObject, path: str) -> tuple[str, ...]:
    path = f"{path}.x-orqen-examples"
    examples = function.get("x-orqen-examples")
    return () if examples is None else tuple(as_str(e, f"{path}[{i}]") for i, e in enumerate(as_list(examples, path)))


_CHOICES: dict[str, ToolChoice] = {
    "auto": ToolChoice(mode="auto"),
    "none": ToolChoice(mode="none"),
    "required": ToolChoice(mode="any"),
}


def read_tool_choice(value: object) -> ToolChoice | None:
    """None for a kind that is newer than this code."""
    if isinstance(value, str):
        return _CHOICES.get(value)
    choice = as_object(value, "tool_choice")
    kind = as_str(required(choice, "type", "tool_choice"), "tool_choice.type")
    if kind == "allowed_tools":
        return _read_allowed(as_object(required(choice, kind, "tool_choice"), f"tool_choice.{kind}"))
    if kind not in ("function", "custom"):
        return None
    named = as_object(required(choice, kind, "tool_choice"), f"tool_choice.{kind}")
    name = as_str(required(named, "name", f"tool_choice.{kind}"), f"tool_choice.{kind}.name")
    return ToolChoice(mode="tool", names=(name,))


def _read_allowed(allowed: JsonObject) -> ToolChoice | None:
    path = "tool_choice.allowed_tools.tools"
    names = []
    for i, tool in enumerate(as_list(required(allowed, "tools", path.removesuffix(".tools")), path)):
        entry = as_object(tool, f"{path}[{i}]")
        named = entry.get(str(entry.get("type")))
        if not isinstance(named, dict) or not isinstance(named.get("name"), str):
            return None
        names.append(named["name"])
    return ToolChoice(mode="allowed", names=tuple(names), required=allowed.get("mode") == "required")


# --- The head ---------------------------------------------------------------------------------------------------


def read_head(body: JsonObject) -> dict[str, Any]:
    """The fields of a conversation that stand beside its messages and tools, by attribute; `extra` is among them."""
    tool_choice, response_format = body.get("tool_choice"), body.get("response_format")
    choice = None if tool_choice is None else read_tool_choice(tool_choice)
    output_format = None if response_format is None else _read_output_format(response_format)
    options = body.get("stream_options")
    options = {} if options is None else as_object(options, "stream_options")
    cache = read_cache(body)
    extra = unknown(body, KNOWN)
    newer = {"tool_choice": choice, "response_format": output_format, "cache_control": cache}
    extra |= {key: body[key] for key, read in newer.items() if read is None and body.get(key) is not None}
    max_tokens = optional_int(body, "max_completion_tokens", "")
    return {
        "tool_choice": choice,
        "parallel_tool_calls": optional_bool(body, "parallel_tool_calls", ""),
        "max_tokens": optional_int(body, "max_tokens", "") if max_tokens is None else max_tokens,
        "stop": _read_stop(body.get("stop")),
        "sampling": _read_sampling(body),
        "reasoning": _read_reasoning(optional_str(body, "reasoning_effort", "")),
        "output_format": output_format,
        "stream": optional_bool(body, "stream", "") or False,
        "include_usage": optional_bool(options, "include_usage", "stream_options") or False,
        "auto_cache": cache,
        "user": optional_str(body, "user", ""),
        "service_tier": optional_str(body, "service_tier", ""),
        "extra": extra,
    }


def _read_sampling(body: JsonObject) -> dict[str, Any]:
    sampling = {key: read(body, key, "") for key, read in SAMPLING.items() if body.get(key) is not None}
    if sampling.get("n", 1) < 1:
        raise BadRequest("must be 1 or more", param="n")
    return sampling


def _read_stop(value: object) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    if not isinstance(value, list):
        raise expected("stop", "a string or an array of strings", value)
    return tuple(as_str(item, f"stop[{i}]") for i, item in enumerate(value))


def _read_reasoning(effort: str | None) -> Reasoning | None:
    if effort is None:
        return None
    return Reasoning(mode="off") if effort == "none" else Reasoning(mode="on", effort=effort)


def _read_output_format(value: object) -> OutputFormat | None:
    """None for a kind that is newer than this code."""
    wanted = as_object(value, "response_format")
    kind = as_str(required(wanted, "type", "response_format"), "response_format.type")
    if kind in ("text", "json_object"):
        return OutputFormat(kind="text" if kind == "text" else "json")
    if kind != "json_schema":
        return None
    path = "response_format.json_schema"
    spec = as_object(required(wanted, "json_schema", "response_format"), path)
    schema = spec.get("schema")
    return OutputFormat(
        kind="schema",
        schema=None if schema is None else as_object(schema, f"{path}.schema"),
        name=optional_str(spec, "name", path),
        description=optional_str(spec, "description", path),
        strict=optional_bool(spec, "strict", path),
    )
