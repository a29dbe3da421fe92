"""Makes a conversation that came in one format legal for a model behind another, before a writer takes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from orqen_ray.conversation import Block, Conversation, Message, Text, Tool, ToolCall, ToolChange, ToolResult
from orqen_ray.types import Capabilities

MIN_TOP_P_THINKING = 0.95
"""Claude refuses a lower `top_p` while it thinks: platform.claude.com/docs/build-with-claude/extended-thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A conversation for the target, and what the target cannot be told."""

    conversation: Conversation
    dropped: tuple[str, ...]


def adapt(
    conversation: Conversation,
    capabilities: Capabilities,
    *,
    tool_id_pattern: str,
    mid_system: bool,
    mid_tools: bool,
    alternate: bool,
) -> Adapted:
    """A conversation of another format, made legal for this target.

    The head comes first: leading system messages always move to `Conversation.system`. A later system message stays
    where it stands or, without `mid_system`, becomes marked text of the user at the same place, never of the head: the
    head is the prefix of every cached turn before it.

    Args:
        tool_id_pattern: what the format demands of tool call ids; a narrower pattern in `capabilities` wins.
        mid_system: the target takes system messages after a user's turn.
        mid_tools: the target takes `ToolChange` blocks; otherwise they are applied to `tools`.
        alternate: the target wants one message per turn: neighbours of one role are merged.
    """
    dropped: list[str] = []
    conversation = _lift_head(conversation)
    if not mid_tools:
        conversation = _apply_tool_changes(conversation, dropped)
    if not capabilities.defer_loading and any(tool.defer_loading for tool in conversation.tools):
        tools = tuple(replace(tool, defer_loading=None) for tool in conversation.tools)
        conversation = replace(conversation, tools=tools)
        dropped.append("tools.defer_loading")
    if not mid_system or alternate:
        conversation = _fold_system(conversation, keep_legal=mid_system)
    if alternate:
        conversation = replace(conversation, messages=_merge_turns(conversation.messages))
    conversation = _relax_tool_choice(conversation, capabilities, dropped)
    refused = _refused_sampling(conversation, capabilities)
    if refused:
        sampling = {name: value for name, value in conversation.sampling.items() if name not in refused}
        conversation = replace(conversation, sampling=sampling)
        dropped.extend(refused)
    conversation = _legal_tool_ids(conversation, capabilities.tool_id_pattern or tool_id_pattern)
    return Adapted(conversation=conversation, dropped=tuple(dropped))


def _refused_sampling(conversation: Conversation, capabilities: Capabilities) -> list[str]:
    """The fields that the model would refuse; of two samplers where it takes one, the temperature stays."""
    sampling = conversation.sampling
    refused = [name for name in sampling if name in capabilities.sampling_refused]
    if capabilities.one_sampler and {"temperature", "top_p"} <= sampling.keys() and "top_p" not in refused:
        refused.append("top_p")
    return refused


def tools_called(messages: Iterable[Message]) -> tuple[Tool, ...]:
    """The least definition of each tool in the history: Anthropic and Bedrock refuse calls without any tools."""
    names = {block.name: None for message in messages for block in message.blocks if isinstance(block, ToolCall)}
    return tuple(Tool(name=name, parameters={"type": "object"}) for name in names)


def legal_tool_id(call_id: str, pattern: str) -> str:
    """`call_id` itself when it obeys `pattern`, else an id that does, always the same for the same `call_id`.

    The second form is for Mistral, which wants exactly nine letters or digits.
    """
    if re.fullmatch(pattern, call_id):
        return call_id
    digest = hashlib.sha256(call_id.encode()).hexdigest()
    candidates = (f"call_{digest[:24]}", digest[:9], digest)
    return next((candidate for candidate in candidates if re.fullmatch(pattern, candidate)), candidates[0])


def _lift_head(conversation: Conversation) -> Conversation:
    count = 0
    while count < len(conversation.messages) and conversation.messages[count].role == "system":
        count += 1
    if not count:
        return conversation
    head = tuple(block for message in conversation.messages[:count] for block in message.blocks)
    changes = tuple(block for block in head if isinstance(block, ToolChange))
    rest = conversation.messages[count:]
    if changes:  # a tool offered from the start has no place in the head: it stays a message of its own
        rest = (Message(role="system", blocks=changes), *rest)
    system = (*conversation.system, *(block for block in head if not isinstance(block, ToolChange)))
    return replace(conversation, system=system, messages=rest)


def _apply_tool_changes(conversation: Conversation, dropped: list[str]) -> Conversation:
    """The tool list as it stands at the end of the conversation. The place of each change is lost, so it is named."""
    if not any(isinstance(block, ToolChange) for message in conversation.messages for block in message.blocks):
        return conversation
    tools: dict[str, Tool] = {tool.name: tool for tool in conversation.tools}
    messages: list[Message] = []
    for message in conversation.messages:
        changes = [block for block in message.blocks if isinstance(block, ToolChange)]
        for change in changes:
            if change.action == "remove":
                tools.pop(change.name, None)
                dropped.append("messages.tool_removal")
            else:
                if change.tool is not None:
                    tools[change.name] = change.tool
                dropped.append("messages.tool_addition")
        if not changes:
            messages.append(message)
            continue
        blocks = tuple(block for block in message.blocks if not isinstance(block, ToolChange))
        if blocks:
            messages.append(replace(message, blocks=blocks))
    return replace(conversation, messages=tuple(messages), tools=tuple(tools.values()))


def _fold_system(conversation: Conversation, *, keep_legal: bool) -> Conversation:
    """System messages as user text. With `keep_legal`, those between a user's turn and the model's stay as they are.

    Source of the rule: platform.claude.com/docs/build-with-claude/mid-conversation-system-messages.
    """
    messages = conversation.messages
    if not any(message.role == "system" for message in messages):
        return conversation
    out: list[Message] = []
    for i, message in enumerate(messages):
        if message.role != "system":
            out.append(message)
            continue
        after_user = i > 0 and messages[i - 1].role == "user"
        before_model = i + 1 == len(messages) or messages[i + 1].role == "assistant"
        if keep_legal and after_user and before_model:
            out.append(message)
        else:
            out.append(Message(role="user", blocks=tuple(_as_user_block(block) for block in message.blocks)))
    return replace(conversation, messages=tuple(out))


def _as_user_block(block: Block) -> Block:
    if isinstance(block, Text):
        return replace(block, text=f"<system-reminder>\n{block.text}\n</system-reminder>")
    return block


def _merge_turns(messages: Iterable[Message]) -> tuple[Message, ...]:
    merged: list[Message] = []
    for role, run in groupby(messages, key=lambda message: message.role):
        turn = list(run)
        if role == "system" or len(turn) == 1:
            merged += turn
        else:
            blocks = tuple(block for message in turn for block in message.blocks)
            extra = {name: value for message in turn for name, value in message.extra.items()}
            merged.append(replace(turn[0], blocks=_results_first(blocks), extra=extra))
    return tuple(merged)


def _results_first(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Anthropic and Bedrock want the results of a turn's calls before any other content of the answer."""
    results = tuple(block for block in blocks if isinstance(block, ToolResult))
    if not results:
        return blocks
    return (*results, *(block for block in blocks if not isinstance(block, ToolResult)))


def _relax_tool_choice(conversation: Conversation, capabilities: Capabilities, dropped: list[str]) -> Conversation:
    choice = conversation.tool_choice
    if choice is None or capabilities.forced_tool_choice:
        return conversation
    if choice.mode in ("any", "tool"):
        dropped.append("tool_choice")
        return replace(conversation, tool_choice=replace(choice, mode="auto", names=()))
    if choice.mode == "allowed" and choice.required:
        dropped.append("tool_choice.required")
        return replace(conversation, tool_choice=replace(choice, required=False))
    return conversation


def _legal_tool_ids(conversation: Conversation, pattern: str) -> Conversation:
    """Calls and their results keep the same id; only those that the target would refuse are changed."""
    legal = re.compile(pattern)

    def renamed(block: Block) -> Block:
        if isinstance(block, ToolCall) and not legal.fullmatch(block.id):
            return replace(block, id=legal_tool_id(block.id, pattern))
        if isinstance(block, ToolResult) and not legal.fullmatch(block.call_id):
            return replace(block, call_id=legal_tool_id(block.call_id, pattern))
        return block

    messages = tuple(replace(m, blocks=tuple(renamed(b) for b in m.blocks)) for m in conversation.messages)
    return replace(conversation, messages=messages)
