"""The shipped embedder, read once for the run."""

from __future__ import annotations

import pytest

from orqen_ray.encoders.onnx import OnnxEmbedder


@pytest.fixture(scope="session")
def embedder() -> OnnxEmbedder:
    return OnnxEmbedder(threads=2)
