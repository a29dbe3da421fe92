"""A small labelled data set in the layout of `tool_data`."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import msgspec

from tests.tools.scoring import TOPICS

VERBS = ("get", "search", "update", "cancel")


def write(folder: Path, sets: int = 2) -> Path:
    """Sets of 40 tools, each with ten conversations that name what they need; the first set says what comes later."""
    for number in range(sets):
        topics = TOPICS[number * 10 : number * 10 + 10]
        names = [f"{verb}_{topic.replace(' ', '_')}" for topic in topics for verb in VERBS]
        tools = [
            {
                "name": name,
                "description": f"{name.replace('_', ' ')} of a customer. " + "It answers with a list of entries. " * 3,
                "parameters": {"type": "object", "properties": {"query": {"type": "string", "description": "What."}}},
                "group": name.partition("_")[2],
                "cluster": number * 100 + at,
            }
            for at, name in enumerate(names)
        ]
        queries = [_query(f"q{at}-0", f"please search the {topic}", at, number) for at, topic in enumerate(topics)]
        for kind, rows in (("tools", tools), ("queries", queries)):
            with gzip.open(folder / f"set{number}.{kind}.jsonl.gz", "wb") as file:
                file.write(b"\n".join(map(msgspec.json.encode, rows)))
    return folder


def _query(name: str, text: str, at: int, number: int) -> dict[str, Any]:
    gold = f"search_{TOPICS[number * 10 + at].replace(' ', '_')}"
    query: dict[str, Any] = {"id": name, "messages": [{"role": "user", "content": text}], "gold": [gold]}
    return query | ({"future": [gold]} if number == 0 else {})
