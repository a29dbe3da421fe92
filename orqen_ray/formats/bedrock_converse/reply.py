"""Whole Converse answers to and from `Reply`; the stop reasons and token counts that streams share."""

from __future__ import annotations

from collections.abc import Mapping

from orqen_ray.conversation import JsonObject, Reply, StopReason, Usage
from orqen_ray.errors import BadRequest, UpstreamError
from orqen_ray.formats.bedrock_converse.blocks import read_blocks, write_blocks
from orqen_ray.formats.bedrock_converse.fields import leftover
from orqen_ray.formats.bedrock_converse.legal_blocks import LegalBlocks
from orqen_ray.formats.reading import as_object, as_str, required
from orqen_ray.types import Written

_STOP_REASONS: Mapping[str, StopReason] = {
    "end_turn": "end",
    "tool_use": "tool_call",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "guardrail_intervened": "refusal",
    "content_filtered": "refusal",
    "refusal": "refusal",
    "pause_turn": "pause",
    "malformed_model_output": "malformed",
    "malformed_tool_use": "malformed",
    "model_context_window_exceeded": "context_window",
}
_WIRE_REASONS: Mapping[StopReason, str] = {
    "end": "end_turn",
    "tool_call": "tool_use",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "refusal": "content_filtered",
    "pause": "end_turn",
    "malformed": "malformed_model_output",
    "context_window": "model_context_window_exceeded",
}
# What a Bedrock answer alone has, so that an answer from Bedrock gets it back and any other has it not.
OWN_FIELDS = frozenset({"metrics", "trace", "performanceConfig", "serviceTier", "additionalModelResponseFields"})
OWN_KINDS = frozenset(
    {"text", "image", "document", "video", "audio", "toolUse", "toolResult", "guardContent", "cachePoint"}
    | {"reasoningContent", "citationsContent", "searchResult"}
)


def read_reply(body: JsonObject) -> Reply:
    """The answer in `body`. Converse gives it neither an id nor a model's name.

    Raises:
        UpstreamError: it is no Converse answer.
    """
    try:
        output = as_object(required(body, "output", ""), "output")
        message = as_object(required(output, "message", "output"), "output.message")
        blocks = read_blocks(required(message, "content", "output.message"), "output.message.content")
        stop_reason = as_str(body.get("stopReason", "end_turn"), "stopReason")
    except BadRequest as exc:
        raise UpstreamError(f"the provider's answer cannot be read: {exc.message}") from exc
    return Reply(
        id="",
        model="",
        blocks=blocks,
        stop_reason=read_stop_reason(stop_reason),
        stop_sequence=read_stop_sequence(body),
        usage=read_usage(body.get("usage")),
        extra=leftover(body, {"output": True, "stopReason": True, "usage": True}),
    )


def write_reply(reply: Reply, requested_model: str, response_id: str) -> Written:
    """The answer as boto3 reads it. It has no place for the model's name or an id.

    `metrics.latencyMs` is 0 unless Bedrock itself gave one: this function has no clock.
    """
    legal = LegalBlocks(own=OWN_KINDS)
    message = {"role": "assistant", "content": write_blocks(legal.blocks(reply.blocks, "content"))}
    own = {name: value for name, value in reply.extra.items() if name in OWN_FIELDS}
    legal.dropped.extend(name for name in reply.extra if name not in own)
    if reply.stop_sequence is not None and "additionalModelResponseFields" not in own:
        legal.dropped.append("stop_sequence")
    body = {
        "metrics": {"latencyMs": 0},
        **own,
        "output": {"message": message},
        "stopReason": write_stop_reason(reply.stop_reason),
        "usage": write_usage(reply.usage),
    }
    return Written(body=body, dropped=tuple(legal.dropped))


def read_stop_reason(name: str) -> StopReason:
    """A reason newer than this code means that the answer is at its end."""
    return _STOP_REASONS.get(name, "end")


def write_stop_reason(reason: StopReason) -> str:
    return _WIRE_REASONS[reason]


def read_stop_sequence(body: JsonObject) -> str | None:
    """The sequence that stopped the model, if the caller asked Claude for it (`additionalModelResponseFieldPaths`)."""
    fields = body.get("additionalModelResponseFields")
    text = fields.get("stop_sequence") if isinstance(fields, dict) else None
    return text if isinstance(text, str) else None


def read_usage(value: object) -> Usage | None:
    """Token counts. `inputTokens` leaves out what the cache gave and took.

    Source: docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html
    """
    if not isinstance(value, dict):
        return None
    details = value.get("cacheDetails")
    hourly = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    return Usage(
        input_tokens=_count(value, "inputTokens"),
        cache_read_tokens=_count(value, "cacheReadInputTokens"),
        cache_write_tokens=_count(value, "cacheWriteInputTokens"),
        cache_write_1h_tokens=sum(_count(part, "inputTokens") for part in hourly if part.get("ttl") == "1h"),
        output_tokens=_count(value, "outputTokens"),
    )


def _count(value: JsonObject, name: str) -> int:
    count = value.get(name)
    return count if type(count) is int and count >= 0 else 0


def write_usage(usage: Usage | None) -> JsonObject:
    usage = usage or Usage()
    written: JsonObject = {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "totalTokens": usage.prompt_tokens + usage.output_tokens,
        "cacheReadInputTokens": usage.cache_read_tokens,
        "cacheWriteInputTokens": usage.cache_write_tokens,
    }
    if usage.cache_write_1h_tokens:
        short = usage.cache_write_tokens - usage.cache_write_1h_tokens
        counts = (("1h", usage.cache_write_1h_tokens), ("5m", short))
        written["cacheDetails"] = [{"ttl": ttl, "inputTokens": n} for ttl, n in counts if n > 0]
    return written
