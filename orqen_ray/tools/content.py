"""What a tool holds, as bytes, and a bounded memory of what was worked out from them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from orqen_ray.conversation import Tool

Value = TypeVar("Value")

_ENTRY_BYTES = 200
_encode = msgspec.json.Encoder().encode


def definition(tool: Tool) -> bytes:
    """What a provider bills of a tool, as JSON; empty for one that cannot be written (nested too deep).

    The gateway's own extensions are no part of it, nor is the cache marker.
    """
    whole = tool.raw if tool.raw is not None else [tool.name, tool.description, tool.parameters]
    try:
        return _encode([whole, tool.extra] if tool.extra else whole)
    except (RecursionError, ValueError, TypeError):
        return b""


class Memory(Generic[Value]):
    """Values by content: the least recently used go when they hold too much. Safe to use from several threads.

    Two threads may work the same value out at once; both get an equal one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: dict[bytes, tuple[Value, int]] = {}
        self._lock = threading.Lock()

    def of(self, content: bytes, work: Callable[[], Value], value_bytes: int = 0) -> Value:
        """The value of `content`, by `work` when it is not known; `value_bytes` is about what it holds."""
        key = hashlib.blake2b(content, digest_size=16).digest()
        with self._lock:
            if key in self._values:
                entry = self._values[key] = self._values.pop(key)
                return entry[0]
        value = work()
        held = value_bytes + _ENTRY_BYTES
        with self._lock:
            self._bytes += held - self._values.pop(key, (value, 0))[1]
            self._values[key] = value, held
            while self._bytes > self._max_bytes:
                self._bytes -= self._values.pop(next(iter(self._values)))[1]
        return value
