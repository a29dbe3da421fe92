"""Tool names that the target's format would refuse: made legal on the way out, and the caller's own on the way back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from orqen_ray.conversation import (
    Block,
    BlockStart,
    Conversation,
    Event,
    FormatName,
    Message,
    Tool,
    ToolCall,
    ToolChange,
)

# Names of MCP tools carry their server's name and can be long; Anthropic takes 128 characters, the others 64:
# https://platform.openai.com/docs/api-reference/chat/create, https://docs.claude.com/en/api/messages,
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolSpecification.html
_MAX_CHARS: Mapping[FormatName, int] = {"openai_chat": 64, "anthropic_messages": 128, "bedrock_converse": 64}
_ILLEGAL = re.compile(r"[^a-zA-Z0-9_-]")
_HASH_CHARS = 8

AnyBlock = TypeVar("AnyBlock", bound=Block)


def legal_tool_names(conversation: Conversation, target: FormatName) -> tuple[Conversation, Mapping[str, str]]:
    """The conversation with names that `target` takes, and for each new name the caller's own.

    A name is always changed in the same way, so a later turn repeats what an earlier one said.
    """
    legal = re.compile(rf"[a-zA-Z0-9_-]{{1,{_MAX_CHARS[target]}}}")
    renamed = {name: _legal(name, target) for name in set(_names(conversation)) if not legal.fullmatch(name)}
    if not renamed:
        return conversation, {}

    def renamed_tool(tool: Tool) -> Tool:
        return replace(tool, name=renamed[tool.name]) if tool.name in renamed and tool.raw is None else tool

    def renamed_block(block: Block) -> Block:
        if isinstance(block, ToolChange) and block.tool is not None:
            block = replace(block, tool=renamed_tool(block.tool))
        return _with_name(block, renamed)

    def renamed_message(message: Message) -> Message:
        return replace(message, blocks=tuple(renamed_block(block) for block in message.blocks))

    choice = conversation.tool_choice
    if choice is not None:
        choice = replace(choice, names=tuple(renamed.get(name, name) for name in choice.names))
    conversation = replace(
        conversation,
        tools=tuple(renamed_tool(tool) for tool in conversation.tools),
        messages=tuple(renamed_message(message) for message in conversation.messages),
        tool_choice=choice,
    )
    return conversation, {new: old for old, new in renamed.items()}


def own_name(block: AnyBlock, names: Mapping[str, str]) -> AnyBlock:
    """`block` under the caller's name for its tool."""
    return _with_name(block, names) if names else block


def own_name_event(event: Event, names: Mapping[str, str]) -> Event:
    """`event` under the caller's name for its tool."""
    if names and isinstance(event, BlockStart):
        return replace(event, block=_with_name(event.block, names))
    return event


def _with_name(block: AnyBlock, names: Mapping[str, str]) -> AnyBlock:
    if isinstance(block, ToolCall | ToolChange) and block.name in names:
        return replace(block, name=names[block.name])
    return block


def _names(conversation: Conversation) -> Iterator[str]:
    yield from (tool.name for tool in conversation.tools if tool.raw is None)
    yield from conversation.tool_choice.names if conversation.tool_choice else ()
    for message in conversation.messages:
        yield from (block.name for block in message.blocks if isinstance(block, ToolCall | ToolChange))


def _legal(name: str, target: FormatName) -> str:
    """A readable start of the name, and a hash of all of it, so that different names stay different."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_CHARS]
    return f"{_ILLEGAL.sub('_', name)[: _MAX_CHARS[target] - _HASH_CHARS - 1]}_{digest}"
