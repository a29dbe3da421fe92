"""Anthropic's Messages as its vendor speaks it: what it refuses, and what it answers."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_params

from tests.conformance.scenarios import FAILURE, SEALED, SIGNATURE, Refused, Script, Seen, in_unsealed_loop, require

_FIELDS = {*get_type_hints(message_create_params.MessageCreateParamsBase), "stream"}
_BETA_FIELDS = {*get_type_hints(beta_params.MessageCreateParamsBase), "stream"} - {"betas"}
_BLOCK_FIELDS = {
    "text": {"text", "citations"},
    "image": {"source"},
    "document": {"source", "title", "context", "citations"},
    "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "tool_addition": {"tool"},
    "tool_removal": {"tool"},
}
_IN_ROLE = {
    "user": {"text", "image", "document", "tool_result"},
    "assistant": {"text", "tool_use", "thinking", "redacted_thinking"},
    "system": {"text", "tool_addition", "tool_removal"},
}
_BY_NAME, _BY_VALUE = "mid-conversation-tool-changes-2026-07-01", "inline-tools-2026-09-15"
_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_STOP = {"end": "end_turn", "tools": "tool_use", "length": "max_tokens", "sequence": "stop_sequence"}
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


def read(body: dict[str, Any], model: str, beta: str) -> Seen:
    """What the request says. With `beta` (the header's value) the beta API's fields and system turns are taken, too.

    Raises:
        Refused: Anthropic would answer 400.
    """
    unknown = body.keys() - (_BETA_FIELDS if beta else _FIELDS)
    require(not unknown, f"{', '.join(sorted(unknown))}: Extra inputs are not permitted")
    require(body["model"] == model, "unexpected model")
    require(isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 0, "max_tokens: Field required")
    seen = Seen(stop=body.get("stop_sequences", []), tool_choice=body.get("tool_choice"))
    require(all(stop.strip() for stop in seen.stop), "stop_sequences: each must contain non-whitespace")
    system = body.get("system", [])
    for block in [{"type": "text", "text": system}] if isinstance(system, str) else system:
        require(block["type"] == "text" and block["text"], "system: text content blocks must be non-empty")
        seen.system.append(block["text"])
        _mark(block, "system", seen)
    for tool in body.get("tools", ()):
        _read_tool(tool, seen)
    require(seen.tools or not seen.tool_choice, "tool_choice may only be specified while providing tools")
    _read_thinking(body, seen)
    _read_messages(body["messages"], seen, beta)
    unsealed = body.get("thinking", {}).get("type") == "enabled" and in_unsealed_loop(seen.turns)
    require(not unsealed, "Expected `thinking`, but found `tool_use`")
    require(len(seen.marked) <= 4, "A maximum of 4 blocks with cache_control may be provided")
    return seen


def _read_tool(tool: dict[str, Any], seen: Seen) -> None:
    allowed = {"name", "description", "input_schema", "cache_control", "type", "strict", "defer_loading"}
    require(not tool.keys() - allowed, f"tools: {sorted(tool)}: Extra inputs are not permitted")
    require(tool.get("type", "custom") == "custom", "tools.type")
    require(_NAME.fullmatch(tool["name"]), "tools.name: pattern")
    require(tool["input_schema"].get("type") == "object", "tools.input_schema.type: Field required")
    seen.tools[tool["name"]] = tool["input_schema"]
    seen.described[tool["name"]] = tool.get("description", "")
    _mark(tool, "tools", seen)


def _read_thinking(body: dict[str, Any], seen: Seen) -> None:
    thinking = body.get("thinking", {"type": "disabled"})
    seen.thinks = thinking["type"] != "disabled"
    if thinking["type"] == "enabled":
        require(1024 <= thinking["budget_tokens"] < body["max_tokens"], "thinking.budget_tokens: range")
    if seen.thinks:
        require(body.get("temperature", 1) == 1, "temperature may only be set to 1 when thinking is enabled")
        forced = (seen.tool_choice or {}).get("type") in ("any", "tool")
        require(not forced, "Thinking may not be enabled when tool_choice forces tool use")


def _read_messages(messages: list[dict[str, Any]], seen: Seen, beta: str) -> None:
    require(messages and messages[0]["role"] == "user", "messages: first message must use the user role")
    open_calls: set[str] = set()
    for n, message in enumerate(messages):
        require(message.keys() == {"role", "content"}, f"messages: {sorted(message)}: Extra inputs are not permitted")
        role, content = message["role"], message["content"]
        require(role in ("user", "assistant") or (role == "system" and beta), f"messages.role: {role}")
        require(content, "messages: all messages must have non-empty content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if role == "system":
            _require_place(messages, n)
            _change_tools(blocks, seen, beta)
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        first = [block["type"] for block in blocks[: len(answered)]]
        require(set(first) <= {"tool_result"}, "messages: tool_result blocks must come first")
        require(len(answered) == len(set(answered)), "each tool_use must have a single result")
        require(set(answered) <= open_calls, "unexpected `tool_use_id` found in `tool_result` blocks")
        require(open_calls <= set(answered), "tool_use ids were found without tool_result blocks immediately after")
        seen.turns.append((role, [_read_block(block, role, seen) for block in blocks]))
        open_calls = {block["id"] for block in blocks if block["type"] == "tool_use"}
    require(not open_calls, "tool_use ids were found without tool_result blocks")
    last = messages[-1]
    if last["role"] == "assistant" and isinstance(last["content"], str):
        require(last["content"] == last["content"].rstrip(), "final assistant content cannot end with whitespace")


def _require_place(messages: list[dict[str, Any]], n: int) -> None:
    """A system message stands between a user's turn and the model's."""
    after = [message["role"] for message in messages[n + 1 : n + 2]] or ["assistant"]
    place = (messages[n - 1]["role"], *after)
    require(place == ("user", "assistant"), f"messages.{n}: role 'system' must follow a user turn")


def _change_tools(blocks: list[dict[str, Any]], seen: Seen, beta: str) -> None:
    for block in blocks:
        match block:
            case {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": definition}}:
                require(_BY_VALUE in beta, f"tool_definition: requires the {_BY_VALUE} beta")
                require(definition["name"] not in seen.tools, "tools: Tool names must be unique.")
                _read_tool(definition, seen)
            case {"type": "tool_addition" | "tool_removal", "tool": {"type": "tool_reference", "name": name}}:
                require(_BY_NAME in beta, f"{block['type']}: requires the {_BY_NAME} beta")
                require(name in seen.tools, f"{block['type']}: {name} is not declared")


def _read_block(block: dict[str, Any], role: str, seen: Seen) -> tuple[Any, ...]:
    kind = block["type"]
    require(kind in _IN_ROLE[role], f"messages: {kind} is not allowed in a {role} message")
    unknown = block.keys() - _BLOCK_FIELDS[kind] - {"type", "cache_control"}
    require(not unknown, f"messages.{kind}.{sorted(unknown)}: Extra inputs are not permitted")
    _mark(block, "messages", seen)
    match kind:
        case "text":
            require(block["text"].strip(), "messages: text content blocks must contain non-whitespace text")
            return ("text", block["text"])
        case "image":
            return ("image", _image(block["source"]))
        case "tool_use":
            require(_TOOL_ID.fullmatch(block["id"]), "tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
            require(_NAME.fullmatch(block["name"]), "tool_use.name: pattern")
            require(isinstance(block["input"], dict), "tool_use.input: Input should be a valid dictionary")
            return ("call", block["id"], block["name"], block["input"])
        case "tool_result":
            return ("result", block["tool_use_id"], *_result(block, seen))
        case "thinking":
            require(block["signature"] == SIGNATURE, "Invalid `signature` in `thinking` block")
            return ("thinking", block["thinking"], block["signature"])
        case "redacted_thinking":
            require(block["data"] == SEALED, "Invalid `data` in `redacted_thinking` block")
            return ("sealed", block["data"])
    return (kind,)


def _result(block: dict[str, Any], seen: Seen) -> tuple[Any, ...]:
    content = block.get("content", "")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    read = [_read_block(part, "user", seen) for part in parts if part["type"] != "text" or part["text"]]
    images = [part[1] for part in read if part[0] == "image"]
    return "".join(part[1] for part in read if part[0] == "text"), bool(block.get("is_error")), *images


def _mark(block: dict[str, Any], where: str, seen: Seen) -> None:
    if (marker := block.get("cache_control")) is not None:
        require(marker["type"] == "ephemeral" and not marker.keys() - {"type", "ttl", "scope"}, "cache_control")
        require(marker.get("ttl", "5m") in ("5m", "1h"), "cache_control.ttl")
        seen.marked.append(f"{where}:{marker['ttl']}" if "ttl" in marker else where)


def _image(source: dict[str, Any]) -> bytes:
    require(source["type"] == "base64", "source.type")
    require(source["media_type"] in ("image/png", "image/jpeg", "image/gif", "image/webp"), "source.media_type")
    try:
        return base64.b64decode(source["data"], validate=True)
    except binascii.Error as error:
        raise Refused("source.data: not base64") from error


# --- Answers ----------------------------------------------------------------------------------------------------


def call_id(n: int) -> str:
    return f"toolu_01conformance{n}"


def _usage(script: Script, out: int) -> dict[str, Any]:
    tokens = script.tokens
    return {
        "input_tokens": tokens.fresh,
        "cache_creation_input_tokens": tokens.written,
        "cache_read_input_tokens": tokens.read,
        "cache_creation": {"ephemeral_5m_input_tokens": tokens.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": out,
        "service_tier": "standard",
    }


def _blocks(script: Script) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if script.thought:
        blocks.append({"type": "thinking", "thinking": script.thought, "signature": script.signature})
    if script.sealed:
        blocks.append({"type": "redacted_thinking", "data": SEALED})
    if script.text:
        blocks.append({"type": "text", "text": script.text})
    for n, call in enumerate(script.calls, script.first_call):
        arguments = json.loads("".join(call.pieces) or "{}")
        blocks.append({"type": "tool_use", "id": call_id(n), "name": call.name, "input": arguments})
    return blocks


def whole(script: Script, model: str, body: dict[str, Any]) -> bytes:
    reply = {
        "model": f"{model}-20260901",
        "id": f"msg_01conformance{len(body['messages'])}",
        "type": "message",
        "role": "assistant",
        "content": _blocks(script),
        "stop_reason": _STOP[script.stop],
        "stop_sequence": script.stop_sequence or None,
        "usage": _usage(script, script.tokens.out),
    }
    return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()


def frames(script: Script, model: str, body: dict[str, Any]) -> list[bytes]:
    message: dict[str, Any] = {
        "model": f"{model}-20260901",
        "id": f"msg_01conformance{len(body['messages'])}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(script, 1),
    }
    out = [_sse("message_start", message=message)]
    for index, block in enumerate(_blocks(script)):
        out += _block_frames(script, index, block)
        if index == 0:
            out.insert(2, _sse("ping"))
    stop = {"stop_reason": _STOP[script.stop], "stop_sequence": script.stop_sequence or None}
    out.append(_sse("message_delta", delta=stop, usage={"output_tokens": script.tokens.out}))
    return [*out, _sse("message_stop")]


def _block_frames(script: Script, index: int, block: dict[str, Any]) -> Iterator[bytes]:
    def delta(kind: str, **fields: str) -> bytes:
        return _sse("content_block_delta", index=index, delta={"type": kind, **fields})

    empty: dict[str, Any]
    match block["type"]:
        case "text":
            empty, deltas = {"text": ""}, [delta("text_delta", text=piece) for piece in script.pieces]
        case "thinking":
            empty = {"thinking": "", "signature": ""}
            cut = [script.thought[i : i + 9] for i in range(0, len(script.thought), 9)]
            deltas = [delta("thinking_delta", thinking=piece) for piece in cut]
            deltas.append(delta("signature_delta", signature=script.signature))
        case "tool_use":
            empty = {"input": {}}
            numbered = enumerate(script.calls, script.first_call)
            pieces = next(call for n, call in numbered if call_id(n) == block["id"]).pieces
            deltas = [delta("input_json_delta", partial_json=piece) for piece in ("", *pieces)]
        case _:
            empty, deltas = {}, []
    yield _sse("content_block_start", index=index, content_block={**block, **empty})
    yield from deltas
    yield _sse("content_block_stop", index=index)


def _sse(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def breaking_frame() -> bytes:
    return _sse("error", error={"details": None, "type": "overloaded_error", "message": FAILURE})


def error(status: int, message: str) -> tuple[int, dict[str, str], bytes]:
    value = {
        "type": "error",
        "error": {"type": _KINDS[status], "message": message},
        "request_id": "req_011conformance",
    }
    headers = {"request-id": "req_011conformance"}
    if status == 429:
        headers |= {"retry-after": "7", "anthropic-ratelimit-requests-remaining": "0"}
    return status, headers, json.dumps(value, separators=(",", ":")).encode()
