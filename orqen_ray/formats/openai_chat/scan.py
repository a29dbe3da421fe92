"""Reads facts in passing from a Chat Completions stream that is forwarded byte for byte."""

from __future__ import annotations

import msgspec

from orqen_ray.conversation import Facts, Refusal, ToolCall, Usage
from orqen_ray.formats.openai_chat.errors import read_error_object
from orqen_ray.formats.openai_chat.stream_in import DONE, Chunk, Delta, decode_chunk
from orqen_ray.formats.openai_chat.usage import read_stop_reason
from orqen_ray.formats.sse import Frames, parse_frame


class ChatScanner:
    """Forwards frames as they came.

    Args:
        remove_usage: the gateway asked for the usage chunk, so the one chunk that holds nothing else is taken out.
    """

    def __init__(self, remove_usage: bool) -> None:
        self._frames = Frames()
        self._remove_usage = remove_usage
        self._model: str | None = None
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._matched: str | None = None
        self._refused = False
        self._calls: dict[tuple[int | None, str | None], str] = {}
        self._output_chars = 0
        self._failure: str | None = None
        self._done = False
        self.broken: str | None = None

    @property
    def facts(self) -> Facts:
        kinds = {kind for kind, seen in ((ToolCall, self._calls), (Refusal, self._refused)) if seen}
        reason = None if self._finish_reason is None else read_stop_reason(self._finish_reason, kinds, self._matched)
        return Facts(
            served_model=self._model,
            usage=self._usage,
            stop_reason=reason,
            tool_names=tuple(self._calls.values()),
            output_chars=self._output_chars,
            failure=self._failure,
        )

    def feed(self, chunk: bytes) -> bytes:
        return b"".join([frame for frame in self._frames.feed(chunk) if self._keeps(frame)])

    def end(self) -> bytes:
        rest = self._frames.rest()
        kept = rest if rest and self._keeps(rest) else b""
        if self._finish_reason is None and not self._done and self._failure is None:
            self._failure = "the provider's stream broke off"
        return kept

    def _keeps(self, frame: bytes) -> bool:
        event_name, data = parse_frame(frame)
        try:
            chunk = decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._done = self._done or data.strip() == DONE
            return True
        if chunk.error or event_name == "error":
            self._failure = read_error_object(502, msgspec.json.decode(data)).message
            return True
        self._read(chunk)
        if self._remove_usage and chunk.usage is not None and chunk.choices == []:
            self._remove_usage = False
            return False
        return True

    def _read(self, chunk: Chunk) -> None:
        self._model = self._model or chunk.model
        if chunk.usage or chunk.x_groq:
            self._usage = chunk.any_usage or self._usage
        for choice in chunk.choices or ():
            if not choice.index and choice.finish_reason:
                self._finish_reason = choice.finish_reason
                self._matched = choice.stop_reason if isinstance(choice.stop_reason, str) else None
            if choice.delta:
                self._read_delta(choice.delta)

    def _read_delta(self, delta: Delta) -> None:
        self._refused = self._refused or bool(delta.refusal)
        for text in (delta.content, delta.refusal, delta.reasoning_content, delta.reasoning):
            if isinstance(text, str):
                self._output_chars += len(text)
        for call in delta.tool_calls or ():
            said = call.function or call.custom
            if said and said.name:
                self._calls[call.index, call.id] = said.name
            for text in (said.arguments, said.input) if said else ():
                if isinstance(text, str):
                    self._output_chars += len(text)
