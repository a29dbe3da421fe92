"""The pin: what a conversation was given at first sight, kept so that every later turn sends the same prefix."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

Arm = Literal["routed", "holdout", "whole"]
"""`routed`: tools were chosen; `holdout`: they would have been, and all are sent, to measure; `whole`: all
are sent, because there was nothing to choose or no choice could be made."""


class Restore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tools that were brought back in mid-conversation.

    Attributes:
        anchor: hash of the messages that it followed; it is re-inserted after exactly these, in every later turn.
        after: how many messages those were.
        names: the tools, as the caller knows them.
        appended: as a tool addition inside the messages; else they joined `tools`, and the prefix was written anew.
    """

    anchor: str
    after: int
    names: tuple[str, ...]
    appended: bool


class Pin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one conversation was given.

    Attributes:
        snapshot: version of the policy that decided.
        arm: see `Arm`. `propensity`: the probability with which it got this arm.
        tool_set: fingerprint of the caller's tools at first sight; another one means another prefix anyway.
        kept: names of the tools that are sent in full, in the caller's order; empty where there was no choice.
        indexed: names of those left out, which the index lists. In a `holdout` both tell what would have been.
        method: how they were scored, see `tools.routing.Method`; "" where nothing was.
        schemas: whether definitions are sent compressed. index: whether an index names what is left out.
        reason: why it was decided so, one word.
        restores: in the order in which they happened.
        owed: tools that the next turn must bring: they were asked for when it was too late for that turn.
        sent: hash of the prefix that was sent last, and `sent_messages`, how many of the caller's messages it held.
    """

    snapshot: str
    arm: Arm
    tool_set: str
    propensity: float = 1.0
    kept: tuple[str, ...] = ()
    indexed: tuple[str, ...] = ()
    method: str = ""
    schemas: bool = False
    index: bool = True
    reason: str = ""
    restores: tuple[Restore, ...] = ()
    owed: tuple[str, ...] = ()
    sent: str = ""
    sent_messages: int = 0


class Pins(Protocol):
    """Where pins are kept: a bounded store in this process, over one that all processes share."""

    async def get(self, conversation: str, *, fresh: bool = False) -> Pin | None:
        """The pin of a conversation; None if it is new or its pin was lost. Never raises.

        `fresh`: look into the shared store also for one that this process knows: another may have changed it.
        """
        ...

    async def put(self, conversation: str, pin: Pin) -> None:
        """Keep it. At once in this process; never raises."""
        ...
