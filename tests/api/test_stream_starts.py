"""How a stream begins: an error there is a failed attempt, and nothing else is held back or changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from orqen_ray.candidates import Inbound
from orqen_ray.formats.eventstream import write_frame
from orqen_ray.types import Call, UpstreamReply
from tests.api.conftest import ScriptedUpstream
from tests.api.lab import lab_gateway
from tests.api.test_fallbacks import ASK, BUSY, CHAT, MESSAGES, NONE

SSE = {"content-type": "text/event-stream"}
EVENTS = {"content-type": "application/vnd.amazon.eventstream"}
GOOD = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
THROTTLED = write_frame(
    {":message-type": "exception", ":exception-type": "throttlingException"}, b'{"message":"slow down"}'
)
STARTS: dict[str, tuple[dict[str, str], bytes]] = {
    "lab-anthropic": (SSE, b"event: error\ndata: " + BUSY + b"\n\n"),
    "lab-openai": (SSE, b'data: {"error":{"message":"busy","type":"server_error","code":503}}\n\n'),
    "lab-bedrock": (EVENTS, THROTTLED),
}


@pytest.mark.parametrize("provider", STARTS)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_stream_that_begins_with_an_error_is_a_failed_attempt(tmp_path: Path, provider: str, path: str) -> None:
    upstream = ScriptedUpstream()
    headers, start = STARTS[provider]
    upstream.script = lambda call: (200, headers, [start]) if call.model == "m" else (200, SSE, [GOOD])
    model = f"{provider}/m"
    body = {**ASK, "model": model, "stream": True}
    async with lab_gateway(tmp_path, upstream, fallbacks={model: ["lab-openai/good"]}) as lab:
        answer = await lab.client.post(path, json=body)
        assert answer.status_code == 200 and "hi" in answer.text and "error" not in answer.text
    assert [call.model for call in upstream.calls] == ["m", "m", "m", "good"]


async def test_a_last_stream_that_begins_with_an_error_reaches_a_caller_of_its_format_untouched(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    headers, start = STARTS["lab-anthropic"]
    upstream.script = lambda call: (200, headers, [start[:20], start[20:]])
    body = {**ASK, "model": "lab-anthropic/m", "stream": True}
    async with lab_gateway(tmp_path, upstream, retries=NONE) as lab:
        same = await lab.client.post(MESSAGES, json=body)
        converted = await lab.client.post(CHAT, json=body)
    assert (same.status_code, same.content) == (200, start)
    assert converted.status_code == 529 and converted.json()["error"]["message"] == "Overloaded"


async def test_a_comment_at_the_start_of_a_stream_is_passed_on_at_once(tmp_path: Path) -> None:
    seen = asyncio.Event()
    upstream = ScriptedUpstream()

    async def slow(call: Call) -> UpstreamReply:
        async def chunks() -> AsyncIterator[bytes]:
            yield b": processing\n\n"
            await seen.wait()
            yield GOOD

        return UpstreamReply(status=200, headers=SSE, chunks=chunks())

    upstream.send = slow  # type: ignore[method-assign]
    async with lab_gateway(tmp_path, upstream) as lab:
        from orqen_ray.formats.openai_chat.format import OPENAI_CHAT

        inbound = Inbound(
            format=OPENAI_CHAT,
            body=msgspec.json.encode({**ASK, "stream": True}),
            headers={},
            key_id="k",
            request_id="r",
        )
        answer = await lab.service.gateway.converse(inbound)
        assert not isinstance(answer.body, bytes)
        chunks = aiter(answer.body)
        assert await anext(chunks) == b": processing\n\n"
        seen.set()
        assert b"".join([chunk async for chunk in chunks]) == GOOD
        await answer.aclose()
