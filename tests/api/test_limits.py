"""What a key may use, through the front door: refused in each SDK's own words, and counted in every format."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import boto3
import httpx
import openai
import pytest
import uvicorn
from botocore.config import Config
from botocore.exceptions import ClientError
from prometheus_client import CollectorRegistry

from orqen_ray.api.app import create_app
from orqen_ray.service import Service
from orqen_ray.store.keys import KeyRecord
from orqen_ray.store.token_counts import TokenCounts
from tests.api.conftest import ScriptedUpstream, json_reply

CHAT = {"model": "lab-openai/m", "messages": [{"role": "user", "content": "hi"}]}
OPENAI_REPLY = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 10}},
    }
).encode()


async def new_client(service: Service, **limits: int) -> tuple[KeyRecord, httpx.AsyncClient]:
    key, secret = await service.keys.create("limited", **limits)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    return key, httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


async def used(service: Service, key: KeyRecord) -> int:
    """The tokens of the key in the database, after all is written."""
    await service.aclose()
    found = await TokenCounts(service.database).since(key.created_at.date(), [key.id])
    await service.database.aclose()
    return sum(found[key.id].values())


async def test_beyond_its_minute_a_key_is_refused_before_the_body_is_read_and_gets_stay_free(
    service: Service, upstream: ScriptedUpstream
) -> None:
    upstream.script = json_reply(OPENAI_REPLY)
    _, client = await new_client(service, rate_limit_rpm=2)
    async with client:
        for _ in range(2):
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        refused = await client.post("/v1/chat/completions", content=b"not JSON")
        assert refused.status_code == 429 and 55 <= int(refused.headers["retry-after"]) <= 60
        assert "2 requests a minute (rate_limit_rpm)" in refused.json()["error"]["message"]
        assert not [name for name in refused.headers if name.startswith("x-ratelimit")]
        assert (await client.get("/v1/models")).status_code == 200
    assert len(upstream.calls) == 2


@pytest.mark.parametrize(
    ("path", "body", "reply", "tokens"),
    [
        ("/v1/chat/completions", CHAT, OPENAI_REPLY, 34),
        ("/v1/messages", {**CHAT, "max_tokens": 9}, OPENAI_REPLY, 34),
        (
            "/v1/messages",
            {"model": "lab-anthropic/m", "max_tokens": 9, "messages": CHAT["messages"]},
            b'{"type":"message","role":"assistant","content":[],"model":"m","stop_reason":"end_turn","id":"1","usage":'
            b'{"input_tokens":5,"cache_read_input_tokens":100,"cache_creation_input_tokens":7,"output_tokens":3}}',
            115,
        ),
        (
            "/model/lab-bedrock%2Fm/converse",
            {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
            b'{"output":{"message":{"role":"assistant","content":[{"text":"x"}]}},"stopReason":"end_turn","metrics":{},'
            b'"usage":{"inputTokens":11,"outputTokens":2,"totalTokens":13}}',
            13,
        ),
        ("/v1/embeddings", {"model": "lab-openai/m", "input": "x"}, b'{"usage":{"prompt_tokens":8}}', 8),
        ("/v1/responses", {"model": "lab-openai/m"}, b'{"usage":{"input_tokens":3,"output_tokens":2}}', 5),
        ("/model/lab-bedrock%2Fm/invoke", {"prompt": "x"}, b'{"usage":{"input_tokens":3,"output_tokens":9}}', 12),
    ],
)
async def test_every_format_and_family_counts_what_the_provider_bills(
    service: Service, upstream: ScriptedUpstream, path: str, body: dict[str, Any], reply: bytes, tokens: int
) -> None:
    upstream.script = json_reply(reply)
    key, client = await new_client(service, daily_token_budget=tokens)
    async with client:
        assert (await client.post(path, json=body)).status_code == 200
        spent = await client.post(path, json=body)
        assert spent.status_code == 429 and "daily_token_budget" in spent.text
        assert spent.headers["x-should-retry"] == "false"
    assert len(upstream.calls) == 1
    assert await used(service, key) == tokens


async def test_a_failed_call_and_a_stored_answer_that_is_read_again_cost_nothing(
    service: Service, upstream: ScriptedUpstream
) -> None:
    key, client = await new_client(service, daily_token_budget=1)
    async with client:
        upstream.script = json_reply(b'{"error":{"message":"no"}}', status=400)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 400
        upstream.script = json_reply(b'{"id":"resp_1","usage":{"input_tokens":30,"output_tokens":2}}')
        upstream.connected = only_lab_openai  # type: ignore[method-assign]
        assert (await client.get("/v1/responses/resp_1")).status_code == 200
    assert await used(service, key) == 0


async def only_lab_openai() -> frozenset[str]:
    return frozenset({"lab-openai"})


def piece(text: str) -> bytes:
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def response_delta(text: str) -> bytes:
    return b"data: " + json.dumps({"type": "response.output_text.delta", "delta": text}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("path", "body", "frame"),
    [
        ("/v1/chat/completions", {**CHAT, "stream": True}, piece),
        ("/v1/messages", {**CHAT, "stream": True, "max_tokens": 9}, piece),
        ("/v1/responses", {"model": "lab-openai/m", "stream": True, "input": "word " * 100}, response_delta),
    ],
)
async def test_a_stream_that_its_caller_leaves_counts_as_far_as_it_came(
    service: Service, upstream: ScriptedUpstream, path: str, body: dict[str, Any], frame: Callable[[str], bytes]
) -> None:
    frames = [frame("abcd") for _ in range(100)]
    upstream.script = lambda call: (200, {"content-type": "text/event-stream"}, frames)
    key, secret = await service.keys.create("leaving", daily_token_budget=10**6)
    received, sent = asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        if not received.is_set():
            received.set()
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent
        sent += bool(message.get("body"))
        if sent == 50:
            gone.set()
            await asyncio.Event().wait()  # a client that reads no more

    gone = asyncio.Event()
    headers = [(b"authorization", f"Bearer {secret}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await create_app(service)({**scope, "headers": headers, "http_version": "1.1", "root_path": ""}, receive, send)
    assert 45 <= await used(service, key) <= 350


@pytest.fixture
async def url(service: Service) -> AsyncIterator[str]:
    """The application behind a real HTTP server, for clients that speak through sockets only."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service), lifespan="off", ws="none", log_level="error"))
    serving = asyncio.create_task(server.serve([listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.mark.parametrize("limit", ["rate_limit_rpm", "daily_token_budget", "weekly_token_budget"])
async def test_each_sdk_raises_its_own_rate_limit_error(
    service: Service, upstream: ScriptedUpstream, url: str, limit: str
) -> None:
    upstream.script = json_reply(OPENAI_REPLY)
    _, secret = await service.keys.create("limited", **{limit: 1})  # type: ignore[arg-type]

    def openai_sdk() -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) as client:
            client.chat.completions.create(model="lab-openai/m", messages=[{"role": "user", "content": "hi"}])
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="lab-openai/m", messages=[{"role": "user", "content": "hi"}])
            assert int(caught.value.response.headers["retry-after"]) > 0
            return caught.value.message

    def anthropic_sdk() -> str:
        with anthropic.Anthropic(base_url=url, api_key=secret, max_retries=0) as client:
            with pytest.raises(anthropic.RateLimitError) as caught:
                client.messages.create(model="lab-openai/m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
            assert int(caught.value.response.headers["retry-after"]) > 0
            return caught.value.message

    def bedrock_sdk() -> str:
        config = Config(retries={"total_max_attempts": 1})
        client = boto3.client(
            "bedrock-runtime",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=secret,
            aws_secret_access_key="any",
            config=config,
        )
        with pytest.raises(ClientError) as caught:
            client.converse(modelId="lab-openai/m", messages=[{"role": "user", "content": [{"text": "hi"}]}])
        client.close()
        error = caught.value.response
        assert error["Error"]["Code"] == "ThrottlingException"
        assert int(error["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) > 0
        return str(error["Error"]["Message"])

    for sdk in (openai_sdk, anthropic_sdk, bedrock_sdk):
        assert limit in await asyncio.to_thread(sdk)
    assert len(upstream.calls) == 1


async def test_refusals_are_counted_by_their_reason(service: Service, upstream: ScriptedUpstream) -> None:
    upstream.script = json_reply(OPENAI_REPLY)
    registry: CollectorRegistry = service.metrics.registry
    _, client = await new_client(service, rate_limit_rpm=1)
    async with client:
        for _ in range(3):
            await client.post("/v1/chat/completions", json=CHAT)
    assert registry.get_sample_value("orqen_limited_requests_total", {"reason": "rate_limit_rpm"}) == 2
