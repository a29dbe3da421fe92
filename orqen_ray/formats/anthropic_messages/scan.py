"""Reads facts in passing from an answer whose bytes are forwarded untouched."""

from __future__ import annotations

import re

import msgspec

from orqen_ray.conversation import Facts, JsonObject, StopReason
from orqen_ray.formats.anthropic_messages.errors import read_failure
from orqen_ray.formats.anthropic_messages.usage import read_stop_reason, read_usage
from orqen_ray.formats.sse import Frames, parse_frame

# Nearly every frame is a delta: known by its head, its text measured (in bytes, escapes included) and not parsed.
_HEAD_BYTES = 64
_DELTA_TEXT = re.compile(rb'"(?:text|thinking|partial_json)"\s*:\s*"(.*)"', re.DOTALL)
_FACTUAL = re.compile(rb"message_start|message_delta|message_stop|tool_use|error")


class MessagesScanner:
    """Gives every byte back, a frame at a time, so that an error can follow a whole frame."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._usage: JsonObject = {}
        self._model: str | None = None
        self._stop_reason: StopReason | None = None
        self._tool_names: list[str] = []
        self._output_chars = 0
        self._failure: str | None = None
        self._received = False
        self.broken: str | None = None

    def feed(self, chunk: bytes) -> bytes:
        self._received = self._received or bool(chunk)
        frames = self._frames.feed(chunk)
        for frame in frames:
            self._scan(frame)
        return b"".join(frames)

    def end(self) -> bytes:
        rest = self._frames.rest()
        self._scan(rest)
        if self._received and self._stop_reason is None and self._failure is None:
            self._failure = "the provider's stream ended before its end"
        return rest

    @property
    def facts(self) -> Facts:
        return Facts(
            served_model=self._model,
            usage=read_usage(self._usage or None),
            stop_reason=self._stop_reason,
            tool_names=tuple(self._tool_names),
            output_chars=self._output_chars,
            failure=self._failure,
        )

    def _scan(self, frame: bytes) -> None:
        if b"content_block_delta" in frame[:_HEAD_BYTES]:
            if text := _DELTA_TEXT.search(frame):
                self._output_chars += len(text[1])
        elif _FACTUAL.search(frame):
            try:
                event = msgspec.json.decode(parse_frame(frame)[1])
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                return
            if isinstance(event, dict):
                self._note(event)

    def _note(self, event: JsonObject) -> None:
        match event:
            case {"type": "message_start", "message": dict(message)}:
                model = message.get("model")
                self._model = model if isinstance(model, str) else None
                self._count(message.get("usage"))
            case {"type": "content_block_start", "content_block": {"type": "tool_use", "name": str(name)}}:
                self._tool_names.append(name)
            case {"type": "message_delta", "delta": dict(delta)}:
                self._stop_reason = read_stop_reason(delta.get("stop_reason"))[0]
                self._count(event.get("usage"))
            case {"type": "message_stop"}:  # complete, even if no reason was given
                self._stop_reason = self._stop_reason or "end"
            case {"type": "error"}:
                self._failure = read_failure(event).message

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            self._usage.update((key, value) for key, value in usage.items() if value is not None)


class _Block(msgspec.Struct):
    type: str = ""
    name: str = ""
    text: str | None = None
    thinking: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class _Body(msgspec.Struct):
    model: str | None = None
    content: list[_Block] = []
    stop_reason: str | None = None
    usage: JsonObject | None = None


_BODY = msgspec.json.Decoder(_Body)


def scan_reply(body: bytes) -> Facts:
    """The facts of a whole answer; none when it is not a message."""
    try:
        reply = _BODY.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Facts()
    return Facts(
        served_model=reply.model,
        usage=read_usage(reply.usage),
        stop_reason=read_stop_reason(reply.stop_reason)[0] if reply.stop_reason else None,
        tool_names=tuple(block.name for block in reply.content if block.type == "tool_use"),
        output_chars=sum(len(b.text or b.thinking or b"") or len(b.input) for b in reply.content),
    )
