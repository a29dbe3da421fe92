"""ConverseStream bytes to events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    JsonObject,
    Opaque,
    ReplyEnd,
    ReplyStart,
    StopReason,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.errors import BadRequest
from orqen_ray.formats.bedrock_converse.errors import EXCEPTION_STATUS
from orqen_ray.formats.bedrock_converse.reply import read_stop_reason, read_stop_sequence, read_usage
from orqen_ray.formats.eventstream import Frame, FrameError, Frames, parse_frame
from orqen_ray.formats.reading import as_object, as_str, optional_int, required


class ConverseStreamReader:
    """Reads one stream. The reply ends with `metadata`, which follows `messageStop`, or else with the connection."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._open: list[int] = []
        self._stop_reason: StopReason | None = None
        self._stop_sequence: str | None = None
        self._usage: Usage | None = None
        self._done = False

    def feed(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for raw in self._frames.feed(chunk):
            if self._done:
                return events
            events += self._read_frame(raw)
        if self._frames.error is not None and not self._done:
            events += self._fail(self._frames.error.message)
        return events

    def end(self) -> list[Event]:
        if self._done:
            return []
        if self._stop_reason is not None:
            return self._finish()
        return self._fail("the provider's stream broke off before it was complete")

    def _read_frame(self, raw: bytes) -> list[Event]:
        frame = parse_frame(raw)
        if isinstance(frame, FrameError):
            return self._fail(frame.message)
        if frame.headers.get(":message-type") != "event":
            return self._fail_as_told(frame)
        read = self._READERS.get(str(frame.headers.get(":event-type")))
        if read is None:  # an event newer than this code
            return []
        try:
            return read(self, as_object(msgspec.json.decode(frame.payload), "event"))
        except (BadRequest, ValueError, RecursionError) as exc:
            return self._fail(f"the provider's stream cannot be read: {exc}")

    def _fail(self, message: str, status: int = 502, kind: str | None = None) -> list[Event]:
        self._done = True
        return [StreamFailure(message=message, status=status, kind=kind)]

    def _fail_as_told(self, frame: Frame) -> list[Event]:
        """An exception of the service model, or an error outside it, which has only headers."""
        kind = frame.headers.get(":exception-type") or frame.headers.get(":error-code")
        message = frame.headers.get(":error-message")
        try:
            body = msgspec.json.decode(frame.payload) if frame.payload else None
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict):
            message = body.get("message") or body.get("Message") or message
        kind = kind if isinstance(kind, str) else None
        text = message if isinstance(message, str) and message else "the provider's stream ended with an error"
        return self._fail(text, EXCEPTION_STATUS.get((kind or "").lower(), 502), kind)

    def _finish(self) -> list[Event]:
        self._done = True
        stops: list[Event] = [BlockStop(index=index) for index in self._open]
        end = ReplyEnd(stop_reason=self._stop_reason or "end", stop_sequence=self._stop_sequence, usage=self._usage)
        return [*stops, end]

    def _start_message(self, event: JsonObject) -> list[Event]:
        return [ReplyStart(id="", model="")]

    def _start_block(self, event: JsonObject) -> list[Event]:
        index = _index(event)
        start = as_object(required(event, "start", ""), "start")
        if not start:
            return []
        kind = next(iter(start))
        if kind != "toolUse":
            return self._begin(index, Opaque(kind=kind, raw=start))
        call = as_object(start["toolUse"], "start.toolUse")
        if call.get("type") is not None:  # the provider runs it itself
            return self._begin(index, Opaque(kind=kind, raw=start))
        call_id = as_str(required(call, "toolUseId", "start.toolUse"), "start.toolUse.toolUseId")
        name = as_str(required(call, "name", "start.toolUse"), "start.toolUse.name")
        return self._begin(index, ToolCall(id=call_id, name=name, arguments=""))

    def _begin(self, index: int, block: Block) -> list[Event]:
        """The start of a block. Only tool calls announce themselves; other blocks begin with their first delta."""
        if index in self._open:
            return []
        self._open.append(index)
        return [BlockStart(index=index, block=block)]

    def _delta(self, event: JsonObject) -> list[Event]:
        index = _index(event)
        delta = as_object(required(event, "delta", ""), "delta")
        if "text" in delta:
            text = as_str(delta["text"], "delta.text")
            return [*self._begin(index, Text(text="")), BlockDelta(index=index, kind="text", text=text)]
        if isinstance(delta.get("toolUse"), dict) and isinstance(delta["toolUse"].get("input"), str):
            return [BlockDelta(index=index, kind="arguments", text=delta["toolUse"]["input"])]
        if "reasoningContent" in delta:
            return self._reasoning(index, as_object(delta["reasoningContent"], "delta.reasoningContent"), delta)
        block: Block = Text(text="") if "citation" in delta else Opaque(kind=next(iter(delta), ""), raw={})
        return [*self._begin(index, block), BlockDelta(index=index, kind="other", raw=delta)]

    def _reasoning(self, index: int, content: JsonObject, delta: JsonObject) -> list[Event]:
        redacted = content.get("redactedContent")
        if isinstance(redacted, str) and index not in self._open:
            return self._begin(index, Thinking(redacted=redacted))
        begin = self._begin(index, Thinking())
        if isinstance(content.get("text"), str):
            return [*begin, BlockDelta(index=index, kind="thinking", text=content["text"])]
        if isinstance(content.get("signature"), str):
            return [*begin, BlockDelta(index=index, kind="signature", text=content["signature"])]
        return [*begin, BlockDelta(index=index, kind="other", raw=delta)]

    def _stop_block(self, event: JsonObject) -> list[Event]:
        index = _index(event)
        if index not in self._open:
            return []
        self._open.remove(index)
        return [BlockStop(index=index)]

    def _stop_message(self, event: JsonObject) -> list[Event]:
        self._stop_reason = read_stop_reason(as_str(required(event, "stopReason", ""), "stopReason"))
        self._stop_sequence = read_stop_sequence(event)
        return self._finish() if self._usage is not None else []

    def _metadata(self, event: JsonObject) -> list[Event]:
        self._usage = read_usage(event.get("usage"))
        return self._finish() if self._stop_reason is not None else []

    _READERS: dict[str, Callable[[Any, JsonObject], list[Event]]] = {
        "messageStart": _start_message,
        "contentBlockStart": _start_block,
        "contentBlockDelta": _delta,
        "contentBlockStop": _stop_block,
        "messageStop": _stop_message,
        "metadata": _metadata,
    }


def _index(event: JsonObject) -> int:
    return optional_int(event, "contentBlockIndex", "") or 0
