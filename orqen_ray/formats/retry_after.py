"""`Retry-After`, read from a provider and written to a caller, in seconds. A date says nothing without a clock."""

from __future__ import annotations

import math

from orqen_ray.errors import GatewayError


def read_seconds(text: str | None) -> float | None:
    """The time in a header's value; None when it is absent, a date, or no time that one could wait for."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def retry_after_of(error: GatewayError) -> str | None:
    """The header's value for `error`, in whole seconds and never too early; None when it says no time."""
    retry_after_s: float | None = getattr(error, "retry_after_s", None)
    return None if retry_after_s is None else str(math.ceil(retry_after_s))
