"""The embedded provider: speaks OpenAI's chat API from inside the process, deterministically. It is not a model.

It answers what was said to it, or calls a tool with made-up arguments, so that a whole installation can be tried
without a key and without a network.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from orqen_ray.conversation import JsonObject
from orqen_ray.types import Call, UpstreamReply

LABEL = "[sandbox, not a model] "
MODEL = "echo"
INDEX = "orqen_more_tools"
"""The gateway's own tool, which names those that were left out."""
_CHARS_PER_TOKEN = 4
_MAX_SCHEMA_DEPTH = 8
_STREAM_PIECE_CHARS = 12
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def answer(call: Call) -> UpstreamReply:
    """What an OpenAI-compatible provider would answer to `call`. The same call gets the same bytes."""
    if (call.method, call.path) != ("POST", "/chat/completions"):
        return _failure(404, f"the sandbox serves POST /chat/completions, not {call.method} {call.path}", "not_found")
    try:
        request = msgspec.json.decode(call.body)
        if not isinstance(request, dict) or not isinstance(request.get("messages"), list) or not request["messages"]:
            return _failure(400, "expected an object with at least one message", "invalid_value", "messages")
        if request.get("model") != MODEL:
            return _failure(404, f"the sandbox has the model {MODEL!r} only", "model_not_found", "model")
        message, finish = _write_message(request)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        return _failure(400, f"the body is not JSON: {exc}", "invalid_json")
    except (AttributeError, KeyError, TypeError) as exc:
        return _failure(400, f"the request is not a chat request: {type(exc).__name__}", "invalid_value")
    head = {"id": f"chatcmpl-sandbox-{hashlib.sha256(call.body).hexdigest()[:16]}", "created": 0, "model": MODEL}
    usage = _count(request, message)
    if request.get("stream") is True:
        options = request.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        chunks = _write_chunks(head, message, finish, usage if wants_usage else None)
        return UpstreamReply(status=200, headers={"content-type": "text/event-stream"}, chunks=_as_events(chunks))
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return _json(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})


# --- What it says -------------------------------------------------------------------------------------------------


def _write_message(request: JsonObject) -> tuple[JsonObject, str]:
    messages: list[JsonObject] = request["messages"]
    # Coding agents put a system message behind the user's; it is no turn of its own.
    turns = [message for message in messages if message["role"] not in ("system", "developer")] or messages
    last = turns[-1]
    said = next((_text_of(m) for m in reversed(messages) if m.get("role") == "user"), "")
    if last["role"] == "tool":
        results = []
        for message in reversed(turns):
            if message["role"] != "tool":
                break
            results.append(_text_of(message))
        return _cut(request, f"{LABEL}The tool returned: {'; '.join(reversed(results))}")
    chosen = _choose_tools(request, said) if last["role"] == "user" else []
    if not chosen:
        return _cut(request, f"{LABEL}You said: {said}")
    calls = [
        {
            "id": "call" + hashlib.sha256(f"{len(messages)}/{i}/{name}".encode()).hexdigest()[:16],
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for i, (name, arguments) in enumerate(chosen)
    ]
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}, "tool_calls"


def _cut(request: JsonObject, text: str) -> tuple[JsonObject, str]:
    """The text as far as `stop` and the token limit let it go."""
    finish = "stop"
    stop = request.get("stop")
    for mark in [stop] if isinstance(stop, str) else stop or []:
        text = text.partition(mark)[0] if mark else text
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if isinstance(limit, int) and limit * _CHARS_PER_TOKEN < len(text):
        text, finish = text[: limit * _CHARS_PER_TOKEN], "length"
    return {"role": "assistant", "content": text, "refusal": None}, finish


def _choose_tools(request: JsonObject, said: str) -> list[tuple[str, str]]:
    """The tools to call, each with its arguments: the forced one, else the one named in the text, else the first; two
    when two are asked for. A tool that is named in the text and in the index only is asked for there."""
    offered = [tool["function"] for tool in request.get("tools") or [] if tool.get("type") == "function"]
    functions = [f for f in offered if f["name"] != INDEX]
    choice = request.get("tool_choice")
    if choice == "none" or not offered:
        return []
    if isinstance(choice, dict):
        allowed = choice.get("allowed_tools", {}).get("tools", [choice])
        names = {tool.get("function", {}).get("name") for tool in allowed}
        functions = [f for f in functions if f["name"] in names] or functions[:1]
    lowered = said.lower()
    named = [f for f in functions if _is_named(f["name"], lowered)]
    listed = [name for f in offered if f["name"] == INDEX for name in _indexed(f) if _is_named(name, lowered)]
    if listed and not named and not isinstance(choice, dict):
        return [(INDEX, msgspec.json.encode({"names": listed}).decode())]
    ordered = named + [f for f in functions if f not in named]
    two = re.search(r"\b(both|parallel)\b", lowered) and request.get("parallel_tool_calls") is not False
    return [(f["name"], _arguments(f.get("parameters") or {}, said)) for f in ordered[: 2 if two else 1]]


def _is_named(name: str, lowered: str) -> bool:
    return name.lower() in lowered or name.lower().replace("_", " ") in lowered


def _indexed(index: JsonObject) -> Iterator[str]:
    """The names that the gateway's index lists, one a line: `name: what it does`."""
    described = (index.get("parameters") or {}).get("properties", {}).get("names", {}).get("description") or ""
    for line in described.splitlines():
        name = line.partition(":")[0].strip()
        if name and " " not in name:
            yield name


def _arguments(schema: JsonObject, said: str) -> str:
    return msgspec.json.encode(_invent(schema, schema, _word_of(said), 0)).decode()


def _invent(schema: Any, root: JsonObject, word: str, depth: int) -> Any:
    """A value that fits `schema`, the same each time: its required properties, the first of what is offered."""
    if not isinstance(schema, dict) or depth > _MAX_SCHEMA_DEPTH:
        return {}
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    if isinstance(reference := schema.get("$ref"), str):
        return _invent(_at(root, reference), root, word, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _invent(schema[key][0], root, word, depth + 1)
    return _invent_typed(schema, root, word, depth)


def _invent_typed(schema: JsonObject, root: JsonObject, word: str, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema or depth == 0 else "string")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _invent(properties.get(name, {}), root, word, depth + 1) for name in schema.get("required", [])}
    if kind == "array":
        return [_invent(schema.get("items", {}), root, word, depth + 1)] * max(1, schema.get("minItems", 1))
    if kind == "string":
        text = _FORMATS.get(schema.get("format", ""), word)
        return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
    return {"integer": schema.get("minimum", 1), "number": schema.get("minimum", 1.5), "boolean": True}.get(kind)


def _at(root: JsonObject, reference: str) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step, {}) if step and isinstance(found, dict) else found
    return found


def _word_of(said: str) -> str:
    """The word most likely meant: the last capitalised one after the first word, else the last."""
    words = re.findall(r"\w[\w-]*", said)
    return next((word for word in reversed(words[1:]) if word[0].isupper()), words[-1] if words else "something")


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text", f"({part.get('type')})") for part in content)
    return content or ""


def _count(request: JsonObject, message: JsonObject) -> JsonObject:
    prompt = len(msgspec.json.encode([request["messages"], request.get("tools")])) // _CHARS_PER_TOKEN + 1
    calls = message.get("tool_calls") or []
    written = len(message["content"] or "") + sum(
        len(c["function"]["name"] + c["function"]["arguments"]) for c in calls
    )
    completion = written // _CHARS_PER_TOKEN + 1
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


# --- How it says it -----------------------------------------------------------------------------------------------


def _write_chunks(head: JsonObject, message: JsonObject, finish: str, usage: JsonObject | None) -> Iterator[JsonObject]:
    def chunk(delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        written = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        return written if usage is None else {**written, "usage": None}

    yield chunk({"role": "assistant", "content": None if message.get("tool_calls") else ""})
    for piece in _pieces(message["content"] or ""):
        yield chunk({"content": piece})
    for i, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        opened = {
            "index": i,
            "id": call["id"],
            "type": "function",
            "function": {"name": function["name"], "arguments": ""},
        }
        yield chunk({"tool_calls": [opened]})
        for piece in _pieces(function["arguments"]):
            yield chunk({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
    yield chunk({}, finish)
    if usage is not None:
        yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


def _pieces(text: str) -> Sequence[str]:
    return [text[at : at + _STREAM_PIECE_CHARS] for at in range(0, len(text), _STREAM_PIECE_CHARS)]


async def _as_events(chunks: Iterator[JsonObject]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield b"data: " + msgspec.json.encode(chunk) + b"\n\n"
        await asyncio.sleep(0)
    yield b"data: [DONE]\n\n"


def _json(status: int, body: JsonObject) -> UpstreamReply:
    return UpstreamReply(
        status=status, headers={"content-type": "application/json"}, chunks=_once(msgspec.json.encode(body))
    )


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _failure(status: int, message: str, code: str, param: str | None = None) -> UpstreamReply:
    error = {"message": f"{LABEL}{message}", "type": "invalid_request_error", "param": param, "code": code}
    return _json(status, {"error": error})
