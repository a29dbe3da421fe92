"""First sight: with a conversation up to its next call and no pin, are the tools kept that the call needs?

Beside the shipped code stand the rules of two other gateways, on the same conversations and candidates:

- LiteLLM (`mcp_semantic_tool_filter`): cosine of the last user text at least 0.3, the best 10;
- vLLM semantic-router (`tool_selection`, mode filter): cosine at least 0.25, at least 2, all where there is no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orqen_ray.conversation import Conversation, Tool
from orqen_ray.economics import Situation
from orqen_ray.offline.disk_vectors import DiskVectors
from orqen_ray.offline.tool_data import ToolData
from orqen_ray.offline.tune_tools import Encoders, sampled
from orqen_ray.policy import ToolPolicy
from orqen_ray.tokens import count_tokens
from orqen_ray.tools.choosing import choose, situation_of
from orqen_ray.tools.index import index_tool, line_of
from orqen_ray.tools.routing import Routing
from orqen_ray.tools.schemas import compressed
from orqen_ray.tools.scoring import Scorer
from orqen_ray.tools.sizes import sizes_of, tool_tokens
from orqen_ray.tools.tool_set import tool_set_of
from orqen_ray.tools.views import views_of

SIZES = (20, 50, 100, 500)
LIMIT = 100
"""Conversations of each set."""
_ONCE = Situation(caching=False)
"""Nothing is cached, so that a choice for this one conversation is worth making."""
_PEERS = ("litellm", "vllm_semantic_router")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one rule did with one conversation.

    Attributes:
        recall: share of the needed tools that were kept; None where none was needed. `missed`: not all were.
        kept, tokens: share of the tools, and of the tokens of their definitions as given, that were sent.
        p_miss: what the rule expected. `named`: every needed tool was sent in full or named in the index.
    """

    recall: float | None
    missed: bool
    kept: float
    tokens: float
    p_miss: float = 0.0
    named: bool = True
    by_words: bool = False


async def first_sight(
    data: ToolData,
    policies: Mapping[str, ToolPolicy],
    encoders: Encoders,
    *,
    sizes: Sequence[int] = SIZES,
    limit: int = LIMIT,
    peer: DiskVectors | None = None,
) -> dict[str, Any]:
    """The report as JSON values: by number of candidates, the means over sets, each set, and the peers' rules.

    Args:
        policies: set -> the policy that it is decided with; other sets are left alone. See `unseen_policies`.
        limit: conversations of each set.
        peer: what the peers' rules embed with; None: what the set is read with.
    """
    wanted = [name for name in data.queries if name in policies]
    report: dict[str, Any] = {"peers_encoder": peer.name if peer is not None else "the set's own", "sizes": {}}
    for size in sizes:
        found: dict[str, dict[str, list[Seen]]] = {}
        for name in wanted:
            vectors = encoders.of(name)
            rules: dict[str, list[Seen]] = {"orqen": [], **{rule: [] for rule in _PEERS}}
            for query in sampled(data, name, limit):
                conversation = data.conversation(query, data.candidates(name, query, size))
                gold = {data.tools[each].shown for each in query.gold}
                rules["orqen"].append(await _routed(conversation, gold, policies[name], vectors))
                for rule, seen in (await _peers(conversation, gold, peer or vectors)).items():
                    rules[rule].append(seen)
            found[name] = rules
            encoders.save()
        report["sizes"][str(size)] = {
            rule: {
                "mean": _mean([_summary(found[name][rule]) for name in wanted]),
                "sets": {name: _summary(found[name][rule]) for name in wanted},
            }
            for rule in ("orqen", *_PEERS)
        }
    return report


async def _routed(conversation: Conversation, gold: set[str], policy: ToolPolicy, vectors: DiskVectors) -> Seen:
    """By the shipped code: small sets whole, else scored and chosen, the kept ones compressed, the others indexed."""
    tools = conversation.tools
    sent = [compressed(tool) for tool in tools]
    given = sum(map(tool_tokens, tools))
    routing: Routing | None = None
    if len(tools) > policy.small_tools and given > policy.small_tokens:
        scored = await Scorer(vectors).score(conversation, tool_set_of(tools), policy, None, None)
        prompt = count_tokens(replace(conversation, tools=()))
        sizes = sizes_of(sent, [line_of(tool) for tool in tools], prompt)
        routing = choose(scored, sizes, policy, situation_of(_ONCE, policy, None))
    kept = set(routing.kept) if routing is not None else {tool.name for tool in tools}
    left_out = [tool for tool in tools if tool.name not in kept]
    forwarded = sum(tool_tokens(tool) for tool in sent if tool.name in kept)
    index = index_tool(left_out) if left_out else None
    lines = set(map(line_of, left_out))
    listed = {tool.name for tool in left_out if index is not None and _lists(index, line_of(tool), lines)}
    return Seen(
        recall=len(gold & kept) / len(gold) if gold else None,
        missed=not gold <= kept,
        kept=len(kept) / max(1, len(tools)),
        tokens=(forwarded + (tool_tokens(index) if index is not None else 0)) / max(1, given),
        p_miss=routing.p_miss if routing is not None else 0.0,
        named=gold <= kept | listed,
        by_words=routing is not None and routing.method == "keyword",
    )


def _lists(index: Tool, line: str, lines: set[str]) -> bool:
    return line in lines and f"\n{line}" in str((index.parameters or {})["properties"]["names"]["description"])


async def _peers(conversation: Conversation, gold: set[str], vectors: DiskVectors) -> dict[str, Seen]:
    tools = conversation.tools
    text = views_of(conversation).last
    every = np.arange(len(tools))
    if not text:
        return {rule: _sent(tools, every, gold) for rule in _PEERS}
    of_tools = await vectors.vectors([f"{tool.name}: {(tool.description or '')[:1000]}" for tool in tools])
    cosines = of_tools @ (await vectors.query([text]))[0]
    order = np.argsort(-cosines, kind="stable")
    alike = order[cosines[order] >= 0.25]
    return {
        "litellm": _sent(tools, order[cosines[order] >= 0.3][:10], gold),
        "vllm_semantic_router": _sent(tools, alike if len(alike) >= 2 else order[:2], gold),
    }


def _sent(tools: Sequence[Tool], at: NDArray[np.int64], gold: set[str]) -> Seen:
    kept = {tools[one].name for one in at}
    tokens = sum(tool_tokens(tools[one]) for one in at) / max(1, sum(map(tool_tokens, tools)))
    recall = len(gold & kept) / len(gold) if gold else None
    return Seen(recall=recall, missed=not gold <= kept, kept=len(at) / max(1, len(tools)), tokens=tokens)


def _summary(seen: Sequence[Seen]) -> dict[str, float]:
    recalls = [one.recall for one in seen if one.recall is not None]
    complete = [not one.missed for one in seen if one.recall is not None]
    return {
        "conversations": len(seen),
        "recall": _rounded(recalls),
        "all_needed": _rounded(complete),
        "kept": _rounded([one.kept for one in seen]),
        "tokens": _rounded([one.tokens for one in seen]),
        "p_miss_expected": _rounded([one.p_miss for one in seen]),
        "p_miss_observed": _rounded([one.missed for one in seen]),
        "named": _rounded([one.named for one in seen]),
        "by_words": _rounded([one.by_words for one in seen]),
    }


def _mean(summaries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over sets, each counting the same; conversations are added up."""
    means = {key: _rounded([one[key] for one in summaries]) for key in summaries[0]} if summaries else {}
    return means | {"conversations": sum(one["conversations"] for one in summaries)}


def _rounded(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if values else 0.0
