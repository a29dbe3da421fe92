"""Reads a stream of Messages events."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from orqen_ray.conversation import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    JsonObject,
    Ping,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    ToolCall,
)
from orqen_ray.errors import BadRequest
from orqen_ray.formats.anthropic_messages.blocks import read_block
from orqen_ray.formats.anthropic_messages.errors import read_failure
from orqen_ray.formats.anthropic_messages.usage import read_stop_reason, read_usage
from orqen_ray.formats.reading import as_object, optional_str, required, rest
from orqen_ray.formats.sse import Frames, parse_frame

# The delta types: the field that holds the text, and the neutral kind.
_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
    "input_json_delta": ("partial_json", "arguments"),
}


class MessagesStreamReader:
    """Upstream bytes to events; `StreamReader` says what is owed."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._done = False
        self._usage: JsonObject = {}
        self._end: ReplyEnd | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for frame in self._frames.feed(chunk):
            self._read_frame(frame, events)
        return events

    def end(self) -> list[Event]:
        """A stream that gave its stop reason is complete, even without its last, empty event."""
        events: list[Event] = []
        self._read_frame(self._frames.rest(), events, cut_off=True)
        if not self._done:
            cut = StreamFailure(message="the provider's stream ended before the answer was complete")
            events.append(self._end or cut)
            self._done = True
        return events

    def _read_frame(self, frame: bytes, events: list[Event], *, cut_off: bool = False) -> None:
        if self._done:
            return
        _, data = parse_frame(frame)
        if not data.strip():
            return
        try:
            event: Event | None = self._read_event(as_object(msgspec.json.decode(data), ""))
        except (msgspec.DecodeError, UnicodeError, RecursionError, BadRequest) as exc:
            if cut_off:
                return
            event = StreamFailure(message=f"the provider's stream cannot be read: {exc}")
        if event is not None:
            self._done = isinstance(event, ReplyEnd | StreamFailure)
            events.append(event)

    def _read_event(self, event: JsonObject) -> Event | None:
        match event.get("type"):
            case "content_block_delta":
                return _read_delta(_index(event), as_object(required(event, "delta", ""), "delta"))
            case "content_block_start":
                return _read_start(_index(event), as_object(required(event, "content_block", ""), "content_block"))
            case "content_block_stop":
                return BlockStop(index=_index(event))
            case "message_start":
                message = as_object(required(event, "message", ""), "message")
                self._count(message.get("usage"))
                return ReplyStart(
                    id=optional_str(message, "id", "message") or "",
                    model=optional_str(message, "model", "message") or "",
                    usage=read_usage(self._usage or None),
                )
            case "message_delta":
                self._read_message_delta(event)
                return None
            case "message_stop":
                return self._end or ReplyEnd(stop_reason="end", usage=read_usage(self._usage or None))
            case "ping":
                return Ping()
            case "error":
                return read_failure(event)
        return None  # an event newer than this code

    def _read_message_delta(self, event: JsonObject) -> None:
        delta = as_object(required(event, "delta", ""), "delta")
        self._count(event.get("usage"))
        stop_reason, newer = read_stop_reason(delta.get("stop_reason"))
        extra = {**rest(event, {"type", "delta", "usage"}), **rest(delta, {"stop_reason", "stop_sequence"}), **newer}
        self._end = ReplyEnd(
            stop_reason=stop_reason,
            stop_sequence=optional_str(delta, "stop_sequence", "delta"),
            usage=read_usage(self._usage or None),
            extra={key: value for key, value in extra.items() if value is not None},
        )

    def _count(self, usage: object) -> None:
        """Counts are running totals; those that a later event leaves out still hold."""
        if isinstance(usage, dict):
            self._usage.update((key, value) for key, value in usage.items() if value is not None)


def _index(event: JsonObject) -> int:
    index = event.get("index")
    if not isinstance(index, int):
        raise BadRequest("expected an integer", param="index")
    return index


def _read_start(index: int, body: JsonObject) -> BlockStart:
    if body.get("type") == "tool_use":
        body = {**body, "input": body.get("input") or {}}
    block = read_block(body, "content_block")
    if isinstance(block, ToolCall) and block.arguments == "{}":
        block = replace(block, arguments="")  # the arguments follow in deltas
    return BlockStart(index=index, block=block)


def _read_delta(index: int, delta: JsonObject) -> BlockDelta:
    kind = optional_str(delta, "type", "delta")
    if kind not in _DELTAS:
        return BlockDelta(index=index, kind="other", raw=delta)
    key, neutral = _DELTAS[kind]
    text = optional_str(delta, key, "delta") or ""
    return BlockDelta(index=index, kind=neutral, text=text)  # type: ignore[arg-type]  # from the table above
