"""How much a conversation needs each of its tools: words, vectors and rules, weighed by a calibrated scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from orqen_ray.conversation import Conversation
from orqen_ray.encoders.protocol import EncoderUnavailable, Reranker, Vectors
from orqen_ray.policy import ToolPolicy, ToolUse
from orqen_ray.tools.features import (
    DENSE_FEATURES,
    WORD_FEATURES,
    Floats,
    dense_features,
    word_features,
)
from orqen_ray.tools.routing import Method, Probabilities, Scored
from orqen_ray.tools.rules import always_kept, givers
from orqen_ray.tools.tool_set import ToolSet
from orqen_ray.tools.views import Views, views_of

WORDS = "words:"
"""Prefix of the weights of the scorer that has words only; its bias is the weight `words:`."""
_DECISIVE_MISS, _DECISIVE_KEPT, _DECISIVE_SHARE = 0.01, 5, 0.08
"""Words alone decide when the tools beyond the best few are needed with less than this probability."""
_BAND, _BAND_MAX = (0.002, 0.5), 16
"""Between these probabilities the reranker may raise a tool's, for so many at most."""
_INLINE_TOOLS = 600
"""More tools than these are compared in a thread, so that the event loop never stands still for long."""


class ToolVectors(Protocol):
    """Vectors of tools, remembered by their text, and of what a conversation says, which is not."""

    async def vectors(self, texts: Sequence[str], timeout_s: float | None) -> Vectors: ...

    async def query(self, texts: Sequence[str]) -> Vectors: ...


class Scorer:
    """Scores tool sets. Without `vectors` by words alone."""

    def __init__(self, vectors: ToolVectors | None, reranker: Reranker | None = None) -> None:
        self._vectors = vectors
        self._reranker = reranker

    async def score(
        self,
        conversation: Conversation,
        tools: ToolSet,
        policy: ToolPolicy,
        use: ToolUse | None,
        timeout_s: float | None,
    ) -> Scored:
        """The probability of each tool, and what is kept whatever it is.

        Raises:
            EncoderUnavailable: the encoder was late or is gone, and the words alone did not decide.
        """
        views = views_of(conversation)
        always = always_kept(conversation, tools, views)
        words = await _compared(tools, lambda: word_features(tools, views, use))
        p_needed = probabilities(words, WORD_FEATURES, policy, WORDS)
        method: Method = "keyword"
        if views.last and self._vectors is not None and not _decisive(tools, p_needed, always):
            method = "semantic"
            dense = await self._dense(self._vectors, views, tools, words, timeout_s)
            p_needed = probabilities(np.hstack((words, dense)), (*WORD_FEATURES, *DENSE_FEATURES), policy)
            p_needed = await self._rescued(views, tools, policy, p_needed, timeout_s)
        always = {**dict.fromkeys(givers(tools, p_needed), "rule"), **always}
        return Scored(
            names=tools.names,
            p_needed=p_needed,
            always=always,
            method=method,
            unsure="no_text" if not views.last else "failed_call" if views.failed else "",
        )

    async def _dense(
        self, vectors: ToolVectors, views: Views, tools: ToolSet, words: Floats, timeout_s: float | None
    ) -> Floats:
        texts = views.texts()
        distinct = list(dict.fromkeys(text for _, text in texts))
        try:
            async with asyncio.timeout(timeout_s):
                of_tools, of_texts = await asyncio.gather(
                    vectors.vectors([card.text for card in tools.cards], timeout_s), vectors.query(distinct)
                )
        except TimeoutError:
            raise EncoderUnavailable("the encoder did not answer in time") from None
        at = [distinct.index(text) for _, text in texts]
        return await _compared(tools, lambda: dense_features(tools, words, texts, of_tools, of_texts[at]))

    async def _rescued(
        self, views: Views, tools: ToolSet, policy: ToolPolicy, p_needed: Probabilities, timeout_s: float | None
    ) -> Probabilities:
        """Raised where the reranker finds more in a tool than the scorer did; lowered nowhere. What it says counts by
        the weights `rerank` (of its log-odds), `rerank_prior` (of the scorer's) and `rerank_bias`."""
        if self._reranker is None or "rerank" not in policy.weights:
            return p_needed
        order = np.argsort(-p_needed, kind="stable")
        band = [at for at in order if _BAND[0] <= p_needed[at] <= _BAND[1]][:_BAND_MAX]
        if not band:
            return p_needed
        try:
            async with asyncio.timeout(timeout_s):
                scores = await self._reranker.score([(views.recent or views.last, tools.cards[at].text) for at in band])
        except (TimeoutError, EncoderUnavailable):
            return p_needed
        weights = policy.weights
        odds = weights["rerank"] * _logit(scores.astype(np.float64))
        odds += weights.get("rerank_prior", 1.0) * _logit(p_needed[band]) + weights.get("rerank_bias", 0.0)
        raised = p_needed.copy()
        raised[band] = np.maximum(p_needed[band], _sigmoid(odds))
        return raised


def probabilities(features: Floats, names: Sequence[str], policy: ToolPolicy, prefix: str = "") -> Probabilities:
    """P(needed) of each tool from its features, shape (tools,). A feature without a weight does not count."""
    bias = policy.weights.get(prefix, 0.0) if prefix else policy.bias
    weights = np.array([policy.weights.get(prefix + name, 0.0) for name in names])
    return _sigmoid(features @ weights + bias)


def _decisive(tools: ToolSet, p_needed: Probabilities, always: Mapping[str, str]) -> bool:
    """Whether the words leave no doubt that one of a few tools is the one."""
    open_to_doubt = np.array([name not in always for name in tools.names], dtype=bool)
    left = np.sort(p_needed[open_to_doubt])
    few = max(_DECISIVE_KEPT, int(len(tools.names) * _DECISIVE_SHARE))
    beyond = left[: max(0, len(left) - few)]
    return bool(1.0 - np.prod(1.0 - beyond) <= _DECISIVE_MISS)


async def _compared(tools: ToolSet, compare: Callable[[], Floats]) -> Floats:
    return compare() if len(tools.cards) <= _INLINE_TOOLS else await asyncio.to_thread(compare)


def _logit(p: Floats) -> Floats:
    bounded = np.clip(p, 1e-6, 1 - 1e-6)
    odds: Floats = np.log(bounded / (1 - bounded))
    return odds


def _sigmoid(x: Floats) -> Floats:
    p: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -40.0, 40.0)))
    return p
