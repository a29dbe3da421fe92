"""Events to ConverseStream bytes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Conversation,
    Event,
    JsonObject,
    Opaque,
    Refusal,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.formats import eventstream
from orqen_ray.formats.adapt import legal_tool_id
from orqen_ray.formats.bedrock_converse.errors import stream_exception
from orqen_ray.formats.bedrock_converse.legal_blocks import TOOL_ID
from orqen_ray.formats.bedrock_converse.reply import write_stop_reason, write_usage

_OWN_DELTAS = frozenset({"citation", "image", "toolResult", "reasoningContent"})
_OWN_STARTS = frozenset({"toolUse", "toolResult", "image"})
_DELTAS: dict[str, Callable[[str], JsonObject]] = {
    "text": lambda text: {"text": text},
    "refusal": lambda text: {"text": text},
    "thinking": lambda text: {"reasoningContent": {"text": text}},
    "signature": lambda text: {"reasoningContent": {"signature": text}},
    "arguments": lambda text: {"toolUse": {"input": text}},
}


class ConverseStreamWriter:
    """Writes one stream: each block whole before the next begins, though other providers interleave parallel calls.

    `metadata.metrics.latencyMs` is 0: this class has no clock.
    """

    content_type = eventstream.CONTENT_TYPE

    def __init__(self) -> None:
        self._waiting: dict[int, list[Event]] = {}
        """Events of the blocks begun and not yet written to their end, by the index they came with, in order."""
        self._index = -1
        self._shown = self._called = False
        """Whether the block being written has a frame yet, and whether it is a call still without arguments."""
        self._started = self._done = False
        self._usage: Usage | None = None

    def write(self, event: Event) -> bytes:
        if self._done:
            return b""
        match event:
            case ReplyStart(usage=usage):
                self._usage = usage
                return self._start()
            case BlockStart(index=index) | BlockDelta(index=index) | BlockStop(index=index):
                return self._start() + self._in_turn(index, event)
            case ReplyEnd():
                return self._end(event)
            case StreamFailure():
                self._done = True
                return _exception(event)
            case _:
                return b""

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return _event("messageStart", {"role": "assistant"})

    def _in_turn(self, index: int, event: Event) -> bytes:
        if isinstance(event, BlockStart):
            self._waiting.setdefault(index, [])
        elif index not in self._waiting:
            return b""
        self._waiting[index].append(event)
        return self._flush()

    def _flush(self) -> bytes:
        """What may go out: all that is there of the first block and, once that has stopped, of those behind it."""
        frames: list[bytes] = []
        while self._waiting:
            index, events = next(iter(self._waiting.items()))
            frames += [self._write_block_event(event) for event in events]
            if not events or not isinstance(events[-1], BlockStop):
                events.clear()
                break
            del self._waiting[index]
        return b"".join(frames)

    def _write_block_event(self, event: Event) -> bytes:
        match event:
            case BlockStart(block=block):
                self._shown = self._called = False
                return self._begin(block)
            case BlockDelta(kind="other", raw=raw):
                own = raw is not None and len(raw) == 1 and not _OWN_DELTAS.isdisjoint(raw)
                return self._frame("contentBlockDelta", delta=raw) if own else b""
            case BlockDelta(kind=kind, text=text) if text:
                if kind == "arguments":
                    self._called = False
                return self._frame("contentBlockDelta", delta=_DELTAS[kind](text))
            case BlockStop() if self._shown:
                # A client that parses the joined input must find JSON.
                empty = self._frame("contentBlockDelta", delta=_DELTAS["arguments"]("{}")) if self._called else b""
                return empty + self._frame("contentBlockStop")
            case _:
                return b""

    def _begin(self, block: Block) -> bytes:
        match block:
            case ToolCall(id=call_id, name=name, arguments=arguments):
                call = {"toolUseId": legal_tool_id(call_id, TOOL_ID), "name": name}
                self._called = not arguments
                return self._frame("contentBlockStart", start={"toolUse": call}) + self._first("arguments", arguments)
            case Thinking(redacted=str(redacted)):
                return self._frame("contentBlockDelta", delta={"reasoningContent": {"redactedContent": redacted}})
            case Thinking(text=text, signature=signature):
                return self._first("thinking", text) + self._first("signature", signature or "")
            case Text(text=text) | Refusal(text=text):
                return self._first("text", text)
            case Opaque(kind=kind, raw=raw) if kind in raw and kind in _OWN_STARTS:
                return self._frame("contentBlockStart", start=raw)
            case _:
                return b""

    def _first(self, kind: str, text: str) -> bytes:
        return self._frame("contentBlockDelta", delta=_DELTAS[kind](text)) if text else b""

    def _frame(self, event_type: str, **fields: object) -> bytes:
        """A frame of the current block, which gets its index with its first frame: an empty block leaves no gap."""
        if not self._shown:
            self._shown = True
            self._index += 1
        return _event(event_type, {**fields, "contentBlockIndex": self._index})

    def _end(self, event: ReplyEnd) -> bytes:
        frames = [self._start()]
        for index, events in self._waiting.items():
            if not events or not isinstance(events[-1], BlockStop):
                events.append(BlockStop(index=index))
        frames.append(self._flush())
        self._done = True
        frames.append(_event("messageStop", {"stopReason": write_stop_reason(event.stop_reason)}))
        usage = write_usage(event.usage or self._usage)
        frames.append(_event("metadata", {"usage": usage, "metrics": {"latencyMs": 0}}))
        return b"".join(frames)


def stream_writer(conversation: Conversation, requested_model: str, response_id: str) -> ConverseStreamWriter:
    """A writer for one stream; Converse has no place for the model's name or an id."""
    return ConverseStreamWriter()


def _event(event_type: str, payload: JsonObject) -> bytes:
    headers = {":event-type": event_type, ":content-type": "application/json", ":message-type": "event"}
    return eventstream.write_frame(headers, msgspec.json.encode(payload))


def _exception(failure: StreamFailure) -> bytes:
    kind, payload = stream_exception(failure)
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return eventstream.write_frame(headers, msgspec.json.encode(payload))
