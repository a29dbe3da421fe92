"""Cards and keywords of tools of any kind, also hostile ones."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import Tool
from orqen_ray.tools.cards import card_of
from orqen_ray.tools.keyword import KeywordIndex
from orqen_ray.tools.tool_set import tool_set_of
from orqen_ray.tools.words import split_name, terms
from tests.tools.scoring import many, tool

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["properties", "enum", "$ref"]), inner),
    max_leaves=8,
)
ANY_TEXT = st.text(st.characters(), max_size=30)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("getUserID", "get user id"),
        ("HTTPServer_v2", "http server v2"),
        ("mcp__git-hub__create_issue", "mcp git hub create issue"),
        ("größeÄndern", "größe ändern"),
        ("天気予報", "天気予報"),
        ("🔥", ""),
        ("", ""),
    ],
)
def test_names_are_split_into_words(name: str, words: str) -> None:
    assert split_name(name) == words


def test_forms_of_a_word_meet() -> None:
    for one, other in (("bookings", "booking"), ("cities", "city"), ("planned", "plan"), ("searches", "search")):
        assert terms(one) == terms(other), one
    assert set(terms("東京の天気")) & set(terms("天気を調べる")) == {"天気"}


def test_a_card_says_what_a_tool_is() -> None:
    card = card_of(
        Tool(
            name="mcp__travel__cancelBooking",
            description="Cancels a booking.",
            parameters={
                "type": "object",
                "required": ["booking_id", "reason"],
                "properties": {
                    "booking_id": {"type": "string"},
                    "reason": {"enum": ["illness", "weather"]},
                    "notify": {"type": "object", "properties": {"email": {"type": "string"}}},
                },
            },
            examples=("I cannot make it on Friday",),
        )
    )
    assert card.group == "mcp__travel" and card.side_effect == "write" and card.needs == ("book",)
    assert card.parameters == ("booking_id", "reason", "notify", "email") and card.enums == ("illness", "weather")
    assert card.text == (
        "mcp travel cancel booking: Cancels a booking.; I cannot make it on Friday; booking id, reason, notify, email"
    )
    assert not (card.utility or card.auth or card.builtin or card.keep)


def test_a_tool_that_needs_an_id_knows_who_gives_it() -> None:
    tools = [*many(), tool("get_user_details", "Gets them.", "user_id"), tool("find_user", "Finds.", "email")]
    needing, giving = tool_set_of(tools).producers
    assert list(zip(needing.tolist(), giving.tolist(), strict=True)) == [(60, 61)]


def test_tools_of_a_server_or_a_namespace_belong_together() -> None:
    names = ("mcp__a__x", "mcp__b__x", "mcp__a__y", "trading_login", "trading_quote", "get_x", "get_y")
    groups = tool_set_of([tool(name) for name in names]).groups.tolist()
    assert groups == [0, -1, 0, 1, 1, -1, -1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_TEXT, st.none() | ANY_TEXT, st.none() | st.dictionaries(st.text(), ANY_JSON), st.lists(ANY_TEXT))
def test_whatever_a_definition_holds_it_gets_a_card(
    name: str, description: str | None, parameters: dict[str, Any] | None, examples: list[str]
) -> None:
    odd = Tool(name=name, description=description, parameters=parameters, examples=tuple(examples))
    card = card_of(odd)
    assert card.name == name and len(card.text.encode()) < 4_000
    tools = tool_set_of([odd, odd, tool("ok", "Fine.")])
    scores, most = tools.keyword.scores(terms(f"{name} {description}"))
    assert scores.shape == (3,) and np.isfinite(scores).all() and (scores <= most + 1e-9).all()
    assert tools.groups.shape == (3,) and tools.fingerprint == tool_set_of([odd, odd, tool("ok", "Fine.")]).fingerprint


def test_odd_schemas_take_no_time() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"properties": {"x": deep}}
    looped: dict[str, Any] = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    wide = {"properties": {f"p{at}": {"enum": [str(at)] * 100} for at in range(10_000)}}
    started = time.monotonic()
    for number, parameters in enumerate((deep, looped, wide, {"properties": [1], "required": 7, "enum": {}})):
        card = card_of(Tool(name=f"t{number}", description="x y " * 250_000, parameters=parameters))
        assert len(card.text) < 1_000 and len(card.terms) <= 400
    assert time.monotonic() - started < 5


def test_a_fingerprint_is_of_names_and_definitions_in_order() -> None:
    tools = many(30)
    same = tool_set_of(many(30))
    assert same.fingerprint == tool_set_of(tools).fingerprint and same is tool_set_of(tools)
    others = [tools[::-1], tools[:-1], [*tools[:-1], tool(tools[-1].name, "Another text.", "query")]]
    assert len({same.fingerprint, *(tool_set_of(other).fingerprint for other in others)}) == 4


def test_two_tools_of_one_name_keep_their_places() -> None:
    tools = tool_set_of([tool("a", "One."), tool("b"), tool("a", "Two.")])
    assert tools.names == ("a", "b", "a") and tools.positions == {"a": (0, 2), "b": (1,)}


# --- Keywords -----------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from("a b c d e f g".split()), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=6), WORDS)
def test_keyword_scores_are_those_of_the_formula(documents: list[list[str]], query: list[str]) -> None:
    scores, _ = KeywordIndex(documents).scores(query)
    mean = max(1.0, sum(map(len, documents)) / max(1, len(documents)))
    for at, document in enumerate(documents):
        expected = 0.0
        for term in set(query):
            having = sum(term in other for other in documents)
            idf = np.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            repeats = document.count(term)
            norm = 1.2 * (1 - 0.6 + 0.6 * len(document) / mean)
            expected += idf * repeats * 2.2 / (repeats + norm) if repeats else 0.0
        assert scores[at] == pytest.approx(expected)
