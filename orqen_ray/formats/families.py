"""The calls that pass through as they are: where their model is named, and what their answers cost."""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from typing import Any

import msgspec
from python_multipart.multipart import MultipartParser, parse_options_header

from orqen_ray.conversation import Conversation, Event, Facts, JsonObject, StreamFailure, Usage
from orqen_ray.errors import BadRequest
from orqen_ray.formats import eventstream
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE
from orqen_ray.formats.format import Format, StreamWriter
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT
from orqen_ray.formats.sse import Frames, parse_frame, write_frame

_CHARS_PER_PIECE = 4

FAMILIES = frozenset(
    {"responses", "embeddings", "completions", "images", "audio", "moderations", "rerank", "ocr", "videos"}
)
"""First segment of a path below `/v1`, which is the family's name in a provider's row."""


def usage_of(value: Any) -> Usage | None:
    """The usage in a decoded answer or event, wherever the vendors put it; None when there is none."""
    if not isinstance(value, dict):
        return None
    usage = value.get("usage")
    if not isinstance(usage, dict):
        nested = value.get("response") or value.get("message")
        return usage_of(nested) if isinstance(nested, dict) else None
    details = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
    cached = _count(details, "cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        input_tokens=max(_count(usage, "input_tokens", "prompt_tokens", "inputTokens") - cached, 0),
        cache_read_tokens=cached + _count(usage, "cache_read_input_tokens", "cacheReadInputTokens"),
        cache_write_tokens=_count(usage, "cache_creation_input_tokens", "cacheWriteInputTokens"),
        output_tokens=_count(usage, "output_tokens", "completion_tokens", "outputTokens"),
    )


def _count(usage: JsonObject, *names: str) -> int:
    return next((usage[name] for name in names if isinstance(usage.get(name), int)), 0)


def _later(old: Usage | None, new: Usage | None) -> Usage | None:
    """Anthropic gives the input at the start of a stream and the output at its end."""
    if old is None or new is None:
        return new or old
    return Usage(
        input_tokens=new.input_tokens or old.input_tokens,
        cache_read_tokens=new.cache_read_tokens or old.cache_read_tokens,
        cache_write_tokens=new.cache_write_tokens or old.cache_write_tokens,
        output_tokens=new.output_tokens or old.output_tokens,
    )


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None


def scan_reply(body: bytes) -> Facts:
    value = _decoded(body) if body[:1] == b"{" else None
    model = value.get("model") if isinstance(value, dict) else None
    return Facts(served_model=model if isinstance(model, str) else None, usage=usage_of(value))


class UsageScanner:
    """Reads usage from a stream of server-sent events; gives every byte back, a frame at a time."""

    def __init__(self) -> None:
        self._frames = Frames()
        self.facts = Facts()
        self.broken: str | None = None

    def feed(self, chunk: bytes) -> bytes:
        frames = self._frames.feed(chunk)
        for frame in frames:
            self._scan(frame)
        return b"".join(frames)

    def end(self) -> bytes:
        rest = self._frames.rest()
        self._scan(rest)
        return rest

    def _scan(self, frame: bytes) -> None:
        if b'"usage"' in frame:
            self._read(parse_frame(frame)[1])
        elif b'delta"' in frame:
            self._count_piece()

    def _count_piece(self) -> None:
        """A piece of text is about a token: all that is known of a stream that ends before its usage."""
        self.facts = replace(self.facts, output_chars=self.facts.output_chars + _CHARS_PER_PIECE)

    def _read(self, data: bytes) -> None:
        self.facts = replace(self.facts, usage=_later(self.facts.usage, usage_of(_decoded(data))))


class InvokeScanner(UsageScanner):
    """The same for Bedrock's InvokeModelWithResponseStream, whose events wrap the model's own in base64."""

    def __init__(self) -> None:
        super().__init__()
        self._binary = eventstream.Frames()

    def feed(self, chunk: bytes) -> bytes:
        frames = self._binary.feed(chunk)
        for frame in frames:
            start, end = frame.find(b'{"bytes":"'), frame.rfind(b"}")
            event = _decoded(frame[start : end + 1]) if start >= 0 else None
            if isinstance(event, dict):
                self._read_wrapped(event.get("bytes"))
        # What is no event stream any more goes out as it is, byte for byte.
        return b"".join(frames) if self._binary.error is None else b"".join((*frames, self._binary.rest()))

    def end(self) -> bytes:
        return self._binary.rest()

    def _read_wrapped(self, wrapped: object) -> None:
        if not isinstance(wrapped, str):
            return
        try:
            data = base64.b64decode(wrapped)
        except binascii.Error:
            return
        if b'"usage"' in data:
            self._read(data)
        elif b'delta"' in data:
            self._count_piece()


class _ErrorFrameWriter:
    """Tells the reader of a Responses stream that the provider broke off; writes nothing else."""

    content_type = "text/event-stream"

    def write(self, event: Event) -> bytes:
        if not isinstance(event, StreamFailure):
            return b""
        error = {"type": "error", "code": event.kind or "upstream_error", "message": event.message, "param": None}
        return write_frame(msgspec.json.encode(error), "error")


def _error_frame_writer(conversation: Conversation, requested_model: str, response_id: str) -> StreamWriter:
    return _ErrorFrameWriter()


OPENAI_FAMILY: Format = replace(
    OPENAI_CHAT,
    scan_reply=scan_reply,
    stream_scanner=lambda _: UsageScanner(),
    stream_writer=_error_frame_writer,
)
BEDROCK_INVOKE: Format = replace(BEDROCK_CONVERSE, scan_reply=scan_reply, stream_scanner=lambda _: InvokeScanner())


def multipart_model(body: bytes, content_type: str) -> tuple[str, int, int]:
    """The `model` field of a form, and where its value starts and ends in `body`.

    Raises:
        BadRequest: not a form, or one without a model.
    """
    _, options = parse_options_header(content_type)
    if b"boundary" not in options:
        raise BadRequest("the multipart content type has no boundary")
    found: list[tuple[int, int]] = []
    header: dict[str, bytes] = {"name": b"", "value": b""}
    part = {"is_model": False}

    def on_part_begin() -> None:
        part["is_model"] = False

    def on_header_field(data: bytes, start: int, end: int) -> None:
        header["name"] += data[start:end]

    def on_header_value(data: bytes, start: int, end: int) -> None:
        header["value"] += data[start:end]

    def on_header_end() -> None:
        if header["name"].lower() == b"content-disposition":
            part["is_model"] = parse_options_header(header["value"])[1].get(b"name") == b"model"
        header["name"] = header["value"] = b""

    def on_part_data(data: bytes, start: int, end: int) -> None:
        if part["is_model"]:
            found.append((start, end))

    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": on_part_begin,
            "on_header_field": on_header_field,
            "on_header_value": on_header_value,
            "on_header_end": on_header_end,
            "on_part_data": on_part_data,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except ValueError as exc:
        raise BadRequest("the multipart body cannot be read") from exc
    if not found:
        raise BadRequest("the form has no `model` field", param="model")
    start, end = found[0][0], found[-1][1]
    try:
        return body[start:end].decode(), start, end
    except UnicodeDecodeError as exc:
        raise BadRequest("the `model` field is not UTF-8", param="model") from exc


def json_model(payload: JsonObject) -> str:
    """The `model` field of a JSON call.

    Raises:
        BadRequest: missing, or not a string.
    """
    model = payload.get("model")
    if model is None:
        raise BadRequest("is required", param="model")
    if not isinstance(model, str) or not model:
        raise BadRequest("expected the model as a string", param="model")
    return model
