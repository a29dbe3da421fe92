"""Blocks of other formats, made such that Converse takes them; what it cannot take is named."""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from orqen_ray.conversation import (
    Block,
    CacheMarker,
    Document,
    Image,
    Opaque,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from orqen_ray.formats.adapt import legal_tool_id
from orqen_ray.formats.bedrock_converse.blocks import DOCUMENT_FORMATS, json_text
from orqen_ray.formats.reading import join

TOOL_ID = "^[a-zA-Z0-9_-]{1,64}$"
# Bedrock refuses blank text blocks, and a message or tool result without content.
PLACEHOLDER = "(empty)"

_IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_S3_TYPES = {"jpg": "image/jpeg", **{name.removeprefix("image/"): name for name in _IMAGE_TYPES}}
_S3_DOCUMENTS = {name: media_type for media_type, name in DOCUMENT_FORMATS.items()}

Marked = TypeVar("Marked", bound=Block | Tool)


@dataclass(slots=True, kw_only=True)
class LegalBlocks:
    """Makes blocks legal, one conversation or reply at a time; `dropped` collects the paths of what is lost.

    `own` names the extra fields and kinds that are Converse's and stay: a reply may come from Bedrock itself.
    """

    images: bool = True
    documents: bool = True
    thinking: bool = True
    markers: bool = True
    ttl: bool = True
    own: frozenset[str] = frozenset()
    dropped: list[str] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)
    """Names of documents -> how many times each was asked for."""

    def blocks(self, blocks: Iterable[Block], path: str) -> tuple[Block, ...]:
        legal: list[Block] = []
        for i, block in enumerate(blocks):
            at = f"{path}[{i}]"
            kept = self._block(block, at)
            if kept is not None:
                legal.append(kept)
            self.mark(legal, getattr(block, "cache", None), at)
        return tuple(legal)

    def mark(self, before: list[Marked], cache: CacheMarker | None, path: str) -> None:
        """Put a marker on the last of `before`: on the block it came with, or the one before if that is gone."""
        if cache is None:
            return
        last = before[-1] if before else None
        if last is None or isinstance(last, Opaque | Thinking | Refusal):
            self.dropped.append(f"{path}.cache_control")
        elif marker := self.marker(cache, path):
            before[-1] = replace(last, cache=marker)

    def marker(self, cache: CacheMarker, path: str) -> CacheMarker | None:
        """The marker as the model takes it. Five minutes are the default; older models refuse to be told."""
        at = join(path, "cache_control")
        if not self.markers:
            self.dropped.append(at)
            return None
        if cache.ttl in (None, "5m"):
            return CacheMarker()
        if not self.ttl:
            self.dropped.append(f"{at}.ttl")
            return CacheMarker()
        return cache

    def _block(self, block: Block, path: str) -> Block | None:
        match block:
            case Text(text=text) | Refusal(text=text):
                extra = self.extra(block, path)
                return Text(text=text, extra=extra) if text.strip() else None
            case Thinking():
                return self._thinking(block, path)
            case ToolCall():
                return self._call(block, path)
            case ToolResult():
                return self._result(block, path)
            case Image():
                return self._image(block, path)
            case Document():
                return self._document(block, path)
            case Opaque(kind=kind, raw=raw) if kind in raw and kind in self.own:
                return block
            case Opaque(kind=kind):
                self.dropped.append(f"{path}.{kind}")
            case _:
                self.dropped.append(f"{path}.tool_{block.action}")
        return None

    def extra(self, value: Block | Tool, path: str) -> dict[str, object]:
        """The fields of `value` that stay; the others are named."""
        if isinstance(value, Opaque):
            return {}
        self.dropped.extend(f"{path}.{name}" for name in value.extra if name not in self.own)
        return {name: part for name, part in value.extra.items() if name in self.own}

    def _thinking(self, block: Thinking, path: str) -> Thinking | None:
        # Unsigned reasoning is refused in a request, but a client may see it in a reply.
        sealed = block.redacted is not None
        readable = _is_base64(block.redacted or "") if sealed else bool(block.signature or self.own)
        if not self.thinking or not readable:
            self.dropped.append(f"{path}.thinking")
            return None
        return replace(block, extra=self.extra(block, path))

    def _call(self, block: ToolCall, path: str) -> ToolCall:
        arguments = block.arguments
        if block.custom:
            arguments = json_text({"input": arguments})
        elif not arguments.strip():
            arguments = "{}"
        elif not _is_json_object(arguments):
            self.dropped.append(f"{path}.arguments")
            arguments = json_text({"raw_arguments": arguments})
        return ToolCall(
            id=legal_tool_id(block.id, TOOL_ID),
            name=legal_name(block.name),
            arguments=arguments,
            extra=self.extra(block, path),
        )

    def _result(self, block: ToolResult, path: str) -> ToolResult:
        inner: list[Block] = []
        cache = None
        for i, part in enumerate(block.blocks):
            at = f"{path}.content[{i}]"
            if isinstance(part, Text | Image | Document):
                cache = part.cache or cache
                kept = self._block(part, at)
                inner.extend([kept] if kept is not None else [])
            else:
                self.dropped.append(at)
        # A cache point inside a result is not known to Converse: it moves behind the result.
        outer: list[Block] = [
            ToolResult(
                call_id=legal_tool_id(block.call_id, TOOL_ID),
                blocks=tuple(inner) or (Text(text=PLACEHOLDER),),
                is_error=block.is_error,
                extra=self.extra(block, path),
            )
        ]
        self.mark(outer, None if block.cache else cache, path)
        result = outer[0]
        assert isinstance(result, ToolResult)
        return result

    def _image(self, block: Image, path: str) -> Image | None:
        source = block.source
        media_type = source.media_type
        if source.kind == "s3" and media_type is None:
            media_type = _S3_TYPES.get(source.data.rpartition(".")[2].lower())
        if not self.images or source.kind not in ("base64", "s3") or media_type not in _IMAGE_TYPES:
            self.dropped.append(f"{path}.image")
            return None
        if block.detail not in (None, "auto"):
            self.dropped.append(f"{path}.detail")
        return Image(source=replace(source, media_type=media_type), extra=self.extra(block, path))

    def _document(self, block: Document, path: str) -> Document | None:
        source = block.source
        media_type = source.media_type or ("text/plain" if source.kind == "text" else None)
        if source.kind == "s3" and media_type is None:
            media_type = _S3_DOCUMENTS.get(source.data.rpartition(".")[2].lower())
        if not self.documents or source.kind not in ("base64", "s3", "text") or media_type not in DOCUMENT_FORMATS:
            self.dropped.append(f"{path}.document")
            return None
        return Document(
            source=replace(source, media_type=media_type),
            name=self._document_name(block),
            context=block.context,
            citations=block.citations,
            extra=self.extra(block, path),
        )

    def _document_name(self, block: Document) -> str:
        """A name as Bedrock allows it, once per request: letters, digits, single spaces, hyphens and brackets."""
        name = " ".join(re.sub(r"[^a-zA-Z0-9\s\-()\[\]]", "-", block.name or "").split())[:190].strip()
        if not name:
            name = "document-" + hashlib.sha256(block.source.data.encode()).hexdigest()[:8]
        unique = name
        while unique in self._names:
            self._names[name] += 1
            unique = f"{name} ({self._names[name]})"
        self._names[unique] = 1
        return unique


def legal_name(name: str) -> str:
    """A call's name as Bedrock allows it: models invent names, and one such in the history fails every later turn.

    Source: https://github.com/vercel/ai/pull/17781
    """
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "tool"


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_base64(text: str) -> bool:
    try:
        b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
