"""Whether a model can read a conversation: pure rules over the conversation and what is known of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from orqen_ray.conversation import (
    Block,
    Conversation,
    Document,
    FormatName,
    Image,
    Message,
    Opaque,
    Source,
    Thinking,
    ToolCall,
    ToolResult,
)
from orqen_ray.types import Capabilities

Obstacle = Literal[
    "images",
    "documents",
    "unreachable_source",
    "unknown_blocks",
    "tools",
    "built_in_tools",
    "structured_output",
    "context_window",
    "reasoning_in_tool_loop",
]
"""Why a model cannot take a conversation; a word for traces and logs."""

# Where each dialect can be told to find a medium; a file id means something to its own provider only.
_SOURCES: dict[FormatName, frozenset[str]] = {
    "openai_chat": frozenset({"base64", "url", "text", "file_id"}),
    "anthropic_messages": frozenset({"base64", "url", "text", "file_id"}),
    "bedrock_converse": frozenset({"base64", "text", "s3"}),
}
# Fields in which servers of OpenAI's dialect carry a model's sealed reasoning:
# https://ai.google.dev/gemini-api/docs/thought-signatures, https://openrouter.ai/docs/use-cases/reasoning-tokens
_SEALED_FIELDS = frozenset({"extra_content", "thought_signature", "reasoning_details"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model at a provider. `context_tokens`: the size of its window, None where nobody said it."""

    provider: str
    dialect: FormatName
    model_id: str
    capabilities: Capabilities
    context_tokens: int | None = None


def obstacles(
    conversation: Conversation, target: Target, *, input_tokens: int, home: Target | None = None
) -> tuple[Obstacle, ...]:
    """Why `target` cannot take `conversation`, every reason once; empty when it can.

    Args:
        input_tokens: an estimate of the whole prompt.
        home: the model that the conversation was held with so far, whose reasoning it may hold.
    """
    blocks = list(_all_blocks(conversation))
    can, found = target.capabilities, dict[Obstacle, None]()
    media = [block for block in blocks if isinstance(block, Image | Document)]
    if not can.images and any(isinstance(block, Image) for block in media):
        found["images"] = None
    if not can.documents and any(isinstance(block, Document) and block.source.kind != "text" for block in media):
        found["documents"] = None
    if any(not _reachable(block.source, target, home) for block in media):
        found["unreachable_source"] = None
    foreign = target.dialect != conversation.format
    if foreign and any(isinstance(block, Opaque) for block in blocks):
        found["unknown_blocks"] = None
    if not can.tools and (conversation.tools or any(isinstance(block, ToolCall) for block in blocks)):
        found["tools"] = None
    if foreign and any(tool.raw is not None for tool in conversation.tools):
        found["built_in_tools"] = None
    if not _answers_in_form(conversation, target):
        found["structured_output"] = None
    if target.context_tokens is not None and input_tokens + (conversation.max_tokens or 0) > target.context_tokens:
        found["context_window"] = None
    if home is not None and not same_account(target, home) and _is_sealed(_open_turn(conversation)):
        found["reasoning_in_tool_loop"] = None
    return tuple(found)


def same_account(one: Target, other: Target) -> bool:
    """Whether what one sealed the other can read, given the same key."""
    return (one.provider, one.model_id) == (other.provider, other.model_id)


def holds_sealed_reasoning(conversation: Conversation) -> bool:
    """Whether there is reasoning that only the model and account which made it can read."""
    return _is_sealed(conversation.messages)


def without_sealed_reasoning(conversation: Conversation) -> Conversation:
    """The conversation for another model or account, which could not read that reasoning; itself where there is none.

    Meant for use outside a tool loop (`obstacles` says so): there a model does without the reasoning of earlier turns.
    Within one the model stops thinking, too: vendors want the reasoning behind a call from a model that thinks.
    """
    if not holds_sealed_reasoning(conversation):
        return conversation
    thinking = conversation.reasoning
    if thinking is not None and thinking.mode == "on" and _is_sealed(_open_turn(conversation)):
        conversation = replace(conversation, reasoning=replace(thinking, mode="off", budget_tokens=None))
    messages = (_unsealed(message) for message in conversation.messages)
    return replace(conversation, messages=tuple(message for message in messages if message.blocks))


def _unsealed(message: Message) -> Message:
    if not _is_sealed([message]):
        return message
    kept = (block for block in message.blocks if not _is_sealed_thinking(block))
    blocks = tuple(
        replace(block, extra=_open_fields(block.extra)) if isinstance(block, ToolCall) else block for block in kept
    )
    return replace(message, blocks=blocks, extra=_open_fields(message.extra))


def _open_fields(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name not in _SEALED_FIELDS}


def _is_sealed(messages: Iterable[Message]) -> bool:
    return any(
        _SEALED_FIELDS & message.extra.keys()
        or any(
            _is_sealed_thinking(block) or (isinstance(block, ToolCall) and _SEALED_FIELDS & block.extra.keys())
            for block in message.blocks
        )
        for message in messages
        if message.role == "assistant"
    )


def _is_sealed_thinking(block: Block) -> bool:
    return isinstance(block, Thinking) and bool(block.signature or block.redacted)


def _open_turn(conversation: Conversation) -> tuple[Message, ...]:
    """The messages of a turn that waits for its tools' results or just got them; empty outside a tool loop."""
    messages = conversation.messages
    start = len(messages)
    while start and not (messages[start - 1].role == "user" and not _has(messages[start - 1], ToolResult)):
        start -= 1
    turn = messages[start:]
    return turn if any(_has(message, ToolCall, ToolResult) for message in turn) else ()


def _has(message: Message, *kinds: type[Block]) -> bool:
    return any(isinstance(block, kinds) for block in message.blocks)


def _reachable(source: Source, target: Target, home: Target | None) -> bool:
    if source.kind == "file_id" and (home is None or home.provider != target.provider):
        return False
    return source.kind in _SOURCES[target.dialect]


def _answers_in_form(conversation: Conversation, target: Target) -> bool:
    wanted = conversation.output_format
    if wanted is None or wanted.kind == "text":
        return True
    if wanted.kind == "json" and target.dialect != "openai_chat":  # only there can "any JSON" be asked for
        return False
    return target.capabilities.structured_output


def _all_blocks(conversation: Conversation) -> Iterator[Block]:
    yield from conversation.system
    for message in conversation.messages:
        for block in message.blocks:
            yield block
            if isinstance(block, ToolResult):
                yield from block.blocks
