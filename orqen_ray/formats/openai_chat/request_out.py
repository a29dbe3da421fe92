"""Writes a conversation as a Chat Completions request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from orqen_ray.conversation import Conversation, JsonObject, Message, OutputFormat, Tool, ToolResult
from orqen_ray.formats.openai_chat.blocks import (
    REASONING_FIELDS,
    overlaid,
    write_assistant,
    write_cache,
    write_content,
)
from orqen_ray.formats.openai_chat.localize import localize
from orqen_ray.formats.openai_chat.request_in import (
    EXTENSIONS,
    HEAD_FIELDS,
    KNOWN,
    NAME,
    read_head,
    read_message,
    read_tool,
)
from orqen_ray.formats.reading import rest
from orqen_ray.types import Capabilities, Written


def write_request(conversation: Conversation, model: str, capabilities: Capabilities) -> Written:
    """The request body.

    A conversation that came in this format is written as it was spelled, wherever it still says the same; one of
    another format is first made one of this, and what got lost on the way is named.
    """
    dropped: tuple[str, ...] = ()
    if conversation.format != NAME:
        adapted = localize(conversation, capabilities)
        conversation, dropped = adapted.conversation, adapted.dropped
    wire = conversation.wire or {}
    body: JsonObject = {
        "model": model,
        "messages": [written for message in conversation.messages for written in write_messages(message)],
    }
    if conversation.tools:
        body["tools"] = [write_tool(tool) for tool in conversation.tools]
    elif not wire.get("tools", True):
        body["tools"] = wire["tools"]
    body |= _write_head(conversation, wire, capabilities)
    order = {key: position for position, key in enumerate(wire)}
    return Written(body=dict(sorted(body.items(), key=lambda item: order.get(item[0], len(order)))), dropped=dropped)


# --- Messages ---------------------------------------------------------------------------------------------------


def write_messages(message: Message) -> Iterator[JsonObject]:
    """The message on the wire; each of several tool results, and what stands beside them, is a message of its own."""
    if message.wire is not None and read_message(message.wire, "messages") == message:
        yield message.wire
        return
    results = [block for block in message.blocks if isinstance(block, ToolResult)]
    for result in results:
        content = write_content(result.blocks)
        yield {"role": "tool", "tool_call_id": result.call_id, "content": content, **message.extra, **result.extra}
    if results and len(results) == len(message.blocks):
        return
    blocks = tuple(block for block in message.blocks if not isinstance(block, ToolResult))
    if message.role == "assistant":
        yield {"role": "assistant", **write_assistant(blocks, _reasoning_field(message)), **message.extra}
    else:
        role = message.role if results else message.wire_role or message.role
        yield {"role": role, "content": write_content(blocks), **message.extra}


def _reasoning_field(message: Message) -> str:
    return next((field for field in REASONING_FIELDS if field in (message.wire or {})), REASONING_FIELDS[0])


# --- Tools ------------------------------------------------------------------------------------------------------


def write_tool(tool: Tool) -> JsonObject:
    if tool.wire is not None and read_tool(tool.wire, "tools") == tool:
        return _without_extensions(tool.wire)
    if tool.raw is not None:
        return tool.raw
    kind = "custom" if tool.custom else "function"
    inner = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    written = {"name": tool.name, **{key: value for key, value in inner.items() if value is not None}}
    out: JsonObject = {"type": kind, kind: written}
    if tool.defer_loading is not None:
        out["defer_loading"] = tool.defer_loading
    if tool.cache:
        out["cache_control"] = write_cache(tool.cache)
    return overlaid(out, tool.extra)


def _without_extensions(wire: JsonObject) -> JsonObject:
    function = wire.get("function")
    if not isinstance(function, dict) or not any(key in function for key in EXTENSIONS):
        return wire
    return {**wire, "function": rest(function, EXTENSIONS)}


# --- The head ---------------------------------------------------------------------------------------------------


def _write_head(conversation: Conversation, wire: JsonObject, capabilities: Capabilities) -> JsonObject:
    received = read_head(wire)
    out: JsonObject = {}
    for attribute, keys in HEAD_FIELDS.items():
        if wire and received[attribute] == getattr(conversation, attribute):
            out |= {key: wire[key] for key in keys if key in wire}
        else:
            out |= _HEAD[attribute](conversation)
    if not wire and "max_completion_tokens" in out:
        out[capabilities.max_tokens_field] = out.pop("max_completion_tokens")
    if wire and received["extra"] == conversation.extra:
        return out | {key: value for key, value in wire.items() if key not in KNOWN}
    return out | dict(conversation.extra)


def _single(key: str, attribute: str) -> Callable[[Conversation], JsonObject]:
    def write(conversation: Conversation) -> JsonObject:
        value = getattr(conversation, attribute)
        return {} if value is None else {key: value}

    return write


def _tool_choice(conversation: Conversation) -> JsonObject:
    choice = conversation.tool_choice
    if choice is None:
        return {}
    value: Any = {"any": "required"}.get(choice.mode, choice.mode)
    custom = {tool.name for tool in conversation.tools if tool.custom}
    named = [_named(name, "custom" if name in custom else "function") for name in choice.names]
    if choice.mode == "tool":
        value = named[0]
    elif choice.mode == "allowed":
        allowed = {"mode": "required" if choice.required else "auto", "tools": named}
        value = {"type": "allowed_tools", "allowed_tools": allowed}
    return {"tool_choice": value}


def _named(name: str, kind: str) -> JsonObject:
    return {"type": kind, kind: {"name": name}}


def _max_tokens(conversation: Conversation) -> JsonObject:
    if conversation.max_tokens is None:
        return {}
    named = [key for key in HEAD_FIELDS["max_tokens"] if (conversation.wire or {}).get(key) is not None]
    return {(named or ["max_completion_tokens"])[0]: conversation.max_tokens}


def _reasoning(conversation: Conversation) -> JsonObject:
    reasoning = conversation.reasoning
    if reasoning is None:
        return {}
    effort = "none" if reasoning.mode == "off" else reasoning.effort
    return {} if effort is None else {"reasoning_effort": effort}


def _output_format(conversation: Conversation) -> JsonObject:
    wanted = conversation.output_format
    if wanted is None:
        return {}
    if wanted.kind != "schema":
        return {"response_format": {"type": "text" if wanted.kind == "text" else "json_object"}}
    return {"response_format": {"type": "json_schema", "json_schema": _schema(wanted)}}


def _schema(wanted: OutputFormat) -> JsonObject:
    spec = {"description": wanted.description, "schema": wanted.schema, "strict": wanted.strict}
    return {"name": wanted.name or "response", **{key: value for key, value in spec.items() if value is not None}}


def _stream_options(conversation: Conversation) -> JsonObject:
    options = dict((conversation.wire or {}).get("stream_options") or {})
    if conversation.include_usage:
        options["include_usage"] = True
    else:
        options.pop("include_usage", None)
    return {"stream_options": options} if options else {}


_HEAD: dict[str, Callable[[Conversation], JsonObject]] = {
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _single("parallel_tool_calls", "parallel_tool_calls"),
    "max_tokens": _max_tokens,
    "stop": lambda conversation: {"stop": list(conversation.stop)} if conversation.stop else {},
    "sampling": lambda conversation: dict(conversation.sampling),
    "reasoning": _reasoning,
    "output_format": _output_format,
    "stream": lambda conversation: {"stream": True} if conversation.stream else {},
    "include_usage": _stream_options,
    "auto_cache": lambda c: {"cache_control": write_cache(c.auto_cache)} if c.auto_cache else {},
    "user": _single("user", "user"),
    "service_tier": _single("service_tier", "service_tier"),
}
