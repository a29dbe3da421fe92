"""What a conversation's prompts cost under a provider's prompt cache, in tokens at the price of plain input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RestoreMode = Literal["append", "rewrite", "off"]
"""How a tool that was left out comes back: as an addition behind the messages; into `tools`, so that the whole prefix
is written anew; or not at all, because nothing tells the model of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Under which conditions a conversation is going to be billed.

    Attributes:
        cache_read, cache_write: price of a prompt token that the cache gave, or took in; plain input costs 1.
        ttl_s: how long an entry of the cache lives after its last use.
        caching: whether this provider caches this caller's prompts at all.
        cache_min_tokens: a shorter prompt is not cached.
        conversations_per_minute: at which new conversations with this tool set arrive.
        calls: calls to the model in one conversation, the first included.
        growth_tokens: what the messages grow by from one call to the next.
        system_tokens: the part of the prompt that every conversation of the tool set shares.
        p_gap: probability that a later call comes when the cache has forgotten the conversation.
        restore: see `RestoreMode`.
        ask_rate: how often a model asks for a tool that it needs and sees in the index only.
        lost_answer_tokens: the price of an answer that lacked a tool.
    """

    cache_read: float = 0.1
    cache_write: float = 1.25
    ttl_s: float = 300.0
    caching: bool = True
    cache_min_tokens: int = 1024
    conversations_per_minute: float = 0.0
    calls: float = 6.0
    growth_tokens: int = 300
    system_tokens: int = 0
    p_gap: float = 0.03
    restore: RestoreMode = "append"
    ask_rate: float = 0.7
    lost_answer_tokens: float = 20_000.0


def input_bill(tool_tokens: float | Floats, prompt_tokens: int, situation: Situation, *, shared: bool) -> Floats:
    """Expected input bill of a conversation that sends these tools in all its calls.

    The cache holds prefixes in the order tools, system, messages (field: every vendor's documentation). The first call
    finds tools and system warm when they are `shared` by every conversation of the tool set and one came within
    `ttl_s`, arrivals being Poisson; a later call finds all that was sent before.

    Args:
        tool_tokens: of all that is sent as tools, the index included; any shape, and the answer has the same.
        prompt_tokens: of system and messages in the first call.
    """
    s = situation
    grown = s.growth_tokens * (s.calls - 1)
    tokens = np.asarray(tool_tokens, np.float64) + prompt_tokens
    plain = tokens * s.calls + grown * s.calls / 2
    if not s.caching:
        return plain
    warm = _p_warm(s) if shared else 0.0
    first_shared = warm * s.cache_read + (1 - warm) * s.cache_write
    own = prompt_tokens - min(s.system_tokens, prompt_tokens)
    first = (tokens - own) * first_shared + own * s.cache_write
    later = (tokens * (s.calls - 1) + grown * max(s.calls - 2, 0.0) / 2) * _later_price(s) + grown * s.cache_write
    return np.where(tokens < s.cache_min_tokens, plain, first + later)


def miss_cost(tool_tokens: float | Floats, added_tokens: float, prompt_tokens: int, situation: Situation) -> Floats:
    """Expected cost of needing, in mid-conversation, a tool that was left out; arguments as in `input_bill`.

    The model asks for it: one more call reads the conversation, and the tool is appended, or joins the tools and all
    is written anew. Or it does not ask, and its answer lacks the tool.
    """
    s = situation
    lost = np.float64(s.lost_answer_tokens)
    context = np.asarray(tool_tokens, np.float64) + prompt_tokens + s.growth_tokens * (s.calls - 1) / 2
    if s.restore == "off":
        return lost + 0 * context
    remaining = 1 + (s.calls - 1) / 2
    read, write = (s.cache_read, s.cache_write) if s.caching else (1.0, 1.0)
    again = context * (read if s.restore == "append" else write)
    restored = again + added_tokens * (write + read * (remaining - 1))
    return np.asarray(s.ask_rate * restored + (1 - s.ask_rate) * lost)


def _p_warm(s: Situation) -> float:
    return -math.expm1(-s.conversations_per_minute * s.ttl_s / 60)


def _later_price(s: Situation) -> float:
    return (1 - s.p_gap) * s.cache_read + s.p_gap * s.cache_write
