"""The calls to providers that one turn takes, where its model may ask for more tools."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Protocol

from orqen_ray.conversation import Block, BlockDelta, Event, Facts, ReplyEnd, ReplyStart, Usage
from orqen_ray.errors import GatewayError, Overloaded, UpstreamError
from orqen_ray.exchange import Exchange
from orqen_ray.formats.events import Watch
from orqen_ray.relay import MAX_ERROR_BYTES, Route, read_body, refusal
from orqen_ray.restore.offer import Ask, Offer
from orqen_ray.restore.turn import Turn
from orqen_ray.types import UpstreamReply

logger = logging.getLogger(__name__)

_CHARS_PER_TOKEN = 4


class Again(Protocol):
    """Sends a turn again with more tools."""

    async def __call__(self, names: tuple[str, ...] | None, said: tuple[Block, ...]) -> tuple[Route, UpstreamReply]:
        """Restore `names` (None: all that the index lists), keep that in the pin, send; the head of the answer.

        Args:
            said: (): the turn as it was, with the tools. Else what the caller has seen of the answer, and last the
                call of the gateway's tool: send `continued(conversation, said, names)`, with the tools.
        Returns:
            Its route, whose provider may be another one than before, and its reply, of whatever status.
        Raises:
            UpstreamError, Overloaded: there is no answer; the caller is told.
            Any other: the gateway could not build the request. All tools are asked for next, and if that fails, too,
                an answer that has begun is ended as it stands.
        """
        ...


class Later(Protocol):
    """Keeps in the pin which tools the next turn must bring."""

    async def __call__(self, names: tuple[str, ...]) -> None:
        """Awaited before the caller has the end of its answer, so that its next turn finds the pin. Never raises."""
        ...


@dataclass(slots=True, kw_only=True)
class Calls:
    """The calls of one turn, one after another. `reply`, `route` and `watch` are of the one under way."""

    reply: UpstreamReply
    route: Route
    exchange: Exchange
    turn: Turn
    offer: Offer
    again: Again
    later: Later
    watch: Watch = field(default_factory=Watch)
    shown: Watch = field(default_factory=Watch)
    reply_id: str = ""
    _told: bool = False

    def show(self, event: Event) -> list[Event]:
        """What the caller may see now that `event` has come."""
        if isinstance(event, ReplyStart):
            self.reply_id = event.id
        if isinstance(event, ReplyEnd) and event.usage is None:
            self.exchange.facts = self.watch.facts
            event = replace(event, usage=self.watch.usage or self.exchange.estimated_usage())
        out = self.turn.feed(event)
        for each in out:
            if not isinstance(each, BlockDelta):
                self.shown.observe(each)
        return out

    @property
    def facts(self) -> Facts:
        """Of the answer: the usage of its last call, the tools that the caller was told to call."""
        shown = self.shown.facts
        return replace(self.watch.facts, tool_names=shown.tool_names, stop_reason=shown.stop_reason)

    async def note_owed(self) -> None:
        """Let it be kept what the next turn must bring; once, before the answer's end is sent."""
        if self.turn.owed and not self._told:
            self._told = True
            await self.later(self.turn.owed)

    async def repeat(self) -> list[Event]:
        """Send the turn again, as was asked. Where that cannot be done: the events that end the answer as it stands.

        Raises:
            GatewayError: there is no other answer.
        """
        ask, spent, hidden, watch = self.turn.ask, self._spent(), self.exchange.hidden, self.watch
        assert ask is not None
        await self.reply.aclose()
        self.exchange.hidden, self.watch = hidden + spent, Watch()
        try:
            names = await self._send(ask)
        except (UpstreamError, Overloaded):
            raise
        except Exception as exc:
            if not ask.said:
                if isinstance(exc, GatewayError):
                    raise
                raise GatewayError("the tools that the model asked for could not be restored") from exc
            logger.exception("an answer could not be continued")
            self.exchange.hidden, self.watch = hidden, watch
            ended = self.turn.give_up(spent)
            for event in ended:
                self.shown.observe(event)
            return ended
        self.turn.resume(spent)
        restored = {*self.exchange.restored, *(names or self.offer.names)}
        self.exchange.restored = tuple(name for name in self.offer.names if name in restored)
        if self.reply.status >= 400:
            body = await read_body(self.reply, limit_bytes=MAX_ERROR_BYTES)
            raise refusal(self.reply, self.route, self.exchange, body)
        return []

    async def _send(self, ask: Ask) -> tuple[str, ...] | None:
        """What was restored; None: all."""
        exchange, names = self.exchange, ask.names
        times = exchange.overhead_ms, exchange.first_byte_ms
        try:
            self.route, self.reply = await self.again(names, ask.said)
        except (UpstreamError, Overloaded):
            raise
        except Exception:
            if names is None:
                raise
            logger.exception("tools could not be restored, so all of them are tried")
            names = None
            self.route, self.reply = await self.again(None, ask.said)
        finally:
            if times[0] is not None:
                exchange.overhead_ms, exchange.first_byte_ms = times
        return names

    def _spent(self) -> Usage:
        """The tokens of the reply under way, which the caller will not see whole."""
        self.exchange.facts = self.watch.facts
        usage = self.watch.usage or self.exchange.estimated_usage()
        if self.watch.stop_reason is not None:
            return usage
        return replace(usage, output_tokens=max(usage.output_tokens, self.watch.output_chars // _CHARS_PER_TOKEN))


def response_id(route: Route, upstream_id: str, exchange: Exchange) -> str:
    """An answer in its provider's own format keeps its id."""
    return upstream_id if route.same and upstream_id else exchange.request_id
