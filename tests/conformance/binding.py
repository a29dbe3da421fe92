"""Reasoning bound to its prefix: a scripted provider's seal on it, and whether a prefix was kept from turn to turn.

Source: platform.claude.com/docs/build-with-claude/preserved-thinking/fix-bound-to-a-different-conversation.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from tests.conformance.scenarios import SIGNATURE, Refused

if TYPE_CHECKING:
    from tests.conformance.upstream import Received

_KEY = b"the vendor's own"
_PARTS = ("account", "system", "tools", "messages")
_DIGEST_BYTES = 12


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a model has read, as JSON text without cache markers."""

    system: str
    tools: str
    messages: tuple[str, ...]
    role: str
    """Of the last message."""

    @classmethod
    def of(cls, body: dict[str, Any]) -> Prefix:
        messages = body.get("messages", [])
        return cls(
            system=_text(_blocks(body.get("system", []))),
            tools=_text(body.get("tools", body.get("toolConfig", {}).get("tools", []))),
            messages=tuple(_text({**message, "content": _blocks(message.get("content"))}) for message in messages),
            role=messages[-1]["role"] if messages else "",
        )

    def seal(self, account: str, before: int | None = None) -> str:
        """The signature of reasoning that follows the first `before` messages, or else all of them."""
        if before is None:  # a turn that the caller has begun is gone on with
            before = len(self.messages) - (self.role == "assistant")
        texts = (account, self.system, self.tools, "\n".join(self.messages[:before]))
        digests = b"".join(hashlib.sha256(text.encode()).digest()[:_DIGEST_BYTES] for text in texts)
        return base64.b64encode(digests + hmac.digest(_KEY, digests, "sha256")).decode()


def opened(body: dict[str, Any], account: str) -> dict[str, Any]:
    """`body` with each seal replaced by the signature that the wire modules know.

    Raises:
        Refused: reasoning does not follow the prefix that it was made behind, or was never this vendor's.
    """
    prefix, body = Prefix.of(body), copy.deepcopy(body)
    for n, k, block in _signed(body):
        expected, given = prefix.seal(account, n), block["signature"]
        if given != expected:
            raise Refused(
                f"messages.{n}.content.{k}: Invalid `signature` in `thinking` block. {_difference(given, expected)}"
            )
        block["signature"] = SIGNATURE
    return body


def breaks(requests: Sequence[Received]) -> list[str]:
    """What changed of what was sent before, from each request of a conversation to the next: `system`, `tools`, or
    `messages.3`, the first message that did. More blocks at the end of the last one change nothing."""
    found = []
    bodies = [request.json for request in requests]
    for before, now in zip(bodies, bodies[1:], strict=False):
        old, new = Prefix.of(before), Prefix.of(now)
        found += [part for part in ("system", "tools") if getattr(old, part) != getattr(new, part)]
        pairs = zip_longest(_said(before), _said(now))
        if (changed := next((a for a, b in pairs if a is not None and a != b), None)) is not None:
            found.append(f"messages.{changed[0]}")
    return found


def _said(body: dict[str, Any]) -> list[tuple[int, str, str]]:
    """(number of the message, its role, a block of it)."""
    return [
        (n, message["role"], _text(block))
        for n, message in enumerate(_unmarked(body["messages"]))
        for block in [{key: value for key, value in message.items() if key != "content"}, *_list(message)]
    ]


def _list(message: dict[str, Any]) -> list[Any]:
    content = _blocks(message.get("content"))
    return content if isinstance(content, list) else [content]


def _difference(given: str, expected: str) -> str:
    try:
        raw = base64.b64decode(given, validate=True)
    except ValueError:
        return "It is no signature."
    digests, mac = raw[: _DIGEST_BYTES * len(_PARTS)], raw[_DIGEST_BYTES * len(_PARTS) :]
    if mac != hmac.digest(_KEY, digests, "sha256"):
        return "It is not one of ours."
    wanted = base64.b64decode(expected)
    at = range(0, len(digests), _DIGEST_BYTES)
    changed = [
        part
        for part, i in zip(_PARTS, at, strict=True)
        if digests[i : i + _DIGEST_BYTES] != wanted[i : i + _DIGEST_BYTES]
    ]
    return (
        "The block is bound to a different conversation. Remove the block, or set"
        f' `thinking.block_binding.prefix_mismatch_behavior` to "drop_block". Changed: {", ".join(changed)}.'
    )


def _signed(body: dict[str, Any]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The signed reasoning with its place: (message, block, the object that holds `signature`)."""
    for n, message in enumerate(body.get("messages", [])):
        blocks = message["content"]
        for k, block in enumerate(blocks if isinstance(blocks, list) else ()):
            holder = block.get("reasoningContent", {}).get("reasoningText") or block
            if "signature" in holder:
                yield n, k, holder


def _blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(value: Any) -> str:
    return json.dumps(_unmarked(value), ensure_ascii=False, separators=(",", ":"))


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmarked(item) for key, item in value.items() if key != "cache_control"}
    if isinstance(value, list):
        return [_unmarked(item) for item in value if not (isinstance(item, dict) and item.keys() == {"cachePoint"})]
    return value
