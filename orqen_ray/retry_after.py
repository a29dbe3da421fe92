"""`Retry-After`, read from a provider and written to a caller, in seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from orqen_ray.errors import GatewayError

_MS_PER_S = 1000.0


def read_wait_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """How long a provider asks to wait: by `retry-after-ms`, or by `retry-after` in seconds or as an HTTP date.

    The first is what the SDKs of OpenAI and Anthropic look for before the second:
    https://github.com/openai/openai-python/blob/main/src/openai/_base_client.py, `_parse_retry_after_header`.

    Args:
        headers: by lower-case name.
        now_s: seconds since 1970; the clock's by default.
    Returns:
        None when neither is there, or says no time that one could wait for. A date that has passed is no wait.
    """
    if (wait_ms := _seconds(headers.get("retry-after-ms"))) is not None:
        return wait_ms / _MS_PER_S
    text = headers.get("retry-after", "")
    if (wait_s := _seconds(text)) is not None:
        return wait_s
    try:
        at_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return max(at_s - (time.time() if now_s is None else now_s), 0.0)


def retry_after_of(error: GatewayError) -> str | None:
    """The header's value for `error`, in whole seconds and never too early; None when it says no time."""
    retry_after_s: float | None = getattr(error, "retry_after_s", None)
    return None if retry_after_s is None else str(math.ceil(retry_after_s))


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
