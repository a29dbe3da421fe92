"""What prompts cost under a cache: by hand-made arithmetic, and what must hold for any figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.economics import Situation, input_bill, miss_cost

ONE_CALL = Situation(calls=1, p_gap=0, growth_tokens=0)
WARM = Situation(calls=1, p_gap=0, growth_tokens=0, conversations_per_minute=1000)


def test_one_cold_call_is_written_to_the_cache() -> None:
    assert input_bill(8000, 2000, ONE_CALL, shared=True) == pytest.approx(10_000 * 1.25)


def test_a_warm_head_is_read_and_the_messages_are_written() -> None:
    assert input_bill(20_000, 1000, WARM, shared=True) == pytest.approx(20_000 * 0.1 + 1000 * 1.25)


def test_what_only_one_conversation_sends_is_never_warm_at_the_head() -> None:
    assert input_bill(6000, 1000, WARM, shared=False) == pytest.approx(7000 * 1.25)


def test_the_system_is_warm_with_the_tools_and_lost_with_them() -> None:
    situation = Situation(calls=1, p_gap=0, growth_tokens=0, conversations_per_minute=1000, system_tokens=8000)
    # The example of the notes on providers: 20 k tokens of tools, 8 k of system, warm.
    assert input_bill(20_000, 8000, situation, shared=True) == pytest.approx(2800)
    assert input_bill(6000, 8000, situation, shared=False) == pytest.approx(17_500)


def test_later_calls_read_what_was_sent_before_and_write_what_is_new() -> None:
    situation = Situation(calls=3, p_gap=0, growth_tokens=500)
    head = 10_000 * 1.25
    assert input_bill(9000, 1000, situation, shared=False) == pytest.approx(head + 2 * 1000 + 500 * 0.1 + 1000 * 1.25)


def test_a_gap_longer_than_the_cache_lives_writes_all_anew() -> None:
    situation = Situation(calls=2, p_gap=1, growth_tokens=0)
    assert input_bill(9000, 1000, situation, shared=True) == pytest.approx(2 * 12_500)


def test_half_the_arrivals_within_the_life_of_an_entry_find_it_warm() -> None:
    situation = Situation(calls=1, p_gap=0, growth_tokens=0, ttl_s=60, conversations_per_minute=0.6931472)
    assert input_bill(10_000, 0, situation, shared=True) == pytest.approx(10_000 * (0.1 + 1.25) / 2)


@pytest.mark.parametrize("situation", [Situation(caching=False, calls=4), Situation(cache_min_tokens=20_000, calls=4)])
def test_without_a_cache_every_call_pays_for_everything(situation: Situation) -> None:
    assert input_bill(9000, 1000, situation, shared=True) == pytest.approx(4 * 10_000 + (300 + 600 + 900))


def test_a_restore_that_rewrites_the_prefix_costs_more_than_one_that_appends() -> None:
    append = Situation(calls=1, growth_tokens=0, ask_rate=1, restore="append")
    rewrite = Situation(calls=1, growth_tokens=0, ask_rate=1, restore="rewrite")
    assert miss_cost(9000, 100, 1000, append) == pytest.approx(10_000 * 0.1 + 100 * 1.25)
    assert miss_cost(9000, 100, 1000, rewrite) == pytest.approx(10_000 * 1.25 + 100 * 1.25)


def test_a_model_that_does_not_ask_loses_its_answer() -> None:
    for situation in (Situation(ask_rate=0), Situation(restore="off")):
        assert miss_cost(9000, 100, 1000, situation) == situation.lost_answer_tokens


@given(
    tools=st.integers(0, 100_000),
    more=st.integers(0, 100_000),
    prompt=st.integers(0, 50_000),
    rate=st.floats(0, 100),
    calls=st.floats(1, 50),
    caching=st.booleans(),
)
def test_sharing_never_costs_and_more_tools_never_cost_less(
    tools: int, more: int, prompt: int, rate: float, calls: float, caching: bool
) -> None:
    situation = Situation(conversations_per_minute=rate, calls=calls, caching=caching, cache_min_tokens=0)
    shared, own = (input_bill(tools, prompt, situation, shared=shared) for shared in (True, False))
    assert shared <= own + 1e-6
    assert input_bill(tools + more, prompt, situation, shared=False) >= own - 1e-6
