"""From a pin to the conversation that is written: the same pin and request give the same bytes at every turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orqen_ray.conversation import Conversation, FormatName, Tool, ToolCall, ToolChange
from orqen_ray.pins import Pin, Restore
from orqen_ray.planning.prepared import Prepared
from orqen_ray.restore.additions import added
from orqen_ray.types import Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Who is going to read the conversation."""

    dialect: FormatName
    capabilities: Capabilities

    @property
    def takes_additions(self) -> bool:
        """Whether tools can be added behind messages, so that what came before stays as it was."""
        return self.dialect == "anthropic_messages" and self.capabilities.mid_conversation_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a pin makes of a request.

    Attributes:
        conversation: as it will be written; the caller's own object when nothing changed.
        tools_output: how many of the caller's tools are sent in full, added ones included.
        restorable: what the index lists, by name.
        restored: tools that were left out at first and are there again.
    """

    conversation: Conversation
    tools_output: int
    restorable: Mapping[str, Tool] = field(default_factory=dict)
    restored: tuple[str, ...] = ()


def restored_before(pin: Pin, digests: Sequence[str]) -> tuple[Restore, ...]:
    """The restores of a pin that belong to this conversation: another one may have begun with the same words."""
    return tuple(
        restore for restore in pin.restores if restore.after < len(digests) and digests[restore.after] == restore.anchor
    )


def apply(
    conversation: Conversation,
    pin: Pin,
    prepared: Prepared,
    destination: Destination,
    digests: Sequence[str],
) -> Applied:
    """The conversation as `pin` wants it sent. `digests`: see `prefix.digests`."""
    if pin.arm == "holdout":
        return Applied(conversation=conversation, tools_output=len(conversation.tools))
    kept: tuple[str, ...] | None = None
    indexed: tuple[str, ...] = ()
    appended: list[Restore] = []
    restored: dict[str, None] = {}
    if pin.arm == "routed":
        joined: set[str] = set()
        for restore in restored_before(pin, digests):
            restored.update(dict.fromkeys(restore.names))
            if restore.appended and destination.takes_additions:
                appended.append(restore)
            else:
                joined.update(restore.names)
        kept, indexed = pin.kept, pin.indexed
        if joined:
            joined.update(pin.kept)
            kept = tuple(name for name in prepared.tool_set.names if name in joined)
            indexed = tuple(name for name in indexed if name not in joined)
    listed = indexed if pin.index else ()
    short = pin.schemas and prepared.saves
    edited = conversation
    if short or indexed:
        markers = tuple((tool.name, tool.cache) for tool in conversation.tools if tool.cache is not None)
        edited = replace(conversation, tools=prepared.chosen.tools(kept, listed, markers, short=short))
    if appended:
        edited = added(edited, appended, prepared.short_by_name if short else prepared.by_name, digests[1:])
    left_out = len(indexed) - len(restored.keys() & {*indexed})
    return Applied(
        conversation=edited,
        tools_output=len(conversation.tools) - left_out,
        restorable={name: prepared.by_name[name] for name in listed},
        restored=tuple(restored),
    )


def called_names(conversation: Conversation) -> frozenset[str]:
    """Tools that the model has called in this conversation."""
    return frozenset(
        block.name for message in conversation.messages for block in message.blocks if isinstance(block, ToolCall)
    )


def changes_tools(conversation: Conversation) -> bool:
    """Whether tools come and go among the messages. A caller who does so itself names tools that must be there."""
    return any(isinstance(block, ToolChange) for message in conversation.messages for block in message.blocks)
