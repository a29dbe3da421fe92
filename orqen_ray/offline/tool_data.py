"""Labelled conversations for tool routing: which of many tools does the next call need?

A folder holds `<set>.tools.jsonl.gz` and `<set>.queries.jsonl.gz`, one JSON object a line:

    {"name", "description", "parameters", "group", "cluster", "orig_name"?}
    {"id", "messages" (OpenAI), "gold": [names], "candidates"?: [names], "future"?: [names called from here on]}

Tools of one `cluster` share a name or a description, and are never each other's distractor. A tool is shown under
`orig_name` where it has one.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from orqen_ray.conversation import Conversation, JsonObject, Tool
from orqen_ray.errors import BadRequest
from orqen_ray.formats.registry import FORMATS

_HARD = 0.5
"""Share of the distractors that come from the groups of the needed and the native tools."""
_TOOLS, _QUERIES = ".tools.jsonl.gz", ".queries.jsonl.gz"
_FOLDERS = (".", "dev", "tools/dev", "tools")


class ToolRow(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of a set. `name` is unique in the folder; the model knows it as `shown`."""

    name: str
    description: str = ""
    parameters: JsonObject | None = None
    group: str = ""
    cluster: int = -1
    orig_name: str | None = None

    @property
    def shown(self) -> str:
        return self.orig_name or self.name


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation up to a call. `gold`: the tools that the call needs; `future`: those called from here on."""

    id: str
    messages: list[JsonObject]
    gold: list[str]
    candidates: list[str] = []
    future: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolData:
    """All sets of a folder.

    Attributes:
        tools: name -> tool, of all sets. `of_set`: set -> its own tools' names. `queries`: set -> its conversations.
    """

    tools: Mapping[str, ToolRow]
    of_set: Mapping[str, Sequence[str]]
    queries: Mapping[str, Sequence[Query]]
    _shown: dict[str, Tool] = field(default_factory=dict)

    def tool(self, name: str) -> Tool:
        """The tool as a caller would offer it."""
        if name not in self._shown:
            row = self.tools[name]
            self._shown[name] = Tool(name=row.shown, description=row.description, parameters=row.parameters)
        return self._shown[name]

    def candidates(self, of_set: str, query: Query, count: int, seed: int = 0) -> list[str]:
        """`count` tools that hold all of `gold`, in random order, always the same for the same arguments.

        The query's own candidates come first; half of the rest shares a group with them or with the needed tools
        ("hard"), from the query's set as long as it lasts and then from the others.
        """
        chance = random.Random(f"{seed}:{query.id}:{count}")
        gold = list(query.gold)
        base = list(dict.fromkeys([*gold, *query.candidates]))
        if len(base) > count:
            others = [name for name in base if name not in gold]
            base = gold + chance.sample(others, max(0, count - len(gold)))
        used = {self.tools[name].cluster for name in base}
        groups = {self.tools[name].group for name in base}
        found = list(base)

        def take(names: Iterable[str], most: int) -> None:
            for name in names:
                if most <= 0:
                    return
                if self.tools[name].cluster not in used:
                    used.add(self.tools[name].cluster)
                    found.append(name)
                    most -= 1

        own = sorted(name for name in self.of_set[of_set] if self.tools[name].cluster not in used)
        chance.shuffle(own)
        take([name for name in own if self.tools[name].group in groups], int((count - len(found)) * _HARD))
        take(own, count - len(found))
        if len(found) < count:
            mine = set(self.of_set[of_set])
            rest = sorted(name for name in self.tools if name not in mine)
            chance.shuffle(rest)
            take(rest, count - len(found))
        chance.shuffle(found)
        return found

    def conversation(self, query: Query, candidates: Sequence[str]) -> Conversation:
        """The request as a caller would send it, in OpenAI's format."""
        body = {"model": "any", "messages": query.messages}
        read = FORMATS["openai_chat"].read_request(body, None)
        return replace(read, tools=tuple(self.tool(name) for name in candidates))


def load_tool_data(folder: Path, only: Sequence[str] = ()) -> ToolData:
    """All sets in `folder`, or in its subfolder `dev`, `tools/dev` or `tools`.

    Args:
        only: the sets whose conversations are wanted; all give their tools.

    Raises:
        BadRequest: there are none.
    """
    folders = [folder / below for below in _FOLDERS if any((folder / below).glob(f"*{_QUERIES}"))]
    if not folders:
        raise BadRequest(f"{folder} holds no *{_QUERIES}", param="--data")
    names = sorted(path.name.removesuffix(_QUERIES) for path in folders[0].glob(f"*{_QUERIES}"))
    unknown = set(only) - set(names)
    if unknown:
        raise BadRequest(f"no set is named {sorted(unknown)[0]!r}; there are {', '.join(names)}", param="--only")
    rows = {name: _lines(folders[0] / f"{name}{_TOOLS}", ToolRow) for name in names}
    wanted = only or names
    return ToolData(
        tools={row.name: row for tools in rows.values() for row in tools},
        of_set={name: [row.name for row in tools] for name, tools in rows.items()},
        queries={name: _lines(folders[0] / f"{name}{_QUERIES}", Query) for name in names if name in wanted},
    )


_Row = TypeVar("_Row", ToolRow, Query)


def _lines(path: Path, kind: type[_Row]) -> list[_Row]:
    with gzip.open(path, "rb") as file:
        return [msgspec.json.decode(line, type=kind) for line in file if line.strip()]
