"""Prices of calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import Usage
from orqen_ray.traces.cost import _PRICE_LISTS, cost_usd

COUNTS = st.integers(min_value=0, max_value=10**9)
MILLION = 10**6


def test_anthropics_cache_prices_are_those_of_its_price_page() -> None:
    # https://platform.claude.com/docs/en/about-claude/pricing: Sonnet 4.5 in 3, read 0.30, 5 min 3.75, 1 h 6, out 15.
    def price(**counts: int) -> float | None:
        return cost_usd("anthropic", "claude-sonnet-4-5", Usage(**counts))

    tenth = MILLION // 10  # below the long-context tier
    assert price(input_tokens=tenth) == pytest.approx(0.3)
    assert price(cache_read_tokens=tenth) == pytest.approx(0.03)
    assert price(cache_write_tokens=tenth) == pytest.approx(0.375)
    assert price(cache_write_tokens=tenth, cache_write_1h_tokens=tenth) == pytest.approx(0.6)
    assert price(output_tokens=tenth, reasoning_tokens=tenth // 2) == pytest.approx(1.5)


def test_the_parts_of_a_prompt_add_up() -> None:
    # gpt-4o: 2.50 in, 1.25 cached, 10 out.
    usage = Usage(input_tokens=400, cache_read_tokens=600, output_tokens=50)
    assert cost_usd("openai", "gpt-4o", usage) == pytest.approx((400 * 2.5 + 600 * 1.25 + 50 * 10) / MILLION)


@pytest.mark.parametrize("provider", ["bedrock", "azure", "gemini", "xai", "groq"])
def test_resellers_and_renamed_providers_have_prices(provider: str) -> None:
    model = {
        "bedrock": "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "azure": "gpt-4o",
        "gemini": "gemini-2.5-flash",
        "xai": "grok-4",
        "groq": "llama-3.3-70b-versatile",
    }[provider]
    assert (cost_usd(provider, model, Usage(input_tokens=1000)) or 0) > 0


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "no-such-model"), ("lab-openai", "gpt-4o"), ("sandbox", "echo")]
)
def test_what_no_list_knows_has_no_price(provider: str, model: str) -> None:
    assert cost_usd(provider, model, Usage(input_tokens=1)) is None


def test_the_operators_prices_replace_the_list() -> None:
    usage = Usage(input_tokens=MILLION, cache_read_tokens=MILLION, output_tokens=MILLION)
    assert cost_usd("openai", "gpt-4o", usage, (0.1, 0.3)) == pytest.approx(0.5)
    assert cost_usd("lab", "qwen", usage, (0.0, 0.0)) == 0.0


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.text(max_size=30))
def test_no_usage_and_no_model_make_it_raise(a: int, b: int, c: int, d: int, e: int, f: int, model: str) -> None:
    usage = Usage(
        input_tokens=a,
        cache_read_tokens=b,
        cache_write_tokens=c,
        cache_write_1h_tokens=d,
        output_tokens=e,
        reasoning_tokens=f,
    )
    for name in ("claude-sonnet-4-5", model):
        price = cost_usd("anthropic", name, usage)
        assert price is None or price >= 0


def test_a_usage_that_cannot_be_has_no_price() -> None:
    assert cost_usd("openai", "gpt-4o", Usage(input_tokens=-1)) is None


LISTED = [
    (catalog_row, model.id)
    for catalog_row, price_list in sorted(_PRICE_LISTS.items())
    for model in next(each for each in get_snapshot().providers if each.id == price_list).models
    if cost_usd(catalog_row, model.id, Usage()) is not None  # some are found by another name only
]
SMALL = st.integers(min_value=0, max_value=500_000)


def test_there_are_models_to_compare() -> None:
    assert len(LISTED) > 200


@settings(max_examples=400)
@given(st.sampled_from(LISTED), SMALL, SMALL, SMALL, SMALL, st.integers(min_value=0, max_value=20_000))
def test_rates_give_the_price_that_the_list_gives(
    listed: tuple[str, str], input_: int, read: int, write: int, output: int, hours_ago: int
) -> None:
    provider, model = listed
    at = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=hours_ago)
    usage = Usage(
        input_tokens=input_,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=write // 3,
        output_tokens=output,
        reasoning_tokens=output // 2,
    )
    asked = PricedUsage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=write // 3,
        output_tokens=output,
        output_reasoning_tokens=output // 2,
    )
    price = calc_price(asked, model, provider_id=_PRICE_LISTS[provider], genai_request_timestamp=at).total_price
    assert cost_usd(provider, model, usage, at=at) == pytest.approx(float(price))
