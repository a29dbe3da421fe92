"""Rows to train encoders on: a view of a conversation, a tool that its next call needed, and which others are right.

Texts are those that routing embeds: a conversation's views and a tool's card. Only sets with a permissive licence are
read, so that what is trained may be shipped.
"""

from __future__ import annotations

import gzip
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orqen_ray.conversation import JsonObject
from orqen_ray.offline.tool_data import Query, ToolData, load_tool_data
from orqen_ray.tools.cards import Card, card_of
from orqen_ray.tools.views import Views, views_of
from orqen_ray.tools.words import terms

LICENCES: Mapping[str, str] = {
    "bfcl_single": "Apache-2.0",
    "bfcl_multiturn": "Apache-2.0",
    "metatool": "MIT",
    "nestful": "Apache-2.0",
    "sealtools": "Apache-2.0",
    "taubench": "MIT",
    "toolalpaca": "Apache-2.0",
}
"""The sets that may be trained on. Others (sgd is CC-BY-SA-4.0) are for evaluation alone."""

MIN_SHARED_TERMS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pair to learn.

    Attributes:
        source: the set it comes from.
        query: the conversation's text.
        tool: the needed tool's text.
        cluster: of the needed tool; tools of one cluster have the same name or the same description.
        right: clusters of every tool that the call needed, so that none of them is a wrong answer to this row.
    """

    source: str
    query: str
    tool: str
    cluster: int
    right: frozenset[int]


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `train_pairs.jsonl.gz`: a conversation of a set up to a call, and the tools that the call needs."""

    set: str
    licence: str
    messages: list[JsonObject]
    gold: list[str]


def rows(
    folder: Path, leave_out: Collection[str] = (), per_tool: int = 8, limit: int | None = None, seed: int = 0
) -> list[Row]:
    """Rows of all permissive sets but `leave_out`, shuffled by `seed`.

    Args:
        folder: of the sets (see `tool_data`), perhaps with more pairs in `train_pairs.jsonl.gz`.
        leave_out: names of sets.
        per_tool: at most so many rows need the same tool, so that no few tools are most of what is learned.
        limit: at most so many rows in all.
        seed: of every choice made here.
    """
    data = load_tool_data(folder)
    sets = sorted((LICENCES.keys() & data.of_set.keys()) - set(leave_out))
    choice = random.Random(seed)
    queries = [(name, query) for name in sets for query in data.queries[name]] + [*_more(folder, sets)]
    choice.shuffle(queries)
    taken: dict[int, int] = defaultdict(int)
    kept: dict[tuple[str, int], Row] = {}
    for name, query in queries:
        for row in _rows_of(data, name, query, choice):
            if taken[row.cluster] < per_tool and (row.query, row.cluster) not in kept:
                taken[row.cluster] += 1
                kept[row.query, row.cluster] = row
    found = list(kept.values())
    choice.shuffle(found)
    return found[:limit]


def query_of(views: Views, card: Card, needed: int, choice: random.Random) -> str:
    """One view of a conversation: the last request, but half of the time the last turns or call where there are such.

    Where it needs several tools, half of the time the part of the request that shares most words with this one.
    """
    other = [text for text in (views.recent, views.call) if text]
    text = choice.choice(other) if other and (not views.last or choice.random() < 0.5) else views.last
    if needed > 1 and views.clauses and choice.random() < 0.5:
        return _clause(views.clauses, card) or text
    return text


def _clause(clauses: Sequence[str], card: Card) -> str:
    words = set(card.terms)
    shared = {clause: len(words.intersection(terms(clause))) for clause in clauses}
    best = max(clauses, key=lambda clause: shared[clause])
    return best if shared[best] >= MIN_SHARED_TERMS else ""


def _rows_of(data: ToolData, name: str, query: Query, choice: random.Random) -> Iterator[Row]:
    gold = [tool for tool in query.gold if tool in data.tools]
    if not gold:
        return
    views = views_of(data.conversation(query, ()))
    right = frozenset(data.tools[tool].cluster for tool in gold)
    for tool in gold:
        card = card_of(data.tool(tool))
        text = query_of(views, card, len(gold), choice)
        if text:
            yield Row(source=name, query=text, tool=card.text, cluster=data.tools[tool].cluster, right=right)


def _more(folder: Path, sets: Collection[str]) -> Iterator[tuple[str, Query]]:
    path = folder / "train_pairs.jsonl.gz"
    if not path.exists():
        return
    with gzip.open(path, "rb") as lines:
        for number, line in enumerate(lines):
            pair = msgspec.json.decode(line, type=Pair)
            if pair.set in sets and pair.licence == LICENCES[pair.set]:
                yield pair.set, Query(id=f"pair-{number}", messages=pair.messages, gold=pair.gold)
