"""How long a provider asks to wait, in every form that it may say it."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import Overloaded
from orqen_ray.retry_after import read_wait_s, retry_after_of

NOW_S = 1_760_000_000.0


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": formatdate(NOW_S + 30, usegmt=True)}, 30),
        ({"retry-after": formatdate(NOW_S - 30, usegmt=True)}, 0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 41 Oct"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_each_form_is_read(headers: dict[str, str], wait_s: float | None) -> None:
    assert read_wait_s(headers, NOW_S) == wait_s


@given(st.text())
def test_no_text_is_an_error(text: str) -> None:
    wait_s = read_wait_s({"retry-after": text, "retry-after-ms": text}, NOW_S)
    assert wait_s is None or 0 <= wait_s < float("inf")


def test_a_caller_is_never_told_to_come_too_early() -> None:
    assert retry_after_of(Overloaded("busy", retry_after_s=1.2)) == "2"
