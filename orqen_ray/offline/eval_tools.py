"""Tool routing on labelled conversations, as JSON: first sight, from the head, and what learned use gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orqen_ray.offline.first_sight import LIMIT, SIZES, first_sight
from orqen_ray.offline.priors_eval import AGENT_SETS, priors
from orqen_ray.offline.replay_tools import replay
from orqen_ray.offline.tool_data import load_tool_data
from orqen_ray.offline.tune_tools import FITTED_ON, Encoders, unseen_policies
from orqen_ray.policy import default_snapshot
from orqen_ray.tools.scoring import Scorer

_PEERS = "peers"
_FIT_PER_SET = 120
"""Conversations of each other set that weights are fitted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to evaluate.

    Attributes:
        only: sets; () for all. `sizes`: numbers of candidates.
        limit: conversations of each set at first sight. `conversations`: of each set, replayed from their head.
        encoders: `SETS=FOLDER`, an encoder that was not trained on these sets; the others get the shipped one.
            `peers=FOLDER`: that of the peers' rules; else they get the same as we.
        cache_dir: where vectors are kept from one run to the next.
    """

    data: Path
    only: Sequence[str] = ()
    sizes: Sequence[int] = SIZES
    limit: int = LIMIT
    conversations: int = 20
    encoders: Sequence[str] = field(default_factory=tuple)
    cache_dir: Path | None = None


async def evaluate(asked: Asked) -> dict[str, Any]:
    """`snapshot`, for each set its `encoder` and whether the weights were fitted without it, and the parts.

    Raises:
        BadRequest: there is no such data.
    """
    data = load_tool_data(asked.data)
    if asked.only:
        load_tool_data(asked.data, asked.only)  # says which set does not exist
    sets = [name for name in data.queries if name in asked.only or not asked.only]
    snapshot = default_snapshot()
    encoders = Encoders(asked.encoders, asked.cache_dir)
    policies = await unseen_policies(data, snapshot.tools, encoders, sets, _FIT_PER_SET)
    report: dict[str, Any] = {
        "snapshot": snapshot.version,
        "sets": {name: {"encoder": encoders.of(name).name, "refitted_without": name in FITTED_ON} for name in sets},
    }
    if asked.limit:
        peer = encoders.of(_PEERS) if encoders.has(_PEERS) else None
        report["first_sight"] = await first_sight(
            data, policies, encoders, sizes=asked.sizes, limit=asked.limit, peer=peer
        )
    for name in sets if asked.conversations else ():
        one: dict[str, Any] = {"sets": [name], "sizes": asked.sizes, "conversations": asked.conversations}
        scorer, policy = Scorer(encoders.of(name)), policies[name]
        if any(query.future for query in data.queries[name]):
            report.setdefault("from_head", {})[name] = await replay(data, scorer, policy, **one)
        if name in AGENT_SETS:
            report.setdefault("use", {})[name] = await priors(data, scorer, policy, **one)
        encoders.save()
    return report
