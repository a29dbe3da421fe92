"""Bedrock's Converse as AWS speaks it: what it refuses, and what it answers, in AWS's binary event stream."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator
from functools import cache
from typing import Any
from zlib import crc32

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

from tests.conformance.scenarios import FAILURE, SEALED, SIGNATURE, Refused, Script, Seen, in_unsealed_loop, require

_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_STOP = {"end": "end_turn", "tools": "tool_use", "length": "max_tokens", "sequence": "stop_sequence"}
# What AWS answers where others say 401 and 529.
_ERRORS = {
    400: (400, "ValidationException"),
    401: (403, "UnrecognizedClientException"),
    429: (429, "ThrottlingException"),
    500: (500, "InternalServerException"),
    529: (503, "ServiceUnavailableException"),
}


@cache
def _input_shape() -> Shape:
    model = botocore.session.get_session().get_service_model("bedrock-runtime")
    shape = model.operation_model("Converse").input_shape
    assert shape is not None
    return shape


def read(body: dict[str, Any], model: str, beta: str) -> Seen:
    """What the request says.

    Raises:
        Refused: Bedrock would answer with a ValidationException.
    """
    report = ParamValidator().validate({"modelId": model, **body}, _input_shape())
    require(not report.has_errors(), report.generate_report())
    seen = Seen(stop=body.get("inferenceConfig", {}).get("stopSequences", []))
    seen.thinks = _thinking(body).get("type", "disabled") != "disabled"
    for block in body.get("system", ()):
        if "text" in block:
            require(block["text"].strip(), "system: The text field is blank")
            seen.system.append(block["text"])
        else:
            _mark(block, "system", seen)
    config = body.get("toolConfig")
    for tool in (config or {}).get("tools", ()):
        if "toolSpec" in tool:
            seen.tools[tool["toolSpec"]["name"]] = tool["toolSpec"]["inputSchema"]["json"]
            seen.described[tool["toolSpec"]["name"]] = tool["toolSpec"].get("description", "")
        else:
            _mark(tool, "tools", seen)
    seen.tool_choice = (config or {}).get("toolChoice")
    _read_messages(body.get("messages", []), seen)
    unsealed = _thinking(body).get("type") == "enabled" and in_unsealed_loop(seen.turns)
    require(not unsealed, "Expected `thinking`, but found `tool_use`")
    require(config or not (seen.parts("call") or seen.parts("result")), "The toolConfig field must be defined")
    require(len(seen.marked) <= 4, "at most 4 cache points")
    return seen


def _thinking(body: dict[str, Any]) -> dict[str, Any]:
    return dict(body.get("additionalModelRequestFields", {}).get("thinking", {}))


def _read_messages(messages: list[dict[str, Any]], seen: Seen) -> None:
    require(messages and messages[0]["role"] == "user", "A conversation must start with a user message")
    open_calls: set[str] = set()
    for n, message in enumerate(messages):
        require(message["role"] == ("user", "assistant")[n % 2], "A conversation must alternate between user and model")
        require(message["content"], "The content field is empty")
        answered = [block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block]
        require(
            set(answered) == open_calls and len(answered) == len(open_calls), "toolResult blocks must match toolUse"
        )
        blocks = [_read_block(block, seen) for block in message["content"]]
        seen.turns.append((message["role"], [block for block in blocks if block]))
        open_calls = {block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block}
    require(not open_calls, "toolUse blocks without toolResult")


def _read_block(block: dict[str, Any], seen: Seen) -> tuple[Any, ...]:
    match next(iter(block.items())):
        case ("text", text):
            require(text.strip(), "The text field in the ContentBlock object is blank")
            return ("text", text)
        case ("image", image):
            return ("image", _bytes(image["source"]["bytes"]))
        case ("toolUse", call):
            require(_TOOL_ID.fullmatch(call["toolUseId"]), "toolUseId: pattern")
            require(isinstance(call["input"], dict), "toolUse.input: an object")
            return ("call", call["toolUseId"], call["name"], call["input"])
        case ("toolResult", result):
            require(_TOOL_ID.fullmatch(result["toolUseId"]), "toolUseId: pattern")
            require(result["content"], "toolResult.content: empty")
            parts = [_read_block(part, seen) for part in result["content"]]
            images = [part[1] for part in parts if part[0] == "image"]
            words = "".join(part[1] for part in parts if part[0] == "text")
            return ("result", result["toolUseId"], words, result.get("status") == "error", *images)
        case ("json", value):
            return ("text", json.dumps(value))
        case ("reasoningContent", {"reasoningText": thought}):
            require(thought.get("signature") == SIGNATURE, "reasoningContent: Invalid `signature`")
            return ("thinking", thought["text"], thought["signature"])
        case ("reasoningContent", {"redactedContent": data}):
            require(_bytes(data) == base64.b64decode(SEALED), "reasoningContent: Invalid redactedContent")
            return ("sealed", data)
        case ("cachePoint", _):
            _mark(block, "messages", seen)
    return ()


def _mark(block: dict[str, Any], where: str, seen: Seen) -> None:
    point = block["cachePoint"]
    seen.marked.append(f"{where}:{point['ttl']}" if "ttl" in point else where)


def _bytes(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise Refused("bytes: not base64") from error


# --- Answers ----------------------------------------------------------------------------------------------------


def call_id(n: int) -> str:
    return f"tooluse_conformance-{n}"


def _usage(script: Script) -> dict[str, Any]:
    tokens = script.tokens
    total = tokens.fresh + tokens.read + tokens.written + tokens.out
    usage = {"inputTokens": tokens.fresh, "outputTokens": tokens.out, "totalTokens": total}
    if tokens.read or tokens.written:
        usage |= {"cacheReadInputTokens": tokens.read, "cacheWriteInputTokens": tokens.written}
    return usage


def _end(script: Script, body: dict[str, Any]) -> dict[str, Any]:
    end: dict[str, Any] = {"stopReason": _STOP[script.stop]}
    if script.stop_sequence and "/stop_sequence" in body.get("additionalModelResponseFieldPaths", ()):
        end["additionalModelResponseFields"] = {"stop_sequence": script.stop_sequence}
    return end


def whole(script: Script, model: str, body: dict[str, Any]) -> bytes:
    content: list[dict[str, Any]] = []
    if script.thought:
        thought = {"text": script.thought, "signature": script.signature}
        content.append({"reasoningContent": {"reasoningText": thought}})
    if script.sealed:
        content.append({"reasoningContent": {"redactedContent": SEALED}})
    if script.text:
        content.append({"text": script.text})
    for n, call in enumerate(script.calls, script.first_call):
        arguments = json.loads("".join(call.pieces) or "{}")
        content.append({"toolUse": {"input": arguments, "name": call.name, "toolUseId": call_id(n)}})
    message = {"message": {"content": content, "role": "assistant"}}
    reply = {"metrics": {"latencyMs": 321}, "output": message, **_end(script, body), "usage": _usage(script)}
    return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()


def frames(script: Script, model: str, body: dict[str, Any]) -> list[bytes]:
    out = [_frame("messageStart", {"role": "assistant"})]
    index = 0
    for start, deltas in _stream_blocks(script):
        if start is not None:
            out.append(_frame("contentBlockStart", {"contentBlockIndex": index, "start": start}))
        out += [_frame("contentBlockDelta", {"contentBlockIndex": index, "delta": delta}) for delta in deltas]
        out.append(_frame("contentBlockStop", {"contentBlockIndex": index}))
        index += 1
    out.append(_frame("messageStop", _end(script, body)))
    out.append(_frame("metadata", {"metrics": {"latencyMs": 321}, "usage": _usage(script)}))
    return out


def _stream_blocks(script: Script) -> Iterator[tuple[dict[str, Any] | None, list[dict[str, Any]]]]:
    if script.thought:
        cut = [script.thought[i : i + 9] for i in range(0, len(script.thought), 9)]
        deltas = [{"text": piece} for piece in cut] + [{"signature": script.signature}]
        yield None, [{"reasoningContent": delta} for delta in deltas]
    if script.sealed:
        yield None, [{"reasoningContent": {"redactedContent": SEALED}}]
    if script.text:  # AWS announces no text blocks
        yield None, [{"text": piece} for piece in script.pieces]
    for n, call in enumerate(script.calls, script.first_call):
        inputs: list[dict[str, Any]] = [{"toolUse": {"input": piece}} for piece in call.pieces or ("",)]
        yield {"toolUse": {"name": call.name, "toolUseId": call_id(n)}}, inputs


def _frame(kind: str, value: dict[str, Any], message_type: str = "event") -> bytes:
    """https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html describes the encoding."""
    kind_header = ":event-type" if message_type == "event" else ":exception-type"
    if message_type == "event":
        value = {**value, "p": "abcdefghijklmnopqrstuvwxyz"[: 3 + len(kind) % 20]}  # AWS pads its events
    headers = {kind_header: kind, ":content-type": "application/json", ":message-type": message_type}
    head = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(text)) + text.encode()
        for name, text in headers.items()
    )
    payload = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", crc32(prelude)) + head + payload
    return message + struct.pack(">I", crc32(message))


def breaking_frame() -> bytes:
    return _frame("throttlingException", {"message": FAILURE}, "exception")


def error(status: int, message: str) -> tuple[int, dict[str, str], bytes]:
    sent, kind = _ERRORS[status]
    headers = {"x-amzn-errortype": f"{kind}:http://internal.amazon.com/coral/com.amazon.bedrock/"}
    return sent, headers, json.dumps({"message": message}).encode()


def invoke_frames(payloads: list[dict[str, Any]]) -> list[bytes]:
    """InvokeModelWithResponseStream: the model's own events, in base64."""
    wrapped = [base64.b64encode(json.dumps(payload).encode()).decode() for payload in payloads]
    return [_frame("chunk", {"bytes": data}) for data in wrapped]
