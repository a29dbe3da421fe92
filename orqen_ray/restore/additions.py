"""Tools added in mid-conversation, each at its place, which no later turn moves.

Source: platform.claude.com/docs/build-with-claude/mid-conversation-system-messages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from orqen_ray.conversation import Conversation, Message, Tool, ToolChange
from orqen_ray.pins import Restore

_DIGEST_BYTES = 16
# Callers move their cache markers from turn to turn, and no vendor counts them as part of the prefix. A quote inside a
# text is escaped, so this finds fields only.
_CACHE = re.compile(rb'"cache":(?:null|\{"ttl":(?:null|"[^"]*")\}),?')


def anchors(messages: Sequence[Message]) -> Iterator[str]:
    """The hash up to and including each message, one after another: a chain, so each message is read once.

    Of what they say, cache markers left out.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for message in messages:
        digest.update(unmarked((message.role, message.blocks)))
        yield digest.hexdigest()


def unmarked(value: object) -> bytes:
    """Messages, blocks or tools as bytes, without cache markers; equal for equal values, and for them alone.

    Raises:
        RecursionError: nested too deeply.
    """
    try:
        encoded = msgspec.json.encode(value)
    except (TypeError, ValueError):  # lone surrogates
        encoded = repr(value).encode(errors="backslashreplace")
    return _CACHE.sub(b"", encoded)


def added(
    conversation: Conversation,
    restores: Sequence[Restore],
    tools: Mapping[str, Tool],
    known: Sequence[str] | None = None,
) -> Conversation:
    """`conversation` with the additions of a pin, for a model that takes `mid_conversation_tools`.

    Args:
        conversation: its messages as the caller sent them, for it is these that a restore's `after` counts.
        restores: those that were not `appended` are passed over, and those whose anchor does not fit: they belong to
            another conversation with the same head.
        known: the `anchors` of all its messages, where they are known.
        tools: definitions by name, as they shall be written; a name that is not in it is passed over.
    Returns:
        `conversation` itself when nothing is to be added.
    """
    wanted = [restore for restore in restores if restore.appended and 0 < restore.after <= len(conversation.messages)]
    if not wanted:
        return conversation
    found = known or list(anchors(conversation.messages[: max(restore.after for restore in wanted)]))
    changes: dict[int, dict[str, ToolChange]] = {}
    for restore in wanted:
        if found[restore.after - 1] == restore.anchor:
            place = changes.setdefault(restore.after, {})
            for name in restore.names:
                if name in tools:
                    place[name] = ToolChange(action="add", name=name, tool=tools[name])
    if not any(changes.values()):
        return conversation
    messages: list[Message] = []
    for count, message in enumerate(conversation.messages, start=1):
        blocks = tuple(changes.get(count, {}).values())
        if blocks and message.role == "system":  # two in a row are not legal
            message = replace(message, blocks=(*message.blocks, *blocks), wire=None)
            blocks = ()
        messages.append(message)
        if blocks:
            messages.append(Message(role="system", blocks=blocks))
    return replace(conversation, messages=tuple(messages))
