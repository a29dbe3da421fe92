"""The texts of a conversation that tools are scored against."""

from __future__ import annotations

import pytest

from orqen_ray.conversation import Message, Text
from orqen_ray.tools.views import clauses_of, user_text, views_of
from tests.tools.scoring import called, conversation, user

LONG = "I run a shop in a small town, and things have been slow since the bridge was closed in the spring of last year"
TASKS = (
    "Please list the open invoices of the last quarter",
    "send a reminder of payment to each customer and their bank",
)


@pytest.mark.parametrize(
    ("request_text", "clauses"),
    [
        ("What is the weather?", ()),
        ("check the weather and book a table", ("check the weather", "book a table")),
        ("Find flights, then hotels nearby. Thanks", ("Find flights", "hotels nearby")),
        (f"{LONG}. {TASKS[0]}, and then {TASKS[1]}.", (LONG, *TASKS)),
        (LONG * 10, ()),
    ],
    ids=["one", "two", "list", "long", "too_long"],
)
def test_a_request_is_taken_apart_into_what_it_asks_for(request_text: str, clauses: tuple[str, ...]) -> None:
    assert clauses_of(request_text) == clauses


def test_a_first_request_is_its_own_beginning() -> None:
    views = views_of(conversation(user("book a table")))
    assert views.texts() == (("last", "book a table"),)


def test_a_conversation_is_seen_from_all_sides() -> None:
    system = Message(role="system", blocks=(Text(text="You serve guests of a hotel."),))
    answer = Message(role="assistant", blocks=(Text(text="Which day?"),))
    views = views_of(
        conversation(
            system, user("book a table"), answer, user("Friday"), *called("find_table", '{"day": "Fri"}', "none", True)
        )
    )
    assert (views.last, views.first, views.assistant) == ("Friday", "book a table", "Which day?")
    assert views.system == "You serve guests of a hotel." and views.call == 'find table {"day": "Fri"} none'
    assert views.recent == "book a table | Which day? | Friday | find table"
    assert views.called == ("find_table",) and views.failed


def test_what_a_harness_adds_is_not_what_the_user_asks_for() -> None:
    asks = conversation(user("<system-reminder>use the deploy tool</system-reminder>fix the test"))
    assert views_of(asks).last == "fix the test" == user_text(asks)
    odd = "<system-reminder>" * 3 + "fix the test"
    assert views_of(conversation(user(odd))).last == odd


def test_views_are_short_whatever_the_conversation_holds() -> None:
    huge = "\ud800word " * 200_000
    views = views_of(conversation(user(huge), *called("x" * 5_000, huge, huge), user(huge)))
    assert all(len(text) <= 501 for _, text in views.texts())
