"""Writes content blocks and tool definitions."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from orqen_ray.conversation import (
    Block,
    CacheMarker,
    Document,
    Image,
    JsonObject,
    Opaque,
    Refusal,
    Source,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChange,
    ToolResult,
)

TOOL_ID_PATTERN = r"^[a-zA-Z0-9_-]+$"
_FREE_TEXT_SCHEMA: JsonObject = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


def merge(fields: JsonObject, extra: Mapping[str, Any]) -> JsonObject:
    """`extra` put back among `fields`, which win; an object in both is merged one level down."""
    for key, value in extra.items():
        if key not in fields:
            fields[key] = value
        elif isinstance(value, dict) and isinstance(fields[key], dict):
            fields[key] = {**value, **fields[key]}
    return fields


def write_cache(marker: CacheMarker) -> JsonObject:
    return {"type": "ephemeral"} if marker.ttl is None else {"type": "ephemeral", "ttl": marker.ttl}


class BlockWriter:
    """Writes blocks one after another and collects in `dropped` the paths of what could not be carried.

    Args:
        carries: the names of extra fields that go back on the wire; None, for a conversation in this very format, puts
            back everything as it came, empty text included.
        cache_markers: the model takes `cache_control`.
    """

    def __init__(self, carries: frozenset[str] | None, *, cache_markers: bool = True) -> None:
        self.dropped: list[str] = []
        self._carries = carries
        self._own = carries is None
        self._cache_markers = cache_markers

    def blocks(
        self, blocks: Iterable[Block], path: str, only: tuple[type[Block], ...] | None = None
    ) -> list[JsonObject]:
        """The blocks that can be carried; from another format, none but the kinds in `only`."""
        written = []
        for i, block in enumerate(blocks):
            at = f"{path}[{i}]"
            legal = self._own or only is None or isinstance(block, only)
            if (wire := self.block(block, at) if legal else self._drop(at)) is not None:
                written.append(wire)
        return written

    def block(self, block: Block, path: str) -> JsonObject | None:
        """The block in wire form, or None when it cannot be carried or has nothing in it."""
        fields: JsonObject | None
        match block:
            case Text(text=text) | Refusal(text=text):
                fields = {"type": "text", "text": text} if self._own or text.strip() else None
            case Opaque():
                # Only this format's blocks carry their own kind in `type`.
                own = self._own or (self._carries and block.raw.get("type") == block.kind)
                return block.raw if own else self._drop(path)
            case Image():
                fields = self._image(block, path)
            case Document():
                fields = self._document(block, path)
            case Thinking():
                fields = self._thinking(block, path)
            case ToolCall():
                fields = self._tool_use(block, path)
            case ToolResult():
                fields = self._tool_result(block, path)
            case ToolChange():
                fields = self._tool_change(block, path)
        if fields is None:
            return None
        return self._finish(fields, block.extra, getattr(block, "cache", None), path)

    def tools(self, tools: Iterable[Tool], path: str) -> list[JsonObject]:
        written = (self.tool(tool, f"{path}[{i}]") for i, tool in enumerate(tools))
        return [tool for tool in written if tool is not None]

    def tool(self, tool: Tool, path: str) -> JsonObject | None:
        if tool.raw is not None:
            return self._finish(dict(tool.raw), {}, tool.cache, path) if self._own else self._drop(path)
        fields: JsonObject = {"name": tool.name}
        if tool.description is not None:
            fields["description"] = tool.description
        fields["input_schema"] = _FREE_TEXT_SCHEMA if tool.custom else tool.parameters or {}
        if tool.custom:
            self._drop(f"{path}.custom")
        if not self._own:
            fields["input_schema"] = {"type": "object", **fields["input_schema"]}
        for key, value in (("strict", tool.strict), ("defer_loading", tool.defer_loading)):
            if value is not None:
                fields[key] = value
        return self._finish(fields, tool.extra, tool.cache, path)

    def extra(self, fields: JsonObject, extra: Mapping[str, Any], path: str) -> JsonObject:
        """`fields` with those of `extra` that may go back; the others are named. A null says nothing, so is not."""
        if self._own:
            return merge(fields, extra)
        carried = {key: value for key, value in extra.items() if key in (self._carries or ())}
        for key, value in extra.items():
            if key not in carried and value is not None:
                self._drop(f"{path}.{key}" if path else key)
        return merge(fields, carried)

    def _finish(self, fields: JsonObject, extra: Mapping[str, Any], cache: CacheMarker | None, path: str) -> JsonObject:
        if cache is not None and (self._own or self._cache_markers):
            fields["cache_control"] = write_cache(cache)
        elif cache is not None:
            self._drop(f"{path}.cache_control")
        return self.extra(fields, extra, path)

    def _drop(self, path: str) -> JsonObject | None:
        """Name what is not carried; None, as nothing stands for it on the wire."""
        self.dropped.append(path)
        return None

    def _image(self, block: Image, path: str) -> JsonObject | None:
        source = self._source(block.source, path)
        if source and block.detail is not None:
            self._drop(f"{path}.detail")
        return source and {"type": "image", "source": source}

    def _document(self, block: Document, path: str) -> JsonObject | None:
        source = block.source if self._own else _as_document_source(block.source)
        wire = self._source(source, path)
        if wire is None:
            return None
        fields: JsonObject = {"type": "document", "source": wire}
        for key, value in (("title", block.name), ("context", block.context)):
            if value is not None:
                fields[key] = value
        if block.citations is not None:
            fields["citations"] = {"enabled": block.citations}
        return fields

    def _source(self, source: Source, path: str) -> JsonObject | None:
        match source.kind:
            case "base64" if source.media_type is not None:
                return {"type": "base64", "media_type": source.media_type, "data": source.data}
            case "url":
                return {"type": "url", "url": source.data}
            case "text":
                return {"type": "text", "media_type": source.media_type or "text/plain", "data": source.data}
            case "file_id" if self._own:  # another vendor's file means nothing here
                return {"type": "file", "file_id": source.data}
        return self._drop(path)

    def _thinking(self, block: Thinking, path: str) -> JsonObject | None:
        if block.redacted is not None:
            return {"type": "redacted_thinking", "data": block.redacted}
        fields: JsonObject = {"type": "thinking", "thinking": block.text}
        if block.signature or self._own:
            if block.signature is not None:
                fields["signature"] = block.signature
            return fields
        if self._carries is REPLY_FIELDS:
            return {**fields, "signature": ""}  # required by the SDKs; not a secret to be checked, merely absent
        return self._drop(path)

    def _tool_use(self, block: ToolCall, path: str) -> JsonObject:
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": self._input(block, path)}

    def _input(self, call: ToolCall, path: str) -> msgspec.Raw | JsonObject:
        """The arguments verbatim when they are a JSON object; the vendor takes nothing else."""
        if call.custom:
            return {"input": call.arguments}
        if not call.arguments.strip():
            return {}
        try:
            msgspec.json.decode(call.arguments, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            self._drop(f"{path}.arguments")
            return {"raw_arguments": call.arguments}
        return msgspec.Raw(call.arguments)

    def _tool_result(self, block: ToolResult, path: str) -> JsonObject:
        fields: JsonObject = {"type": "tool_result", "tool_use_id": block.call_id}
        content = self.blocks(block.blocks, f"{path}.content")
        if block.is_error:
            fields["is_error"] = True
            if not content and not self._own:  # the vendor refuses an error that says nothing
                content = [{"type": "text", "text": "error"}]
        if content:
            fields["content"] = content
        return fields

    def _tool_change(self, block: ToolChange, path: str) -> JsonObject | None:
        target: JsonObject = {"type": "tool_reference", "name": block.name}
        if block.tool is not None:
            definition = self.tool(block.tool, f"{path}.tool.definition")
            if definition is None:
                return None
            target = {"type": "tool_definition", "definition": definition}
        return {"type": "tool_addition" if block.action == "add" else "tool_removal", "tool": target}


REPLY_FIELDS = frozenset(
    {
        *("citations", "caller", "toolset_name"),  # of blocks
        *("container", "context_management", "diagnostics", "input_transformations", "stop_details"),  # of messages
    }
)
"""Fields of a reply that the neutral form has no place for. A reply does not say whose it is; these names do."""


def _as_document_source(source: Source) -> Source:
    """Text documents of any kind as plain text, the only kind of text that the vendor reads."""
    kind = source.media_type or ""
    if source.kind == "text":
        return Source(kind="text", data=source.data)
    if source.kind == "base64" and (kind.startswith("text/") or kind == "application/json"):
        text = base64.b64decode(source.data).decode("utf-8", "replace")
        return Source(kind="text", data=text)
    return source
