"""Fit the scorer of tools, and write the policy that ships.

    python -m orqen_ray.offline.tune_tools DATA [--cache-dir FOLDER] [--encoder SETS=FOLDER ...] [--per-set N]

A logistic scorer, fitted by its likelihood without reweighting of classes, so that its probabilities mean what they
say; every set counts the same, whatever its size. Where `--encoder` gives a set an encoder that was not trained on
it, its rows are read through that one: an encoder does better on the rows it was trained on than it ever will again,
and the probabilities would be too sure.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from orqen_ray.conversation import Conversation
from orqen_ray.encoders.onnx import DEFAULT_FOLDER, OnnxEmbedder
from orqen_ray.offline.applications import applications, use_of
from orqen_ray.offline.disk_vectors import DiskVectors
from orqen_ray.offline.tool_data import Query, ToolData, load_tool_data
from orqen_ray.policy import ToolPolicy, ToolUse, add_use
from orqen_ray.tools.features import FEATURES, WORD_FEATURES, Floats, dense_features, word_features
from orqen_ray.tools.rules import always_kept
from orqen_ray.tools.scoring import WORDS, probabilities
from orqen_ray.tools.tool_set import ToolSet, tool_set_of
from orqen_ray.tools.views import views_of

FITTED_ON = frozenset("bfcl_multiturn bfcl_single metatool nestful sealtools taubench toolalpaca".split())
"""Sets whose licences (MIT, Apache-2.0) let what is fitted on them be shipped."""
FIT_SIZES = (30, 100, 300)
_LATER_LIMITS = (0.005, 0.02, 0.04, 0.08, 0.15, 0.3)
_RIDGE = 0.1
"""The more, the flatter the probabilities; with this, sets left out miss as often as expected."""
_STEPS = 30
_USE_SIZE, _USE_LEAST, _USE_CONVERSATIONS = 60, 12, 60
_USE_WEIGHTS = np.round(np.arange(0.0, 1.51, 0.05), 2)
_NEGATIVES = 0.2
_EITHER = frozenset("reads writes auth log_tools sure words_sure clauses turns after_call group_used".split())
POLICY_FILE = Path(__file__).parents[1] / "tools" / "default_policy.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The tools of one query: features of shape (tools, `FEATURES`), which are needed, and which are always kept.

    `later`: which are called in the rest of the conversation, for one that begins here; else None.
    """

    of_set: str
    count: int
    features: NDArray[np.float32]
    needed: NDArray[np.bool_]
    always: NDArray[np.bool_]
    later: NDArray[np.bool_] | None


async def features_of(conversation: Conversation, tools: ToolSet, vectors: DiskVectors, use: ToolUse | None) -> Floats:
    """All features, as the scorer would see them with its encoder; shape (tools, features)."""
    views = views_of(conversation)
    words = word_features(tools, views, use)
    texts = views.texts()
    of_tools = await vectors.vectors([card.text for card in tools.cards])
    of_texts = await vectors.query([text for _, text in texts])
    return np.hstack((words, dense_features(tools, words, texts, of_tools, of_texts)))


def sampled(data: ToolData, of_set: str, per_set: int) -> list[Query]:
    """The same `per_set` conversations of a set each time."""
    queries = list(data.queries[of_set])
    return random.Random(of_set).sample(queries, min(per_set, len(queries)))


async def rows_of(
    data: ToolData, of_set: str, queries: Iterable[Query], sizes: Sequence[int], vectors: DiskVectors
) -> list[Rows]:
    """Features and labels of these conversations among `sizes` candidates each."""
    found = []
    for query in queries:
        for count in sizes:
            conversation = data.conversation(query, data.candidates(of_set, query, count))
            tools = tool_set_of(conversation.tools)
            gold = {data.tools[name].shown for name in query.gold}
            views = views_of(conversation)
            kept = always_kept(conversation, tools, views)
            future = {data.tools[name].shown for name in query.future}
            features = await features_of(conversation, tools, vectors, None)
            needed, always = (np.array([name in some for name in tools.names]) for some in (gold, kept))
            later = np.array([name in future for name in tools.names]) if future and not views.called else None
            found.append(_rows(of_set, features, needed, always, later))
    return found


def _rows(
    of_set: str,
    features: Floats,
    needed: NDArray[np.bool_],
    always: NDArray[np.bool_],
    later: NDArray[np.bool_] | None = None,
) -> Rows:
    small = features.astype(np.float32)
    return Rows(of_set=of_set, count=len(needed), features=small, needed=needed, always=always, later=later)


def fit(rows: Sequence[Rows], base: ToolPolicy) -> ToolPolicy:
    """`base` with the weights that make these labels likeliest, for the scorer with an encoder and the one without."""
    features = np.concatenate([one.features for one in rows])
    needed = np.concatenate([one.needed for one in rows]).astype(np.float64)
    of_set = [one.of_set for one in rows]
    per_query = np.array([1.0 / of_set.count(name) for name in of_set])
    weight = np.repeat(per_query, [len(one.needed) for one in rows])
    weight *= len(weight) / weight.sum()
    # Most tools are hopeless: a part of them, weighing more, says as much as all.
    drawn = np.random.default_rng(0).random(len(needed))
    chosen = (needed > 0) | (drawn < _NEGATIVES)
    features, needed = features[chosen], needed[chosen]
    weight = np.where(needed > 0, weight[chosen], weight[chosen] / _NEGATIVES)
    bias, weights = _monotone(FEATURES, features, needed, weight)
    words_bias, words_weights = _monotone(WORD_FEATURES, features[:, : len(WORD_FEATURES)], needed, weight)
    named = dict(zip(FEATURES, weights, strict=True))
    named |= {WORDS + name: value for name, value in zip(WORD_FEATURES, words_weights, strict=True)}
    named[WORDS] = words_bias
    return replace(base, bias=round(bias, 5), weights={name: round(float(w), 5) for name, w in named.items() if w})


def _sign(name: str) -> int:
    """Which way a feature may count: 1 up, -1 down, 0 either way."""
    if name.endswith("rank"):
        return -1
    return 0 if name in _EITHER else 1


def _monotone(
    names: Sequence[str], features: NDArray[np.float32], needed: Floats, weight: Floats
) -> tuple[float, Floats]:
    """Ridge logistic regression whose weights have the signs they must have: what only looks helpful on these sets,
    because another feature says the same better, does not carry over to others."""
    signs = np.array([_sign(name) for name in names])
    spread = features.std(axis=0)
    used = np.ones(len(names), dtype=bool)
    while True:
        bias, part = _logistic(features[:, used], needed, weight)
        weights = np.zeros(len(names))
        weights[used] = part
        wrong = np.maximum(-weights * signs, 0.0) * spread
        if not wrong.any():
            return bias, weights
        used &= wrong < 0.5 * wrong.max()  # the worst go first: without them, others may turn right


def _logistic(features: NDArray[np.float32], needed: Floats, weight: Floats) -> tuple[float, Floats]:
    """Ridge logistic regression by Newton's method: (bias, weights of the features as they are)."""
    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    live = spread > 1e-6
    columns = ((features[:, live] - mean[live]) / spread[live]).astype(np.float32)
    columns = np.hstack((columns, np.ones((len(columns), 1), np.float32)))
    ridge = np.full(columns.shape[1], _RIDGE * float((weight * needed).sum()))
    ridge[-1] = 0.0

    def loss(at: Floats) -> float:
        margin = columns @ at.astype(np.float32)
        return float((weight * (np.logaddexp(0.0, margin) - needed * margin)).sum() + 0.5 * (ridge * at * at).sum())

    share = float((weight * needed).sum() / weight.sum())
    found = np.zeros(columns.shape[1])
    found[-1] = np.log(share / (1 - share))
    now = loss(found)
    for _ in range(_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(columns @ found.astype(np.float32), -30, 30)))
        slope = columns.T @ (weight * (p - needed)).astype(np.float32) + ridge * found
        curve = (columns * (weight * p * (1 - p)).astype(np.float32)[:, None]).T @ columns
        step = np.linalg.solve(curve.astype(np.float64) + np.diag(ridge + 1e-6), slope.astype(np.float64))
        length = 1.0
        while (then := loss(found - length * step)) > now and length > 1e-3:
            length /= 2
        found -= length * step
        if now - then < 1e-6 * now:
            break
        now = then
    weights = np.zeros(features.shape[1])
    weights[live] = found[:-1] / spread[live]
    return float(found[-1] - (weights[live] * mean[live]).sum()), weights


def fit_later(rows: Sequence[Rows], policy: ToolPolicy) -> ToolPolicy:
    """`policy` with what turns P(miss) of the next answer into that of the whole conversation (`later_*`)."""
    told, missed = [], []
    for one in rows:
        if one.later is None:
            continue
        p = np.where(one.always, 1.0, probabilities(one.features.astype(np.float64), FEATURES, policy))
        order = np.argsort(-p, kind="stable")
        for limit in _LATER_LIMITS:
            p_miss = 1 - np.cumprod((1 - p[order])[::-1])[::-1]
            kept = int(np.count_nonzero(p_miss > limit))
            if kept < len(order):
                at = min(max(float(p_miss[kept]), 1e-6), 1 - 1e-6)
                told.append((np.log(at / (1 - at)), np.log(len(order) - kept)))
                missed.append(bool(one.later[order[kept:]].any()))
    if not any(missed):
        return policy
    bias, weights = _logistic(np.array(told, np.float32), np.array(missed, np.float64), np.ones(len(told)))
    return replace(
        policy,
        later_bias=round(bias, 3),
        later_slope=round(float(weights[0]), 3),
        later_log_tools=round(float(weights[1]), 3),
    )


def fit_use(rows: Sequence[Rows], policy: ToolPolicy) -> ToolPolicy:
    """`policy` with the weight of the feature `use`, for both scorers; `rows` know the use, and other rows do not."""
    weights = dict(policy.weights)
    for names, prefix in ((FEATURES, ""), (WORD_FEATURES, WORDS)) if rows else ():
        losses = []
        for weight in _USE_WEIGHTS:
            tried = replace(policy, weights={**policy.weights, f"{prefix}use": weight})
            loss = 0.0
            for one in rows:
                p = probabilities(one.features[:, : len(names)].astype(np.float64), names, tried, prefix)
                loss -= float(np.log(np.clip(np.where(one.needed, p, 1 - p), 1e-9, 1.0)).sum())
            losses.append(loss)
        weights[f"{prefix}use"] = float(_USE_WEIGHTS[int(np.argmin(losses))])
    return replace(policy, weights=weights)


async def use_rows_of(data: ToolData, of_set: str, vectors: DiskVectors, most: int) -> list[Rows]:
    """First calls of conversations, with the use of tools in the other folds of their application."""
    found = []
    for application in applications(data, of_set, _USE_SIZE, most, _USE_LEAST):
        tools = tool_set_of(application.tools)
        for one in application.conversations[:most]:
            use = ToolUse()
            for other in application.conversations:
                use = add_use(use, use_of(other)) if other.fold != one.fold else use
            if needs := one.calls[0].needs:
                features = await features_of(one.head, tools, vectors, use)
                needed = np.array([name in needs for name in tools.names])
                found.append(_rows(of_set, features, needed, np.zeros(len(needed), dtype=bool)))
    return found


class Encoders:
    """Which encoder reads which set: `SETS=FOLDER` with sets separated by commas; the shipped one the others."""

    def __init__(self, given: Iterable[str] = (), cache_dir: Path | None = None) -> None:
        self._folders = {name: Path(folder) for sets, _, folder in map(_parted, given) for name in sets.split(",")}
        self._cache_dir = cache_dir
        self._open: dict[Path, DiskVectors] = {}

    def has(self, of_set: str) -> bool:
        """Whether one was given for this set."""
        return of_set in self._folders

    def of(self, of_set: str) -> DiskVectors:
        """The vectors with which this set is read."""
        folder = self._folders.get(of_set, DEFAULT_FOLDER)
        if folder not in self._open:
            self._open[folder] = DiskVectors(OnnxEmbedder(folder, threads=2), self._cache_dir)
        return self._open[folder]

    def save(self) -> None:
        """Keep the vectors for the next run."""
        for vectors in self._open.values():
            vectors.save()


def _parted(text: str) -> tuple[str, str, str]:
    return text.partition("=")


async def all_rows(
    data: ToolData, encoders: Encoders, per_set: int, sizes: Sequence[int] = FIT_SIZES
) -> dict[str, list[Rows]]:
    """Set -> rows of its conversations, each read through an encoder that may read it."""
    found = {}
    for of_set in data.queries:
        found[of_set] = await rows_of(data, of_set, sampled(data, of_set, per_set), sizes, encoders.of(of_set))
        encoders.save()
    return found


async def all_use_rows(data: ToolData, encoders: Encoders) -> dict[str, list[Rows]]:
    """Set -> rows that know how tools were used, for sets that say what comes later."""
    found = {}
    for of_set, queries in data.queries.items():
        if any(query.future for query in queries):
            found[of_set] = await use_rows_of(data, of_set, encoders.of(of_set), _USE_CONVERSATIONS)
            encoders.save()
    return found


def fit_all(rows: Sequence[Rows], used: Sequence[Rows], base: ToolPolicy) -> ToolPolicy:
    """Weights, `later_*` and the weight of use."""
    return fit_use(used, fit_later(rows, fit(rows, base)))


def _source(of_set: str) -> str:
    return of_set.partition("_")[0]


async def unseen_policies(
    data: ToolData, policy: ToolPolicy, encoders: Encoders, sets: Sequence[str], per_set: int
) -> dict[str, ToolPolicy]:
    """Set -> a policy that has not seen it: where `policy` was fitted on it, one fitted on all sets but those of its
    source (BFCL has two); else `policy`."""
    known = {name: queries for name, queries in data.queries.items() if name in FITTED_ON}
    if len(known) < 2 or not any(name in known for name in sets):
        return dict.fromkeys(sets, policy)
    known_data = replace(data, queries=known)
    rows, used = await all_rows(known_data, encoders, per_set), await all_use_rows(known_data, encoders)

    def without(name: str) -> ToolPolicy:
        return fit_all(
            [one for other, of_set in rows.items() if _source(other) != _source(name) for one in of_set],
            [one for other, of_set in used.items() if _source(other) != _source(name) for one in of_set],
            policy,
        )

    return {name: await asyncio.to_thread(without, name) if name in known else policy for name in sets}


def main() -> None:
    """Fit on `FITTED_ON` and write `POLICY_FILE`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--encoder", action="append", default=[], metavar="SETS=FOLDER")
    parser.add_argument("--per-set", type=int, default=200)
    parser.add_argument("--out", type=Path, default=POLICY_FILE)
    given = parser.parse_args()
    data = load_tool_data(given.data)
    data = replace(data, queries={name: rows for name, rows in data.queries.items() if name in FITTED_ON})
    encoders = Encoders(given.encoder, given.cache_dir)
    rows = asyncio.run(all_rows(data, encoders, given.per_set))
    used = asyncio.run(all_use_rows(data, encoders))
    flat, flat_used = ([one for of_set in some.values() for one in of_set] for some in (rows, used))
    policy = fit_all(flat, flat_used, ToolPolicy(bias=0.0, weights={}))
    fitted = ("bias", "weights", "later_bias", "later_slope", "later_log_tools")
    text = msgspec.json.format(msgspec.json.encode({name: getattr(policy, name) for name in fitted}), indent=2)
    given.out.write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
