"""One turn as its caller sees it, whatever calls it takes: a state machine over events, without input or output.

A reply is held back until there is something to see. What then happens when its model calls the gateway's tool:

    before anything to see     the reply is discarded, and the turn sent again with the tools
    after visible text         the answer goes on in another call, in the same message; where that is not allowed, it
                               ends there, and the tools come next turn
    beside a call of a tool    that call is delivered, and the tools come next turn

The gateway's own call is never given out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import msgspec

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    Ping,
    Refusal,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.restore.offer import Ask, Offer
from orqen_ray.restore.said import Said
from orqen_ray.tools.index import MORE_TOOLS, asked_names


@dataclass(slots=True)
class _Reply:
    """What is known of the reply under way.

    Attributes:
        held: its events, until something of it can be seen.
        behind: events after the gateway's call that do not yet say what becomes of it.
        indexes: index of a block in the reply -> in the answer, for those given out; `open`: of these, not yet ended.
        asks: index of a call of the gateway's tool -> its arguments; `asking`: of these, not yet ended.
    """

    held: list[Event] | None = field(default_factory=list)
    behind: list[Event] = field(default_factory=list)
    kinds: dict[int, type[Block]] = field(default_factory=dict)
    indexes: dict[int, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    asks: dict[int, list[str]] = field(default_factory=dict)
    asking: set[int] = field(default_factory=set)
    call_id: str = ""
    visible: bool = False
    called: bool = False
    settled: bool = False


class Turn:
    """Feed it the events of a reply; what it gives back is the caller's, blocks numbered from 0 on without a gap.

    When `ask` is set, the reply has no more to say: close it, send the turn again, `resume`, and feed the next one.

    Attributes:
        ask: what the model asked for, until the turn is resumed.
        owed: the tools that the next turn must bring.
    """

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._replays = 0
        self._spent = Usage()
        self._said = Said()
        self._started = self._over = False
        self._next_index = 0
        self._reply = _Reply()
        self.ask: Ask | None = None
        self.owed: tuple[str, ...] = ()

    @property
    def holding(self) -> bool:
        """Nothing of the reply can be seen yet."""
        return self._reply.held is not None

    @property
    def over(self) -> bool:
        """The answer has ended, well or badly."""
        return self._over

    @property
    def asked(self) -> bool:
        """The gateway's tool was called, in this reply or in one before it."""
        return self._replays > 0 or bool(self._reply.asks)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The answer so far."""
        return self._said.blocks

    def feed(self, event: Event) -> list[Event]:
        """The events that the caller may see now."""
        reply = self._reply
        if isinstance(event, Ping):
            return [] if self._over else [event]
        if isinstance(event, BlockDelta) and reply.held is None and not reply.asks:  # nearly all events
            return self._show(event)
        if self._over or self.ask is not None:
            return []
        if self._hears(event):
            return []
        if isinstance(event, BlockStart):
            reply.kinds[event.index] = type(event.block)
        tells = self._tells(event)
        if not reply.asks or reply.settled:
            return self._pass(event, tells=tells)
        if not tells:
            reply.behind.append(event)
            return []
        self._settle(event)
        if self.ask is not None:
            return [BlockStop(index=index) for index in sorted(reply.open)]
        behind = [out for held in reply.behind for out in self._pass(held, tells=False)]
        return [*behind, *self._pass(event, tells=True)]

    def resume(self, spent: Usage) -> None:
        """Another reply follows. `spent`: the tokens of the one that asked."""
        assert self.ask is not None
        self.ask, self._reply = None, _Reply()
        self._replays += 1
        self._spent += _output(spent)

    def give_up(self, spent: Usage) -> list[Event]:
        """End an answer that has begun and cannot be continued; its tools come next turn."""
        assert self.ask is not None and self.ask.said
        self.owed, self.ask, self._reply = self.ask.names or self._offer.names, None, _Reply(held=None)
        return self._pass(ReplyEnd(stop_reason="end", usage=spent), tells=True)

    def _hears(self, event: Event) -> bool:
        """Whether `event` is of a call of the gateway's tool; its arguments are kept."""
        reply = self._reply
        match event:
            case BlockStart(index=index, block=ToolCall(name=name) as call) if name == MORE_TOOLS:
                reply.asks[index] = [call.arguments]
                reply.asking.add(index)
                reply.call_id = reply.call_id or call.id
                reply.settled = reply.settled or reply.called
            case BlockDelta(index=index, text=text) if index in reply.asks:
                reply.asks[index].append(text)
            case BlockStop(index=index) if index in reply.asks:
                reply.asking.discard(index)
            case _:
                return False
        return True

    def _tells(self, event: Event) -> bool:
        """Whether there is something to see in `event`, or nothing more to come."""
        match event:
            case BlockStart(block=Thinking()):
                return False
            case BlockStart(block=Text(text=text) | Refusal(text=text)):
                return bool(text.strip())
            case BlockStart() | ReplyEnd() | StreamFailure():
                return True
            case BlockDelta(kind="text" | "refusal", text=text):
                return bool(text.strip())
            case BlockDelta(kind="other", index=index):
                return self._reply.kinds.get(index) is not Thinking
        return False

    def _settle(self, event: Event) -> None:
        """What becomes of the call, now that `event` follows it."""
        reply = self._reply
        reply.settled = True
        beside = reply.visible and isinstance(event, BlockStart) and isinstance(event.block, ToolCall)
        cut_off = isinstance(event, StreamFailure) and bool(reply.asking)
        impossible = self._replays >= self._offer.max_replays or (reply.visible and not self._offer.may_continue)
        if beside or cut_off or impossible:
            return
        names = None if self._replays else self._wanted()
        said = tuple(block for block in self._said.blocks if not _is_blank(block))
        if said:
            arguments = msgspec.json.encode({"names": names or self._offer.names}).decode()
            said = (*said, ToolCall(id=reply.call_id or MORE_TOOLS, name=MORE_TOOLS, arguments=arguments))
        self.ask = Ask(names=names, said=said)

    def _wanted(self) -> tuple[str, ...] | None:
        """The tools that the reply asks for; None, which means all, where a name is unknown or none is given."""
        asked = _names("".join(pieces) for pieces in self._reply.asks.values())
        known = {" ".join(name.split()): name for name in self._offer.names}
        wanted = {known.get(" ".join(name.split())) for name in asked}
        return None if not wanted or None in wanted else tuple(name for name in self._offer.names if name in wanted)

    def _pass(self, event: Event, *, tells: bool) -> list[Event]:
        reply = self._reply
        held: list[Event] = []
        if reply.held is not None:
            if not tells:
                reply.held.append(event)
                return []
            held, reply.held = reply.held, None
            if isinstance(event, StreamFailure):  # nothing was seen, so there is nothing to show but the failure
                held = []
        if tells and not isinstance(event, ReplyEnd | StreamFailure):
            reply.visible = True
        return [out for each in (*held, event) for out in self._show(each)]

    def _show(self, event: Event) -> list[Event]:
        """`event` as a part of the one answer."""
        reply = self._reply
        match event:
            case BlockDelta(index=index):
                out = None if self._over else reply.indexes.get(index)
                if out is None:
                    return []
                more = event if index == out else replace(event, index=out)
                self._said.more(more)
                return [more]
            case ReplyStart():
                started, self._started = self._started, True
                return [] if started else [event]
            case BlockStart(index=index, block=block):
                reply.called = reply.called or isinstance(block, ToolCall)
                out, self._next_index = self._next_index, self._next_index + 1
                reply.indexes[index] = out
                reply.open.add(out)
                shown = BlockStart(index=out, block=block)
                self._said.start(shown)
                return [shown]
            case BlockStop(index=index) if index in reply.indexes:
                reply.open.discard(reply.indexes[index])
                return [BlockStop(index=reply.indexes[index])]
            case ReplyEnd():
                return [self._end(event)]
            case StreamFailure():
                self._over = True
                return [event]
        return []

    def _end(self, end: ReplyEnd) -> ReplyEnd:
        """The end of the answer: the input of the last call, the output of all; no call is told of that is not there.

        Clients read the input as the size of the context.
        """
        reply = self._reply
        self._over = True
        if reply.asks:
            self.owed = self._wanted() or self._offer.names
            if end.stop_reason == "tool_call" and not reply.called:
                end = replace(end, stop_reason="end")
        return end if end.usage is None or not self._replays else replace(end, usage=end.usage + self._spent)


def _names(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in asked_names(text)}


def _output(usage: Usage) -> Usage:
    return Usage(output_tokens=usage.output_tokens, reasoning_tokens=usage.reasoning_tokens)


def _is_blank(block: Block) -> bool:
    return isinstance(block, Text | Refusal) and not block.text.strip()
