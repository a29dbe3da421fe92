"""Reads `Facts` in passing from Converse answers that are forwarded untouched."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from orqen_ray.conversation import Facts
from orqen_ray.errors import GatewayError
from orqen_ray.formats.bedrock_converse.reply import read_reply
from orqen_ray.formats.bedrock_converse.stream_in import ConverseStreamReader
from orqen_ray.formats.events import Watch, facts_of
from orqen_ray.formats.eventstream import Frames, frame_headers, frame_payload


class _Input(msgspec.Struct):
    input: str = ""


class _Reasoning(msgspec.Struct):
    text: str = ""


class _Delta(msgspec.Struct, rename="camel"):
    text: str = ""
    tool_use: _Input = msgspec.field(default_factory=_Input)
    reasoning_content: _Reasoning = msgspec.field(default_factory=_Reasoning)


class _DeltaEvent(msgspec.Struct):
    delta: _Delta


_DELTA = msgspec.json.Decoder(_DeltaEvent)


class ConverseScanner:
    """Nearly every frame is a delta, of which only the length is read; the few others go through the reader."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._reader = ConverseStreamReader()
        self._watch = Watch()
        self._delta_chars = 0
        self.broken: str | None = None

    def feed(self, chunk: bytes) -> bytes:
        frames = self._frames.feed(chunk)
        for raw in frames:
            if b"contentBlockDelta" in frame_headers(raw):
                self._delta_chars += _delta_chars(frame_payload(raw))
            else:
                self._observe(raw)
        if self._frames.error is None:
            return b"".join(frames)
        if self._watch.facts.stop_reason is None:
            self.broken = self._watch.failure = self._watch.failure or self._frames.error.message
            return b"".join(frames)
        return b"".join((*frames, self._frames.rest()))  # what follows a whole answer does no harm

    def end(self) -> bytes:
        if self._watch.failure is None:
            for event in self._reader.end():
                self._watch.observe(event)
        return self._frames.rest()

    @property
    def facts(self) -> Facts:
        return replace(self._watch.facts, output_chars=self._delta_chars)

    def _observe(self, raw: bytes) -> None:
        for event in self._reader.feed(raw):
            self._watch.observe(event)


def _delta_chars(payload: bytes) -> int:
    try:
        delta = _DELTA.decode(payload).delta
    except ValueError:  # a delta newer than this code
        return 0
    return len(delta.text) + len(delta.tool_use.input) + len(delta.reasoning_content.text)


def stream_scanner(asked_usage: bool) -> ConverseScanner:
    """A scanner; Bedrock always tells the usage, so the gateway never has to ask for it."""
    return ConverseScanner()


def scan_reply(body: bytes) -> Facts:
    """What a whole answer tells; nothing if it is no Converse answer."""
    try:
        value = msgspec.json.decode(body)
        return facts_of(read_reply(value)) if isinstance(value, dict) else Facts()
    except (GatewayError, ValueError, RecursionError):
        return Facts()
