"""Which optimizations a request may get: what the settings allow, its key allows and its caller wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orqen_ray.errors import BadRequest

HEADER = "x-orqen-optimize"
_NAMES = ("tools", "schemas", "context")


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """Each is on unless one of the three turned it off.

    Attributes:
        tools: leave out tools that the model does not need.
        schemas: write tools' schemas shorter.
        context: shorten what earlier turns left behind.
        restore: let the model ask for what was left out.
    """

    tools: bool = True
    schemas: bool = True
    context: bool = True
    restore: bool = True

    @property
    def any(self) -> bool:
        return self.tools or self.schemas or self.context


def narrowed(allowed: Switches, key: Mapping[str, bool], header: str | None) -> Switches:
    """`allowed`, less what the key's own switches or the caller's header turn off.

    Args:
        header: `off`, or a comma list of what shall be on; None or empty: all that is allowed.
    Raises:
        BadRequest: the header names something else.

    >>> narrowed(Switches(), {"schemas": False}, "tools, schemas")
    Switches(tools=True, schemas=False, context=False, restore=True)
    """
    wanted = _wanted(header)
    return Switches(
        tools=allowed.tools and key.get("tools", True) and "tools" in wanted,
        schemas=allowed.schemas and key.get("schemas", True) and "schemas" in wanted,
        context=allowed.context and key.get("context", True) and "context" in wanted,
        restore=allowed.restore and key.get("restore", True),
    )


def _wanted(header: str | None) -> frozenset[str]:
    words = [word.strip().lower() for word in (header or "").split(",") if word.strip()]
    if not words:
        return frozenset(_NAMES)
    if words == ["off"]:
        return frozenset()
    if unknown := [word for word in words if word not in _NAMES]:
        raise BadRequest(
            f"{unknown[0][:40]!r} cannot be switched; expected off, or a list of {', '.join(_NAMES)}", param=HEADER
        )
    return frozenset(words)
