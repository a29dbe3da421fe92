"""What a pin becomes as its conversation goes on: what comes back, and what was sent last."""

from __future__ import annotations

from msgspec import structs

from orqen_ray.conversation import Conversation
from orqen_ray.pins import Pin, Restore
from orqen_ray.planning.applying import Destination, called_names, restored_before
from orqen_ray.planning.plan import Seen
from orqen_ray.planning.prefix import sent_hash
from orqen_ray.tools.limits import MAX_TOOLS

_MAX_RESTORES = 256
"""Of one pin, which all conversations with its head share; those longest ago go first."""


def carried(pin: Pin, conversation: Conversation, seen: Seen, destination: Destination) -> tuple[Pin, str]:
    """The pin for a later turn, with what this turn must have besides, and why the prefix breaks if it does."""
    broken = ""
    at = pin.sent_messages
    if pin.sent and (at >= len(seen.digests) or sent_hash(pin, seen.digests, at) != pin.sent):
        broken = "client"
    if pin.arm != "routed":
        return pin, broken
    there = brought_back(pin, seen)
    chosen = conversation.tool_choice.names if conversation.tool_choice else ()
    wanted = {*pin.owed, *chosen, *called_names(conversation)}
    needed = tuple(name for name in pin.indexed if name in wanted and name not in there)
    if needed:
        pin = with_restore(pin, seen, needed, destination)
        if not destination.takes_additions:
            broken = broken or "restore"
    return structs.replace(pin, owed=()), broken


def with_restore(pin: Pin, seen: Seen, names: tuple[str, ...] | None, destination: Destination) -> Pin:
    """The pin with these tools brought back from here on; all, where `names` is None or names what is there already."""
    there = brought_back(pin, seen)
    new = tuple(name for name in pin.indexed if name not in there and (names is None or name in names))
    if not new:
        new = tuple(name for name in pin.indexed if name not in there)
    limit = MAX_TOOLS.get(destination.dialect)
    if limit is not None and limit < len(pin.kept) + len(pin.indexed):  # all of them would be refused, now and later
        new = new[: max(limit - 1 - len(pin.kept) - len(there), 0)]
    if not new:
        return pin
    after = len(seen.digests) - 1
    restore = Restore(anchor=seen.digests[after], after=after, names=new, appended=destination.takes_additions)
    return structs.replace(pin, restores=(*pin.restores, restore)[-_MAX_RESTORES:])


def brought_back(pin: Pin, seen: Seen) -> set[str]:
    """What has been brought back in this conversation."""
    return {name for restore in restored_before(pin, seen.digests) for name in restore.names}


def noted(pin: Pin, seen: Seen, conversation: Conversation) -> Pin:
    """The pin with what is sent now, for the next turn to compare."""
    count = len(conversation.messages)
    return structs.replace(pin, sent=sent_hash(pin, seen.digests, count), sent_messages=count)
