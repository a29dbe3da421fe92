"""Converse content blocks to neutral blocks and back, losing nothing.

A cache marker is a block of its own here, behind what it marks; in the neutral form it belongs to the block before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

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
from orqen_ray.errors import BadRequest
from orqen_ray.formats.bedrock_converse.fields import leftover, merge
from orqen_ray.formats.reading import (
    as_base64,
    as_list,
    as_object,
    as_str,
    optional_bool,
    optional_str,
    required,
)

Marked = TypeVar("Marked", bound=Block | Tool)

DOCUMENT_TYPES = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
DOCUMENT_FORMATS = {media_type: name for name, media_type in DOCUMENT_TYPES.items()}


# --- Reading ----------------------------------------------------------------------------------------------------


def read_blocks(value: object, path: str) -> tuple[Block, ...]:
    """The blocks of a list. A kind newer than this code becomes `Opaque`.

    Raises:
        BadRequest: a known block is malformed.
    """
    blocks: list[Block] = []
    for i, item in enumerate(as_list(value, path)):
        at = f"{path}[{i}]"
        body = as_object(item, at)
        if not take_marker(blocks, body, at):
            blocks.append(read_block(body, at))
    return tuple(blocks)


def take_marker(before: list[Marked], item: JsonObject, path: str) -> bool:
    """Whether `item` is a cache point that the last of `before` could take; if so, that one now carries it."""
    if "cachePoint" not in item:
        return False
    point = as_object(item["cachePoint"], f"{path}.cachePoint")
    plain = len(item) == 1 and point.get("type") == "default" and point.keys() <= {"type", "ttl"}
    if not plain or not isinstance(point.get("ttl", ""), str):
        return False
    if not before or isinstance(before[-1], Opaque | Thinking | Refusal) or before[-1].cache is not None:
        return False
    before[-1] = replace(before[-1], cache=CacheMarker(ttl=point.get("ttl")))
    return True


def read_block(item: JsonObject, path: str) -> Block:
    if not item:
        raise BadRequest(f"the block is empty; expected one of {', '.join(_READERS)}", param=path)
    kind = next((key for key in item if key in _READERS), None)
    if kind is None:
        return Opaque(kind=next(iter(item)), raw=item)
    return _READERS[kind](item, path) or Opaque(kind=kind, raw=item)


def _read_text(item: JsonObject, path: str) -> Text:
    return Text(text=as_str(item["text"], f"{path}.text"), extra=leftover(item, {"text": True}))


def _read_json(item: JsonObject, path: str) -> Text:
    return Text(text=json_text(item["json"]), json=True, extra=leftover(item, {"json": True}))


def _read_guarded(item: JsonObject, path: str) -> Text | None:
    """Text that a guardrail looks at. The whole block is kept, so that only another format sees it as bare text."""
    content = as_object(item["guardContent"], f"{path}.guardContent")
    if "text" not in content:
        return None
    at = f"{path}.guardContent.text"
    text = as_str(required(as_object(content["text"], at), "text", at), f"{at}.text")
    return Text(text=text, extra=item)


def _read_cited(item: JsonObject, path: str) -> Text:
    content = as_object(item["citationsContent"], f"{path}.citationsContent")
    parts = as_list(content.get("content", []), f"{path}.citationsContent.content")
    return Text(text="".join(part.get("text", "") for part in parts if isinstance(part, dict)), extra=item)


def _read_source(source: JsonObject, path: str) -> tuple[Source, JsonObject] | None:
    """The source, and what of it was taken; None when it is of a kind that the neutral form does not know."""
    if "bytes" in source:
        return Source(kind="base64", data=as_base64(source["bytes"], f"{path}.bytes")), {"bytes": True}
    if "text" in source:
        return Source(kind="text", data=as_str(source["text"], f"{path}.text")), {"text": True}
    if "s3Location" in source:
        at = f"{path}.s3Location"
        uri = as_str(required(as_object(source["s3Location"], at), "uri", at), f"{at}.uri")
        return Source(kind="s3", data=uri), {"s3Location": {"uri": True}}
    return None


def _read_image(item: JsonObject, path: str) -> Image | None:
    at = f"{path}.image"
    image = as_object(item["image"], at)
    read = _read_source(as_object(required(image, "source", at), f"{at}.source"), f"{at}.source")
    if read is None:
        return None
    source, taken = read
    media_type = "image/" + as_str(required(image, "format", at), f"{at}.format")
    extra = leftover(item, {"image": {"format": True, "source": taken}})
    return Image(source=replace(source, media_type=media_type), extra=extra)


def _read_document(item: JsonObject, path: str) -> Document | None:
    at = f"{path}.document"
    document = as_object(item["document"], at)
    read = _read_source(as_object(required(document, "source", at), f"{at}.source"), f"{at}.source")
    if read is None:
        return None
    source, taken = read
    media_type = DOCUMENT_TYPES.get(optional_str(document, "format", at) or "")
    name, context = optional_str(document, "name", at), optional_str(document, "context", at)
    citations = None
    if document.get("citations") is not None:
        citations = optional_bool(as_object(document["citations"], f"{at}.citations"), "enabled", f"{at}.citations")
    taken = {
        "format": media_type is not None,
        "name": name is not None,
        "context": context is not None,
        "citations": {"enabled": citations is not None},
        "source": taken,
    }
    return Document(
        source=replace(source, media_type=media_type),
        name=name,
        context=context,
        citations=citations,
        extra=leftover(item, {"document": taken}),
    )


def _read_tool_use(item: JsonObject, path: str) -> ToolCall | None:
    at = f"{path}.toolUse"
    call = as_object(item["toolUse"], at)
    call_id = as_str(required(call, "toolUseId", at), f"{at}.toolUseId")
    name = as_str(required(call, "name", at), f"{at}.name")
    if call.get("type") is not None:  # `server_tool_use`: the provider runs it, so it is no call for the client
        return None
    return ToolCall(
        id=call_id,
        name=name,
        arguments=json_text(required(call, "input", at)),
        extra=leftover(item, {"toolUse": {"toolUseId": True, "name": True, "input": True}}),
    )


def _read_tool_result(item: JsonObject, path: str) -> ToolResult | None:
    at = f"{path}.toolResult"
    result = as_object(item["toolResult"], at)
    call_id = as_str(required(result, "toolUseId", at), f"{at}.toolUseId")
    blocks = read_blocks(required(result, "content", at), f"{at}.content")
    status = optional_str(result, "status", at)
    if result.get("type") is not None:  # the result of a call that the provider ran itself
        return None
    taken = {"toolUseId": True, "content": True, "status": status is not None}
    return ToolResult(
        call_id=call_id,
        blocks=blocks,
        is_error=status == "error",
        wire_status=status,
        extra=leftover(item, {"toolResult": taken}),
    )


def _read_reasoning(item: JsonObject, path: str) -> Thinking | None:
    at = f"{path}.reasoningContent"
    content = as_object(item["reasoningContent"], at)
    if "redactedContent" in content:
        redacted = as_base64(content["redactedContent"], f"{at}.redactedContent")
        return Thinking(redacted=redacted, extra=leftover(item, {"reasoningContent": {"redactedContent": True}}))
    if "reasoningText" not in content:
        return None
    at = f"{at}.reasoningText"
    reasoning = as_object(content["reasoningText"], at)
    signature = optional_str(reasoning, "signature", at)
    taken = {"reasoningContent": {"reasoningText": {"text": True, "signature": signature is not None}}}
    return Thinking(
        text=as_str(required(reasoning, "text", at), f"{at}.text"),
        signature=signature,
        extra=leftover(item, taken),
    )


def _read_tool_change(item: JsonObject, path: str) -> ToolChange | None:
    kind = "toolAddition" if "toolAddition" in item else "toolRemoval"
    at = f"{path}.{kind}"
    tool = as_object(required(as_object(item[kind], at), "tool", at), f"{at}.tool")
    name = optional_str(tool, "name", f"{at}.tool")
    if name is None:
        return None
    extra = leftover(item, {kind: {"tool": {"name": True}}})
    return ToolChange(action="add" if kind == "toolAddition" else "remove", name=name, extra=extra)


_READERS: dict[str, Callable[[JsonObject, str], Block | None]] = {
    "text": _read_text,
    "image": _read_image,
    "document": _read_document,
    "toolUse": _read_tool_use,
    "toolResult": _read_tool_result,
    "reasoningContent": _read_reasoning,
    "guardContent": _read_guarded,
    "citationsContent": _read_cited,
    "toolAddition": _read_tool_change,
    "toolRemoval": _read_tool_change,
    "json": _read_json,
}


def json_text(value: object) -> str:
    """The JSON text of a decoded value."""
    return msgspec.json.encode(value).decode()


# --- Writing ----------------------------------------------------------------------------------------------------


def write_blocks(blocks: Sequence[Block]) -> list[JsonObject]:
    return write_marked(blocks, write_block)


def write_marked(values: Sequence[Marked], write: Callable[[Marked], JsonObject]) -> list[JsonObject]:
    """The list form of blocks or tools, each cache marker as its own entry behind what it marks."""
    items: list[JsonObject] = []
    for value in values:
        items.append(write(value))
        cache = getattr(value, "cache", None)
        if cache is not None:
            items.append({"cachePoint": {"type": "default"} | _present(ttl=cache.ttl)})
    return items


def write_block(block: Block) -> JsonObject:
    if isinstance(block, Opaque):
        return block.raw
    if "guardContent" in block.extra or "citationsContent" in block.extra:
        return dict(block.extra)
    return merge(_WRITERS[type(block)](block), block.extra)


def _present(**fields: Any) -> JsonObject:
    return {name: value for name, value in fields.items() if value is not None}


def _write_text(block: Text) -> JsonObject:
    if block.json and is_json(block.text):
        return {"json": msgspec.Raw(block.text.encode())}
    return {"text": block.text}


def _write_source(source: Source) -> JsonObject:
    match source.kind:
        case "s3":
            return {"s3Location": {"uri": source.data}}
        case "text":
            return {"text": source.data}
        case _:
            return {"bytes": source.data}


def _write_image(block: Image) -> JsonObject:
    media_type = block.source.media_type or "image/png"
    return {"image": {"format": media_type.removeprefix("image/"), "source": _write_source(block.source)}}


def _write_document(block: Document) -> JsonObject:
    document = _present(
        format=DOCUMENT_FORMATS.get(block.source.media_type or ""),
        name=block.name,
        source=_write_source(block.source),
        context=block.context,
        citations=None if block.citations is None else {"enabled": block.citations},
    )
    return {"document": document}


def _write_call(block: ToolCall) -> JsonObject:
    call = {"toolUseId": block.id, "name": block.name, "input": msgspec.Raw(block.arguments.encode())}
    return {"toolUse": call}


def _write_result(block: ToolResult) -> JsonObject:
    unchanged = block.is_error == (block.wire_status == "error")
    status = block.wire_status if unchanged else "error" if block.is_error else None
    content = write_blocks(block.blocks)
    return {"toolResult": {"toolUseId": block.call_id, "content": content} | _present(status=status)}


def _write_thinking(block: Thinking) -> JsonObject:
    if block.redacted is not None:
        return {"reasoningContent": {"redactedContent": block.redacted}}
    return {"reasoningContent": {"reasoningText": {"text": block.text} | _present(signature=block.signature)}}


def _write_tool_change(block: ToolChange) -> JsonObject:
    return {"toolAddition" if block.action == "add" else "toolRemoval": {"tool": {"name": block.name}}}


_WRITERS: dict[type, Callable[[Any], JsonObject]] = {
    Text: _write_text,
    Refusal: lambda block: {"text": block.text},
    Image: _write_image,
    Document: _write_document,
    ToolCall: _write_call,
    ToolResult: _write_result,
    Thinking: _write_thinking,
    ToolChange: _write_tool_change,
}


def is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True
