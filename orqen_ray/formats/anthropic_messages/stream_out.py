"""Writes a stream of Messages events: whole blocks in order, whatever way they arrive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
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
    Usage,
)
from orqen_ray.formats.anthropic_messages.blocks_out import REPLY_FIELDS, BlockWriter
from orqen_ray.formats.anthropic_messages.errors import write_failure
from orqen_ray.formats.anthropic_messages.reply import IN_REPLIES, legal_call, message_id
from orqen_ray.formats.anthropic_messages.usage import write_stop_reason, write_usage
from orqen_ray.formats.sse import write_frame

# The neutral kinds of delta: the vendor's type, and the field that holds the text.
_DELTAS: Mapping[str, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "refusal": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "arguments": ("input_json_delta", "partial_json"),
    "signature": ("signature_delta", "signature"),
}


@dataclass(slots=True)
class _Open:
    """A block that has begun: what to open it with, its deltas not yet written, and its signature so far."""

    start: JsonObject | None
    waiting: list[BlockDelta] = field(default_factory=list)
    lazy: bool = False
    index: int = -1
    signature: str = ""
    stopped: bool = False


class MessagesStreamWriter:
    """Events to frames. One block is open at a time; what comes for the blocks behind it waits for its turn.

    A text block is opened by its first text, because clients send an answer back and the vendor refuses empty text. A
    signature is written whole, at the end of its block, because the SDKs keep only the last piece.
    """

    content_type = "text/event-stream"

    def __init__(self, requested_model: str, response_id: str) -> None:
        self._requested_model = requested_model
        self._response_id = response_id
        self._blocks: dict[int, _Open] = {}
        self._next_index = 0
        self._started = False
        self._called = False
        self._usage: Usage | None = None

    def write(self, event: Event) -> bytes:
        if isinstance(event, Ping | StreamFailure):  # they may come before the answer has begun
            return _frame({"type": "ping"} if isinstance(event, Ping) else write_failure(event))
        frames = [] if self._started else [self._start(event)]
        match event:
            case BlockStart(index=index, block=block):
                self._blocks[index] = self._begin(index, block)
            case BlockDelta(index=index) if index in self._blocks and (event.text or event.raw):
                self._blocks[index].waiting.append(event)
            case BlockStop(index=index) if index in self._blocks:
                self._blocks[index].stopped = True
            case ReplyEnd():
                for left in self._blocks.values():
                    left.stopped = True
        frames += self._advance()
        if isinstance(event, ReplyEnd):
            frames += self._finish(event)
        return b"".join(frames)

    def _start(self, event: Event) -> bytes:
        self._started = True
        start = event if isinstance(event, ReplyStart) else ReplyStart(id="", model="")
        self._usage = start.usage
        message: JsonObject = {
            "id": message_id(start.id, self._response_id),
            "type": "message",
            "role": "assistant",
            "model": start.model or self._requested_model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": write_usage(start.usage),
        }
        return _frame({"type": "message_start", "message": message})

    def _begin(self, index: int, block: Block) -> _Open:
        """What the start of a block already holds of its content becomes its first delta."""

        def delta(kind: str, text: str | None) -> list[BlockDelta]:
            return [BlockDelta(index=index, kind=kind, text=text)] if text else []  # type: ignore[arg-type]

        match block:
            case Text(text=text) | Refusal(text=text):
                shell = _shell(replace(block, text="-"))  # no writer gives a text block without text
                return _Open(shell and {**shell, "text": ""}, delta("text", text), lazy=True)
            case ToolCall():
                self._called = True
                shell = _shell(legal_call(replace(block, arguments=""), index, self._response_id))
                return _Open(shell, delta("arguments", block.arguments))
            case Thinking(redacted=None):
                deltas = delta("thinking", block.text) + delta("signature", block.signature)
                return _Open(_shell(replace(block, text="", signature=None)), deltas)
        return _Open(_shell(block) if isinstance(block, IN_REPLIES) else None)

    def _advance(self) -> Iterator[bytes]:
        """Frames of the first open block, and of those behind it once it is closed."""
        while self._blocks:
            index, block = next(iter(self._blocks.items()))
            yield from self._flush(block)
            if not block.stopped:
                return
            del self._blocks[index]
            if block.signature:
                yield self._delta(block, {"type": "signature_delta", "signature": block.signature})
            if block.index >= 0:
                yield _frame({"type": "content_block_stop", "index": block.index})

    def _flush(self, block: _Open) -> Iterator[bytes]:
        if block.start is None:  # a block that this vendor's answers cannot hold
            block.waiting.clear()
            return
        if block.index < 0 and (block.waiting or not block.lazy):
            block.index = self._next_index
            self._next_index += 1
            yield _frame({"type": "content_block_start", "index": block.index, "content_block": block.start})
        for delta in block.waiting:
            if delta.kind == "signature":
                block.signature += delta.text
            elif delta.kind != "other":
                kind, key = _DELTAS[delta.kind]
                yield self._delta(block, {"type": kind, key: delta.text})
            elif delta.raw is not None and "type" in delta.raw:  # another vendor's has no type
                yield self._delta(block, delta.raw)
        block.waiting.clear()

    def _delta(self, block: _Open, delta: JsonObject) -> bytes:
        return _frame({"type": "content_block_delta", "index": block.index, "delta": delta})

    def _finish(self, end: ReplyEnd) -> Iterator[bytes]:
        writer = BlockWriter(REPLY_FIELDS)
        stop_reason = write_stop_reason(end.stop_reason, end.extra, called=self._called)
        extra = writer.extra({}, end.extra, "")
        context = {"context_management": extra.pop("context_management")} if "context_management" in extra else {}
        delta = {"stop_reason": stop_reason, "stop_sequence": end.stop_sequence, **extra}
        usage = write_usage(end.usage or self._usage)
        yield _frame({"type": "message_delta", "delta": delta, "usage": usage, **context})
        yield _frame({"type": "message_stop"})


def _shell(block: Block) -> JsonObject | None:
    """The block as `content_block_start` shows it."""
    return BlockWriter(REPLY_FIELDS).block(block, "")


def _frame(event: JsonObject) -> bytes:
    return write_frame(msgspec.json.encode(event), event["type"])
