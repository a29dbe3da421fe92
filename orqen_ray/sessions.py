"""Which conversation a request belongs to: what the caller says, or else the conversation's own head."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from orqen_ray.conversation import Conversation, Message, Text, lasting

HEADER = "x-orqen-session-id"
_SANE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,254}[\x21-\x7e])?")


def session_id(headers: Mapping[str, str], key_id: str, conversation: Conversation) -> str:
    """The caller's `X-Orqen-Session-Id`, or an id derived from the key and the conversation's head."""
    return given_session_id(headers) or f"derived-{_digest(key_id, *_head(conversation))}"


def given_session_id(headers: Mapping[str, str]) -> str | None:
    """The caller's `X-Orqen-Session-Id`, if there is one.

    A string that would not fit a log line or a column (over 256 characters, control characters) is hashed.
    """
    given = headers.get(HEADER)
    return given if given is None or _SANE.fullmatch(given) else f"hashed-{_digest(given)}"


def _head(conversation: Conversation) -> list[str]:
    """The texts that stay the same in every turn: all system text before the first user message, and that message."""
    texts = [block.text for block in lasting(conversation.system) if isinstance(block, Text)]
    for message in conversation.messages:
        texts += _texts(message)
        if message.role == "user":
            break
    return texts


def _texts(message: Message) -> list[str]:
    return [block.text for block in message.blocks if isinstance(block, Text)]


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:24]
