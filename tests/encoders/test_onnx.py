"""The shipped embedder: what its vectors depend on, and what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqen_ray.encoders.onnx import OnnxEmbedder

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(categories=("Cs", "So", "Lo")), max_size=20),
    st.sampled_from(["get_weather: the weather of a city", "Cancel my flight to Rome!", "日本語のテキスト", "a" * 300]),
)
ODD = ["", " ", "\0", "😀🏳️‍🌈", "\ud800", "word " * 200_000, "x" * 1_000_000]


@given(sets=st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=2, max_size=3))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_text_has_the_same_vector_whatever_it_is_embedded_with(
    embedder: OnnxEmbedder, sets: Sequence[Sequence[str]]
) -> None:
    together = await asyncio.gather(*map(embedder.embed, sets))
    for texts, vectors in zip(sets, together, strict=True):
        for text, vector in zip(texts, vectors, strict=True):
            (alone,) = await embedder.embed([text])
            assert np.array_equal(alone, vector), text


async def test_texts_that_mean_the_same_are_near_and_others_are_not(embedder: OnnxEmbedder) -> None:
    question, weather, mail = await embedder.embed(
        ["Will it rain in Paris tomorrow?", "get weather: forecast of a city", "send email: to, subject, body"]
    )
    assert question @ weather > question @ mail + 0.2


async def test_any_text_has_a_vector_of_length_one(embedder: OnnxEmbedder) -> None:
    vectors = await embedder.embed(ODD)
    assert vectors.shape == (len(ODD), embedder.dimensions) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_no_text_has_no_vector(embedder: OnnxEmbedder) -> None:
    assert (await embedder.embed([])).shape == (0, embedder.dimensions)


async def test_the_name_says_model_revision_precision_and_length(embedder: OnnxEmbedder) -> None:
    model, revision, precision, tokens = embedder.name.split("-")
    assert (model, len(revision), precision, tokens) == ("default", 8, "int8", "256")
    assert OnnxEmbedder(max_tokens=8).name != embedder.name, "its vectors are others"
