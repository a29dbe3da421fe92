"""How many tools are kept: the fewest expected tokens among the sets that seldom lack one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from orqen_ray.economics import Floats, Situation, input_bill, miss_cost
from orqen_ray.policy import ToolPolicy, ToolUse
from orqen_ray.tools.routing import Routing, Scored, Verdict
from orqen_ray.tools.sizes import Sizes

INDEX_TOKENS = 150
"""About what the index costs beside its lines."""
_UNEXPECTED = 1e-4
"""What every tool is expected to be called, in conversations, beside what its scores say."""


def situation_of(situation: Situation, policy: ToolPolicy, use: ToolUse | None) -> Situation:
    """The same, with what policy and use know: arrivals, calls of a conversation, ask rate, price of a lost answer."""
    known = use is not None and use.conversations >= policy.core_min_conversations
    return replace(
        situation,
        conversations_per_minute=use.per_minute if use else policy.expected_per_minute,
        calls=max(use.calls / use.conversations, 1.0) if use and known else policy.expected_calls,
        ask_rate=policy.ask_rate,
        lost_answer_tokens=policy.lost_answer_tokens,
    )


def core(
    names: Sequence[str],
    use: ToolUse,
    sizes: Sizes,
    policy: ToolPolicy,
    situation: Situation,
    always: Collection[str] = (),
    fixed: Mapping[str, str] | None = None,
) -> Routing | None:
    """The set that every conversation of a tool set shares, from use alone: nothing has to be scored.

    A tool's probability is the share of conversations that called it. How probable it is that one calls a tool which
    none called before is told from the number of tools called once or twice (Good 1953, "The population frequencies of
    species"; twice, for conversations are not independent), and which it would be from the scores that the tools had.

    Args:
        always: tools that this conversation must have in full.
        fixed: name -> why, for those that every conversation of the tool set must have.

    Returns:
        None where too little was seen, where `always` goes beyond the core set, or where sending all costs no more.
    """
    seen = use.conversations
    if seen < policy.core_min_conversations:
        return None
    called = np.array([use.called.get(name, 0.0) for name in names])
    new = np.where(called > 0, 0.0, np.sqrt([use.expected.get(name, 0.0) + _UNEXPECTED for name in names]))
    p_call = np.minimum(called / (seen + 1), 1.0)
    rare = float(np.count_nonzero((called > 0) & (called <= 2))) + policy.core_prior
    p_new = min(rare / (seen + 1), 1.0) * new / max(new.sum(), _UNEXPECTED)
    reasons = fixed or {}
    forced = np.array([name in reasons for name in names], dtype=bool)
    order = np.lexsort((-(p_call + p_new) / np.maximum(sizes.full - sizes.line, 1), ~forced))
    # Position k: the first k tools are kept.
    p_miss = 1 - _none_of_the_rest(p_call[order]) * (1 - _sum_of_the_rest(p_new[order]))
    limits = {"append": policy.core_max_miss, "rewrite": policy.max_miss, "off": policy.max_miss_final}
    possible = (p_miss <= limits[situation.restore]) & (np.arange(len(order) + 1) >= forced.sum())
    size = _cheapest(order, sizes, p_miss, possible, policy, situation, shared=True)
    if size is None:
        return None
    kept = set(order[:size].tolist())
    if not {name for at, name in enumerate(names) if at in kept}.issuperset(always):
        return None
    verdicts = tuple(
        Verdict(
            name=name,
            kept=at in kept,
            reason=reasons.get(name, "used" if at in kept else "left_out"),
            score=float(p_call[at] + p_new[at]),
        )
        for at, name in enumerate(names)
    )
    return Routing(verdicts=verdicts, method=None, p_miss=float(p_miss[size]), reason="core")


def choose(
    scored: Scored, sizes: Sizes, policy: ToolPolicy, situation: Situation, k_target: int | None = None
) -> Routing:
    """Which tools one conversation is sent in full: those always kept, and the best of the rest.

    Their number is the one with the least expected cost (the bill, and what it costs to lack a tool) among those whose
    probability that the next answer needs a tool left out is at most `policy.max_miss`; less where the scores are in
    doubt, and where what is left out could not be asked for. All are kept where that costs no more, for all are what
    other conversations have warmed the cache with.

    Args:
        k_target: keep exactly so many of the best, and those always kept, whatever it costs.
    """
    forced = np.array([name in scored.always for name in scored.names], dtype=bool)
    p_needed = np.where(forced, 1.0, np.clip(scored.p_needed, 0.0, 1.0))
    order = np.lexsort((-p_needed, ~forced))
    p_miss = 1 - _none_of_the_rest(p_needed[order])
    count = len(order)
    if k_target is not None:
        size = min(max(k_target, int(forced.sum())), count)
        return _routing(scored, order[:size], float(p_miss[size]), "override")
    if scored.unsure == "no_text":
        return _routing(scored, order, 0.0, "unsure")
    limit = policy.max_miss_unsure if scored.unsure else policy.max_miss
    if situation.restore == "off":
        limit = min(limit, policy.max_miss_final)
    possible = (p_miss <= limit) & (np.arange(count + 1) >= forced.sum())
    if situation.caching and situation.restore == "rewrite":
        # One that needs a tool left out needs two or three, most often, and each writes a prefix that is warm by then.
        possible[:-1] = False
    over_all = _over_the_conversation(p_miss, policy)
    best = _cheapest(order, sizes, over_all, possible, policy, situation, shared=False)
    if best is None:
        return _routing(scored, order, 0.0, "costs_more")
    return _routing(scored, order[:best], float(p_miss[best]), "unsure" if scored.unsure else "conversation")


def expected_cost(
    order: NDArray[np.int64], sizes: Sizes, p_miss: Floats, situation: Situation, *, shared: bool
) -> Floats:
    """What a conversation is expected to cost that is sent the first k tools of `order`.

    Args:
        p_miss: probability that the conversation needs one of the others, for each k.

    Returns:
        Shape (tools + 1,), for k = 0, 1, ...: tokens at the price of plain input. The last one, all of them, needs no
        index and is always `shared`; nor is there an index where it could not be used.
    """
    full = np.concatenate([[0], np.cumsum(sizes.full[order])])
    index = INDEX_TOKENS + sizes.line.sum() - np.concatenate([[0], np.cumsum(sizes.line[order])])
    tool_tokens = (full + (0 if situation.restore == "off" else index)).astype(np.float64)
    added = float(sizes.full.mean()) if len(order) else 0.0
    cost = input_bill(tool_tokens, sizes.prompt, situation, shared=shared)
    cost += p_miss * miss_cost(tool_tokens, added, sizes.prompt, situation)
    cost[-1] = input_bill(float(full[-1]), sizes.prompt, situation, shared=True)
    return cost


def _cheapest(
    order: NDArray[np.int64],
    sizes: Sizes,
    p_miss: Floats,
    possible: NDArray[np.bool_],
    policy: ToolPolicy,
    situation: Situation,
    *,
    shared: bool,
) -> int | None:
    """How many to keep; None for all, because nothing is saved."""
    cost = expected_cost(order, sizes, p_miss, situation, shared=shared)
    margin = policy.min_saving if situation.caching and not shared else 0.0
    possible = possible & (cost < cost[-1] * (1 - margin))
    return int(np.argmin(np.where(possible, cost, np.inf))) if possible.any() else None


def _none_of_the_rest(p: Floats) -> Floats:
    """Probability that none of the tools from position k on is needed, for k = 0 ... len(p)."""
    return np.concatenate([np.cumprod((1 - p)[::-1])[::-1], [1.0]])


def _sum_of_the_rest(p: Floats) -> Floats:
    return np.concatenate([np.cumsum(p[::-1])[::-1], [0.0]])


def _over_the_conversation(p_miss: Floats, policy: ToolPolicy) -> Floats:
    """From the next answer to the whole conversation: see `ToolPolicy.later_bias`."""
    left_out = np.maximum(np.arange(len(p_miss))[::-1], 1)
    odds = np.clip(p_miss, 1e-9, 1 - 1e-9)
    logit = (
        policy.later_bias + policy.later_slope * np.log(odds / (1 - odds)) + policy.later_log_tools * np.log(left_out)
    )
    later = np.maximum(1 / (1 + np.exp(-logit)), p_miss)
    return np.where(p_miss > 0, later, 0.0)


def _routing(scored: Scored, kept: NDArray[np.int64], p_miss: float, reason: str) -> Routing:
    sent = set(kept.tolist())
    whole = len(sent) == len(scored.names)
    why: Mapping[str, str] = scored.always
    verdicts = tuple(
        Verdict(
            name=name,
            kept=at in sent,
            reason=why.get(name, (reason if whole else "score") if at in sent else "left_out"),
            score=float(scored.p_needed[at]),
        )
        for at, name in enumerate(scored.names)
    )
    return Routing(verdicts=verdicts, method=scored.method, p_miss=p_miss, reason=reason)
