"""What a call cost, from the price list of genai-prices or from the operator's own prices."""

from __future__ import annotations

import logging

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

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


def load_prices() -> None:
    """Read the price list, which takes 20 ms once in a process: do it in a thread before the first request."""
    cost_usd("openai", "gpt-4o", Usage(input_tokens=1))


def cost_usd(
    provider: str, model: str, usage: Usage, prices_usd_per_mtok: tuple[float, float] | None = None
) -> float | None:
    """Price of `usage` in US dollars, or None where no price is known. Never raises, never asks the network.

    Takes about 0.1 ms once the price list is loaded.

    Args:
        model: the id that was sent to the provider.
        prices_usd_per_mtok: the operator's prices of a million input and output tokens; they replace the list's, and
            cached tokens then cost as much as others.
    """
    if prices_usd_per_mtok is not None:
        input_usd, output_usd = prices_usd_per_mtok
        return (usage.prompt_tokens * input_usd + usage.output_tokens * output_usd) / 1e6
    price_list = _PRICE_LISTS.get(provider)
    if price_list is None:
        return None
    # The list counts as the vendors do: cached tokens are part of the input.
    priced = {
        "input_tokens": usage.prompt_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": min(usage.cache_write_1h_tokens, usage.cache_write_tokens),
        "output_tokens": usage.output_tokens,
        "output_reasoning_tokens": min(usage.reasoning_tokens, usage.output_tokens),
    }
    try:
        price = calc_price(
            PricedUsage(**{key: count for key, count in priced.items() if count}), model, provider_id=price_list
        )
    except LookupError:
        return None
    except (ValueError, TypeError, ArithmeticError) as error:
        _log.warning("no price for %s/%s: %s", provider, model, type(error).__name__)
        return None
    return float(price.total_price)
