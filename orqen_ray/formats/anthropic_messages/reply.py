"""Reads and writes a whole reply."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from orqen_ray.conversation import Block, JsonObject, Opaque, Refusal, Reply, Text, Thinking, ToolCall
from orqen_ray.errors import BadRequest, UpstreamError
from orqen_ray.formats.adapt import legal_tool_id
from orqen_ray.formats.anthropic_messages.blocks import read_content
from orqen_ray.formats.anthropic_messages.blocks_out import REPLY_FIELDS, TOOL_ID_PATTERN, BlockWriter
from orqen_ray.formats.anthropic_messages.usage import read_stop_reason, read_usage, write_stop_reason, write_usage
from orqen_ray.formats.reading import optional_str, rest
from orqen_ray.types import Written

_KNOWN = frozenset({"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"})
IN_REPLIES = (Text, Refusal, Thinking, ToolCall, Opaque)
"""What a model of this vendor can say; an answer can hold nothing else."""


def read_reply(body: JsonObject) -> Reply:
    """The reply in the body of a 2xx answer.

    Raises:
        UpstreamError: the body is not a message.
    """
    try:
        if not isinstance(body.get("content"), list):
            raise BadRequest("expected an array of content blocks", param="content")
        stop_reason, newer = read_stop_reason(body.get("stop_reason"))
        return Reply(
            id=optional_str(body, "id", "") or "",
            model=optional_str(body, "model", "") or "",
            blocks=read_content(body["content"], "content"),
            stop_reason=stop_reason,
            stop_sequence=optional_str(body, "stop_sequence", ""),
            usage=read_usage(body.get("usage")),
            extra={**rest(body, _KNOWN), **newer},
        )
    except BadRequest as exc:
        raise UpstreamError(f"the provider's answer is not a message: {exc}") from exc


def write_reply(reply: Reply, requested_model: str, response_id: str) -> Written:
    """The body of an answer. Its model is the one that served, its id of the vendor's form."""
    writer = BlockWriter(REPLY_FIELDS)
    blocks = [legal_call(block, i, response_id) for i, block in enumerate(reply.blocks)]
    called = any(isinstance(block, ToolCall) for block in blocks)
    body: JsonObject = {
        "id": message_id(reply.id, response_id),
        "type": "message",
        "role": "assistant",
        "model": reply.model or requested_model,
        "content": writer.blocks(blocks, "content", only=IN_REPLIES),
        "stop_reason": write_stop_reason(reply.stop_reason, reply.extra, called=called),
        "stop_sequence": reply.stop_sequence,
        "usage": write_usage(reply.usage),
    }
    writer.extra(body, rest(reply.extra, {"stop_reason"}), "")
    return Written(body=body, dropped=tuple(writer.dropped))


def message_id(upstream_id: str, response_id: str) -> str:
    for known in (upstream_id, response_id):
        if known.startswith("msg_"):
            return known
    return f"msg_{response_id}"


def legal_call(block: Block, index: int, response_id: str) -> Block:
    """A call with an id that the vendor and its SDKs take; the same answer always gets the same one."""
    if not isinstance(block, ToolCall):
        return block
    if not block.id:
        digest = hashlib.sha256(f"{response_id}/{index}".encode()).hexdigest()
        return replace(block, id=f"toolu_{digest[:24]}")
    return replace(block, id=legal_tool_id(block.id, TOOL_ID_PATTERN))
