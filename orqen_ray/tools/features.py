"""What the scorer looks at: for each tool, how it compares with the others in words, in meaning and by its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orqen_ray.encoders.protocol import Vectors
from orqen_ray.policy import ToolUse
from orqen_ray.tools.tool_set import ToolSet
from orqen_ray.tools.views import VIEW_NAMES, Views
from orqen_ray.tools.words import terms

Floats = NDArray[np.float64]

_WORD = tuple(f"{view}_{part}" for view in VIEW_NAMES for part in ("words", "covered", "words_rank"))
_DENSE = tuple(f"{view}_{part}" for view in VIEW_NAMES for part in ("dense", "dense_rank"))
_PLACE = (
    "called", "called_last", "group_called", "group_used", "utility", "auth", "auth_called", "reads", "writes", "use",
    "log_tools", "turns", "after_call", "clauses",
)  # fmt: skip
_WORD_FUSED = ("words_best", "words_fused", "words_group", "words_gives", "words_auth", "words_sure")
_DENSE_FUSED = (
    "best", "fused", "fused_rank", "group", "group_rank", "gives", "auth_group", "cosine", "cosine_last", "sure", "gap",
    "near_called", "near_called_rank", "near_best", "near_best_rank",
)  # fmt: skip
WORD_FEATURES: tuple[str, ...] = (*_WORD, *_PLACE, *_WORD_FUSED)
"""Columns that need no encoder."""
DENSE_FEATURES: tuple[str, ...] = (*_DENSE, *_DENSE_FUSED)
FEATURES: tuple[str, ...] = (*WORD_FEATURES, *DENSE_FEATURES)

_SHARPNESS = 16.0
"""Cosines are compared as exp(16 x cosine): a lead of 0.1 counts five times."""
_RRF = 8.0
"""The constant of reciprocal rank fusion (Cormack et al., 2009), small because tool sets are."""
_ELSE = {"first": "last", "recent": "last", "clause": "last"}
"""What stands for a view that the conversation has not: a single request is its own beginning and its only clause."""
_USE_DOUBT = 5.0
"""With so many conversations seen, what they called counts half."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """One view against all tools, shape (tools,) each: log of its share among them, and log of 1 + its rank."""

    share: Floats
    rank: Floats


def word_features(tools: ToolSet, views: Views, use: ToolUse | None) -> Floats:
    """Columns `WORD_FEATURES`, shape (tools, features)."""
    count = len(tools.cards)
    compared: dict[str, _Compared] = {}
    covered: dict[str, Floats] = {}
    for kind, text in views.texts():
        scores, most = tools.keyword.scores(terms(text))
        compared[kind] = _better(compared.get(kind), _compare(scores))
        part = scores / max(most, 1e-9)
        covered[kind] = np.maximum(covered[kind], part) if kind in covered else part
    columns = dict(_placed(tools, views, use))
    for kind in VIEW_NAMES:
        one = _of(compared, kind, count)
        columns[f"{kind}_words"], columns[f"{kind}_words_rank"] = one.share, one.rank
        columns[f"{kind}_covered"] = covered.get(kind, covered.get(_ELSE.get(kind, ""), np.zeros(count)))
    fused = _fused(compared.values(), count)
    best = _best(compared, count)
    columns |= {
        "words_best": best,
        "words_fused": fused.share,
        "words_group": _group_best(tools, best),
        "words_gives": _gives(tools, best),
        "words_auth": columns["auth"] * _group_best(tools, best),
        "words_sure": _sure(compared.get("last"), count),
    }
    return np.stack([columns[name] for name in WORD_FEATURES], axis=1)


def dense_features(
    tools: ToolSet, words: Floats, texts: Sequence[tuple[str, str]], of_tools: Vectors, of_texts: Vectors
) -> Floats:
    """Columns `DENSE_FEATURES`, shape (tools, features).

    Args:
        words: what `word_features` gave.
        texts: (kind, text) of each view. `of_tools`, `of_texts`: their vectors, shapes (tools, dimensions) and (texts,
            dimensions).
    """
    count = len(tools.cards)
    cosines = (of_tools @ of_texts.T).astype(np.float64)
    compared: dict[str, _Compared] = {}
    for at, (kind, _) in enumerate(texts):
        compared[kind] = _better(compared.get(kind), _compare(cosines[:, at] * _SHARPNESS))
    columns: dict[str, Floats] = {}
    for kind in VIEW_NAMES:
        one = _of(compared, kind, count)
        columns[f"{kind}_dense"], columns[f"{kind}_dense_rank"] = one.share, one.rank
    by_words = {
        kind: _Compared(words[:, _AT[f"{kind}_words"]], words[:, _AT[f"{kind}_words_rank"]])
        for kind in dict.fromkeys(kind for kind, _ in texts)
    }
    fused = _fused([*compared.values(), *by_words.values()], count)
    best = _best(compared, count)
    own = [at for at, (kind, _) in enumerate(texts) if kind not in ("system", "assistant")] or list(range(len(texts)))
    last = [at for at, (kind, _) in enumerate(texts) if kind in ("last", "clause")] or own
    cosine = cosines[:, own].max(axis=1) if own else np.zeros(count)
    group = _group_best(tools, fused.share)
    near_called = _near(of_tools, np.flatnonzero(words[:, _AT["called"]]))
    near_best = _near(of_tools, np.argsort(-fused.share, kind="stable")[:1])
    columns |= {
        "best": best,
        "fused": fused.share,
        "fused_rank": fused.rank,
        "group": group,
        "group_rank": _compare(group).rank,
        "gives": _gives(tools, fused.share),
        "auth_group": words[:, _AT["auth"]] * group,
        "cosine": cosine,
        "cosine_last": cosines[:, last].max(axis=1) if last else cosine,
        "sure": _sure(compared.get("last"), count),
        "gap": cosine - cosine.max(initial=0.0),
        "near_called": near_called.share,
        "near_called_rank": near_called.rank,
        "near_best": near_best.share,
        "near_best_rank": near_best.rank,
    }
    return np.stack([columns[name] for name in DENSE_FEATURES], axis=1)


_AT: Mapping[str, int] = {name: at for at, name in enumerate(WORD_FEATURES)}


def _placed(tools: ToolSet, views: Views, use: ToolUse | None) -> dict[str, Floats]:
    """What a tool is and where it stands, whatever was said."""
    count = len(tools.cards)
    called, called_last = np.zeros(count), np.zeros(count)
    for name in views.called:
        called[list(tools.positions.get(name, ()))] = 1.0
    for name in views.called[-1:]:
        called_last[list(tools.positions.get(name, ()))] = 1.0
    groups = tools.groups
    in_called = np.isin(groups, groups[called > 0]) & (groups >= 0)
    auth = np.array([card.auth for card in tools.cards], dtype=np.float64)
    used = _use(tools, use)
    return {
        "called": called,
        "called_last": called_last,
        "group_called": in_called.astype(np.float64),
        "group_used": float(bool(views.called)) * (1.0 - in_called),
        "utility": np.array([card.utility for card in tools.cards], dtype=np.float64),
        "auth": auth,
        "auth_called": auth * in_called,
        "reads": np.array([card.side_effect == "read" for card in tools.cards], dtype=np.float64),
        "writes": np.array([card.side_effect == "write" for card in tools.cards], dtype=np.float64),
        "use": used,
        "log_tools": np.full(count, np.log(max(1, count))),
        "turns": np.full(count, float(bool(views.recent))),
        "after_call": np.full(count, float(bool(views.call))),
        "clauses": np.full(count, float(len(views.clauses))),
    }


def _use(tools: ToolSet, use: ToolUse | None) -> Floats:
    """Log of how much more often than the average tool of its set a tool is called; 0 where nothing is known."""
    if use is None or use.conversations <= 0 or not use.called:
        return np.zeros(len(tools.cards))
    called = np.array([use.called.get(name, 0.0) for name in tools.names])
    mean = max(float(called.mean()), 1e-6)
    trust = use.conversations / (use.conversations + _USE_DOUBT)
    ratio: Floats = np.log((called + 0.1 * mean) / (1.1 * mean)) * trust
    return ratio


def _compare(scores: Floats) -> _Compared:
    top = scores.max(initial=0.0)
    share = scores - (top + np.log(np.exp(scores - top).sum() or 1.0))
    # Equal scores share their place, so that a tool's features do not depend on where the caller put it.
    ordered = np.sort(scores)
    above = len(scores) - np.searchsorted(ordered, scores, side="right")
    equal = np.searchsorted(ordered, scores, side="right") - np.searchsorted(ordered, scores, side="left")
    return _Compared(share, np.log1p(above + (equal - 1) / 2))


def _better(one: _Compared | None, other: _Compared) -> _Compared:
    """The better place of two texts of one view."""
    if one is None:
        return other
    return _Compared(np.maximum(one.share, other.share), np.minimum(one.rank, other.rank))


def _of(compared: Mapping[str, _Compared], kind: str, count: int) -> _Compared:
    found = compared.get(kind) or compared.get(_ELSE.get(kind, ""))
    return found or _compare(np.zeros(count))


def _best(compared: Mapping[str, _Compared], count: int) -> Floats:
    shares = [one.share for kind, one in compared.items() if kind not in ("system", "assistant")]
    return np.max(shares, axis=0) if shares else np.full(count, -np.log(max(1, count)))


def _fused(views: Iterable[_Compared], count: int) -> _Compared:
    """Reciprocal rank fusion, as the log of each tool's share of it."""
    total = np.full(count, 1e-9)
    for one in views:
        total += 1.0 / (_RRF + np.expm1(one.rank))
    return _compare(np.log(total) * 2)


def _near(of_tools: Vectors, at: NDArray[np.int64]) -> _Compared:
    """How like each tool is to those at these positions: tools that belong together are described alike."""
    if len(at) == 0:
        return _compare(np.zeros(len(of_tools)))
    return _compare((of_tools @ of_tools[at].mean(axis=0)).astype(np.float64) * _SHARPNESS / 2)


def _group_best(tools: ToolSet, scores: Floats) -> Floats:
    """The best score of the other tools of a tool's group; its own where it has none."""
    groups = tools.groups
    size = int(groups.max(initial=-1)) + 1
    if size == 0:
        return scores.copy()
    inside = groups >= 0
    first, second = np.full(size, -np.inf), np.full(size, -np.inf)
    np.maximum.at(first, groups[inside], scores[inside])
    leads = inside & (scores >= np.where(inside, first[groups], np.inf))
    np.maximum.at(second, groups[inside & ~leads], scores[inside & ~leads])
    found = np.where(inside, np.where(leads, second[groups], first[groups]), scores)
    return np.where(np.isfinite(found), found, scores)


def _gives(tools: ToolSet, scores: Floats) -> Floats:
    """The best score among the tools that need an id which a tool seems to give; a low one where there is none."""
    needing, giving = tools.producers
    found = np.full(len(scores), scores.min(initial=0.0))
    np.maximum.at(found, giving, scores[needing])
    return found


def _sure(last: _Compared | None, count: int) -> Floats:
    """How far the best tool leads, for every tool alike."""
    return np.full(count, float(last.share.max()) if last is not None and count else 0.0)
