"""Hashes of what a conversation begins with: where a restore stands, and whether what was sent still stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from orqen_ray.conversation import Conversation, Message, Tool, lasting
from orqen_ray.pins import Pin
from orqen_ray.restore.additions import anchors, unmarked

_DIGEST_BYTES = 16


def digests(conversation: Conversation) -> tuple[str, ...]:
    """One digest for each number of messages, from none to all of them: what they say, cache markers left out.

    One pass over everything that was said, some 1 ms for 300 KB.
    """
    return ("", *anchors(conversation.messages))


def head_of(conversation: Conversation) -> Conversation:
    """The conversation up to and including its first user message: what every later turn still says."""
    count = _head_messages(conversation.messages)
    if count == len(conversation.messages):
        return conversation
    return replace(conversation, messages=conversation.messages[:count])


def conversation_key(
    key_id: str, session: str, digest_of: Sequence[str], tools: str, conversation: Conversation
) -> tuple[str, str]:
    """Names of a conversation of a caller, without its tools and with them. Several may share a session that the caller
    named, and several a head.

    Args:
        digest_of: see `digests`. tools: see `tools_digest`.
    """
    system = hashlib.blake2b(unmarked(lasting(conversation.system)), digest_size=_DIGEST_BYTES).hexdigest()
    head = (key_id, session, system, digest_of[_head_messages(conversation.messages)])
    return _hex(*head), _hex(*head, tools)


def sent_hash(pin: Pin, digest_of: Sequence[str], count: int) -> str:
    """What is sent with this pin up to the first `count` messages. The tools are part of the pin's key already."""
    restores = [(r.after, r.names) if r.appended else r.names for r in pin.restores if r.after <= count]
    joined = [r.names for r in pin.restores if not r.appended]
    return _hex(digest_of[count], pin.arm, repr((pin.kept, pin.schemas, restores, joined)))


def tools_digest(tools: Sequence[Tool]) -> str:
    """Of all that a caller says of its tools, markers left out. Cheaper than a fingerprint; pins are keyed by it."""
    fields = [
        (t.name, t.description, t.parameters, t.strict, t.defer_loading, t.custom, t.examples, t.keep, t.raw, t.extra)
        for t in tools
    ]
    return hashlib.blake2b(unmarked(fields), digest_size=_DIGEST_BYTES).hexdigest()


def draw(key: str, purpose: str) -> float:
    """A number in [0, 1) that is always the same for one conversation and purpose."""
    return int(_hex(key, purpose)[:13], 16) / 16**13


def is_later_turn(conversation: Conversation) -> bool:
    """Whether a model has answered in this conversation before."""
    return any(message.role == "assistant" for message in conversation.messages)


def _head_messages(messages: Sequence[Message]) -> int:
    for at, message in enumerate(messages):
        if message.role == "user":
            return at + 1
    return len(messages)


def _hex(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="replace")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
