"""Text to words: names split, words stemmed, Chinese, Japanese and Korean as pairs of characters."""

from __future__ import annotations

import functools
import re

_JOINT = re.compile(r"(?<=[a-zß-ÿ0-9])(?=[A-ZÀ-Þ])|(?<=[A-ZÀ-Þ])(?=[A-ZÀ-Þ][a-zß-ÿ])")
_WORD = re.compile(r"[^\W_]+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+")
_WORD_CHARS = 40
_STOP = frozenset(
    "a an and any are as at be been but by can could did do does for from had has have how i if in into is it its "
    "just let may me might my need no not of off on or our out please should so some than that the their them then "
    "there these they this those to too up us use used using want was we were what when where which who will with "
    "would you your".split()
)


def split_name(name: str) -> str:
    """`getUserID_v2` -> "get user id v2": lower case, one space between words; "" if it has no letters or digits."""
    return " ".join(_WORD.findall(_JOINT.sub(" ", name))).lower()


def terms(text: str) -> list[str]:
    """The words of `text` that carry meaning, stemmed, in order, with repeats."""
    found: list[str] = []
    for word in _WORD.findall(_JOINT.sub(" ", text).lower()):
        if word.isascii():
            if word not in _STOP:
                found.append(_stem(word[:_WORD_CHARS]))
        else:
            found.extend(_pairs(word[: _WORD_CHARS * 4]))
    return found


def _pairs(word: str) -> list[str]:
    """Scripts without spaces between words are matched by pairs of neighbours; other parts stay whole."""
    found: list[str] = []
    at = 0
    for run in _CJK.finditer(word):
        found.append(word[at : run.start()])
        text, at = run.group(), run.end()
        found.extend(text[i : i + 2] for i in range(max(1, len(text) - 1)))
    found.append(word[at:])
    return [part for part in found if part]


@functools.lru_cache(maxsize=20_000)
def _stem(word: str) -> str:
    """The endings that English names and requests differ in most; two forms of a word need only meet."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    for ending, least in (("ations", 8), ("ation", 7), ("ings", 7), ("ing", 6), ("ers", 6), ("es", 5), ("ed", 5)):
        if len(word) >= least and word.endswith(ending):
            return _bare(word[: -len(ending)])
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return _bare(word)


def _bare(word: str) -> str:
    if len(word) > 3 and word.endswith("e"):
        return word[:-1]
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiousl":
        return word[:-1]
    return word
