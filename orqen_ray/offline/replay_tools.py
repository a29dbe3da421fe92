"""Replay conversations from their head: what routing keeps, what has to be restored, and what all that is billed.

    python -m orqen_ray.offline.replay_tools --data DIR [--conversations 10] [--size 50 ...]

Each conversation is decided once, at its first call, and keeps what it was given. It is decided `cold` (only the rate
of arrival is known) and `learned` (with the use of tools in four of five folds of the application's conversations,
its own left out); `few` instead of `learned` where these are too few for a core set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orqen_ray.economics import RestoreMode, Situation
from orqen_ray.encoders.onnx import DEFAULT_FOLDER, OnnxEmbedder
from orqen_ray.offline.applications import FOLDS, Application, Replayed, applications, use_of
from orqen_ray.offline.billing import Outcome, billed
from orqen_ray.offline.disk_vectors import DiskVectors
from orqen_ray.offline.tool_data import ToolData, load_tool_data
from orqen_ray.policy import ToolPolicy, ToolUse, add_use, default_snapshot
from orqen_ray.tools.choosing import choose, core, situation_of
from orqen_ray.tools.index import index_tool, line_of
from orqen_ray.tools.routing import Routing, Scored
from orqen_ray.tools.schemas import compressed
from orqen_ray.tools.scoring import Scorer
from orqen_ray.tools.sizes import Sizes, sizes_of, tool_tokens
from orqen_ray.tools.tool_set import tool_set_of

SIZES = (20, 50, 100, 500)
RATES_PER_MINUTE = (0.1, 1.0, 10.0)
ASK_RATES = (1.0, 0.7, 0.4)
_RESTORES: tuple[RestoreMode, ...] = ("append", "rewrite")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offered:
    """The tools of an application as they are sent."""

    application: Application
    names: tuple[str, ...]
    sizes: Sizes
    full: Mapping[str, int]
    given_tokens: int

    def sent_tokens(self, routing: Routing | None) -> int:
        if routing is None or not routing.left_out:
            return sum(self.full.values())
        kept = set(routing.kept)
        index = index_tool([tool for tool in self.application.tools if tool.name not in kept])
        return sum(self.full[name] for name in routing.kept) + tool_tokens(index)


@dataclass(slots=True)
class _Sums:
    """Over the conversations of a set in one situation: by ask rate, of sending all, and why so many were kept."""

    by_ask_rate: dict[float, Outcome]
    conversations: int = 0
    all_tokens: float = 0.0
    given_tokens: float = 0.0
    kept_share: float = 0.0
    tools: int = 0
    reasons: Counter[str] | None = None


async def replay(
    data: ToolData,
    scorer: Scorer,
    policy: ToolPolicy,
    *,
    sets: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    conversations: int | None = None,
    least: int = 1,
) -> dict[str, Any]:
    """Replay the sets that say what their conversations call later on.

    Args:
        sets: which; None for all that can be.
        sizes: numbers of tools that each conversation is offered.
        conversations: of each set, about; None for all.
        least: applications with fewer conversations are left out.

    Returns:
        `rows`: one for each set, size, kind of use, way of restoring and rate of arrival (null: no cache), with the
        bill by ask rate over that of sending all, compressed (`bill`) and as the caller gave them (`bill_of_given`);
        `summary`: the worst of them.
    """
    rows = []
    for of_set in sets or sorted(data.queries):
        for size in sizes:
            sums: dict[tuple[Any, ...], _Sums] = defaultdict(lambda: _Sums({ask: Outcome() for ask in ASK_RATES}))
            for application in applications(data, of_set, size, conversations, least):
                await _replay(application, scorer, policy, sums)
            rows += [_row(of_set, size, key, one) for key, one in sums.items()]
    return {"rows": rows, "summary": _summary(rows)}


async def _replay(
    application: Application, scorer: Scorer, policy: ToolPolicy, sums: dict[tuple[Any, ...], _Sums]
) -> None:
    offered = _offered(application)
    cold = {one.id: await _score(offered, one, scorer, policy, None) for one in application.conversations}
    learned = {fold: _learned(application, fold, cold) for fold in range(FOLDS)}
    for one in application.conversations:
        again = await _score(offered, one, scorer, policy, learned[one.fold])
        others = learned[one.fold]
        enough = "learned" if others.conversations >= policy.core_min_conversations else "few"
        for kind, scored, use in ("cold", cold[one.id], ToolUse(conversations=1)), (enough, again, others):
            for situation in _situations(one):
                known = replace(use, per_minute=situation.conversations_per_minute)
                routing = _decide(offered, one, scored, policy, situation, known)
                key = (kind, situation.restore, situation.conversations_per_minute if situation.caching else None)
                _add(sums[key], offered, one, routing, situation)


def _learned(application: Application, fold: int, scores: Mapping[str, Scored | None]) -> ToolUse:
    """As the gateway would have learned it from the conversations outside `fold`."""
    use = ToolUse()
    for one in application.conversations:
        if one.fold != fold:
            scored = scores[one.id]
            expected = dict(zip(scored.names, scored.p_needed.tolist(), strict=True)) if scored else {}
            use = add_use(use, replace(use_of(one), expected=expected))
    return use


def _offered(application: Application) -> _Offered:
    sent = [compressed(tool) for tool in application.tools]
    names = tuple(tool.name for tool in sent)
    sizes = sizes_of(sent, [line_of(tool) for tool in application.tools], 0)
    return _Offered(
        application=application,
        names=names,
        sizes=sizes,
        full=dict(zip(names, sizes.full.tolist(), strict=True)),
        given_tokens=sum(map(tool_tokens, application.tools)),
    )


async def _score(
    offered: _Offered, one: Replayed, scorer: Scorer, policy: ToolPolicy, use: ToolUse | None
) -> Scored | None:
    """None for a set that is forwarded whole whatever the scores are."""
    if len(offered.names) <= policy.small_tools or offered.sizes.full.sum() <= policy.small_tokens:
        return None
    conversation = replace(one.head, tools=offered.application.tools)
    return await scorer.score(conversation, tool_set_of(conversation.tools), policy, use, None)


def _situations(one: Replayed) -> Iterator[Situation]:
    for restore in _RESTORES:
        base = Situation(restore=restore, system_tokens=one.system_tokens, p_gap=0.0)
        yield replace(base, caching=False)
        for rate in RATES_PER_MINUTE:
            yield replace(base, conversations_per_minute=rate)


def _decide(
    offered: _Offered, one: Replayed, scored: Scored | None, policy: ToolPolicy, situation: Situation, use: ToolUse
) -> Routing | None:
    if scored is None:
        return None
    sizes = replace(offered.sizes, prompt=one.calls[0].prompt_tokens)
    expected = situation_of(replace(situation, p_gap=Situation().p_gap), policy, use)
    return core(offered.names, use, sizes, policy, expected) or choose(scored, sizes, policy, expected)


def _add(sums: _Sums, offered: _Offered, one: Replayed, routing: Routing | None, situation: Situation) -> None:
    whole = routing is None or not routing.left_out
    kept = offered.names if routing is None else routing.kept
    shared = whole or (routing is not None and routing.reason == "core")
    tool_tokens = offered.sent_tokens(routing)
    for ask_rate, outcome in sums.by_ask_rate.items():
        asking = replace(situation, ask_rate=ask_rate)
        sums.by_ask_rate[ask_rate] = outcome + billed(one, kept, tool_tokens, offered.full, asking, shared=shared)
    for name, tokens in (("all_tokens", sum(offered.full.values())), ("given_tokens", offered.given_tokens)):
        everything = billed(one, offered.names, tokens, offered.full, situation, shared=True).tokens
        setattr(sums, name, getattr(sums, name) + everything)
    sums.conversations += 1
    sums.kept_share += len(kept) / len(offered.names)
    sums.tools = max(sums.tools, len(offered.names))
    sums.reasons = (sums.reasons or Counter()) + Counter([routing.reason if routing else "small"])


def _row(of_set: str, size: int, key: tuple[Any, ...], sums: _Sums) -> dict[str, Any]:
    use, restore, rate = key
    asked = sums.by_ask_rate[ASK_RATES[0]]
    each = sums.conversations
    return {
        "set": of_set,
        "size": size,
        "tools": sums.tools,
        "use": use,
        "restore": restore,
        "per_minute": rate,
        "conversations": each,
        "calls": asked.calls,
        "reasons": dict(sums.reasons or {}),
        "kept_share": round(sums.kept_share / each, 4),
        "recall": round(asked.kept / max(asked.needed, 1), 4),
        "restores": round(asked.restores / each, 4),
        "additions": round(asked.restored / each, 4),
        "prefix_changed": round(asked.changed / max(asked.calls, 1), 4),
        "causes": {"restore": asked.changed},
        "bill": {str(ask): round(one.tokens / sums.all_tokens, 4) for ask, one in sums.by_ask_rate.items()},
        "bill_of_given": {str(ask): round(one.tokens / sums.given_tokens, 4) for ask, one in sums.by_ask_rate.items()},
        "lost": {str(ask): round(one.lost / each, 4) for ask, one in sums.by_ask_rate.items()},
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst of any set, size, way of restoring, rate of arrival and ask rate, where the provider caches; the mean
    recall. `bill_above_40_tools` is that of learned use."""
    cached = [row for row in rows if row["per_minute"] is not None]
    above = [row for row in cached if row["size"] > 40 and row["use"] == "learned"]
    recall = defaultdict(list)
    for row in cached:
        recall[row["use"]].append(row["recall"])
    return {
        "bill": max((max(row["bill"].values()) for row in cached), default=None),
        "bill_above_40_tools": {
            restore: max((max(row["bill"].values()) for row in above if row["restore"] == restore), default=None)
            for restore in _RESTORES
        },
        "prefix_changed": max((row["prefix_changed"] for row in cached), default=None),
        "recall": {use: round(sum(values) / len(values), 4) for use, values in recall.items()},
    }


def main() -> None:
    """Print the result as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--conversations", type=int)
    parser.add_argument("--size", type=int, nargs="*", default=SIZES)
    parser.add_argument("--set", nargs="*")
    parser.add_argument("--cache-dir", type=Path)
    options = parser.parse_args()
    vectors = DiskVectors(OnnxEmbedder(DEFAULT_FOLDER), options.cache_dir)
    policy = default_snapshot().tools
    data = load_tool_data(options.data, options.set or ())
    done = replay(data, Scorer(vectors), policy, sizes=options.size, conversations=options.conversations)
    sys.stdout.write(json.dumps(asyncio.run(done)) + "\n")
    vectors.save()


if __name__ == "__main__":
    main()
