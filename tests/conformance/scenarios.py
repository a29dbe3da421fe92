"""What the scripted provider does for each model id, in no vendor's words; the wire modules spell it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Literal

TEXT = "Grüße aus 東京 🗼: the answer is 42."
THOUGHT = "The caller asks for 42 — naïvely, so: 6 × 7."
SIGNATURE = base64.b64encode(b"sealed by the vendor " * 4).decode()
SEALED = base64.b64encode(b"redacted by the vendor " * 3).decode()
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FAILURE = "The model is overloaded, says the scripted provider."


@dataclass(frozen=True, slots=True)
class Tokens:
    """`fresh`, `read` and `written` add up to the prompt; `thought` is a part of `out`."""

    fresh: int = 11
    read: int = 0
    written: int = 0
    out: int = 7
    thought: int = 0


@dataclass(frozen=True, slots=True)
class Called:
    """`pieces` are the arguments as JSON text, cut as a stream brings them."""

    name: str
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One scenario. `fails` is an HTTP status; `breaks` and `stalls` concern streams, after the first text."""

    text: str = ""
    thought: str = ""
    sealed: bool = False
    calls: tuple[Called, ...] = ()
    stop: Literal["end", "tools", "length", "sequence"] = "end"
    stop_sequence: str = ""
    tokens: Tokens = field(default_factory=Tokens)
    fails: int = 0
    breaks: Literal["", "error", "cut"] = ""
    stalls: Literal["", "before", "within"] = ""
    signature: str = SIGNATURE
    first_call: int = 0
    """The number of the first call: ids of calls are unique within a conversation."""

    @property
    def pieces(self) -> list[str]:
        """The text as a stream brings it."""
        return [self.text[i : i + 7] for i in range(0, len(self.text), 7)]


WEATHER = Called("get_weather", ('{"ci', 'ty": "Zür', 'ich 🏔"', ', "days": 3}'))
SECOND = Called("get_weather", ('{"city"', ': "Oslo"}'))
CLOCK = Called("clock", ())

SCRIPTS: dict[str, Script] = {
    "plain": Script(text=TEXT),
    "tools": Script(text="I will look.", calls=(WEATHER,), stop="tools"),
    "parallel": Script(calls=(WEATHER, SECOND, CLOCK), stop="tools"),
    "thinking": Script(thought=THOUGHT, text=TEXT, tokens=Tokens(out=30, thought=12)),
    "thinking-tools": Script(thought=THOUGHT, sealed=True, calls=(WEATHER,), stop="tools"),
    "cache": Script(text=TEXT, tokens=Tokens(fresh=40, read=6000, written=200, out=9)),
    "stop": Script(text="one two", stop="sequence", stop_sequence="three"),
    "length": Script(text="one two", stop="length"),
    **{f"error-{status}": Script(fails=status) for status in (400, 401, 429, 500, 529)},
    "break-error": Script(text=TEXT, breaks="error"),
    "break-cut": Script(text=TEXT, breaks="cut"),
    "stall-before": Script(stalls="before"),
    "stall-within": Script(text=TEXT, stalls="within"),
}


class Refused(Exception):
    """The provider does not take the request: what its vendor would answer with a 400."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the provider understood of a request, in no vendor's words.

    Attributes:
        turns: (role, parts); a part is a tuple that starts with its kind: `("text", words)`, `("image", bytes)`,
            `("call", id, name, arguments)`, `("result", id, words, failed)`, `("thinking", words, signature)`,
            `("sealed", data)`.
        tools: name -> schema of what may be called, offered from the start or added later.
        described: name -> what the tool is for.
        marked: what carries a cache marker, in order: `system`, `tools`, `messages`.
    """

    system: list[str] = field(default_factory=list)
    turns: list[tuple[str, list[tuple[Any, ...]]]] = field(default_factory=list)
    tools: dict[str, Any] = field(default_factory=dict)
    described: dict[str, str] = field(default_factory=dict)
    tool_choice: Any = None
    stop: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    thinks: bool = False

    def parts(self, kind: str) -> list[tuple[Any, ...]]:
        """All parts of one kind, in order, without the kind."""
        return [part[1:] for _, parts in self.turns for part in parts if part[0] == kind]


def in_unsealed_loop(turns: list[tuple[str, list[tuple[Any, ...]]]]) -> bool:
    """Whether the model waits for results of calls that it made without sealed reasoning; then it may not think."""
    if not turns or not any(part[0] == "result" for part in turns[-1][1]):
        return False
    nothing: list[tuple[Any, ...]] = []
    turn = next((parts for role, parts in reversed(turns) if role == "assistant"), nothing)
    return not turn or turn[0][0] not in ("thinking", "sealed")


def require(condition: object, message: str) -> None:
    """Refuse the request unless `condition` holds."""
    if not condition:
        raise Refused(message)
