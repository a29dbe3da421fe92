"""The scripted provider's other calls: token counts, Responses, Embeddings, and Bedrock's Invoke."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.conformance import wire_bedrock
from tests.conformance.scenarios import TEXT, Refused, require

if TYPE_CHECKING:
    from tests.conformance.upstream import Received

COUNTED = 4711
_CLAUDE = {
    "id": "msg_bdrk_01",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 11, "output_tokens": 7},
}


def answer(received: Received, operation: str) -> bytes | list[bytes]:
    """The whole answer, or the frames of a stream.

    Raises:
        Refused: there is no such call.
    """
    body = received.json
    match operation:
        case "count_tokens":
            require(body["messages"] and "max_tokens" not in body, "max_tokens: Extra inputs are not permitted")
            return json.dumps({"input_tokens": COUNTED}).encode()
        case "embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            return json.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage}).encode()
        case "responses":
            return _responses(body)
        case "invoke":
            return json.dumps(_CLAUDE).encode()
        case "invoke-with-response-stream":
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}
            return wire_bedrock.invoke_frames([delta, {"type": "message_stop"}])
    raise Refused(f"no such call: {operation}")


def _responses(body: dict[str, Any]) -> bytes | list[bytes]:
    output = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
    }
    reply = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1790000000,
        "status": "completed",
        "model": body["model"],
        "output": [output],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 18,
        },
    }
    if not body.get("stream"):
        return json.dumps(reply).encode()
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events = [
        {
            "type": "response.created",
            "sequence_number": 0,
            "response": {**reply, "status": "in_progress", "output": []},
        },
        {"type": "response.output_text.delta", "sequence_number": 1, **where, "delta": TEXT, "logprobs": []},
        {"type": "response.completed", "sequence_number": 2, "response": reply},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
