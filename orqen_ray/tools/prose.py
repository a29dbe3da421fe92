"""Descriptions with fewer tokens: spaces, markup and repetition go; every sentence that says something stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_LONGEST_CHARS = 50_000
"""A longer text is no prose, and is left alone."""
_PASSES = 4
_REPEATED_WORDS = 5
"""A shorter sentence may be repeated on purpose: a heading, an item of a list."""

_TO_BE_SHORTENED = re.compile(
    r"\A | \Z|  |\n|\*\*|Please|[.!?] |\A(?:this|the) (?:tool|function|api|endpoint|method) ", re.I
)
"""One look at most descriptions, which have nothing to take out."""
_FENCED = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)
_QUOTING = re.compile(r"[`\"'“”]")
_RUN_OF_SPACES = re.compile(r"(?<=\S) {2,}(?=\S)")
_TRAILING = re.compile(r"(?<![ \t\r])[ \t\r]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")
_BOLD = re.compile(r"(?<![\w*/])\*\*(?=\w)([^*\n]+)(?<=[\w.:!?)])\*\*(?![\w*/])")
_OPENING = re.compile(
    r"\A(?:this|the) (?:tool|function|api|endpoint|method) "
    r"(?:allows you to|lets you|enables you to|is used to|can be used to|is designed to) (?=[a-z])",
    re.IGNORECASE,
)
_PLEASE = re.compile(r"(?:\A|(?<=[.!?] ))Please (?:note that )?([a-z])")
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
_PLAIN_LINE = re.compile(r"[A-Z][a-z]*\b(?!:)")
_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_EMPTY_WORDS = frozenset(("a", "an", "the", "of", "for", "to"))

_OPTIONAL = re.compile(
    r"\A(?:\(optional\)|optional[.:]) +|(?:(?<=\S) +\(optional\)|(?<=\S) +Optional)\.?\Z", re.IGNORECASE
)
_REQUIRED = re.compile(
    r"\A(?:\(required\)|required[.:]) +|(?:(?<=\S) +\(required\)|(?<=\S) +Required)\.?\Z", re.IGNORECASE
)
_LISTED = (
    r"(?:one of|can be|must be one of|must be|(?:possible|allowed|valid|accepted) values(?: are)?|options(?: are)?)"
)
_VALUES_IN_BRACKETS = re.compile(rf" ?\((?:{_LISTED}:? *|e\.g\.,? *)?([^()]{{1,400}})\)", re.IGNORECASE)
_VALUES_IN_A_SENTENCE = re.compile(
    rf"(?:\A|(?<=[.!?]) +){_LISTED}:? +([^.()]{{1,400}})\.?(?= +[A-Z]|\Z)", re.IGNORECASE
)
_BETWEEN_VALUES = re.compile(r",? +or +|,? +and +|[,|/;] *")


def plain(text: str) -> str:
    """The same said with fewer tokens. Code between fences, quoted text and the order of lines stay as they are."""
    if len(text) > _LONGEST_CHARS or not _TO_BE_SHORTENED.search(text):
        return text
    for _ in range(_PASSES):
        shorter = _shorter(text)
        if shorter == text:
            return text
        text = shorter
    return text


def words(text: str) -> frozenset[str]:
    """The words of a text or of a name, in lower case: `userId` and `user_id` have the same two."""
    return frozenset(word.lower() for word in _WORD.findall(_HUMP.sub(" ", text)))


def repeats(text: str, name: str) -> bool:
    """`text` says no more than `name`: "The ID of the user" of `user_id`."""
    said = words(text) - _EMPTY_WORDS
    return bool(said) and said <= words(name)


def without_restatement(text: str, schema: dict[str, Any], required: bool | None) -> str:
    """The description of a parameter without what its schema says in keywords: its default, its enum, whether it is
    required (`required`; None where that is not known)."""
    if len(text) > _LONGEST_CHARS:
        return text
    lowered = text.lower()
    if required is not None and ("required" if required else "optional") in lowered:
        text = (_REQUIRED if required else _OPTIONAL).sub("", text)
    if "default" in schema and "default" in lowered:
        text = _default_pattern(schema["default"]).sub("", text)
    values = schema.get("enum")
    if isinstance(values, list) and values and str(values[0]).lower() in lowered:
        listed = {str(value).lower() for value in values}
        for pattern in (_VALUES_IN_BRACKETS, _VALUES_IN_A_SENTENCE):
            text = pattern.sub(lambda found: "" if _values(found[1]) == listed else found[0], text)
    return text.strip()


# --- Parts ------------------------------------------------------------------------------------------------------


def _shorter(text: str) -> str:
    seen: set[str] = set()
    pieces = _FENCED.split(_without_margin(text))
    written = (piece if i % 2 else _shorter_prose(piece, seen) for i, piece in enumerate(pieces))
    text = _OPENING.sub("", "".join(written).strip())
    return text[:1].upper() + text[1:] if text[:1].isascii() and _opened(text) else text


def _opened(text: str) -> bool:
    """Whether the text starts with a plain word: a name (`iPhone`, `foo_bar`, `x=1`) keeps its case."""
    return re.match(r"[a-z]+ ", text) is not None


def _shorter_prose(text: str, seen: set[str]) -> str:
    text = _TRAILING.sub("", text)
    text = "\n".join(_shorter_line(line, seen) for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text)


def _shorter_line(line: str, seen: set[str]) -> str:
    if not _QUOTING.search(line):
        line = _RUN_OF_SPACES.sub(" ", line)
        line = _BOLD.sub(r"\1", line)
        line = _PLEASE.sub(lambda found: found[1].upper(), line)
    if not _PLAIN_LINE.match(line):
        return line
    return " ".join(_first_time(_SENTENCE_END.split(line), seen))


def _first_time(sentences: list[str], seen: set[str]) -> Iterator[str]:
    for sentence in sentences:
        key = sentence.strip().lower()
        if key not in seen or len(key.split()) < _REPEATED_WORDS:
            seen.add(key)
            yield sentence


def _without_margin(text: str) -> str:
    """A docstring's lines without the spaces that all but the first begin with."""
    first, *others = text.split("\n")
    filled = [line for line in others if line.strip()]
    margin = min((len(line) - len(line.lstrip(" ")) for line in filled), default=0)
    return "\n".join([first.lstrip(" "), *(line[margin:] if line.strip() else "" for line in others)])


def _default_pattern(value: Any) -> re.Pattern[str]:
    if value is None or isinstance(value, bool):
        written = "(?i:none|null)" if value is None else f"(?i:{value})"
    else:
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        written = re.escape(text[:200])
    quoted = rf"[`'\"]?{written}[`'\"]?"
    head = r"(?i:(?:the )?defaults?(?: to| is| value is| value:|:|=)?)"
    return re.compile(rf" ?\({head} ?{quoted}\)|(?:\A|(?<=[.!?]) +){head} +{quoted}\.?(?= +[A-Z]|\Z)")


def _values(text: str) -> set[str]:
    named = {value.strip(" `'\"“”").lower() for value in _BETWEEN_VALUES.split(text.removesuffix("etc."))}
    return named - {""}
