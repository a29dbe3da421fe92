"""The policy snapshot: all that was learned, immutable and versioned, so that any decision can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What conversations with one tool set called, older ones counting less.

    Attributes:
        conversations: their decayed number.
        called: tool name -> decayed number of conversations that called it at least once.
    """

    conversations: float = 0.0
    called: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicy:
    """How tools are scored and how many are kept.

    Attributes:
        bias, weights: the calibrated scorer: P(needed) = 1 / (1 + exp(-(bias + sum of weight x feature))).
        ask_rate: how often a model asks for a tool that it sees in the index only and needs.
        small_tools, small_tokens: a set with no more tools, or no more tokens, is forwarded whole.
    """

    bias: float
    weights: Mapping[str, float]
    ask_rate: float = 0.7
    small_tools: int = 20
    small_tokens: int = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One version of everything learned. `version` names it in pins and traces.

    Attributes:
        use: fingerprint of a tool set -> what its conversations called.
    """

    version: str
    tools: ToolPolicy
    use: Mapping[str, ToolUse] = field(default_factory=dict)
