"""Strategies and checks for the Anthropic Messages tests: requests as a client sends them, streams, the SDK's types."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec
from anthropic.types import beta
from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    Document,
    Event,
    Image,
    JsonObject,
    Message,
    Opaque,
    Refusal,
    Reply,
    ReplyEnd,
    Source,
    StopReason,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Usage,
)

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()

words = st.text("abcdefghij klmé✓\n", min_size=1, max_size=12).filter(lambda text: text.strip() != "")
names = st.from_regex(r"[a-z_]{1,10}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
inputs = st.dictionaries(names, json_values, max_size=3)
extras = st.dictionaries(names.map(lambda name: f"newer_{name}"), json_values, max_size=1)
markers = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, {"type": "sealed", "key": 1}])


def some(fields: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]] | None = None) -> Any:
    """Objects with `fields`, some of `optional`, and sometimes a field newer than the code."""
    known = st.fixed_dictionaries(fields, optional=optional or {})
    return st.builds(lambda newer, body: {**newer, **body}, extras, known)


def _kind(kind: str, **fields: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    return {"type": st.just(kind), **fields}


cached = {"cache_control": markers}
sources = st.one_of(
    some(_kind("base64", media_type=st.just("image/png"), data=st.just(PNG))),
    some(_kind("url", url=st.just("https://example.com/a.png"))),
    some(_kind("file", file_id=st.just("file_1"))),
    some(_kind("cloud", bucket=words)),
)
document_sources = sources | some(_kind("text", media_type=st.just("text/plain"), data=words))
citations = st.sampled_from([{"enabled": True}, {"enabled": False, "newer": 1}])
wire_texts = some(_kind("text", text=words), cached)
wire_images = some(_kind("image", source=sources), cached)
wire_documents = some(
    _kind("document", source=document_sources), {**cached, "title": words, "context": words, "citations": citations}
)
wire_unknown = some({"type": names.map(lambda name: f"newer_{name}")}, cached)
wire_results = st.lists(wire_texts | wire_images | wire_documents | wire_unknown, min_size=1, max_size=2)
references = some(_kind("tool_reference", name=names))
wire_tools = some(
    {"name": names, "input_schema": inputs},
    {**cached, "description": words, "strict": st.booleans(), "defer_loading": st.booleans()},
)
builtin_tools = some({"type": st.just("web_search_20250305"), "name": st.just("web_search")}, cached)
changes = st.one_of(
    some(_kind("tool_addition", tool=references), cached),
    some(_kind("tool_removal", tool=references), cached),
    some(_kind("tool_addition", tool=some(_kind("tool_definition", definition=wire_tools)))),
)
user_blocks = wire_texts | wire_images | wire_documents | wire_unknown
assistant_blocks = st.one_of(
    wire_texts,
    some(_kind("thinking", thinking=words, signature=words)),
    some(_kind("redacted_thinking", data=words)),
    wire_unknown,
)


@st.composite
def turns(draw: st.DrawFn) -> list[JsonObject]:
    """A user's turn, then perhaps calls, each answered, then perhaps a system message."""
    messages: list[JsonObject] = [{"role": "user", "content": draw(st.lists(user_blocks, min_size=1, max_size=3))}]
    calls = draw(
        st.lists(some(_kind("tool_use", id=names, name=names, input=inputs), cached), max_size=2, unique_by=_id)
    )
    messages.append(
        {"role": "assistant", "content": [*draw(st.lists(assistant_blocks, min_size=1, max_size=2)), *calls]}
    )
    result = {"content": wire_results, "is_error": st.just(True), **cached}
    results = [draw(some(_kind("tool_result", tool_use_id=st.just(call["id"])), result)) for call in calls]
    messages.append({"role": "user", "content": [*results, draw(wire_texts)]})
    if draw(st.booleans()):
        system = some({"role": st.just("system"), "content": st.lists(wire_texts | changes, min_size=1, max_size=2)})
        messages.append(draw(system))
    return messages


def _id(call: JsonObject) -> str:
    return str(call["id"])


single = {"disable_parallel_tool_use": st.booleans()}
formats = some(_kind("json_schema", schema=inputs)) | some(_kind("grammar", grammar=words))
requests = some(
    {"model": names, "max_tokens": st.integers(1, 9999), "messages": turns()},
    {
        "system": st.lists(wire_texts, min_size=1, max_size=2),
        "tools": st.lists(wire_tools | builtin_tools, min_size=1, max_size=3),
        "tool_choice": st.one_of(
            some({"type": st.sampled_from(["auto", "any"])}, single),
            some(_kind("tool", name=names), single),
            some(_kind("none")),
            some(_kind("newer_choice")),
        ),
        "stop_sequences": st.lists(words, min_size=1, max_size=2),
        "stream": st.just(True),
        "temperature": st.sampled_from([0, 0.5, 1.0]),
        "top_p": st.just(0.9),
        "top_k": st.just(40),
        "thinking": st.one_of(
            some(_kind("enabled", budget_tokens=st.just(1024)), {"display": st.just("omitted")}),
            some(_kind("adaptive"), {"display": st.just("summarized")}),
            some(_kind("disabled")),
            some(_kind("between_tools")),
        ),
        "output_config": some({"format": formats}, {"effort": st.just("high"), "task_budget": inputs}),
        "cache_control": markers,
        "metadata": some({"user_id": words}),
        "service_tier": st.just("standard_only"),
    },
)

# --- Replies, as any provider may give them ---------------------------------------------------------------------

arguments = inputs.map(lambda value: msgspec.json.encode(value).decode())
usages = st.builds(
    lambda counts, write_1h: Usage(
        input_tokens=counts[0],
        cache_read_tokens=counts[1],
        cache_write_tokens=counts[2] + write_1h,
        cache_write_1h_tokens=write_1h,
        output_tokens=counts[3],
        reasoning_tokens=counts[3] // 2,
    ),
    st.tuples(*[st.integers(0, 10**6)] * 4),
    st.integers(0, 99),
)
reply_blocks: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, text=words),
    st.builds(Thinking, text=words, signature=words),
    st.builds(Thinking, redacted=words),
    st.builds(ToolCall, id=names.map(lambda name: f"toolu_{name}"), name=names, arguments=arguments),
    st.just(
        Opaque(kind="server_tool_use", raw={"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}})
    ),
)
stop_reasons: st.SearchStrategy[StopReason] = st.sampled_from(
    ["max_tokens", "stop_sequence", "tool_call", "refusal", "pause", "context_window"]
)
replies = st.builds(
    Reply,
    id=st.just("msg_1"),
    model=st.just("claude"),
    blocks=st.lists(reply_blocks, max_size=4).map(tuple),
    stop_reason=stop_reasons,
    stop_sequence=st.none() | words,
    usage=usages,
)


def gathered(events: list[Event]) -> tuple[list[JsonObject], ReplyEnd | None]:
    """What a stream said: each block with its deltas joined, and how it ended."""
    blocks: dict[int, JsonObject] = {}
    end = None
    for event in events:
        match event:
            case BlockStart(index=index, block=block):
                known = {"kind": type(block).__name__, "name": getattr(block, "name", None)}
                redacted = getattr(block, "redacted", None)
                assert index not in blocks
                blocks[index] = {**known, "id": getattr(block, "id", None), "redacted": redacted}
            case BlockDelta(index=index, kind=kind, text=text) if text:
                blocks[index][kind] = blocks[index].get(kind, "") + text
            case ReplyEnd():
                end = event
    return [blocks[index] for index in sorted(blocks)], end


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """`data` in pieces, cut at `places`."""
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return (data[a:b] for a, b in zip(bounds, bounds[1:], strict=False))


# --- Conversations of other formats -----------------------------------------------------------------------------

foreign_blocks: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, text=words | st.just(""), extra=extras),
    st.builds(Image, source=st.just(Source(kind="base64", data=PNG, media_type="image/png")), detail=st.just("low")),
    st.builds(
        Image, source=st.sampled_from([Source(kind="s3", data="s3://b/k"), Source(kind="url", data="https://x/y")])
    ),
    st.builds(
        Document,
        source=st.sampled_from(
            [
                Source(kind="base64", data=PNG, media_type="application/pdf"),
                Source(kind="base64", data=base64.b64encode(b"a,b").decode(), media_type="text/csv"),
                Source(kind="text", data="notes", media_type="text/markdown"),
                Source(kind="file_id", data="file-1"),
            ]
        ),
        name=words,
    ),
    st.just(Opaque(kind="video", raw={"video": {}})),
)
said_blocks: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, text=words),
    st.builds(Refusal, text=words),
    st.builds(Thinking, text=words, signature=st.none() | words),
)
foreign_tools = st.builds(
    Tool,
    name=names,
    description=st.none() | words,
    parameters=st.none() | inputs,
    custom=st.booleans(),
    strict=st.none() | st.booleans(),
    extra=extras,
)


@st.composite
def foreign_messages(draw: st.DrawFn) -> tuple[Message, ...]:
    """Messages that start with anybody, of calls with any id and any arguments."""
    ids = st.sampled_from(["call_1", "functions.get:0", "call|1|fc_2"])
    loose = arguments | st.sampled_from(["", "{", "[1]"])
    calls = draw(
        st.lists(st.builds(ToolCall, id=ids, name=names, arguments=loose), max_size=2, unique_by=lambda c: c.id)
    )
    result = st.lists(foreign_blocks, max_size=2).map(tuple)
    results = tuple(ToolResult(call_id=c.id, blocks=draw(result), is_error=draw(st.booleans())) for c in calls)
    messages = (
        Message(role="system", blocks=(Text(text=draw(words)),), extra=draw(extras)),
        Message(role="user", blocks=tuple(draw(st.lists(foreign_blocks, max_size=3)))),
        Message(role="assistant", blocks=(*draw(st.lists(said_blocks, max_size=2)), *calls)),
        Message(role="user", blocks=(*results, *draw(st.lists(foreign_blocks, max_size=2)))),
        Message(role="system", blocks=(Text(text=draw(words)),)),
        Message(role="assistant", blocks=(Text(text=draw(words)),)),
    )
    first = draw(st.sampled_from([0, 1])) if calls else draw(st.sampled_from([0, 1, 2, 3]))
    return messages[first:]


# --- The SDK's own types ----------------------------------------------------------------------------------------

_REQUEST: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
_BLOCKS: dict[str, TypeAdapter[Any]] = {
    "text": TypeAdapter(beta.BetaTextBlockParam),
    "image": TypeAdapter(beta.BetaImageBlockParam),
    "document": TypeAdapter(beta.BetaRequestDocumentBlockParam),
    "thinking": TypeAdapter(beta.BetaThinkingBlockParam),
    "redacted_thinking": TypeAdapter(beta.BetaRedactedThinkingBlockParam),
    "tool_use": TypeAdapter(beta.BetaToolUseBlockParam),
    "tool_result": TypeAdapter(beta.BetaToolResultBlockParam),
}
_TOOL: TypeAdapter[Any] = TypeAdapter(beta.BetaToolParam)


def check_with_sdk(body: JsonObject) -> None:
    """Raises when a request does not fit the SDK's types, or breaks a rule that the vendor's documentation states."""
    _REQUEST.validate_python(body)  # its lists are lazy, so what is in them is checked below
    assert body["messages"][0]["role"] == "user"
    for message in body["messages"]:
        assert set(message) == {"role", "content"} and message["content"]
        _check_blocks(message["content"])
    _check_blocks(body.get("system", []))
    for tool in body.get("tools", []):
        assert set(tool) <= set(beta.BetaToolParam.__annotations__)
        assert tool["input_schema"]["type"] == "object"
        _TOOL.validate_python(tool)


def _check_blocks(blocks: list[JsonObject]) -> None:
    for block in blocks:
        adapter = _BLOCKS[block["type"]]
        assert set(block) <= set(adapter._type.__annotations__)
        adapter.validate_python(block)
        if block["type"] == "text":
            assert block["text"].strip()
        if block["type"] == "tool_result":
            _check_blocks(block.get("content", []))
