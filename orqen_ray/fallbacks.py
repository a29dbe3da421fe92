"""Checks the fallbacks that an operator wrote, at start and not at the first outage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orqen_ray.errors import GatewayError
from orqen_ray.providers.catalog import Catalog


def check_fallbacks(catalog: Catalog, fallbacks: Mapping[str, Sequence[str]]) -> None:
    """Whether each model string means a provider, connected or not, and none falls back to itself.

    Raises:
        ValueError: the message names the entry and says what is wrong with it.
    """
    for model, others in fallbacks.items():
        own = _place(catalog, model, f"fallbacks.{model}")
        seen = {own}
        for i, other in enumerate(others):
            where = f"fallbacks.{model}[{i}]"
            place = _place(catalog, other, where)
            if place == own:
                raise ValueError(f"{where}: {other!r} is the model itself; name another one to try in its place")
            if place in seen:
                raise ValueError(f"{where}: {other!r} is there twice; each model is tried once")
            seen.add(place)


def _place(catalog: Catalog, model: str, where: str) -> tuple[str, str]:
    try:
        resolved = catalog.resolve(model, catalog.providers.keys())
    except GatewayError as error:
        raise ValueError(f"{where}: {error.message}") from None
    return resolved.provider.name, resolved.model_id
