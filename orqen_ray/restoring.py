"""The way back of an answer whose model may ask for more tools: watched, and sent again when it does."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from orqen_ray.conversation import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    Ping,
    Reply,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    ToolCall,
)
from orqen_ray.errors import GatewayError, UpstreamError, UpstreamRejected
from orqen_ray.exchange import Exchange
from orqen_ray.formats.events import events_of
from orqen_ray.formats.format import Scanner, StreamWriter, failure_of
from orqen_ray.formats.tool_names import own_name_event
from orqen_ray.relay import (
    MEDIA_TYPES,
    STREAM_TYPES,
    Answer,
    Resumed,
    Route,
    answer,
    checked_event,
    decode_body,
    error_status,
    read_body,
    written_reply,
)
from orqen_ray.replays import Again, Calls, Later, response_id
from orqen_ray.restore.offer import Offer
from orqen_ray.restore.turn import Turn
from orqen_ray.tools.index import MORE_TOOLS
from orqen_ray.types import UpstreamReply

_PING_AFTER_S = 5.0


async def answer_with_restore(
    reply: UpstreamReply,
    route: Route,
    exchange: Exchange,
    record: Callable[[Exchange], None],
    offer: Offer,
    again: Again,
    later: Later,
    ping_after_s: float = _PING_AFTER_S,
) -> Answer:
    """The answer to give for `reply`, where its model may ask for the tools of `offer`; else as `relay.answer`.

    Where no tool is asked for and the formats agree, the caller gets the provider's bytes. Notes in `exchange.restored`
    what came back in this turn, and in `exchange.hidden` the tokens of the calls whose answers the caller does not see.

    Args:
        ping_after_s: how long a caller that waits for a stream hears nothing; what is held back may take its time.
    Raises:
        GatewayError: there is no answer, and nothing was sent to the caller yet (all replies are closed).
    """
    content_type = reply.headers.get("content-type", "").lower()
    if reply.status >= 400 or (route.same and content_type.startswith(MEDIA_TYPES)):
        return await answer(reply, route, exchange, record)
    exchange.status = reply.status
    calls = Calls(reply=reply, route=route, exchange=exchange, turn=Turn(offer), again=again, later=later, offer=offer)
    try:
        if content_type.startswith(STREAM_TYPES) or (not route.same and route.conversation.stream):
            stream = _Stream(calls, ping_after_s)
            chunks = stream.chunks()
            # The first bytes are awaited here, so that an error before them still gets an HTTP status of its own.
            body: bytes | Resumed = Resumed(await anext(chunks, b""), chunks)
            written_type = stream.content_type
        else:
            first = await read_body(reply)
            if not _asks(first, route):
                reply.chunks = Resumed(first, reply.chunks)
                return await answer(reply, route, exchange, record)
            body, written_type = await _whole(calls, first), "application/json"
    except BaseException as error:
        await reply.aclose()
        await calls.reply.aclose()
        if isinstance(error, GatewayError):
            error.headers = {name: value for name, value in calls.reply.headers.items() if name != "content-type"}
        raise
    headers = {**calls.reply.headers, **exchange.headers()}
    if written_type is not None:
        headers["content-type"] = written_type
    return Answer(exchange.status, headers, body, calls.reply, exchange, record)


# --- An answer in one piece --------------------------------------------------------------------------------------


def _asks(body: bytes, route: Route) -> bool:
    """Whether a whole reply calls the gateway's tool; one that cannot be read does not."""
    if MORE_TOOLS.encode() not in body:
        return False
    try:
        blocks = route.provider.read_reply(decode_body(body)).blocks
    except (UpstreamError, RecursionError):
        return False
    return any(isinstance(block, ToolCall) and block.name == MORE_TOOLS for block in blocks)


async def _whole(calls: Calls, body: bytes) -> bytes:
    """The one answer that the caller gets for `body` and the replies that follow it."""
    while True:
        neutral = _read_reply(calls.route, body)
        for event in events_of(neutral):
            calls.watch.observe(event)
        shown: list[Event] = []
        for event in _in_one_piece(neutral):
            shown += calls.show(own_name_event(event, calls.route.tool_names))
        if calls.turn.ask is None:
            break
        shown = await calls.repeat()
        if shown:
            break
        body = await read_body(calls.reply)
    await calls.note_owed()
    calls.exchange.facts = calls.facts
    end = shown[-1]
    assert isinstance(end, ReplyEnd)
    neutral = replace(neutral, blocks=calls.turn.blocks, stop_reason=end.stop_reason, usage=end.usage)
    return written_reply(neutral, calls.route, calls.exchange, response_id(calls.route, neutral.id, calls.exchange))


def _read_reply(route: Route, body: bytes) -> Reply:
    try:
        return route.provider.read_reply(decode_body(body))
    except RecursionError as exc:
        raise UpstreamError("the provider's answer is nested too deeply") from exc


def _in_one_piece(reply: Reply) -> list[Event]:
    """Events that carry each block as it is, with all that the neutral form does not know."""
    events: list[Event] = [ReplyStart(id=reply.id, model=reply.model, usage=reply.usage)]
    for index, block in enumerate(reply.blocks):
        events += [BlockStart(index=index, block=block), BlockStop(index=index)]
    end = ReplyEnd(stop_reason=reply.stop_reason, stop_sequence=reply.stop_sequence, usage=reply.usage)
    return [*events, end]


# --- An answer as a stream ---------------------------------------------------------------------------------------


class _Stream:
    """What a caller is sent while its turn goes on.

    While formats agree and the gateway's tool was not called, that is the provider's bytes, held back until there is
    something to see in them. From then on it is events, through a writer that first hears, unheard, what was sent.
    """

    def __init__(self, calls: Calls, ping_after_s: float) -> None:
        self._calls = calls
        route = calls.route
        self._scanner: Scanner | None = route.provider.stream_scanner(route.asked_usage) if route.same else None
        self._writer: StreamWriter | None = None
        self._held = bytearray()
        self._unsent: list[Event] = []
        """The events of `_held`."""
        self._sent: list[Event] = []
        """The events of the bytes that were sent; of a run of deltas the first."""
        self._begun = False
        self._ping_after_s = ping_after_s
        self._heard_s = time.monotonic()

    @property
    def content_type(self) -> str | None:
        """Of what was sent first; None: the provider's."""
        return None if self._scanner is not None else self._written(None).content_type

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body. Closes the replies."""
        calls = self._calls
        failure: str | None = None
        try:
            while True:
                async with aclosing(self._reply()) as reply:
                    async for out in reply:
                        self._begun, self._heard_s = True, time.monotonic()
                        yield out
                if calls.turn.ask is None:
                    break
                if ended := await calls.repeat():
                    await calls.note_owed()
                    yield self._write(ended)
                    break
        except GatewayError as error:
            if not self._begun:
                raise
            failure = error.message
            yield self._written(None).write(failure_of(error))
        finally:
            facts = calls.facts if self._scanner is None else self._scanner.facts
            calls.exchange.facts = replace(facts, failure=failure) if failure else facts
            await calls.reply.aclose()

    async def _reply(self) -> AsyncGenerator[bytes, None]:
        """What the caller gets of the reply under way."""
        calls = self._calls
        async with aclosing(self._batches()) as batches:
            async for events, raw in batches:
                shown: list[Event] = []
                for event in events:
                    event = own_name_event(event, calls.route.tool_names)
                    calls.watch.observe(event)
                    if not (isinstance(event, Ping) and calls.turn.holding):
                        seen = calls.show(event)
                        self._check(seen, shown)
                        shown += seen
                    if calls.turn.ask is not None:
                        break
                await calls.note_owed()
                if out := self._out(shown, raw) or self._ping():
                    yield out
                if calls.turn.ask is not None or (calls.turn.over and self._scanner is None):
                    return

    async def _batches(self) -> AsyncGenerator[tuple[list[Event], bytes], None]:
        """Events as they come and, while those are what is sent, the bytes they were read from."""
        reply, provider = self._calls.reply, self._calls.route.provider
        if not reply.headers.get("content-type", "").lower().startswith(STREAM_TYPES):
            yield events_of(_read_reply(self._calls.route, await read_body(reply))), b""
            return
        reader, held_bytes = provider.stream_reader(), 0
        async for chunk in reply.chunks:
            events, raw = reader.feed(chunk), self._scanner.feed(chunk) if self._scanner else b""
            held_bytes = checked_event(0 if events or raw else held_bytes + len(chunk))
            yield events, raw
            if self._scanner is not None and self._scanner.broken is not None:
                raise UpstreamError(self._scanner.broken)
        rest = b""
        if (scanner := self._scanner) is not None:
            told = scanner.facts.failure
            rest = scanner.end()
            if not self._calls.turn.asked and told is None and (cut_off := scanner.facts.failure):
                raise UpstreamError(cut_off)
        yield reader.end(), rest

    def _check(self, seen: list[Event], shown: list[Event]) -> None:
        """A failure that comes before all else, or that the provider's bytes do not tell, is an error."""
        failure = seen[-1] if seen else None
        if not isinstance(failure, StreamFailure):
            return
        if self._scanner is not None:
            if self._scanner.facts.failure is None:
                raise UpstreamError(failure.message)
        elif not (self._begun or shown or seen[:-1]):
            raise UpstreamRejected(failure.message, status=error_status(failure.status), kind=failure.kind)

    def _out(self, shown: list[Event], raw: bytes) -> bytes:
        turn = self._calls.turn
        if self._scanner is None:
            return self._write(shown)
        if turn.asked:
            self._scanner = None
            return self._write([*self._unsent, *shown])
        self._unsent += shown
        self._held += raw
        # A reader keeps back calls that come interleaved with an earlier one; no byte may be ahead of its events.
        calls = self._calls.shown.tool_names
        ahead = bool(calls) and len(self._scanner.facts.tool_names) > len(calls)
        if not turn.over and (turn.holding or ahead):
            return b""
        for event in self._unsent:
            if not (self._sent and _goes_on(self._sent[-1], event)):
                self._sent.append(event)
        out = bytes(self._held)
        self._unsent.clear()
        self._held.clear()
        return out

    def _write(self, events: list[Event]) -> bytes:
        if not events:
            return b""
        if self._writer is None:
            self._writer = self._written(self._calls.watch.served_model)
            for event in self._sent:
                self._writer.write(event)
        return b"".join(map(self._writer.write, events))

    def _written(self, served_model: str | None) -> StreamWriter:
        """The writer of this answer, or a new one, which an error or a ping may go through at any time."""
        calls, route = self._calls, self._calls.route
        if self._writer is not None:
            return self._writer
        model = (served_model if route.same else None) or route.conversation.model
        return route.caller.stream_writer(route.conversation, model, response_id(route, calls.reply_id, calls.exchange))

    def _ping(self) -> bytes:
        if time.monotonic() - self._heard_s < self._ping_after_s:
            return b""
        return self._written(None).write(Ping())


def _goes_on(last: Event, event: Event) -> bool:
    return (
        isinstance(last, BlockDelta)
        and isinstance(event, BlockDelta)
        and (last.index, last.kind) == (event.index, event.kind)
    )
