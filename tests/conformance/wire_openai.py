"""OpenAI's Chat Completions as its vendor speaks it: what it refuses, and what it answers."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from openai.types.chat import completion_create_params

from tests.conformance.scenarios import FAILURE, Refused, Script, Seen, require

_FIELDS = {*get_type_hints(completion_create_params.CompletionCreateParamsBase), "stream"}
_ROLES = {"developer", "system", "user", "assistant", "tool"}
_MESSAGE_FIELDS = {
    "user": {"role", "content", "name"},
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "tool": {"role", "content", "tool_call_id"},
    # `reasoning_content` is DeepSeek's and vLLM's, the rest is what OpenAI's own SDK sends back
    "assistant": {"role", "content", "name", "refusal", "tool_calls", "annotations", "audio", "function_call",
                  "reasoning_content"},
}  # fmt: skip
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FINISH = {"end": "stop", "tools": "tool_calls", "length": "length", "sequence": "stop"}
_KINDS = {
    400: ("invalid_request_error", "context_length_exceeded"),
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "server_error"),
    529: ("overloaded_error", "overloaded"),
}


def read(body: dict[str, Any], model: str, beta: str) -> Seen:
    """What the request says.

    Raises:
        Refused: OpenAI would answer 400.
    """
    unknown = body.keys() - _FIELDS
    require(not unknown, f"Unrecognized request arguments supplied: {', '.join(sorted(unknown))}")
    require(body["model"] == model, "unexpected model")
    seen = Seen(stop=_stop(body), thinks=body.get("reasoning_effort", "none") != "none")
    require(not {"max_tokens", "max_completion_tokens"} <= body.keys(), "max_tokens and max_completion_tokens")
    require(body.get("stream") or "stream_options" not in body, "stream_options needs stream")
    tools = body.get("tools")
    require(tools is None or tools, "tools: empty array")
    for name in ("tool_choice", "parallel_tool_calls"):
        require(tools or name not in body, f"'{name}' is only allowed when 'tools' are specified")
    for tool in tools or ():
        _read_tool(tool, seen)
    seen.tool_choice = body.get("tool_choice")
    require(body["messages"], "messages: empty array")
    _read_messages(body["messages"], seen)
    return seen


def _stop(body: dict[str, Any]) -> list[str]:
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    require(len(stop) <= 4, "stop: at most 4")
    return stop


def _read_tool(tool: dict[str, Any], seen: Seen) -> None:
    require(tool.keys() == {"type", "function"} and tool["type"] == "function", f"tools: {sorted(tool)}")
    function = tool["function"]
    require(not function.keys() - {"name", "description", "parameters", "strict"}, f"tools.function: {function}")
    require(_NAME.fullmatch(function["name"]), "tools.function.name: pattern")
    parameters = function.get("parameters")
    require(parameters is None or parameters.get("type") == "object", "tools.function.parameters: type object")
    seen.tools[function["name"]] = parameters
    seen.described[function["name"]] = function.get("description", "")


def _read_messages(messages: list[dict[str, Any]], seen: Seen) -> None:
    open_calls: list[str] = []
    for message in messages:
        role = message["role"]
        require(role in _ROLES, f"messages.role: {role}")
        unknown = message.keys() - _MESSAGE_FIELDS[role]
        require(not unknown, f"messages: unknown {sorted(unknown)} in a {role} message")
        if role == "tool":
            require(message["tool_call_id"] in open_calls, "messages with role 'tool' must follow 'tool_calls'")
            open_calls.remove(message["tool_call_id"])
            words = "".join(part[1] for part in _parts(message["content"], ("text",)))
            seen.turns.append(("tool", [("result", message["tool_call_id"], words, None)]))
            continue
        require(not open_calls, "an assistant message with 'tool_calls' must be followed by tool messages for each id")
        if role in ("system", "developer"):
            words = "".join(part[1] for part in _parts(message["content"], ("text",)))
            if seen.turns:
                seen.turns.append(("system", [("text", words)]))
            else:
                seen.system.append(words)
        elif role == "user":
            seen.turns.append(("user", list(_parts(message["content"], ("text", "image_url", "file")))))
        else:
            open_calls = _read_assistant(message, seen)
    require(not open_calls, "tool calls without results")


def _read_assistant(message: dict[str, Any], seen: Seen) -> list[str]:
    parts: list[tuple[Any, ...]] = []
    if message.get("reasoning_content"):
        parts.append(("thinking", message["reasoning_content"], None))
    calls = message.get("tool_calls")
    require(calls is None or calls, "tool_calls: empty array")
    require(calls or message.get("content") is not None, "content: null without tool_calls")
    parts += _parts(message.get("content") or "", ("text", "refusal"))
    for call in calls or ():
        require(call.keys() == {"id", "type", "function"} and call["type"] == "function", f"tool_calls: {call}")
        require(call["function"].keys() == {"name", "arguments"}, f"tool_calls.function: {call}")
        require(0 < len(call["id"]) <= 40, "tool_calls.id: at most 40 characters")
        require(_NAME.fullmatch(call["function"]["name"]), "tool_calls.function.name: pattern")
        parts.append(("call", call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])))
    seen.turns.append(("assistant", parts))
    return [call["id"] for call in calls or ()]


def _parts(content: Any, kinds: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, str):
        if content:
            yield ("text", content)
        return
    require(isinstance(content, list) and content, "content: a string or parts")
    for part in content:
        kind = part["type"]
        require(kind in kinds, f"content: {kind} is not allowed here")
        require(part.keys() == {"type", kind}, f"content: {sorted(part)}")
        if kind == "image_url":
            yield ("image", _image(part["image_url"]["url"]))
        else:
            yield ("text", part[kind])


def _image(url: str) -> bytes:
    found = re.fullmatch(r"data:image/(?:png|jpeg|gif|webp);base64,(.+)", url)
    if found is None:
        raise Refused("image_url.url: expected a data URL of an image")
    try:
        return base64.b64decode(found[1], validate=True)
    except binascii.Error as error:
        raise Refused("image_url.url: not base64") from error


# --- Answers ----------------------------------------------------------------------------------------------------


def call_id(n: int) -> str:
    return f"call_0aZ9conformance{n}"


def _usage(script: Script) -> dict[str, Any]:
    tokens = script.tokens
    prompt = tokens.fresh + tokens.read + tokens.written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens.out,
        "total_tokens": prompt + tokens.out,
        "prompt_tokens_details": {"cached_tokens": tokens.read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": tokens.thought, "audio_tokens": 0},
    }


def whole(script: Script, model: str, body: dict[str, Any]) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": script.text or None, "refusal": None, "annotations": []}
    if script.thought:
        message["reasoning_content"] = script.thought
    if script.calls:
        message["tool_calls"] = [
            {
                "id": call_id(n),
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.pieces) or "{}"},
            }
            for n, call in enumerate(script.calls, script.first_call)
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[script.stop]}
    reply = {
        "id": f"chatcmpl-conformance{len(body['messages'])}",
        "object": "chat.completion",
        "created": 1790000000,
        "model": f"{model}-2026-09-01",
        "choices": [choice],
        "usage": _usage(script),
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
    }
    return json.dumps(reply, indent=2).encode()  # OpenAI's own answers are indented, too


def frames(script: Script, model: str, body: dict[str, Any]) -> list[bytes]:
    head = {
        "id": f"chatcmpl-conformance{len(body['messages'])}",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": f"{model}-2026-09-01",
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
    }
    usage_asked = (body.get("stream_options") or {}).get("include_usage", False)
    obfuscated = {"usage": None} if usage_asked else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _sse({**head, "choices": [choice], **obfuscated})

    out = [chunk({"role": "assistant", "content": "" if script.text else None, "refusal": None})]
    out += [chunk({"reasoning_content": script.thought[i : i + 9]}) for i in range(0, len(script.thought), 9)]
    out += [chunk({"content": piece}) for piece in script.pieces]
    out += [chunk({"tool_calls": [delta]}) for delta in _call_deltas(script)]
    out.append(chunk({}, _FINISH[script.stop]))
    if usage_asked:
        out.append(_sse({**head, "choices": [], "usage": _usage(script)}))
    return [*out, b"data: [DONE]\n\n"]


def _call_deltas(script: Script) -> Iterator[dict[str, Any]]:
    """The calls begin one after another; then their arguments come interleaved, as some servers send them."""
    for n, call in enumerate(script.calls):
        function = {"name": call.name, "arguments": ""}
        yield {"index": n, "id": call_id(script.first_call + n), "type": "function", "function": function}
    for i in range(max((len(call.pieces) for call in script.calls), default=0)):
        for n, call in enumerate(script.calls):
            if i < len(call.pieces):
                yield {"index": n, "function": {"arguments": call.pieces[i]}}
    for n, call in enumerate(script.calls):
        if not call.pieces:
            yield {"index": n, "function": {"arguments": "{}"}}


def _sse(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def breaking_frame() -> bytes:
    return _sse({"error": {"message": FAILURE, "type": "server_error", "param": None, "code": "overloaded"}})


def error(status: int, message: str) -> tuple[int, dict[str, str], bytes]:
    kind, code = _KINDS[status]
    value = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    headers = {"x-ratelimit-remaining-requests": "0", "retry-after": "7"} if status == 429 else {}
    return status, headers, json.dumps(value, indent=2).encode()
