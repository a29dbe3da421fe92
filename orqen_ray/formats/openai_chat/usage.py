"""Token counts and stop reasons as Chat Completions servers give them, shared by replies, streams and scanners."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from orqen_ray.conversation import Block, JsonObject, Refusal, StopReason, ToolCall, Usage


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: float | None = None
    cache_write_tokens: float | None = None
    reasoning_tokens: float | None = None


class _Usage(msgspec.Struct, frozen=True):
    """The `usage` object. Counts are numbers, or null where a server does not know them."""

    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    total_tokens: float | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    # https://api-docs.deepseek.com/guides/kv_cache
    prompt_cache_hit_tokens: float | None = None
    # https://platform.moonshot.ai/docs/api/chat
    cached_tokens: float | None = None


_NO_DETAILS = _Details()


def read_usage(value: object) -> Usage | None:
    """The counts in a decoded `usage`; None if there is none, or not one of the right shape.

    `prompt_tokens` counts cached tokens too; the neutral `input_tokens` does not.
    """
    try:
        wire = msgspec.convert(value, _Usage)
    except msgspec.ValidationError:
        return None
    prompt, completion = _count(wire.prompt_tokens), _count(wire.completion_tokens)
    of_prompt = wire.prompt_tokens_details or _NO_DETAILS
    of_completion = wire.completion_tokens_details or _NO_DETAILS
    cached = min(_count(of_prompt.cached_tokens, wire.prompt_cache_hit_tokens, wire.cached_tokens), prompt)
    written = min(_count(of_prompt.cache_write_tokens), prompt - cached)
    # xAI and Gemini leave reasoning out of `completion_tokens` but count it in the total.
    # https://docs.x.ai/docs/guides/reasoning
    output = max(completion, _count(wire.total_tokens) - prompt) if prompt else completion
    return Usage(
        input_tokens=prompt - cached - written,
        cache_read_tokens=cached,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=min(_count(of_completion.reasoning_tokens), output),
    )


def _count(*values: float | None) -> int:
    return max(0, *(int(value) for value in values if value is not None)) if any(values) else 0


def write_usage(usage: Usage) -> JsonObject:
    details: JsonObject = {"cached_tokens": usage.cache_read_tokens}
    if usage.cache_write_tokens:
        details["cache_write_tokens"] = usage.cache_write_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


_STOP_REASONS: dict[str, StopReason] = {
    "stop": "end",
    "length": "max_tokens",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "content_filter": "refusal",
    "model_length": "context_window",  # https://docs.mistral.ai/api/
    "insufficient_system_resource": "malformed",  # https://api-docs.deepseek.com/api/create-chat-completion
    "error": "malformed",  # https://openrouter.ai/docs/api-reference/overview
}
_FINISH_REASONS: dict[StopReason, str] = {
    "end": "stop",
    "max_tokens": "length",
    "stop_sequence": "stop",
    "tool_call": "tool_calls",
    "refusal": "content_filter",
    "pause": "stop",
    "context_window": "length",
    "malformed": "stop",
}


def read_stop_reason(finish_reason: str | None, blocks: Collection[type[Block]], matched: object = None) -> StopReason:
    """The reason, corrected by the kinds of `blocks` in the reply: some servers say `stop` after tool calls too.

    Args:
        matched: the stop sequence that was hit, which vLLM and SGLang give as text.
    """
    reason = _STOP_REASONS.get(finish_reason or "", "end")
    if reason != "end":
        return reason
    if ToolCall in blocks:
        return "tool_call"
    if Refusal in blocks:
        return "refusal"
    return "stop_sequence" if isinstance(matched, str) else "end"


def write_stop_reason(reason: StopReason) -> str:
    return _FINISH_REASONS[reason]
