"""Writes events as a Chat Completions stream."""

from __future__ import annotations

import time

import msgspec

from orqen_ray.conversation import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Conversation,
    Event,
    JsonObject,
    Ping,
    Refusal,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
)
from orqen_ray.formats.openai_chat.errors import write_failure
from orqen_ray.formats.openai_chat.reply import completion_id
from orqen_ray.formats.openai_chat.usage import write_stop_reason, write_usage
from orqen_ray.formats.sse import write_frame

_DELTA_FIELDS = {"text": "content", "thinking": "reasoning_content", "refusal": "refusal"}


class ChatStreamWriter:
    """Events to chunks, all with one id, model and time. A signature and what is redacted have no form here."""

    content_type = "text/event-stream"

    def __init__(self, conversation: Conversation, requested_model: str, response_id: str) -> None:
        self._include_usage = conversation.include_usage
        self._head: JsonObject = {
            "id": completion_id(response_id),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": requested_model,
        }
        self._calls: dict[int, tuple[int, bool]] = {}  # block index -> its place among the calls, and whether custom
        self._silent: set[int] = set()  # calls that have no arguments yet

    def write(self, event: Event) -> bytes:
        match event:
            case ReplyStart():
                return self._delta({"role": "assistant", "content": ""})
            case BlockStart(index=index, block=block):
                return self._start(index, block)
            case BlockDelta():
                return self._more(event)
            case BlockStop(index=index) if index in self._silent:
                return self._arguments(index, "{}")  # clients parse the arguments, and the empty string is not JSON
            case ReplyEnd():
                return self._end(event)
            case Ping():
                return b": ping\n\n"
            case StreamFailure():
                return write_frame(msgspec.json.encode(write_failure(event)))
        return b""

    def _start(self, index: int, block: object) -> bytes:
        match block:
            case ToolCall():
                place = len(self._calls)
                self._calls[index] = place, block.custom
                kind, field = ("custom", "input") if block.custom else ("function", "arguments")
                if not block.arguments and not block.custom:
                    self._silent.add(index)
                call = {
                    "index": place,
                    "id": block.id,
                    "type": kind,
                    kind: {"name": block.name, field: block.arguments},
                }
                return self._delta({"tool_calls": [call]})
            case Text(text=text) if text:
                return self._delta({"content": text})
            case Thinking(text=text) if text:
                return self._delta({"reasoning_content": text})
            case Refusal(text=text) if text:
                return self._delta({"refusal": text})
        return b""

    def _more(self, delta: BlockDelta) -> bytes:
        if not delta.text:
            return b""
        if delta.kind == "arguments":  # also of a call that the provider answers itself, which has no place here
            return self._arguments(delta.index, delta.text) if delta.index in self._calls else b""
        field = _DELTA_FIELDS.get(delta.kind)
        return self._delta({field: delta.text}) if field else b""

    def _arguments(self, index: int, text: str) -> bytes:
        self._silent.discard(index)
        place, custom = self._calls[index]
        more = {"custom": {"input": text}} if custom else {"function": {"arguments": text}}
        return self._delta({"tool_calls": [{"index": place, **more}]})

    def _end(self, end: ReplyEnd) -> bytes:
        out = self._delta({}, write_stop_reason(end.stop_reason))
        if self._include_usage and end.usage is not None:
            out += self._chunk({"choices": [], "usage": write_usage(end.usage)})
        return out + write_frame(b"[DONE]")

    def _delta(self, delta: JsonObject, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk({"choices": [choice], **({"usage": None} if self._include_usage else {})})

    def _chunk(self, fields: JsonObject) -> bytes:
        return write_frame(msgspec.json.encode({**self._head, **fields}))
