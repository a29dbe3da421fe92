"""Token counts and stop reasons, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orqen_ray.conversation import JsonObject, StopReason, Usage

_STOP_REASONS: Mapping[str, StopReason] = {
    "end_turn": "end",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool_call",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_window",
}
_STOP_WORDS: Mapping[str, str] = {neutral: word for word, neutral in _STOP_REASONS.items()}


def read_stop_reason(word: object) -> tuple[StopReason, JsonObject]:
    """The neutral reason; a word newer than this code is an ordinary end, and kept as an extra field."""
    if word is None:
        return "end", {}
    if isinstance(word, str) and word in _STOP_REASONS:
        return _STOP_REASONS[word], {}
    return "end", {"stop_reason": word}


def write_stop_reason(reason: StopReason, extra: Mapping[str, Any], *, called: bool) -> str:
    """The vendor's word. An answer that `called` tools says so, as agents go by it, whatever its provider said."""
    if reason == "end":
        kept = extra.get("stop_reason")
        return kept if isinstance(kept, str) else "tool_use" if called else "end_turn"
    return _STOP_WORDS.get(reason, "end_turn")


def read_usage(usage: object) -> Usage | None:
    """Counts in tokens; what is missing or not a number counts as none."""
    if not isinstance(usage, dict):
        return None
    return Usage(
        input_tokens=_count(usage, "input_tokens"),
        cache_read_tokens=_count(usage, "cache_read_input_tokens"),
        cache_write_tokens=_count(usage, "cache_creation_input_tokens"),
        cache_write_1h_tokens=_count(usage.get("cache_creation"), "ephemeral_1h_input_tokens"),
        output_tokens=_count(usage, "output_tokens"),
        reasoning_tokens=_count(usage.get("output_tokens_details"), "thinking_tokens"),
    )


def write_usage(usage: Usage | None) -> JsonObject:
    """Every count, zeros included: the SDKs require them."""
    usage = usage or Usage()
    fields: JsonObject = {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.cache_write_tokens:
        fields["cache_creation"] = {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens - usage.cache_write_1h_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        }
    if usage.reasoning_tokens:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields


def _count(counts: object, key: str) -> int:
    value = counts.get(key) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
