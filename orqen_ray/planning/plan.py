"""The plan of one request: what will be written, why, and what the trace tells of it. A frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orqen_ray.conversation import Conversation, Tool
from orqen_ray.pins import Pin, Restore
from orqen_ray.planning.prepared import Prepared
from orqen_ray.planning.switches import Switches
from orqen_ray.tools.routing import Routing

PinState = Literal["none", "new", "found", "lost"]
"""`none`: nothing is pinned; `new`: made in this turn; `found`; `lost`: a later turn whose pin is gone, made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was read from a request, once, for all that is decided about it.

    Attributes:
        key: names the conversation among the pins.
        digests: see `prefix.digests`.
        prepared: its tools; None where there was no time to look at them.
    """

    key: str
    digests: tuple[str, ...]
    switches: Switches
    prepared: Prepared | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one request becomes.

    Attributes:
        asked: the conversation as the caller sent it.
        conversation: as it will be written; `asked` itself when nothing was edited, and its bytes are forwarded then.
        seen: None where nobody looked: nothing is pinned then, and nothing edited.
        pin: what the conversation was given; None where nothing has to be remembered.
        pin_state: see `PinState`.
        routing: what was decided in this turn, with a verdict for each tool; None where the pin decided, or nothing.
        restorable: the tools that the index lists, by name; empty when there is no index.
        restored: tools that were left out at first and are there again.
        reason: why this many tools are sent, one word (`Pin.reason`, or `small`, `off`, ...).
        tools_output: how many of the caller's tools are sent in full.
        prefix_break: why what is sent does not begin with what was sent the last time; "" when it does.
        undone: why the edit was taken back by validation; "" when it was not.
        tool_tokens_in, tool_tokens_out: tokens of the caller's tools, and of those sent, the index included; None
            where nobody counted.
    """

    asked: Conversation
    conversation: Conversation
    seen: Seen | None = None
    pin: Pin | None = None
    pin_state: PinState = "none"
    routing: Routing | None = None
    restorable: Mapping[str, Tool] = field(default_factory=dict)
    restored: tuple[str, ...] = ()
    reason: str = ""
    tools_output: int = 0
    prefix_break: str = ""
    undone: str = ""
    tool_tokens_in: int | None = None
    tool_tokens_out: int | None = None

    @property
    def edited(self) -> bool:
        return self.conversation is not self.asked

    @property
    def routed(self) -> bool:
        """Whether tools were left out, now or at first sight."""
        return self.edited and self.pin is not None and self.pin.arm == "routed"

    @property
    def restores(self) -> tuple[Restore, ...]:
        """What has been brought back, in this conversation or another one with its head."""
        return self.pin.restores if self.routed and self.pin is not None else ()

    @property
    def method(self) -> str:
        """How it was chosen what is left out: `keyword` too where use alone decided, and no encoder ran."""
        return (self.pin.method if self.pin is not None else "") or "keyword"


def untouched(conversation: Conversation, reason: str = "") -> Plan:
    """The plan that changes nothing and remembers nothing."""
    return Plan(asked=conversation, conversation=conversation, reason=reason, tools_output=len(conversation.tools))
