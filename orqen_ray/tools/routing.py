"""What tool routing decides: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["keyword", "semantic"]
"""`keyword`: the words decided and no encoder ran; `semantic`: an encoder took part."""


Probabilities = NDArray[np.float64]
"""Shape (tools,), in the caller's order, each between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How much a conversation needs each tool of its set, before anything is decided.

    Attributes:
        names: the tools, in the caller's order.
        p_needed: calibrated probability that the conversation calls the tool, given what is known of it now.
        always: name -> why it is kept whatever its score (`called`, `named`, `chosen`, `keep`, `builtin`, `rule`, ...).
        method: `keyword` when the words were decisive and no encoder ran; None where nothing was scored.
        unsure: why more should be kept than the scores say (`no_text`, `failed_call`, `side_effect`), or "".
    """

    names: tuple[str, ...]
    p_needed: Probabilities
    always: Mapping[str, str] = field(default_factory=dict)
    method: Method | None = None
    unsure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why one tool is sent in full, or named in the index only.

    Attributes:
        reason: `called`, `named`, `chosen`, `keep`, `builtin`, `used`, `score`, `rule`, `group`, `rescued`, `left_out`.
        score: calibrated probability that the conversation needs it; None where no score was needed.
    """

    name: str
    kept: bool
    reason: str
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which of a conversation's tools are sent in full.

    Attributes:
        verdicts: one for each tool of the caller, in its order.
        method: None where nothing was scored (a small set, a core set by use alone).
        p_miss: calibrated probability that a tool is needed that was left out.
        reason: what decided how many: `small`, `core`, `conversation`, `override`, `unsure`, `late`, `costs_more`, ...
    """

    verdicts: tuple[Verdict, ...]
    method: Method | None
    p_miss: float
    reason: str

    @property
    def kept(self) -> tuple[str, ...]:
        return tuple(verdict.name for verdict in self.verdicts if verdict.kept)

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(verdict.name for verdict in self.verdicts if not verdict.kept)
