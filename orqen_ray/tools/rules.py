"""Which tools are kept whatever their score, and why."""

from __future__ import annotations

import re
from collections import Counter

from orqen_ray.conversation import Conversation
from orqen_ray.tools.routing import Probabilities
from orqen_ray.tools.tool_set import ToolSet
from orqen_ray.tools.views import Views, user_text

_NAME = re.compile(r"[\w.:/&-]+")
_NAMED_CHARS_MIN = 3
_UTILITIES_MAX = 8
_SMALL_GROUP = 5
_VERY_LIKELY, _GIVERS_MAX = 0.5, 4


def always_kept(conversation: Conversation, tools: ToolSet, views: Views) -> dict[str, str]:
    """Name -> why it is kept, for the tools that no score may leave out: `chosen`, `builtin`, `keep`, `called`,
    `named` or `rule` (what no request names: utilities, signing in, and the rest of a small server that is in use)."""
    kept: dict[str, str] = {}
    choice = conversation.tool_choice
    if choice is not None and choice.mode in ("tool", "allowed"):
        kept.update((name, "chosen") for name in choice.names if name in tools.positions)
    for card in tools.cards:
        if card.builtin or card.keep:
            kept.setdefault(card.name, "builtin" if card.builtin else "keep")
    called = [name for name in views.called if name in tools.positions]
    utilities = [card.name for card in tools.cards if card.utility or card.auth]
    by_rule = [*utilities[:_UTILITIES_MAX], *_small_groups_in_use(tools, called)]
    for why, names in (("called", called), ("named", _named(conversation, tools)), ("rule", by_rule)):
        for name in names:
            kept.setdefault(name, why)
    return kept


def _named(conversation: Conversation, tools: ToolSet) -> list[str]:
    """The tools that the user's text names literally."""
    words: set[str] = set()
    text = user_text(conversation)
    for word in _NAME.findall(text):
        words.update((word, word.strip(".:/-")))
    spaced = [name for name in tools.names if " " in name and len(name) > _NAMED_CHARS_MIN and name in text]
    return [name for name in tools.names if name in words and len(name) >= _NAMED_CHARS_MIN] + spaced


def _small_groups_in_use(tools: ToolSet, called: list[str]) -> list[str]:
    """The other tools of small servers that say by their names which one they belong to, when one was called."""
    sizes = Counter(card.group for card in tools.cards if card.group)
    in_use = {tools.cards[tools.positions[name][0]].group for name in called}
    return [card.name for card in tools.cards if card.group in in_use and 0 < sizes[card.group] <= _SMALL_GROUP]


def givers(tools: ToolSet, p_needed: Probabilities) -> list[str]:
    """For each tool that is very likely needed and needs an id: the likeliest tool that seems to give it."""
    needing, giving = tools.producers
    found: dict[int, int] = {}
    for need, give in zip(needing.tolist(), giving.tolist(), strict=True):
        if p_needed[need] >= _VERY_LIKELY and (need not in found or p_needed[give] > p_needed[found[need]]):
            found[need] = give
    return [tools.names[give] for give in dict.fromkeys(found.values())][:_GIVERS_MAX]
