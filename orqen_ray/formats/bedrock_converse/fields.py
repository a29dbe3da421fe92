"""What a reader leaves of a JSON object when it has taken what it understands, and how a writer puts it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orqen_ray.conversation import JsonObject


def leftover(value: Mapping[str, Any], taken: Mapping[str, Any]) -> JsonObject:
    """The fields of `value` that were not taken, at any depth.

    Args:
        taken: True or False for a field, or a mapping of the same kind for an object of which only parts are taken.
            An object of which nothing is left disappears; one that was empty stays.
    """
    left: JsonObject = {}
    for key, part in value.items():
        inner = taken.get(key, False)
        if isinstance(inner, Mapping) and isinstance(part, dict):
            rest = leftover(part, inner)
            if rest or not part:
                left[key] = rest
        elif inner is not True:
            left[key] = part
    return left


def merge(written: JsonObject, extra: Mapping[str, Any]) -> JsonObject:
    """`written` with what `leftover` gave put back in its places; `written` wins where both have a value."""
    merged = dict(written)
    for key, part in extra.items():
        if key not in merged:
            merged[key] = part
        elif isinstance(merged[key], dict) and isinstance(part, Mapping):
            merged[key] = merge(merged[key], part)
    return merged
