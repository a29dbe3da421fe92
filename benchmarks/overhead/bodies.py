"""The chat requests that are sent: valid, many messages, the same bytes in every run."""

from __future__ import annotations

import json
import random

from benchmarks.overhead.mock import MODEL

SIZES: dict[str, int] = {"0.1 KB": 100, "8 KB": 8_000, "200 KB": 200_000, "2 MB": 2_000_000}
"""Name of a body -> about how many bytes it has."""

_WORDS = (
    "the gateway reads a request and sends it to one of many providers, which answers at once or in small pieces; "
    'what was "said" before stays as it was — naïve café, 漢字 and emoji 🙂 included.\nA new line begins, and a path '
    "like C:\\temp or /var/tmp, some code: def add(a, b): return a + b"
).split(" ")
_MESSAGE_WORDS = 120


def chat_body(size_bytes: int, *, stream: bool = False) -> bytes:
    """A request of about `size_bytes`: a system message and a conversation in turns, which ends with the user's."""
    source = random.Random(size_bytes)
    head: dict[str, object] = {"model": MODEL}
    if stream:
        head |= {"stream": True, "stream_options": {"include_usage": True}}
    messages: list[dict[str, str]] = []
    budget = size_bytes - len(json.dumps(head)) - 20
    while budget > 0 or len(messages) % 2 == 0:
        role = "system" if not messages else ("user", "assistant")[(len(messages) - 1) % 2]
        if size_bytes < 1000:
            role = "user"
        words = source.choices(_WORDS, k=_MESSAGE_WORDS if size_bytes >= 1000 else 4)
        message = {"role": role, "content": " ".join(words)}
        messages.append(message)
        budget -= len(json.dumps(message, ensure_ascii=False).encode()) + 2
        if size_bytes < 1000:
            break
    return json.dumps({**head, "messages": messages}, ensure_ascii=False).encode()
