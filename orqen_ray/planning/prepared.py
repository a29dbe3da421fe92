"""What is worked out once for a caller's tools and needed at every turn: their set, compressed forms, sizes."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orqen_ray.conversation import CacheMarker, Tool
from orqen_ray.tools.index import index_of, line_of
from orqen_ray.tools.schemas import compressed
from orqen_ray.tools.sizes import Sizes, sizes_of
from orqen_ray.tools.tool_set import ToolSet, tool_set_of

_MAX_TOKENS = 10_000_000
"""How much the sets that are remembered may hold together; parsed, some ten times its text."""
_TOOL_TOKENS = 200
"""What a tool counts at least: it has a card, too."""
_VARIANTS = 32
"""How many choices out of one tool set are remembered."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A caller's tools, cache markers and examples taken off.

    Attributes:
        plain: as the caller wrote them. `short`: compressed; a tool that gains nothing is the same object.
        line_by_name: what the index says of each.
        full_plain, full_short: sizes with one or the other sent in full; `prompt` is 0.
    """

    tool_set: ToolSet
    plain: tuple[Tool, ...]
    short: tuple[Tool, ...]
    line_by_name: Mapping[str, str]
    full_plain: Sizes
    full_short: Sizes

    @functools.cached_property
    def by_name(self) -> Mapping[str, Tool]:
        return {tool.name: tool for tool in self.plain}

    @functools.cached_property
    def short_by_name(self) -> Mapping[str, Tool]:
        return {tool.name: tool for tool in self.short}

    @functools.cached_property
    def chosen(self) -> Choices:
        return Choices(self)

    @functools.cached_property
    def tokens(self) -> int:
        """Of all definitions, as the caller wrote them."""
        return int(self.full_plain.full.sum())

    @functools.cached_property
    def saves(self) -> bool:
        """Whether compression changes anything."""
        return any(map(operator.is_not, self.short, self.plain))


class Choices:
    """The tools to write for a choice out of one set: the same objects at every turn, so nothing is made anew."""

    def __init__(self, prepared: Prepared) -> None:
        self._of = functools.lru_cache(maxsize=_VARIANTS)(functools.partial(_chosen, prepared))

    def tools(
        self,
        kept: tuple[str, ...] | None,
        indexed: tuple[str, ...],
        markers: tuple[tuple[str, CacheMarker], ...] = (),
        *,
        short: bool,
    ) -> tuple[Tool, ...]:
        """The tools kept (None: all), in the caller's order, and the index of `indexed` last where there is one.

        Args:
            markers: the caller's cache markers, by the names of their tools, in its order.
        """
        return self._of(kept, indexed, markers, short)


def _chosen(
    prepared: Prepared,
    kept: tuple[str, ...] | None,
    indexed: tuple[str, ...],
    markers: tuple[tuple[str, CacheMarker], ...],
    short: bool,
) -> tuple[Tool, ...]:
    tools = prepared.short if short else prepared.plain
    if kept is not None:
        names = frozenset(kept)
        tools = tuple(tool for tool in tools if tool.name in names)
    if indexed:
        tools = (*tools, index_of(prepared.line_by_name[name] for name in indexed))
    return _marked(tools, dict(markers), prepared.tool_set.names[-1]) if markers else tools


def _marked(tools: tuple[Tool, ...], markers: Mapping[str, CacheMarker], end: str) -> tuple[Tool, ...]:
    """`tools` with cache markers by name. The last one moves to the last tool where its own is not there, and so does
    that of `end`, the caller's last: it is meant for all tools, the index included.

    No other may: a marker for an hour must not stand behind one for five minutes (platform.claude.com/docs/en/
    build-with-claude/prompt-caching, "Mixing different TTLs").
    """
    last, names = [*markers][-1], {tool.name for tool in tools}
    moves = last == end or last not in names
    stay = {name: marker for name, marker in markers.items() if not (moves and name == last)}
    placed = [replace(tool, cache=stay[tool.name]) if tool.name in stay else tool for tool in tools]
    if moves and placed:
        placed[-1] = replace(placed[-1], cache=markers[last])
    return tuple(placed)


def prepare(tools: Sequence[Tool]) -> Prepared:
    """Blocking: some 1 ms a tool for definitions never seen."""
    plain = tuple(map(_plain, tools))
    short = tuple(map(compressed, plain))
    lines = [line_of(tool) for tool in plain]
    full_short = sizes_of(short, lines, 0)
    full_plain = full_short if all(map(operator.is_, short, plain)) else sizes_of(plain, lines, 0)
    line_by_name = dict(zip((tool.name for tool in plain), lines, strict=True))
    return Prepared(tool_set_of(tools), plain, short, line_by_name, full_plain, full_short)


def _plain(tool: Tool) -> Tool:
    """Without what is not sent, for it would be kept, however much it is."""
    if tool.examples:
        return replace(tool, cache=None, examples=(), wire=None)
    return replace(tool, cache=None) if tool.cache is not None else tool


def _weight(prepared: Prepared) -> int:
    return max(prepared.tokens, _TOOL_TOKENS * len(prepared.plain))


class Shelf:
    """Remembers what was prepared. One per process, on one event loop."""

    def __init__(self, max_tokens: int = _MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._made: OrderedDict[str, Prepared] = OrderedDict()
        self._making: dict[str, asyncio.Task[Prepared]] = {}
        self._held = 0

    def known(self, digest: str) -> Prepared | None:
        """Args: digest: `prefix.tools_digest` of the tools."""
        found = self._made.get(digest)
        if found is not None:
            self._made.move_to_end(digest)
        return found

    async def of(self, digest: str, tools: Sequence[Tool]) -> Prepared:
        """Prepared in a thread where it is not known. It goes on when its caller leaves, and is there the next time."""
        found = self.known(digest)
        if found is not None:
            return found
        making = self._making.get(digest)
        if making is None:
            making = self._making[digest] = asyncio.create_task(self._make(digest, tools))
            making.add_done_callback(functools.partial(self._done, digest))
        return await asyncio.shield(making)

    async def _make(self, digest: str, tools: Sequence[Tool]) -> Prepared:
        made = await asyncio.to_thread(prepare, tools)
        self._made[digest] = made
        self._held += _weight(made)
        while self._held > self._max_tokens and len(self._made) > 1:
            _, dropped = self._made.popitem(last=False)
            self._held -= _weight(dropped)
        return made

    def _done(self, digest: str, making: asyncio.Task[Prepared]) -> None:
        self._making.pop(digest, None)
        if not making.cancelled():
            making.exception()  # whoever waited was told; else nobody is to be
