"""How a turn is sent again after something of its answer was seen."""

from __future__ import annotations

from dataclasses import replace

from orqen_ray.conversation import Block, Conversation, Message, Refusal, Text, Thinking, ToolCall, ToolResult

_BYTES_PER_TOKEN = 3
"""Few, so that an answer in two calls is rather too short than longer than its caller allows."""


def continued(conversation: Conversation, said: tuple[Block, ...], names: tuple[str, ...] | None) -> Conversation:
    """`conversation` after `said`, whose last block is the call of the gateway's tool, and the answer to that call.

    A call and its result are legal behind every model that was given the tool. To end with the assistant's text, for
    the model to go on with, is not: Anthropic's newest models refuse it, and others take it for a finished turn
    (platform.claude.com/docs/en/build-with-claude/working-with-messages, "Putting words in Claude's mouth").

    Args:
        conversation: with the tools restored, be it in `tools` or by `added`.
        said: as `Ask.said`.
        names: the tools that are there now; None: all.
    Returns:
        The conversation, `max_tokens` less about what was said.
    """
    call = said[-1]
    assert isinstance(call, ToolCall)
    which = "All listed tools" if names is None else ", ".join(names)
    text = f"Can be called now: {which}. Go on with the answer from where it stopped, and repeat nothing of it."
    result = ToolResult(call_id=call.id, blocks=(Text(text=text),))
    messages = (*conversation.messages, Message(role="assistant", blocks=said), Message(role="user", blocks=(result,)))
    return replace(conversation, messages=messages, max_tokens=_left(conversation, said), wire=None)


def _left(conversation: Conversation, said: tuple[Block, ...]) -> int | None:
    if conversation.max_tokens is None:
        return None
    texts = (block.text for block in said if isinstance(block, Text | Refusal | Thinking))
    spent = sum(len(text.encode("utf-8", "replace")) for text in texts) // _BYTES_PER_TOKEN
    # The budget for thinking, where there is one, must stay below it.
    least = 1 + ((conversation.reasoning.budget_tokens or 0) if conversation.reasoning else 0)
    return min(conversation.max_tokens, max(conversation.max_tokens - spent, least))
