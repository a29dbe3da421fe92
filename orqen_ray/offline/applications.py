"""Applications to replay: recorded conversations that are all offered the same tools, call by call."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from orqen_ray.conversation import Conversation, Tool
from orqen_ray.offline.tool_data import Query, ToolData
from orqen_ray.policy import ToolUse
from orqen_ray.tools.sizes import text_tokens

FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call to the model: the tokens of system and messages that it is sent, and the tools that it needs."""

    prompt_tokens: int
    needs: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A recorded conversation.

    Attributes:
        head: what its first call is sent. system_tokens: the part of it that all conversations share.
        fold: the same for the same conversation, 0 to 4.
    """

    id: str
    head: Conversation
    system_tokens: int
    calls: tuple[Call, ...]
    fold: int

    @property
    def needed(self) -> frozenset[str]:
        return frozenset().union(*(call.needs for call in self.calls))


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Tools, and the conversations that are offered them."""

    of_set: str
    tools: tuple[Tool, ...]
    conversations: tuple[Replayed, ...]


def use_of(conversation: Replayed) -> ToolUse:
    """What the gateway learns of it."""
    called = dict.fromkeys(conversation.needed, 1.0)
    return ToolUse(conversations=1, called=called, calls=len(conversation.calls))


def applications(data: ToolData, of_set: str, size: int, most: int | None = None, least: int = 1) -> list[Application]:
    """The conversations of a set, grouped by the tools that they come with, each group among `size` tools.

    A set without `future` (what a conversation calls from a point on) has none.

    Args:
        most: conversations of the set that are replayed, about; None for all. Whole groups are taken, large ones first.
        least: smaller groups are left out.
    """
    groups: dict[tuple[str, ...], dict[str, list[Query]]] = defaultdict(lambda: defaultdict(list))
    for query in data.queries[of_set]:
        if query.future:
            groups[tuple(sorted(query.candidates))][_conversation_of(query)].append(query)
    found: list[Application] = []
    for native, conversations in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        enough = most is not None and sum(len(app.conversations) for app in found) >= most
        if enough or len(conversations) < least:
            break
        used = sorted(
            {name for queries in conversations.values() for one in queries for name in (*one.future, *one.gold)}
        )
        seed = Query(id=f"{of_set}:{'|'.join(native)}", messages=[], gold=used, candidates=list(native))
        names = data.candidates(of_set, seed, max(size, len(used)))
        replayed = tuple(_replayed(data, one, queries) for one, queries in sorted(conversations.items()))
        found.append(Application(of_set=of_set, tools=tuple(data.tool(name) for name in names), conversations=replayed))
    return found


def _conversation_of(query: Query) -> str:
    return query.id.rsplit(":" if ":" in query.id else "-", 1)[0]


def _replayed(data: ToolData, name: str, queries: Sequence[Query]) -> Replayed:
    """From the longest recording: every answer of the model in it was a call, and so is the one that it leads to."""
    longest = max(queries, key=lambda query: len(query.messages))
    labelled = {len(query.messages): query.gold for query in queries}
    tokens, system, first = 0, 0, longest
    calls: list[Call] = []
    for at, message in enumerate([*longest.messages, {"role": "assistant"}]):
        if message["role"] == "assistant":
            if not calls:
                first = Query(id=name, messages=longest.messages[:at], gold=[])
            named = {call["function"]["name"] for call in message.get("tool_calls") or ()}
            labels = {data.tools[gold].shown for gold in labelled.get(at, ())}
            calls.append(Call(prompt_tokens=tokens, needs=frozenset(named | labels)))
        size = text_tokens(msgspec.json.encode(message).decode())
        tokens += size
        system += size if message["role"] == "system" else 0
    return Replayed(
        id=name,
        head=data.conversation(first, ()),
        system_tokens=system,
        calls=tuple(calls),
        fold=int(hashlib.sha256(_task_of(name).encode()).hexdigest(), 16) % FOLDS,
    )


def _task_of(conversation: str) -> str:
    """Trials and variants of one task belong together: `airline-7-0` and `airline-7-1`, `multi_turn_base_3` and
    `multi_turn_miss_param_3`."""
    trial = re.fullmatch(r"(airline-\d+)-\d+", conversation)
    variant = re.fullmatch(r"multi_turn_\w+_(\d+)", conversation)
    return trial[1] if trial else variant[1] if variant else conversation
