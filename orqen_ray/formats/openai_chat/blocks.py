"""Content parts and tool calls of Chat Completions, read into blocks and written back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
    ToolCall,
)
from orqen_ray.formats.reading import (
    as_base64,
    as_list,
    as_object,
    as_str,
    expected,
    optional_str,
    required,
    rest,
)

CALL = "tool_calls."
"""Prefix of the kind of an `Opaque` that stands among the tool calls of a message."""

# OpenRouter, vLLM and others call the field `reasoning`; DeepSeek, which was first, `reasoning_content`.
# https://api-docs.deepseek.com/guides/reasoning_model, https://openrouter.ai/docs/use-cases/reasoning-tokens
REASONING_FIELDS = ("reasoning_content", "reasoning")


def unknown(body: Mapping[str, Any], known: Collection[str]) -> JsonObject:
    """The fields that are not `known` and say something: SDKs send back `"audio": null` and `"annotations": []`."""
    return {key: value for key, value in rest(body, known).items() if value not in (None, [], {})}


def overlaid(known: JsonObject, extra: Mapping[str, Any]) -> JsonObject:
    """`known` with `extra` laid over it; an object that is in both is joined."""
    out = dict(known)
    for key, value in extra.items():
        old = out.get(key)
        out[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def extra_of(
    body: JsonObject, known: Collection[str], key: str, inner: JsonObject, inner_known: set[str]
) -> JsonObject:
    """What is unknown in `body` and, under `key`, in the object that it nests there."""
    extra = unknown(body, {*known, key})
    if more := unknown(inner, inner_known):
        extra[key] = more
    return extra


def read_cache(part: Mapping[str, Any]) -> CacheMarker | None:
    """Anthropic's marker, which OpenRouter and other gateways take on parts and tools; None if it is of another kind.

    Source: https://openrouter.ai/docs/features/prompt-caching
    """
    marker = part.get("cache_control")
    if not isinstance(marker, dict) or marker.get("type") != "ephemeral" or marker.keys() - {"type", "ttl"}:
        return None
    ttl = marker.get("ttl")
    return CacheMarker(ttl=ttl) if ttl is None or isinstance(ttl, str) else None


def write_cache(cache: CacheMarker) -> JsonObject:
    return {"type": "ephemeral"} | ({"ttl": cache.ttl} if cache.ttl else {})


# --- Content ----------------------------------------------------------------------------------------------------


def read_content(value: object, path: str) -> tuple[Block, ...]:
    """Message content: a string or a list of parts. An empty string is no block at all."""
    if isinstance(value, str):
        return (Text(text=value),) if value else ()
    if not isinstance(value, list):
        raise expected(path, "a string or an array of parts", value)
    return tuple(_read_part(part, f"{path}[{i}]") for i, part in enumerate(value))


def _read_part(value: object, path: str) -> Block:
    part = as_object(value, path)
    kind = as_str(required(part, "type", path), f"{path}.type")
    read = _PARTS.get(kind)
    return read(part, path) if read else Opaque(kind=kind, raw=part)


def _read_text(part: JsonObject, path: str) -> Block:
    text = as_str(required(part, "text", path), f"{path}.text")
    cache = read_cache(part)
    return Text(text=text, cache=cache, extra=unknown(part, _known("text", cache)))


def _read_refusal(part: JsonObject, path: str) -> Block:
    text = as_str(required(part, "refusal", path), f"{path}.refusal")
    return Refusal(text=text, extra=unknown(part, ("type", "refusal")))


def _read_image(part: JsonObject, path: str) -> Block:
    path = f"{path}.image_url"
    image = required(part, "image_url", path.removesuffix(".image_url"))
    if isinstance(image, str):  # https://docs.mistral.ai/capabilities/vision/
        image = {"url": image}
    image = as_object(image, path)
    url = as_str(required(image, "url", path), f"{path}.url")
    cache = read_cache(part)
    return Image(
        source=read_data_url(url, f"{path}.url") or Source(kind="url", data=url),
        detail=optional_str(image, "detail", path),
        cache=cache,
        extra=extra_of(part, _known("image_url", cache), "image_url", image, {"url", "detail"}),
    )


def _read_file(part: JsonObject, path: str) -> Block:
    path = f"{path}.file"
    file = as_object(required(part, "file", path.removesuffix(".file")), path)
    data, file_id = optional_str(file, "file_data", path), optional_str(file, "file_id", path)
    if data is not None:
        known = {"file_data", "filename"}
        source = read_data_url(data, f"{path}.file_data")
        source = source or Source(kind="base64", data=as_base64(data, f"{path}.file_data"))
    elif file_id is not None:
        known = {"file_id", "filename"}
        source = Source(kind="file_id", data=file_id)
    else:
        return Opaque(kind="file", raw=part)
    cache = read_cache(part)
    return Document(
        source=source,
        name=optional_str(file, "filename", path),
        cache=cache,
        extra=extra_of(part, _known("file", cache), "file", file, known),
    )


def _known(key: str, cache: CacheMarker | None) -> set[str]:
    return {"type", key, "cache_control"} if cache else {"type", key}


_PARTS: dict[str, Callable[[JsonObject, str], Block]] = {
    "text": _read_text,
    "refusal": _read_refusal,
    "image_url": _read_image,
    "file": _read_file,
}


def read_data_url(url: str, path: str) -> Source | None:
    """The base64 source in a `data:` URL; None for any other URL.

    Raises:
        BadRequest: it says base64 and is not.
    """
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    media_type = head.removeprefix("data:").removesuffix(";base64")
    media_type = "image/jpeg" if media_type == "image/jpg" else media_type  # common, taken by OpenAI and by no other
    return Source(kind="base64", data=as_base64(data, path), media_type=media_type)


def write_part(block: Block) -> JsonObject:
    """A block of content as a part. Blocks that are no content of a message have been placed before."""
    match block:
        case Text():
            part: JsonObject = {"type": "text", "text": block.text}
        case Refusal():
            part = {"type": "refusal", "refusal": block.text}
        case Image():
            image = {"url": _write_source(block.source)}
            part = {"type": "image_url", "image_url": image | ({"detail": block.detail} if block.detail else {})}
        case Document():
            key = "file_id" if block.source.kind == "file_id" else "file_data"
            name = {} if block.name is None else {"filename": block.name}
            part = {"type": "file", "file": {**name, key: _write_source(block.source)}}
        case Opaque():
            return block.raw
        case _:
            raise TypeError(f"no content part can hold {type(block).__name__}")
    cache = getattr(block, "cache", None)
    if cache is not None:
        part["cache_control"] = write_cache(cache)
    return overlaid(part, block.extra)


def _write_source(source: Source) -> str:
    if source.kind == "base64" and source.media_type is not None:
        return f"data:{source.media_type};base64,{source.data}"
    return source.data


def write_content(blocks: Collection[Block]) -> str | list[JsonObject]:
    """A string where one says it all: not every server takes parts."""
    match tuple(blocks):
        case ():
            return ""
        case (Text(text=text, cache=None, extra=extra),) if not extra:
            return text
        case parts:
            return [write_part(block) for block in parts]


# --- What an assistant says -------------------------------------------------------------------------------------


def read_assistant(message: JsonObject, path: str) -> tuple[Block, ...]:
    """Reasoning first, then content, refusal and tool calls."""
    content, refusal = message.get("content"), optional_str(message, "refusal", path)
    thinking = next((text for field in REASONING_FIELDS if isinstance(text := message.get(field), str) and text), None)
    calls = message.get("tool_calls")
    return (
        *((Thinking(text=thinking),) if thinking else ()),
        *(() if content is None else map(_spoken, read_content(content, f"{path}.content"))),
        *((Refusal(text=refusal),) if refusal else ()),
        *(() if calls is None else _read_calls(calls, f"{path}.tool_calls")),
    )


def _spoken(block: Block) -> Block:
    """Mistral puts reasoning among the parts. Source: https://docs.mistral.ai/capabilities/reasoning/"""
    pieces = block.raw.get("thinking") if isinstance(block, Opaque) and block.kind == "thinking" else None
    if not isinstance(pieces, list):
        return block
    return Thinking(text="".join(str(piece.get("text", "")) for piece in pieces if isinstance(piece, dict)))


def _read_calls(value: object, path: str) -> list[Block]:
    return [_read_call(as_object(call, f"{path}[{i}]"), f"{path}[{i}]") for i, call in enumerate(as_list(value, path))]


def _read_call(call: JsonObject, path: str) -> Block:
    kind = optional_str(call, "type", path) or "function"
    if kind not in _CALL_TEXT:
        return Opaque(kind=CALL + kind, raw=call)
    text_field = _CALL_TEXT[kind]
    inner = as_object(required(call, kind, path), f"{path}.{kind}")
    return ToolCall(
        id=as_str(required(call, "id", path), f"{path}.id"),
        name=as_str(required(inner, "name", f"{path}.{kind}"), f"{path}.{kind}.name"),
        arguments=read_arguments(inner.get(text_field), f"{path}.{kind}.{text_field}"),
        custom=kind == "custom",
        extra=extra_of(call, ("id", "type"), kind, inner, {"name", text_field}),
    )


_CALL_TEXT = {"function": "arguments", "custom": "input"}


def read_arguments(value: object, path: str) -> str:
    """The arguments as JSON text; some servers send them as an object, or null when there are none."""
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return "" if value is None else as_str(value, path)


def write_assistant(blocks: Collection[Block], reasoning_field: str = REASONING_FIELDS[0]) -> JsonObject:
    """The fields of an assistant's message or reply. A refusal that ends the content is a field of its own."""
    thinking = [block.text for block in blocks if isinstance(block, Thinking) and block.text]
    calls = [_write_call(block) for block in blocks if _is_call(block)]
    content = [block for block in blocks if not isinstance(block, Thinking) and not _is_call(block)]
    last = content[-1] if content else None
    refusal = last if isinstance(last, Refusal) and not last.extra else None
    if refusal:
        content.pop()
    out: JsonObject = {"content": write_content(content) if content or not (calls or refusal) else None}
    if refusal:
        out["refusal"] = refusal.text
    if thinking:
        out[reasoning_field] = "\n\n".join(thinking)
    if calls:
        out["tool_calls"] = calls
    return out


def _is_call(block: Block) -> bool:
    return isinstance(block, ToolCall) or isinstance(block, Opaque) and block.kind.startswith(CALL)


def _write_call(block: Block) -> JsonObject:
    if not isinstance(block, ToolCall):
        assert isinstance(block, Opaque)
        return block.raw
    kind = "custom" if block.custom else "function"
    call = {"id": block.id, "type": kind, kind: {"name": block.name, _CALL_TEXT[kind]: block.arguments}}
    return overlaid(call, block.extra)
