"""Conversations of other formats, made such that the Messages API takes them; what it cannot take is named."""

from __future__ import annotations

from dataclasses import replace

from orqen_ray.conversation import Conversation, JsonObject, Tool, ToolChoice
from orqen_ray.formats.adapt import tools_called
from orqen_ray.types import Capabilities


def legal_conversation(conversation: Conversation, capabilities: Capabilities, dropped: list[str]) -> Conversation:
    """`conversation` with tools, a tool choice and stop sequences that the vendor takes."""
    choice = conversation.tool_choice
    tools = _legal_tools(conversation.tools, choice, capabilities, dropped)
    choice = _legal_choice(choice, tools, dropped)
    if all(tool.raw is not None for tool in tools) and (called := tools_called(conversation.messages)):
        # Nothing is offered, so nothing may be called.
        tools, choice = (*tools, *called), ToolChoice(mode="none")
    stop = _legal_stop(conversation.stop, dropped)
    return replace(conversation, tools=tools, tool_choice=choice, stop=stop)


def strip_prefill(message: JsonObject) -> None:
    """Take the white space off the end of the text that the model shall go on from: the vendor refuses it."""
    block = message["content"][-1]
    if message["role"] == "assistant" and block["type"] == "text":
        block["text"] = block["text"].rstrip()


def _legal_tools(
    tools: tuple[Tool, ...], choice: ToolChoice | None, capabilities: Capabilities, dropped: list[str]
) -> tuple[Tool, ...]:
    """Only the allowed tools, as the vendor cannot be told to call no other; `strict` only where it is known."""
    if choice is not None and choice.mode == "allowed":
        allowed = frozenset(choice.names)
        tools = tuple(tool for tool in tools if tool.name in allowed)
    if not capabilities.structured_output and any(tool.strict for tool in tools):
        tools = tuple(replace(tool, strict=None) for tool in tools)
        dropped.append("tools.strict")
    return tools


def _legal_choice(choice: ToolChoice | None, tools: tuple[Tool, ...], dropped: list[str]) -> ToolChoice | None:
    """The choice, unless it asks for the call of a tool that is not there."""
    if choice is None or not (choice.mode in ("any", "tool") or choice.required):
        return choice
    offered = {tool.name for tool in tools if tool.raw is None}
    if choice.mode == "tool":
        offered &= {choice.names[0]}
    if not offered:
        dropped.append("tool_choice")
    return choice if offered else None


def _legal_stop(stop: tuple[str, ...], dropped: list[str]) -> tuple[str, ...]:
    """Source: https://github.com/BerriAI/litellm/issues/3286 ("must contain non-whitespace")."""
    legal = tuple(text for text in stop if text.strip())
    if len(legal) < len(stop):
        dropped.append("stop")
    return legal
