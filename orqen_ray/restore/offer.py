"""What may come back while a turn is answered, and what its model asked for: values only."""

from __future__ import annotations

from dataclasses import dataclass

from orqen_ray.conversation import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What can be restored in one turn.

    Attributes:
        names: the tools that the index lists, as the caller knows them, in the caller's order.
        may_continue: an answer that has begun may be continued by another call; not on `prefix_bound` models, where
            the reasoning in it would stand behind a changed prefix.
        max_replays: how often one turn may be sent again.
    """

    names: tuple[str, ...]
    may_continue: bool = True
    max_replays: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The model wants tools that it sees in the index only, and its turn is to be sent again.

    Attributes:
        names: the tools, in the caller's order; None: all of them.
        said: () when the turn is sent again as it was, its reply so far being discarded. Else the blocks that the
            caller has seen of the answer, and last of all the call of the gateway's tool, with legal arguments:
            `continued` makes of them the conversation to send.
    """

    names: tuple[str, ...] | None
    said: tuple[Block, ...] = ()
