"""Images in Chat Completions requests."""

from __future__ import annotations

import pytest

from orqen_ray.conversation import Image
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT


@pytest.mark.parametrize(("given", "read"), [("jpg", "jpeg"), ("jpeg", "jpeg"), ("png", "png")])
def test_a_jpg_is_a_jpeg(given: str, read: str) -> None:
    # OpenAI takes the misnomer; Anthropic and Bedrock do not.
    part = {"type": "image_url", "image_url": {"url": f"data:image/{given};base64,QUJD"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    (image,) = OPENAI_CHAT.read_request(body, None).messages[0].blocks
    assert isinstance(image, Image) and image.source.media_type == f"image/{read}"
