"""The tools that a caller offers, as one value: read and indexed once, found again at every later turn."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orqen_ray.conversation import Tool
from orqen_ray.tools.cards import READ_VERBS, WRITE_VERBS, Card, card_of, content_of
from orqen_ray.tools.keyword import KeywordIndex
from orqen_ray.tools.words import terms

_TOOLS_MAX = 50_000
"""How many tools the sets that are remembered may hold together."""
_PRODUCERS_MAX = 8
"""How many tools may count as the givers of one id."""
_GIVES = frozenset("find search list get lookup look query fetch retrieve show read".split())


@dataclass(frozen=True, eq=False)
class ToolSet:
    """A caller's tools in its order, with what routing knows of them.

    Attributes:
        fingerprint: stable hash of names and definitions in order; the same in every process and release.
    """

    fingerprint: str
    cards: tuple[Card, ...]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(card.name for card in self.cards))

    @functools.cached_property
    def keyword(self) -> KeywordIndex:
        return KeywordIndex([card.terms for card in self.cards])

    @functools.cached_property
    def positions(self) -> dict[str, tuple[int, ...]]:
        """Name -> where it stands; more than once when the caller named two tools alike."""
        found: dict[str, tuple[int, ...]] = {}
        for at, name in enumerate(self.names):
            found[name] = (*found.get(name, ()), at)
        return found

    @functools.cached_property
    def groups(self) -> NDArray[np.int64]:
        """The group of each tool, shape (tools,), counted from 0; -1 for a tool that shares its group with none."""
        labels = [card.group or _first_noun(card) for card in self.cards]
        counted: dict[str, int] = {}
        for label in labels:
            counted[label] = counted.get(label, 0) + 1
        numbers = {label: at for at, label in enumerate(one for one, n in counted.items() if one and n > 1)}
        return np.array([numbers.get(label, -1) for label in labels], dtype=np.int64)

    @functools.cached_property
    def producers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (tool that needs an id, tool that seems to give it), as two arrays of positions."""
        gives: dict[str, list[int]] = {}
        for at, card in enumerate(self.cards):
            words = card.words.split()
            if any(word in _GIVES for word in words[:4]):
                for noun in set(terms(card.words)):
                    if noun not in card.needs:
                        gives.setdefault(noun, []).append(at)
        pairs = [
            (needing, giving)
            for needing, card in enumerate(self.cards)
            for noun in card.needs
            for giving in gives.get(noun, ())[:_PRODUCERS_MAX]
            if giving != needing
        ]
        found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]


_sets: OrderedDict[str, ToolSet] = OrderedDict()
_lock = threading.Lock()


def tool_set_of(tools: Sequence[Tool]) -> ToolSet:
    """The tool set of these tools; its cards and index are made once for each content.

    Hashes all definitions each time: some 2 ms for 500 tools, and much more for a set never seen, so call it in a
    thread when that matters.
    """
    digest = hashlib.blake2b(digest_size=16)
    for tool in tools:
        content = content_of(tool)
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    fingerprint = digest.hexdigest()
    with _lock:
        known = _sets.get(fingerprint)
        if known is not None:
            _sets.move_to_end(fingerprint)
            return known
    made = ToolSet(fingerprint, tuple(card_of(tool) for tool in tools))
    _ = made.keyword, made.groups, made.producers  # here, since scores are made on an event loop
    with _lock:
        _sets[fingerprint] = made
        while len(_sets) > 1 and sum(len(one.cards) for one in _sets.values()) > _TOOLS_MAX:
            _sets.popitem(last=False)
    return made


def _first_noun(card: Card) -> str:
    """The first word of a name such as `trading_login` or `Banks_1_CheckBalance`, which may be a namespace."""
    first, _, rest = card.words.partition(" ")
    return first if rest and first not in READ_VERBS and first not in WRITE_VERBS else ""
