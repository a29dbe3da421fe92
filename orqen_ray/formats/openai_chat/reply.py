"""Whole Chat Completions answers, read and written."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import msgspec

from orqen_ray.conversation import Block, Facts, JsonObject, Refusal, Reply, Text, Thinking, ToolCall
from orqen_ray.errors import BadRequest, UpstreamError
from orqen_ray.formats.events import facts_of
from orqen_ray.formats.openai_chat.blocks import read_assistant, unknown, write_assistant
from orqen_ray.formats.openai_chat.errors import read_error_object
from orqen_ray.formats.openai_chat.usage import (
    read_stop_reason,
    read_usage,
    write_stop_reason,
    write_usage,
)
from orqen_ray.formats.reading import as_list, as_object, required
from orqen_ray.types import Written

_KNOWN = ("id", "object", "created", "model", "choices", "usage")
_MESSAGE_KNOWN = ("role", "content", "refusal", "reasoning_content", "reasoning", "tool_calls")
_CHOICE_KNOWN = ("index", "message", "finish_reason", "stop_reason")


def read_reply(body: JsonObject) -> Reply:
    """The first choice of a chat completion.

    Raises:
        UpstreamError: not a chat completion; an UpstreamRejected when it is an error that came with a 200.
    """
    if body.get("error"):
        raise read_error_object(502, body)
    try:
        return _read_reply(body)
    except BadRequest as exc:
        raise UpstreamError(f"the provider's answer is not a chat completion: {exc}") from exc


def _read_reply(body: JsonObject) -> Reply:
    choices = as_list(required(body, "choices", ""), "choices")
    if not choices:
        raise BadRequest("is empty", param="choices")
    choice = as_object(choices[0], "choices[0]")
    path = "choices[0].message"
    message = as_object(required(choice, "message", "choices[0]"), path)
    reply_id, created_s = body.get("id"), body.get("created")
    reply_id = reply_id if isinstance(reply_id, str) else ""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message = {**message, "tool_calls": [_with_id(call, reply_id, i) for i, call in enumerate(calls)]}
    blocks = read_assistant(message, path)
    finish_reason, matched = choice.get("finish_reason"), choice.get("stop_reason")
    model = body.get("model")
    return Reply(
        id=reply_id,
        model=model if isinstance(model, str) else "",
        blocks=blocks,
        stop_reason=read_stop_reason(finish_reason, {type(block) for block in blocks}, matched),
        stop_sequence=matched if isinstance(matched, str) else None,
        usage=read_usage(body.get("usage")),
        created_s=int(created_s) if isinstance(created_s, int | float) else None,
        extra={
            **unknown(message, _MESSAGE_KNOWN),
            **unknown(choice, _CHOICE_KNOWN),
            **unknown(body, _KNOWN),
            **({"choices": choices[1:]} if len(choices) > 1 else {}),
        },
    )


def _with_id(call: Any, reply_id: str, position: int) -> Any:
    if not isinstance(call, dict) or call.get("id"):
        return call
    return {**call, "id": made_call_id(reply_id, position)}


def made_call_id(reply_id: str, position: int) -> str:
    """An id for a call that its server gave none: the same for the same place in the same reply."""
    return "call_" + hashlib.sha256(f"{reply_id}/{position}".encode()).hexdigest()[:24]


def write_reply(reply: Reply, requested_model: str, response_id: str) -> Written:
    """The reply as a chat completion under the model name that the caller used.

    `created` is the provider's, or the time of writing.
    """
    dropped: dict[str, None] = dict.fromkeys(reply.extra)
    blocks = _spoken(reply.blocks, dropped)
    message = {"role": "assistant", "refusal": None, **write_assistant(blocks)}
    body: JsonObject = {
        "id": completion_id(response_id),
        "object": "chat.completion",
        "created": int(time.time()) if reply.created_s is None else reply.created_s,
        "model": requested_model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": write_stop_reason(reply.stop_reason),
            }
        ],
    }
    if reply.usage is not None:
        body["usage"] = write_usage(reply.usage)
    return Written(body=body, dropped=tuple(dropped))


def completion_id(response_id: str) -> str:
    return response_id if response_id.startswith("chatcmpl-") else f"chatcmpl-{response_id}"


def _spoken(blocks: tuple[Block, ...], dropped: dict[str, None]) -> list[Block]:
    """What a reply's message can hold: one text and one refusal, which are strings there, then the calls."""
    said: list[Block] = []
    texts: list[str] = []
    refusals: list[str] = []
    for i, block in enumerate(blocks):
        extra = getattr(block, "extra", {})
        dropped.update((f"content[{i}].{key}", None) for key in extra)
        match block:
            case Text(text=text):
                texts.append(text)
            case ToolCall(arguments=arguments):
                empty = "" if block.custom else "{}"
                said.append(replace(block, arguments=arguments or empty, extra={}))
            case Refusal(text=text):
                refusals.append(text)
            case Thinking(redacted=None, text=text, signature=signature):
                said.append(Thinking(text=text))
                if signature:
                    dropped[f"content[{i}].signature"] = None
            case _:
                dropped[f"content[{i}]"] = None
    if refusals:
        said.insert(0, Refusal(text="".join(refusals)))
    text = "".join(texts)
    return [Text(text=text), *said] if text else said


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None
    stop_reason: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: Any = None
    error: Any = None


_COMPLETION = msgspec.json.Decoder(_Completion)


def scan_reply(body: bytes) -> Facts:
    """What can be read of an answer that is forwarded untouched; nothing, if it is not a chat completion."""
    try:
        completion = _COMPLETION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _scan_any_reply(body)
    if completion.error or not completion.choices or completion.choices[0].message.tool_calls:
        return _scan_any_reply(body)
    # Text alone, which nearly every answer is, needs no neutral reply to be counted.
    choice = completion.choices[0]
    said = choice.message
    thinking = next((text for text in (said.reasoning_content, said.reasoning) if isinstance(text, str) and text), "")
    kinds = (Refusal,) if said.refusal else ()
    return Facts(
        served_model=completion.model or None,
        usage=read_usage(completion.usage),
        stop_reason=read_stop_reason(choice.finish_reason, kinds, choice.stop_reason),
        output_chars=len(thinking) + len(said.content or "") + len(said.refusal or ""),
    )


def _scan_any_reply(body: bytes) -> Facts:
    try:
        value = msgspec.json.decode(body)
        return facts_of(read_reply(value)) if isinstance(value, dict) else Facts()
    except UpstreamError as exc:
        return Facts(failure=exc.message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Facts()
