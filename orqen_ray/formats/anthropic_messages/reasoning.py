"""How much to think, said in the words of a Claude model that thinks by budget, by itself, or not at all."""

from __future__ import annotations

from orqen_ray.conversation import Conversation, JsonObject, Reasoning, Thinking, ToolCall
from orqen_ray.types import Capabilities

# Tokens of thinking for an effort. The vendor takes no budget under 1024.
# Source: platform.claude.com/docs/build-with-claude/extended-thinking
_MIN_BUDGET = 1024
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 32768}
_EFFORTS = {"minimal": "low", **{word: word for word in ("low", "medium", "high", "xhigh", "max")}}


def write_thinking(
    conversation: Conversation, capabilities: Capabilities, max_tokens: int, dropped: list[str]
) -> tuple[JsonObject | None, str | None]:
    """The `thinking` object and `output_config.effort` for a conversation of another format."""
    reasoning = conversation.reasoning
    if reasoning is None:
        return None, None
    off = reasoning.mode == "off" or reasoning.effort == "none"
    if capabilities.thinking == "none" or (not off and _forbids_thinking(conversation, capabilities)):
        if not off:
            dropped.append("reasoning")
        return None, None
    if capabilities.thinking == "adaptive":
        return ({"type": "disabled"}, None) if off else _adaptive(reasoning, dropped)
    return (None if off else _budget(reasoning, max_tokens, dropped)), None


def _adaptive(reasoning: Reasoning, dropped: list[str]) -> tuple[JsonObject, str | None]:
    effort = _EFFORTS.get(reasoning.effort or "")
    if reasoning.effort is not None and effort is None:
        dropped.append("reasoning.effort")
    budget = reasoning.budget_tokens
    if budget is not None:
        dropped.append("reasoning.budget_tokens")
        effort = effort or next((word for word in ("low", "medium") if budget <= _BUDGETS[word]), "high")
    return _displayed({"type": "adaptive"}, reasoning), effort


def _budget(reasoning: Reasoning, max_tokens: int, dropped: list[str]) -> JsonObject | None:
    budget = reasoning.budget_tokens
    if budget is None:
        # Thinking counts towards `max_tokens`; a quarter of it is left for the answer.
        budget = min(_BUDGETS.get(reasoning.effort or "medium", _BUDGETS["medium"]), max_tokens * 3 // 4)
    if budget < _MIN_BUDGET or budget >= max_tokens:
        dropped.append("reasoning")
        return None
    return _displayed({"type": "enabled", "budget_tokens": budget}, reasoning)


def _displayed(thinking: JsonObject, reasoning: Reasoning) -> JsonObject:
    return thinking if reasoning.display is None else {**thinking, "display": reasoning.display}


def _forbids_thinking(conversation: Conversation, capabilities: Capabilities) -> bool:
    """Whether the vendor would refuse thinking here: under a forced tool choice, or in a tool loop begun without it.

    The second holds for models that think by budget: the turn that made the calls must begin with its own reasoning.
    Source: platform.claude.com/docs/build-with-claude/extended-thinking, "Extended thinking with tool use".
    """
    choice = conversation.tool_choice
    if choice is not None and (choice.mode in ("any", "tool") or choice.required):
        return True
    if capabilities.thinking == "adaptive":
        return False
    turn = next((message for message in reversed(conversation.messages) if message.role == "assistant"), None)
    if turn is None or not any(isinstance(block, ToolCall) for block in turn.blocks):
        return False
    return not any(isinstance(block, Thinking) and (block.signature or block.redacted) for block in turn.blocks)
