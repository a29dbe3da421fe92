"""A provider that speaks the caller's format gets the caller's bytes, and the caller gets the provider's."""

from __future__ import annotations

import json

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqen_ray.service import Service
from orqen_ray.traces.reader import read_traces
from tests.api.conftest import ScriptedUpstream, json_reply

CHAT = "/v1/chat/completions"
OPENAI_REPLY = b"""{"id":"chatcmpl-1", "object":"chat.completion","created":1,"model":"m-2026","choices":[{"index":0,
 "message":{"role":"assistant","content":"hi","new_field":{"x":1.10}},"finish_reason":"stop"}],
 "usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}"""
USAGE_FRAME = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
FRAMES = [
    b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"h\xc3\xa9"}}]}\n\n',
    b': keep-alive\n\ndata: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    USAGE_FRAME,
    b"data: [DONE]\n\n",
]


def sse(chunks: list[bytes]) -> object:
    return lambda call: (200, {"content-type": "text/event-stream; charset=utf-8"}, chunks)


BODIES = {
    CHAT: b"""{ "model" : "lab-openai/m",
        "messages":[{"role":"user","content":"caf\\u00e9 1.10"}], "future":{"b":1,"a":2e0}}""",
    "/v1/messages": b"""{"max_tokens": 5, "model":"lab-anthropic/m",
        "messages":[{"role":"user","content":[{"type":"future_block","x":1.0}]}]}""",
}


@pytest.mark.parametrize("path", BODIES)
async def test_only_the_model_prefix_is_taken_from_the_body(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str
) -> None:
    body = BODIES[path]
    await client.post(path, content=body)
    sent = upstream.calls[0].body
    before = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    after = msgspec.json.decode(sent, type=dict[str, msgspec.Raw])
    assert bytes(after.pop("model")) == b'"m"' and before.pop("model")
    assert {k: bytes(v) for k, v in after.items()} == {k: bytes(v) for k, v in before.items()}
    assert list(after) == list(before)


async def test_a_bedrock_body_is_forwarded_byte_for_byte(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    body = b'{ "messages":[{"role":"user","content":[{"text":"hi"}]}],\n"future" : {"z":1.50} }'
    model = "lab-bedrock/arn:aws:bedrock:us-east-1:1:inference-profile/us.x-v1:0"
    await client.post(f"/model/{model.replace('/', '%2F').replace(':', '%3A')}/converse", content=body)
    call = upstream.calls[0]
    assert call.body == body
    assert call.path == "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.x-v1%3A0/converse"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    extra=st.dictionaries(
        st.text(min_size=1).map(lambda name: f"x-{name}"),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5),
        max_size=3,
    )
)
async def test_a_body_without_a_prefix_is_the_callers_very_bytes(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, extra: dict[str, object]
) -> None:
    # `sandbox-model` fits no rule, so the provider is named by a Bedrock path: the body itself names no model.
    body = json.dumps({"messages": [{"role": "user", "content": [{"text": "x"}]}], **extra}).encode()
    upstream.calls.clear()
    await client.post("/model/lab-bedrock%2Fm/converse", content=body)
    assert upstream.calls[0].body == body


async def test_a_whole_answer_comes_back_byte_for_byte(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    upstream.script = json_reply(OPENAI_REPLY)
    answer = await client.post(CHAT, content=BODIES[CHAT])
    assert answer.content == OPENAI_REPLY
    assert answer.headers["x-orqen-model"] == "m" and answer.headers["x-orqen-provider"] == "lab-openai"
    assert float(answer.headers["x-orqen-overhead-ms"]) >= 0
    assert "x-orqen-tools-input" not in answer.headers


async def test_the_usage_that_only_the_gateway_asked_for_is_taken_out_again(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    upstream.script = sse(FRAMES)  # type: ignore[assignment]
    body = {"model": "lab-openai/m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    answer = await client.post(CHAT, json=body)
    assert msgspec.json.decode(upstream.calls[0].body)["stream_options"] == {"include_usage": True}
    assert answer.content == b"".join(FRAMES).replace(USAGE_FRAME, b"")


async def test_the_usage_that_the_caller_asked_for_stays(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    upstream.script = sse(FRAMES)  # type: ignore[assignment]
    options = {"include_usage": True, "future": 1}
    body = {
        "model": "lab-openai/m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": options,
    }
    answer = await client.post(CHAT, json=body)
    assert msgspec.json.decode(upstream.calls[0].body)["stream_options"] == options
    assert answer.content == b"".join(FRAMES)


async def test_the_gateways_own_fields_never_leave(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    secret = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "s3cret", "aws_region_name": "eu-west-1"}
    tool = {"type": "function", "function": {"name": "f", "x-orqen-keep": True, "x-orqen-examples": ["do f"]}}
    body = {"model": "lab-openai/m", "messages": [{"role": "user", "content": "x"}], "tools": [tool], **secret}
    answer = await client.post(CHAT, json=body)
    sent = msgspec.json.decode(upstream.calls[0].body)
    assert sent == {
        "model": "m",
        "messages": body["messages"],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert upstream.calls[0].credentials is None
    assert answer.headers["x-orqen-prune-ratio"] == "1/1"


async def test_callers_own_aws_credentials_go_to_bedrock_only(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    body = {
        "model": "lab-bedrock/m",
        "messages": [{"role": "user", "content": "x"}],
        "aws_access_key_id": "AKIA",
        "aws_secret_access_key": "s3cret",
        "aws_region_name": "eu-west-1",
    }
    answer = await client.post(CHAT, json=body)
    credentials = upstream.calls[0].credentials
    assert credentials is not None and credentials.aws is not None and credentials.region == "eu-west-1"
    assert b"s3cret" not in upstream.calls[0].body
    assert "aws" not in answer.headers.get("x-orqen-dropped", "")


async def test_beta_headers_and_query_strings_are_forwarded_and_keys_are_not(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    headers = {
        "anthropic-beta": "b-2,a-1",
        "anthropic-version": "2023-06-01",
        "cookie": "a=b",
        "x-forwarded-for": "1.1.1.1",
    }
    await client.post("/v1/messages?beta=true", content=BODIES["/v1/messages"], headers=headers)
    call = upstream.calls[0]
    assert call.query == "beta=true"
    sent = dict(call.headers)
    assert sent["anthropic-beta"] == "b-2,a-1" and sent["anthropic-version"] == "2023-06-01"
    assert not {"authorization", "cookie", "x-forwarded-for", "host", "x-api-key"} & sent.keys()


async def test_a_provider_error_of_the_same_format_comes_back_byte_for_byte(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    body = b'{"error": {"message":"no", "type":"invalid_request_error","param":null,"code":"x", "hint":1.0}}'
    upstream.script = json_reply(body, 400)
    answer = await client.post(CHAT, content=BODIES[CHAT])
    assert (answer.status_code, answer.content) == (400, body)


async def test_a_busy_provider_is_asked_again_before_the_first_byte(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    upstream.script = lambda call: json_reply(OPENAI_REPLY, 529 if len(upstream.calls) == 1 else 200)(call)
    answer = await client.post(CHAT, content=BODIES[CHAT])
    assert answer.status_code == 200 and len(upstream.calls) == 2


async def test_one_trace_row_is_written_for_each_request(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, service: Service
) -> None:
    upstream.script = json_reply(OPENAI_REPLY)
    await client.post(CHAT, content=BODIES[CHAT], headers={"x-request-id": "mine-1", "x-orqen-session-id": "s 1"})
    await client.post(CHAT, content=b"{}")
    await service.aclose()
    good, bad = read_traces(service.settings.storage.traces_uri).sort_by("started_at").to_pylist()
    assert (good["request_id"], good["session_id"], good["status"]) == ("mine-1", "s 1", 200)
    assert (good["requested_model"], good["sent_model"], good["served_model"]) == ("lab-openai/m", "m", "m-2026")
    assert (good["input_tokens"], good["output_tokens"], good["usage_source"]) == (5, 1, "provider")
    assert good["cost_usd"] == pytest.approx(5 * 2e-6 + 10e-6)
    assert (bad["status"], bad["error_code"], bad["usage_source"]) == (400, "invalid_request", None)


async def test_an_error_from_another_format_keeps_the_headers_of_its_provider(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}'
    headers = {"content-type": "text/event-stream", "anthropic-ratelimit-x": "1", "retry-after": "900"}
    upstream.script = lambda call: (429, headers, [body])
    answer = await client.post(CHAT, json={"model": "lab-anthropic/m", "messages": [{"role": "user", "content": "x"}]})
    assert (answer.status_code, answer.json()["error"]["message"]) == (429, "slow down")
    assert answer.headers["content-type"] == "application/json"
    seen = [answer.headers[name] for name in ("anthropic-ratelimit-x", "retry-after", "x-orqen-provider")]
    assert seen == ["1", "900", "lab-anthropic"]
