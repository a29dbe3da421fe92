"""What a recorded conversation is billed for its input, call by call, when some of its tools were left out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

from orqen_ray.economics import Situation
from orqen_ray.offline.applications import Replayed


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Sums over conversations.

    Attributes:
        tokens: the bill, in tokens at the price of plain input.
        calls: to the model, those made only to ask for tools not counted; changed: those whose prefix was rewritten.
        needed: tools that the conversations call; kept: those of them that were sent from the first call on.
        restores: times that the model asked; restored: tools that it got so; lost: tools that it did not ask for.
    """

    tokens: float = 0.0
    calls: int = 0
    changed: int = 0
    needed: int = 0
    kept: int = 0
    restores: int = 0
    restored: int = 0
    lost: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


def billed(
    conversation: Replayed,
    sent: Collection[str],
    tool_tokens: int,
    full: Mapping[str, int],
    situation: Situation,
    *,
    shared: bool,
) -> Outcome:
    """The outcome of one conversation.

    Args:
        sent: names of the tools sent from the first call on, and `tool_tokens`: theirs, with the index.
        full: tokens of every tool.
        situation: prices, arrivals, the way of restoring, and the true ask rate.
        shared: other conversations send the same head.
    """
    meter = _Meter(conversation, tool_tokens, situation, shared=shared)
    there, asked_for, lost = set(sent), set[str](), set[str]()
    changed = restores = 0
    for call in conversation.calls:
        meter.call(call.prompt_tokens)
        missing = {name for name in call.needs if name not in there and name in full}
        asked = {name for name in missing if _asks(conversation.id, name, situation.ask_rate)}
        lost |= missing - asked
        if asked and situation.restore != "off":
            restores += 1
            there |= asked
            asked_for |= asked
            rewrite = situation.restore == "rewrite"
            changed += rewrite
            meter.restore(call.prompt_tokens, sum(full[name] for name in sorted(asked)), rewrite=rewrite)
    needed = conversation.needed & full.keys()
    return Outcome(
        tokens=meter.tokens,
        calls=len(conversation.calls),
        changed=changed,
        needed=len(needed),
        kept=len(needed & set(sent)),
        restores=restores,
        restored=len(asked_for),
        lost=len(lost),
    )


class _Meter:
    """Adds up calls: what was sent before is read from the cache, the rest is written to it."""

    def __init__(self, conversation: Replayed, tool_tokens: int, situation: Situation, *, shared: bool) -> None:
        self.tokens = 0.0
        self._situation = situation
        self._tool_tokens = tool_tokens
        self._p_warm = -math.expm1(-situation.conversations_per_minute * situation.ttl_s / 60) if shared else 0.0
        self._shared_tokens = tool_tokens + conversation.system_tokens
        self._cached: int | None = None

    def call(self, prompt_tokens: int) -> None:
        s, total = self._situation, self._tool_tokens + prompt_tokens
        if not s.caching or total < s.cache_min_tokens:
            self.tokens += total
            return
        if self._cached is None:
            price = self._p_warm * s.cache_read + (1 - self._p_warm) * s.cache_write
            self.tokens += self._shared_tokens * price + (total - self._shared_tokens) * s.cache_write
        else:
            self.tokens += self._cached * s.cache_read + (total - self._cached) * s.cache_write
        self._cached = total

    def restore(self, prompt_tokens: int, added_tokens: int, *, rewrite: bool) -> None:
        self._tool_tokens += added_tokens
        if rewrite:
            self._cached = 0
        self.call(prompt_tokens)


def _asks(conversation: str, name: str, rate: float) -> bool:
    """The same tools are asked for at a higher rate, and more."""
    digest = hashlib.sha256(f"{conversation}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2**64
