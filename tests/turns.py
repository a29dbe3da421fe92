"""Replies of a model that may ask for more tools, in every provider's dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orqen_ray.conversation import (
    Block,
    Conversation,
    Event,
    FormatName,
    Message,
    Reply,
    ReplyEnd,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.exchange import Exchange
from orqen_ray.formats.events import events_of
from orqen_ray.formats.registry import FORMATS
from orqen_ray.relay import Answer, Route
from orqen_ray.restore.offer import Offer
from orqen_ray.restore.said import Said
from orqen_ray.restoring import answer_with_restore
from orqen_ray.tools.index import MORE_TOOLS
from orqen_ray.types import UpstreamReply

NAMES = ("read_mail", "send_mail", "find_hotel")
OFFER = Offer(names=NAMES)
JSON_TYPE = "application/json"


def ask(*names: str, id: str = "toolu_ask00") -> ToolCall:
    return ToolCall(id=id, name=MORE_TOOLS, arguments=msgspec.json.encode({"names": names}).decode())


def call(name: str = "open_door", id: str = "toolu_call0") -> ToolCall:
    return ToolCall(id=id, name=name, arguments='{"key":"a"}')


def reply(*blocks: Block, out: int = 7, prompt: int = 100, id: str = "msg_one", stop: Any = None) -> Reply:
    called = any(isinstance(block, ToolCall) for block in blocks)
    return Reply(
        id=id,
        model="m-2026",
        blocks=blocks,
        stop_reason=stop or ("tool_call" if called else "end"),
        usage=Usage(input_tokens=prompt, output_tokens=out),
    )


def conversation(caller: FormatName, *, stream: bool) -> Conversation:
    messages = (Message(role="user", blocks=(Text(text="hello"),)),)
    return Conversation(format=caller, model="lab/m", messages=messages, stream=stream, include_usage=stream)


def on_the_wire(said: Reply, provider: FormatName, *, stream: bool) -> list[bytes]:
    """The reply as a provider of that dialect sends it, one chunk for each event."""
    format_ = FORMATS[provider]
    if not stream:
        return [msgspec.json.encode(format_.write_reply(said, said.model, said.id).body)]
    writer = format_.stream_writer(conversation(provider, stream=True), said.model, said.id)
    return [chunk for event in events_of(said) if (chunk := writer.write(event))]


@dataclass
class Wire:
    """A reply's body; `open` until it is closed or read to its end."""

    chunks: list[bytes | Exception]
    open: bool = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        chunk = self.chunks.pop(0) if self.chunks else StopAsyncIteration()
        if isinstance(chunk, Exception):
            self.open = False
            raise chunk
        return chunk

    async def aclose(self) -> None:
        self.open = False


@dataclass
class Seen:
    """What a caller got, as its SDK would read it."""

    blocks: tuple[Block, ...]
    end: ReplyEnd
    usage: Usage
    raw: bytes
    headers: dict[str, str]
    events: list[Event] = field(default_factory=list)


@dataclass
class Turns:
    """A provider that gives `replies` one after another, and keeps what it was asked again for.

    A reply may be an error to raise, or a pair of a status and a body.
    """

    caller: FormatName
    provider: FormatName
    replies: Sequence[Reply | Exception | tuple[int, bytes] | list[bytes | Exception]]
    stream: bool
    offer: Offer = OFFER
    cut: Callable[[list[bytes]], list[bytes]] = list
    ping_after_s: float = 60.0
    asked: list[tuple[tuple[str, ...] | None, tuple[Block, ...]]] = field(default_factory=list)
    owed: list[tuple[str, ...]] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    """The bytes of each reply."""
    recorded: int = 0
    exchange: Exchange = field(init=False)

    def __post_init__(self) -> None:
        self.exchange = Exchange(request_id="r1", key_id="k", session_id="s", inbound_format=self.caller)
        self.exchange.stream = self.stream

    def _next(self) -> tuple[Route, UpstreamReply]:
        said = self.replies[len(self.wires)]
        status, content_type = 200, JSON_TYPE
        if isinstance(said, Exception):
            self.wires.append(Wire([], open=False))
            raise said
        chunks: list[bytes | Exception]
        if isinstance(said, tuple):
            status, chunks = said[0], [said[1]]
        else:
            if self.stream:
                content_type = FORMATS[self.provider].stream_writer(self._conversation(), "m", "r").content_type
            whole = said if isinstance(said, list) else on_the_wire(said, self.provider, stream=self.stream)
            chunks = [*self.cut([each for each in whole if isinstance(each, bytes)])]
            chunks += [each for each in whole if isinstance(each, Exception)]
        self.wires.append(Wire(chunks))
        self.sent.append(b"".join(each for each in chunks if isinstance(each, bytes)))
        route = Route(caller=FORMATS[self.caller], provider=FORMATS[self.provider], conversation=self._conversation())
        headers = {"content-type": content_type, "x-call": str(len(self.wires))}
        return route, UpstreamReply(status=status, headers=headers, chunks=self.wires[-1])

    def _conversation(self) -> Conversation:
        return conversation(self.caller, stream=self.stream)

    async def again(self, names: tuple[str, ...] | None, said: tuple[Block, ...]) -> tuple[Route, UpstreamReply]:
        await asyncio.sleep(0)
        self.asked.append((names, said))
        return self._next()

    async def later(self, names: tuple[str, ...]) -> None:
        self.owed.append(names)

    def _record(self, exchange: Exchange) -> None:
        self.recorded += 1

    async def answer(self) -> Answer:
        route, reply = self._next()
        return await answer_with_restore(
            reply, route, self.exchange, self._record, self.offer, self.again, self.later, self.ping_after_s
        )

    async def see(self) -> Seen:
        """The whole answer, read and closed; nothing is left open."""
        answer = await self.answer()
        try:
            raw = answer.body if isinstance(answer.body, bytes) else b"".join([chunk async for chunk in answer.body])
        finally:
            await answer.aclose()
        assert not any(wire.open for wire in self.wires) and self.recorded == 1
        assert MORE_TOOLS.encode() not in raw
        return seen(raw, self.caller, answer.headers, stream=self.stream)


def seen(raw: bytes, caller: FormatName, headers: dict[str, str], *, stream: bool) -> Seen:
    format_ = FORMATS[caller]
    if not stream:
        whole = format_.read_reply(msgspec.json.decode(raw))
        end = ReplyEnd(stop_reason=whole.stop_reason, usage=whole.usage)
        return Seen(whole.blocks, end, whole.usage or Usage(), raw, headers)
    reader = format_.stream_reader()
    events = [*reader.feed(raw), *reader.end()]
    said = Said()
    indexes = []
    for event in events:
        match event.__class__.__name__:
            case "BlockStart":
                indexes.append(event.index)  # type: ignore[union-attr]
                said.start(event)  # type: ignore[arg-type]
            case "BlockDelta":
                said.more(event)  # type: ignore[arg-type]
    assert indexes == list(range(len(indexes)))
    end = events[-1] if isinstance(events[-1], ReplyEnd) else ReplyEnd(stop_reason="malformed")
    return Seen(said.blocks, end, end.usage or Usage(), raw, headers, events)


def told(blocks: tuple[Block, ...]) -> list[tuple[str, str]]:
    """What a caller reads, neighbouring texts as one: how a text is cut into blocks is no part of it."""
    out: list[tuple[str, str]] = []
    for block in blocks:
        match block:
            case ToolCall():
                out.append(("call", f"{block.name} {block.arguments}"))
            case Thinking():
                out.append(("thinking", block.text))
            case Text():
                if out and out[-1][0] == "text":
                    out[-1] = ("text", out[-1][1] + block.text)
                else:
                    out.append(("text", block.text))
    return out
