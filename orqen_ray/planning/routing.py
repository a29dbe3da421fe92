"""First sight: which of a conversation's tools are sent in full, by use, by scores, or by what the key wants."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace

from orqen_ray.conversation import Conversation, FormatName
from orqen_ray.economics import Situation
from orqen_ray.planning.applying import Destination, called_names
from orqen_ray.planning.prefix import head_of
from orqen_ray.planning.prepared import Prepared
from orqen_ray.planning.switches import Switches
from orqen_ray.policy import Snapshot
from orqen_ray.tools.choosing import choose, core, situation_of
from orqen_ray.tools.limits import MAX_TOOLS
from orqen_ray.tools.routing import Routing
from orqen_ray.tools.rules import always_kept
from orqen_ray.tools.scoring import Scorer
from orqen_ray.tools.tool_set import ToolSet
from orqen_ray.tools.views import views_of

_BYTES_PER_TOKEN = 4
_MAX_KNOWN = 10_000
_OF_ALL = ("builtin", "keep", "rule")
"""Why tools are kept in every conversation of a tool set; what a rule keeps, use knows better."""
_RESTORE_ROOM = 16
"""How many tools may come back where a provider takes a number of tools only, and the caller has more."""


class Router:
    """Routes conversations that have no pin. One per process, on one event loop."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._known: OrderedDict[str, None] = OrderedDict()

    def knows(self, tools: ToolSet) -> bool:
        """Whether this set was scored before: its vectors are at hand then."""
        return tools.fingerprint in self._known

    async def route(
        self,
        conversation: Conversation,
        prepared: Prepared,
        snapshot: Snapshot,
        switches: Switches,
        destination: Destination,
        deadline_s: float,
    ) -> Routing:
        """What to keep. Decided by the conversation's head, so that a pin that was lost is found again; what it has
        called since is kept besides.

        Args:
            deadline_s: of the event loop's clock.

        Raises:
            EncoderUnavailable: see `Scorer.score`.
        """
        head, policy, tools = head_of(conversation), snapshot.tools, prepared.tool_set
        use = snapshot.use.get(tools.fingerprint)
        full = prepared.full_short if switches.schemas else prepared.full_plain
        sizes = replace(full, prompt=_prompt_tokens(head))
        situation = situation_of(_situation(head, destination, switches), policy, use)
        limit = MAX_TOOLS.get(destination.dialect, len(tools.names))
        most = limit - 1 if len(tools.names) > limit else limit  # the index is one
        routing = None
        if use is not None and switches.k_target is None:
            always = always_kept(head, tools, views_of(head))
            must = frozenset(name for name, why in always.items() if why not in _OF_ALL)
            fixed = {name: why for name, why in always.items() if why in ("builtin", "keep")}
            routing = core(tools.names, use, sizes, policy, situation, must, fixed)
        if routing is None or len(routing.kept) > most:
            timeout_s = max(deadline_s - asyncio.get_running_loop().time(), 0.0)
            scored = await self._scorer.score(head, tools, policy, use, timeout_s)
            self._note(tools)
            routing = choose(scored, sizes, policy, situation, switches.k_target)
            if len(routing.kept) > most:
                routing = choose(scored, sizes, policy, situation, most - _RESTORE_ROOM)
        return _with_called(routing, called_names(conversation))

    def _note(self, tools: ToolSet) -> None:
        self._known[tools.fingerprint] = None
        self._known.move_to_end(tools.fingerprint)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)


def _with_called(routing: Routing, called: frozenset[str]) -> Routing:
    if called.isdisjoint(routing.left_out):
        return routing
    verdicts = tuple(
        replace(verdict, kept=True, reason="called") if verdict.name in called and not verdict.kept else verdict
        for verdict in routing.verdicts
    )
    return replace(routing, verdicts=verdicts)


def _situation(head: Conversation, destination: Destination, switches: Switches) -> Situation:
    capabilities = destination.capabilities
    own_caching: FormatName = "openai_chat"  # the others cache what the caller marks
    return Situation(
        caching=capabilities.prompt_cache and (destination.dialect == own_caching or _is_marked(head)),
        cache_write=1.0 if destination.dialect == own_caching else 1.25,
        cache_min_tokens=capabilities.cache_min_tokens,
        system_tokens=sum(map(_tokens, head.system)),
        restore="off" if not switches.restore else "append" if destination.takes_additions else "rewrite",
    )


def _is_marked(head: Conversation) -> bool:
    blocks = (*head.system, *(block for message in head.messages for block in message.blocks), *head.tools)
    return head.auto_cache is not None or any(getattr(block, "cache", None) is not None for block in blocks)


def _prompt_tokens(head: Conversation) -> int:
    return sum(map(_tokens, (*head.system, *(block for message in head.messages for block in message.blocks))))


def _tokens(block: object) -> int:
    return len(getattr(block, "text", "")) // _BYTES_PER_TOKEN
