"""What a call cost, from the price list of genai-prices or from the operator's own prices."""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

from orqen_ray.conversation import Usage

# Catalog row -> the price list's own name. Only these: the list would also take `lab-openai` for OpenAI.
_PRICE_LISTS = {
    "anthropic": "anthropic",
    "azure": "azure",
    "bedrock": "aws",
    "cerebras": "cerebras",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "gemini": "google",
    "groq": "groq",
    "mistral": "mistral",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "together": "together",
    "xai": "x-ai",
}

_log = logging.getLogger(__name__)


def cost_usd(
    provider: str,
    model: str,
    usage: Usage,
    prices_usd_per_mtok: tuple[float, float] | None = None,
    *,
    at: datetime | None = None,
) -> float | None:
    """Price of `usage` in US dollars, or None where no price is known. Never raises, never asks the network.

    Some microseconds for a model that was priced before; the first in a process takes 30 ms, in which the price list is
    read: not for an event loop.

    Args:
        model: the id that was sent to the provider.
        prices_usd_per_mtok: the operator's prices of a million input and output tokens; they replace the list's, and
            cached tokens then cost as much as others.
        at: when the call was made, with a time zone, for prices that change; now by default.
    """
    if prices_usd_per_mtok is not None:
        input_usd, output_usd = prices_usd_per_mtok
        return (usage.prompt_tokens * input_usd + usage.output_tokens * output_usd) / 1e6
    price_list = _PRICE_LISTS.get(provider)
    if price_list is None:
        return None
    try:
        found = _model(price_list, model)
        return None if found is None else _rates(found, at or datetime.now(UTC), usage.prompt_tokens).cost_usd(usage)
    except (ValueError, TypeError, ArithmeticError) as error:
        _log.warning("no price for %s/%s: %s", provider, model, type(error).__name__)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """US dollars a token, as one price list's entry asks for prompts of about one size; `call_usd` for each call.

    A price is a sum over the tokens, so asking the list once for each kind of token is enough. The list itself takes
    0.1 ms for each price, which is too much for a million rows.
    """

    call_usd: float
    input_usd: float
    cache_read_usd: float
    cache_write_usd: float
    cache_write_1h_usd: float
    output_usd: float
    reasoning_usd: float

    def cost_usd(self, usage: Usage) -> float:
        """Raises ValueError for a usage that cannot be."""
        reasoning = min(usage.reasoning_tokens, usage.output_tokens)
        for_an_hour = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
        if min(usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens, for_an_hour, reasoning) < 0:
            raise ValueError("a count of tokens is negative")
        return (
            self.call_usd
            + self.input_usd * usage.input_tokens
            + self.cache_read_usd * usage.cache_read_tokens
            + self.cache_write_usd * (usage.cache_write_tokens - for_an_hour)
            + self.cache_write_1h_usd * for_an_hour
            + self.output_usd * (usage.output_tokens - reasoning)
            + self.reasoning_usd * reasoning
        )


@lru_cache(maxsize=1024)
def _model(price_list: str, model: str) -> ModelInfo | None:
    try:
        return calc_price(PricedUsage(input_tokens=1), model, provider_id=price_list).model
    except LookupError:
        return None


def _rates(model: ModelInfo, at: datetime, prompt_tokens: int) -> _Rates:
    """The rates of `model` at a time; a tier's price holds for all tokens of a prompt that is longer than its start."""
    price = model.get_prices(at)
    starts = sorted(
        {tier.start for each in vars(price).values() if isinstance(each, TieredPrices) for tier in each.tiers}
    )
    tier = bisect_left(starts, prompt_tokens)
    return _asked_rates(_Identity(price), 1 if tier == 0 else starts[tier - 1] + 1)


@dataclass(frozen=True, slots=True)
class _Identity:
    """A price as a key: the list's entries compare by value and cannot be hashed."""

    price: ModelPrice

    def __hash__(self) -> int:
        return id(self.price)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.price is other.price


@lru_cache(maxsize=4096)
def _asked_rates(key: _Identity, prompt_tokens: int) -> _Rates:
    """The rates for prompts of `prompt_tokens`, by asking for the price of a call with only one kind of token."""

    def usd(**tokens: int) -> float:
        return float(key.price.calc_price(PricedUsage(**tokens))["total_price"])

    # The list counts as the vendors do: cached tokens are part of the input.
    n = prompt_tokens
    call, prompt = usd(), usd(input_tokens=n)
    return _Rates(
        call_usd=call,
        input_usd=(prompt - call) / n,
        cache_read_usd=(usd(input_tokens=n, cache_read_tokens=n) - call) / n,
        cache_write_usd=(usd(input_tokens=n, cache_write_tokens=n) - call) / n,
        cache_write_1h_usd=(usd(input_tokens=n, cache_write_tokens=n, cache_write_1h_tokens=n) - call) / n,
        output_usd=usd(input_tokens=n, output_tokens=1) - prompt,
        reasoning_usd=usd(input_tokens=n, output_tokens=1, output_reasoning_tokens=1) - prompt,
    )
