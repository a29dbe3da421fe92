"""What may be optimized in one request: the operator's settings, then the key's, then the caller's header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from orqen_ray.errors import BadRequest

HEADER = "x-orqen-optimize"
HEADER_WORDS = ("tools", "schemas", "context")
KEY_SWITCHES = (*HEADER_WORDS, "restore")
"""What a key may turn on and off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What may be done.

    Attributes:
        tools: leave tools out. schemas: compress definitions. context: compress what messages hold.
        restore: name the tools left out in an index, and bring back those that the model asks for.
        k_target: send exactly so many tools in full, and those always kept; None: as many as pay.
    """

    tools: bool = True
    schemas: bool = True
    context: bool = True
    restore: bool = True
    k_target: int | None = None

    @property
    def off(self) -> bool:
        """Nothing about tools may change."""
        return not (self.tools or self.schemas)

    def narrowed(self, key: Mapping[str, bool], k_target: int | None, headers: Mapping[str, str]) -> Switches:
        """These for one request. What a key says goes over the settings; a header can only take away.

        Args:
            headers: the request's, lower-case names.
        Raises:
            BadRequest: the header names something that cannot be optimized.
        """
        known = {field.name for field in fields(self)} - {"k_target"}
        switches = replace(self, **{name: on for name, on in key.items() if name in known}, k_target=k_target)
        wanted = _header_words(headers.get(HEADER))
        if wanted is None:
            return switches
        return replace(switches, **{name: getattr(switches, name) and name in wanted for name in HEADER_WORDS})


def _header_words(value: str | None) -> frozenset[str] | None:
    """What the header asks for; None where it is absent or blank, the empty set for `off`."""
    if value is None:
        return None
    words = [word.strip().lower() for word in value.split(",") if word.strip()]
    if not words:
        return None
    if words == ["off"]:
        return frozenset()
    unknown = next((word for word in words if word not in HEADER_WORDS), None)
    if unknown is not None:
        allowed = f"`off`, or a list of {', '.join(HEADER_WORDS)}"
        raise BadRequest(f"X-Orqen-Optimize is {allowed}: {unknown[:40]!r} is neither", param="X-Orqen-Optimize")
    return frozenset(words)
