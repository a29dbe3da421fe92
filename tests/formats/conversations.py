"""Hypothesis strategy of neutral conversations, each as its format's reader would give it."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import strategies as st

from orqen_ray.conversation import (
    Block,
    CacheMarker,
    Conversation,
    Document,
    FormatName,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Source,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(str.strip)
NAMES = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_-]{0,15}", fullmatch=True)
IDS = st.from_regex(r"[a-zA-Z0-9_-]{9,24}", fullmatch=True)
BASE64 = st.binary(min_size=1, max_size=12).map(lambda data: base64.b64encode(data).decode())
JSON_OBJECTS = st.dictionaries(NAMES, st.one_of(st.none(), st.booleans(), st.integers(-9, 9), WORDS), max_size=3)
CACHES = st.one_of(st.none(), st.none(), st.builds(CacheMarker, ttl=st.sampled_from([None, "5m", "1h"])))


def texts(format: FormatName) -> st.SearchStrategy[Text]:
    # Bedrock's marker is a block of its own, and has no ttl on some models: the plain one suits all three.
    caches = st.just(None) if format == "bedrock_converse" else CACHES
    return st.builds(Text, text=WORDS, cache=caches)


def images(format: FormatName) -> st.SearchStrategy[Image]:
    data = st.builds(
        Source, kind=st.just("base64"), data=BASE64, media_type=st.sampled_from(["image/png", "image/jpeg"])
    )
    urls = st.just(Source(kind="url", data="https://example.com/a.png"))
    return st.builds(Image, source=data if format == "bedrock_converse" else st.one_of(data, urls))


def documents(format: FormatName) -> st.SearchStrategy[Document]:
    pdf = st.builds(Source, kind=st.just("base64"), data=BASE64, media_type=st.just("application/pdf"))
    text = st.builds(Source, kind=st.just("text"), data=WORDS, media_type=st.just("text/plain"))
    sources = st.one_of(pdf, text) if format == "anthropic_messages" else pdf
    return st.builds(Document, source=sources, name=st.sampled_from(["report", "notes"]))


def user_blocks(format: FormatName) -> st.SearchStrategy[tuple[Block, ...]]:
    media: st.SearchStrategy[Block] = st.one_of(images(format), documents(format))
    words = st.lists(texts(format), min_size=1, max_size=2)
    return st.tuples(words, st.lists(media, max_size=2)).map(lambda both: (*both[0], *both[1]))


@st.composite
def tool_rounds(draw: st.DrawFn, format: FormatName, names: list[str], serial: int) -> list[Message]:
    """An assistant's message with calls, in parallel, and the answers to all of them."""
    ids = draw(st.lists(IDS.map(lambda i: f"c{serial}_{i}"), min_size=1, max_size=3, unique=True))
    call_names = draw(st.lists(st.sampled_from(names), min_size=len(ids), max_size=len(ids)))
    calls = [
        ToolCall(id=i, name=name, arguments=json.dumps(draw(JSON_OBJECTS)))
        for i, name in zip(ids, call_names, strict=True)
    ]
    said = draw(st.lists(texts(format).map(lambda text: Text(text=text.text)), max_size=1))
    openai = format == "openai_chat"
    inside: st.SearchStrategy[Block] = texts(format) if openai else st.one_of(texts(format), images(format))
    results = [
        ToolResult(
            call_id=i,
            blocks=tuple(draw(st.lists(inside, min_size=1, max_size=2))),
            is_error=not openai and draw(st.sampled_from([False, True])),
        )
        for i in ids
    ]
    asked = Message(role="assistant", blocks=(*draw(_thinking(format)), *said, *calls))
    if openai:
        return [asked, *(Message(role="user", wire_role="tool", blocks=(result,)) for result in results)]
    return [asked, Message(role="user", blocks=(*results, *draw(st.lists(texts(format), max_size=1))))]


def _thinking(format: FormatName) -> st.SearchStrategy[tuple[Block, ...]]:
    signed = st.none() if format == "openai_chat" else st.just("c2lnbmVk")
    some = st.builds(Thinking, text=WORDS, signature=signed).map(lambda block: (block,))
    if format == "openai_chat":
        return st.one_of(st.just(()), some)
    return st.one_of(st.just(()), some, st.just((Thinking(redacted="c2VhbGVk"),)))


@st.composite
def _messages(draw: st.DrawFn, format: FormatName, names: list[str]) -> list[Message]:
    out: list[Message] = []
    if format == "openai_chat":
        roles = draw(st.lists(st.sampled_from([None, "developer"]), max_size=2))
        out += [Message(role="system", wire_role=role, blocks=(draw(texts(format)),)) for role in roles]
    for serial in range(draw(st.integers(1, 3))):
        out.append(Message(role="user", blocks=draw(user_blocks(format))))
        if format != "bedrock_converse" and draw(st.booleans()):
            out.append(Message(role="system", blocks=(draw(texts(format)),)))
        if draw(st.booleans()) and names:
            out += draw(tool_rounds(format, names, serial))
        words = draw(texts(format))
        out.append(Message(role="assistant", blocks=(*draw(_thinking(format)), words)))
    out.append(Message(role="user", blocks=draw(user_blocks(format))))
    return out


def _tools(format: FormatName) -> st.SearchStrategy[list[Tool]]:
    schema = JSON_OBJECTS.map(lambda _: {"type": "object", "properties": {"x": {"type": "string"}}})
    tool = st.builds(
        Tool,
        name=NAMES,
        description=WORDS,
        parameters=schema,
        cache=st.just(None) if format == "bedrock_converse" else CACHES,
    )
    return st.lists(tool, max_size=3, unique_by=lambda tool: tool.name)


def _choices(names: list[str]) -> st.SearchStrategy[ToolChoice | None]:
    if not names:
        return st.none()
    one = st.sampled_from(names).map(lambda name: ToolChoice(mode="tool", names=(name,)))
    return st.one_of(st.none(), one, st.sampled_from([ToolChoice(mode="auto"), ToolChoice(mode="any")]))


_SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"], "additionalProperties": False}
_SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0, 0.5, 1]),
    "top_p": st.sampled_from([0.1, 0.9]),
}
_REASONING: dict[FormatName, st.SearchStrategy[Reasoning | None]] = {
    "openai_chat": st.sampled_from([None, Reasoning(mode="off"), Reasoning(mode="on", effort="high")]),
    "anthropic_messages": st.sampled_from([None, Reasoning(mode="on", budget_tokens=2048), Reasoning(mode="off")]),
    "bedrock_converse": st.none(),
}


@st.composite
def conversations(draw: st.DrawFn, format: FormatName) -> Conversation:
    """A well-formed conversation of `format`: each result answers a call, each call names a tool that is offered."""
    tools = draw(_tools(format))
    names = [tool.name for tool in tools]
    stream = draw(st.booleans())
    output = OutputFormat(kind="schema", schema=_SCHEMA, name="answer")
    return Conversation(
        format=format,
        model=draw(NAMES),
        system=() if format == "openai_chat" else tuple(draw(st.lists(texts(format), max_size=2))),
        messages=tuple(draw(_messages(format, names))),
        tools=tuple(tools),
        tool_choice=draw(_choices(names)),
        max_tokens=draw(st.integers(1, 4096)),
        stop=tuple(draw(st.lists(WORDS, max_size=2))),
        sampling=draw(st.fixed_dictionaries({}, optional=_SAMPLING)),
        reasoning=draw(_REASONING[format]),
        output_format=draw(st.sampled_from([None, output])) if format == "openai_chat" else None,
        stream=stream,
        include_usage=format != "openai_chat" or (stream and draw(st.booleans())),
    )
