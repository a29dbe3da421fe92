"""Reads a Chat Completions stream into events."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

import msgspec

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
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
from orqen_ray.formats.openai_chat.errors import read_error_object
from orqen_ray.formats.openai_chat.reply import made_call_id
from orqen_ray.formats.openai_chat.usage import read_stop_reason, read_usage
from orqen_ray.formats.sse import Frames, parse_frame

DONE = b"[DONE]"
_Kind = Literal["text", "thinking", "refusal"]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None
    input: str | None = None


class _CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Function | None = None


class Delta(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_CallDelta] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    stop_reason: Any = None


class _Groq(msgspec.Struct):
    usage: Any = None


class Chunk(msgspec.Struct):
    """What this code reads of a chunk; the rest has no place in the neutral form."""

    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    x_groq: _Groq | None = None  # https://console.groq.com/docs/text-chat
    error: Any = None

    @property
    def any_usage(self) -> Usage | None:
        return read_usage(self.usage or (self.x_groq.usage if self.x_groq else None))


decode_chunk = msgspec.json.Decoder(Chunk).decode

_BROKEN = StreamFailure(message="the provider's stream broke off", kind="stream_broken")
_UNREADABLE = StreamFailure(message="the provider's stream cannot be read as chat chunks", kind="stream_unreadable")


class _Lane:
    """One block of the reply on its way out. `text` keeps what a tool call holds, to know when it is whole."""

    __slots__ = ("_checked", "_whole", "block", "kind", "pending", "text")

    def __init__(self, kind: _Kind | Literal["arguments"], block: Block) -> None:
        self.kind = kind
        self.block = block
        self.pending: list[str] = []
        self.text: list[str] = []
        self._checked = 0
        self._whole = False

    def add(self, text: str) -> None:
        if text:
            self.pending.append(text)
            if self.kind == "arguments":
                self.text.append(text)

    def is_whole(self) -> bool:
        """Whether a later block may begin. Arguments are whole once they are JSON; other text is at any time."""
        if self.kind != "arguments":
            return True
        if self._checked < len(self.text):
            self._checked = len(self.text)
            self._whole = self.text[-1].rstrip().endswith("}") and _is_json("".join(self.text))
        return self._whole


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


class _Lanes:
    """Puts blocks in order: one is open at a time, and what arrives early for a later one waits for it.

    Servers may interleave the arguments of parallel calls; the other two formats cannot.
    """

    def __init__(self) -> None:
        self._queue: deque[_Lane] = deque()
        self._opened = 0
        self._is_open = False
        self.kinds: set[type[Block]] = set()

    def last(self) -> _Lane | None:
        return self._queue[-1] if self._queue else None

    def append(self, lane: _Lane) -> _Lane:
        self.kinds.add(type(lane.block))
        self._queue.append(lane)
        return lane

    def flush(self, *, everything: bool = False) -> list[Event]:
        """The events that can go out now; with `everything`, all of them, every block closed."""
        events: list[Event] = []
        while self._queue:
            lane = self._queue[0]
            if not self._is_open:
                if isinstance(lane.block, ToolCall) and not lane.block.name and not everything:
                    break
                events.append(BlockStart(index=self._opened, block=lane.block))
                self._is_open = True
            events += [BlockDelta(index=self._opened, kind=lane.kind, text=text) for text in lane.pending]
            lane.pending.clear()
            if not everything and (len(self._queue) == 1 or not lane.is_whole()):
                break
            events.append(BlockStop(index=self._opened))
            self._queue.popleft()
            self._opened += 1
            self._is_open = False
        return events


class ChatStreamReader:
    """Upstream bytes to events. The end is told at `[DONE]`, since usage may follow the finish reason."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._lanes = _Lanes()
        self._calls: dict[int | str, _Lane] = {}
        self._call_count = 0
        self._id = ""
        self._started = False
        self._over = False
        self._finish_reason: str | None = None
        self._matched: str | None = None
        self._usage: Usage | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        return [event for frame in self._frames.feed(chunk) for event in self._read_frame(frame)]

    def end(self) -> list[Event]:
        """A server may close without `[DONE]`, or without the last blank line; without a finish reason it broke off."""
        events = self._read_frame(self._frames.rest(), unreadable=_BROKEN)
        if self._over:
            return events
        if self._finish_reason is None:
            return [*events, self._fail(_BROKEN)]
        return [*events, *self._finish()]

    def _read_frame(self, frame: bytes, unreadable: StreamFailure = _UNREADABLE) -> list[Event]:
        if self._over:
            return []
        event_name, data = parse_frame(frame)
        if not data:
            return [Ping()] if frame.lstrip().startswith(b":") else []
        if data.strip() == DONE:
            return self._finish()
        try:
            chunk = decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return [self._fail(unreadable)]
        if chunk.error or event_name == "error":
            return [self._fail(_failure(msgspec.json.decode(data)))]
        return self._read_chunk(chunk)

    def _fail(self, failure: StreamFailure) -> StreamFailure:
        self._over = True
        return failure

    def _finish(self) -> list[Event]:
        if not self._started:
            return [self._fail(_BROKEN)]
        self._over = True
        end = ReplyEnd(
            stop_reason=read_stop_reason(self._finish_reason, self._lanes.kinds, self._matched),
            stop_sequence=self._matched,
            usage=self._usage,
        )
        return [*self._lanes.flush(everything=True), end]

    def _read_chunk(self, chunk: Chunk) -> list[Event]:
        events: list[Event] = []
        if not self._started:
            self._started = True
            self._id = chunk.id or ""
            events.append(ReplyStart(id=self._id, model=chunk.model or ""))
        self._usage = chunk.any_usage or self._usage
        for choice in chunk.choices or ():
            if not choice.index:
                events += self._read_choice(choice)
        return events

    def _read_choice(self, choice: _Choice) -> list[Event]:
        if choice.delta is not None:
            self._read_delta(choice.delta)
        if choice.finish_reason:  # some servers say "" for "not yet"
            self._finish_reason = choice.finish_reason
            self._matched = choice.stop_reason if isinstance(choice.stop_reason, str) else None
        return self._lanes.flush(everything=bool(choice.finish_reason))

    def _read_delta(self, delta: Delta) -> None:
        reasoning = delta.reasoning_content or delta.reasoning
        if isinstance(reasoning, str):
            self._add("thinking", reasoning)
        if isinstance(delta.content, str):
            self._add("text", delta.content)
        elif delta.content is not None:
            self._add_parts(delta.content)
        self._add("refusal", delta.refusal or "")
        for call in delta.tool_calls or ():
            self._add_call(call)

    def _add(self, kind: _Kind, text: str) -> None:
        if not text:
            return
        lane = self._lanes.last()
        if lane is None or lane.kind != kind:
            lane = self._lanes.append(_Lane(kind, _EMPTY[kind]))
        lane.add(text)

    def _add_parts(self, parts: list[Any]) -> None:
        """Mistral's reasoning models stream parts: `thinking`, which holds text parts itself, and `text`.

        Source: https://docs.mistral.ai/capabilities/reasoning/
        """
        for part in parts:
            if not isinstance(part, dict):
                continue
            inner = part.get("thinking")
            for piece in inner if isinstance(inner, list) else ():
                if isinstance(piece, dict) and isinstance(piece.get("text"), str):
                    self._add("thinking", piece["text"])
            if isinstance(part.get("text"), str):
                self._add("text", part["text"])

    def _add_call(self, call: _CallDelta) -> None:
        custom = call.function is None and call.custom is not None
        said = call.function or call.custom or _Function()
        lane = self._lane_of(call, said) or self._open_call(call, said, custom)
        block = lane.block
        if said.name and isinstance(block, ToolCall) and not block.name:
            lane.block = ToolCall(id=block.id, name=said.name, arguments="", custom=custom)
        text = said.input if custom else said.arguments
        lane.add(msgspec.json.encode(text).decode() if isinstance(text, dict) else text or "")

    def _lane_of(self, call: _CallDelta, said: _Function) -> _Lane | None:
        """The call that a delta goes on with. Gemini gives every call the index 0, each with an id of its own; some
        servers give no index at all."""
        if call.index is None:
            lane = self._calls.get(call.id or "") if call.id else self._calls.get(self._call_count - 1)
            return None if lane is None or (said.name and not call.id) else lane
        lane = self._calls.get(call.index)
        known_id = lane.block.id if lane and isinstance(lane.block, ToolCall) else None
        return None if call.id and said.name and call.id != known_id else lane

    def _open_call(self, call: _CallDelta, said: _Function, custom: bool) -> _Lane:
        position = self._call_count
        self._call_count += 1
        call_id = call.id or made_call_id(self._id, position)
        block = ToolCall(id=call_id, name=said.name or "", arguments="", custom=custom)
        lane = self._lanes.append(_Lane("arguments", block))
        self._calls[position if call.index is None else call.index] = lane
        self._calls[call_id] = lane
        return lane


_EMPTY: dict[_Kind, Block] = {"text": Text(text=""), "thinking": Thinking(), "refusal": Refusal(text="")}


def _failure(value: object) -> StreamFailure:
    error = read_error_object(502, value)
    return StreamFailure(message=error.message, status=error.status, kind=error.kind)
