"""What a hostile caller or a broken provider tries, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message

from orqen_ray.api.app import create_app
from orqen_ray.attempts import RetryPolicy
from orqen_ray.errors import StoreUnavailable, UpstreamUnavailable
from orqen_ray.retry_after import read_wait_s
from orqen_ray.service import Service
from orqen_ray.traces.reader import read_traces
from orqen_ray.types import Call, UpstreamReply
from tests.api.conftest import ScriptedUpstream, json_reply

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "lab-openai/m", "messages": [{"role": "user", "content": "x"}]}
TEXT = "hello there " * 10
START = [
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"claude-x",'
    b'"usage":{"input_tokens":9,"output_tokens":1}}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"' + TEXT.encode() + b'"}}\n\n',
]


async def rows(service: Service) -> list[dict[str, Any]]:
    await service.aclose()
    found: list[dict[str, Any]] = read_traces(service.settings.storage.traces_uri).sort_by("started_at").to_pylist()
    return found


class Caller:
    """One request by bare ASGI: its raw path, the moment it goes away, and what it was sent are the test's."""

    def __init__(self, secret: str, path: str, body: object, raw_path: str | None = None) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.stops_reading_after: int | None = None
        self._body: bytes | None = json.dumps(body).encode()
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": (raw_path or path).encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {secret}".encode()), (b"content-type", b"application/json")],
        }

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if len(self.sent) == self.stops_reading_after:
            self.gone.set()
            await asyncio.Event().wait()

    async def ask(self, service: Service) -> None:
        async with asyncio.timeout(10):
            await create_app(service)(self.scope, self.receive, self.send)


async def secret_of(service: Service) -> str:
    return (await service.keys.create("edges"))[1]


@pytest.mark.parametrize("path", ["/v1/messages/", "/v1/chat/completions/", "/healthz/", "/v1/messages/count_tokens/"])
async def test_no_answer_sends_the_caller_to_another_host(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await client.request(method, path, headers={"host": "evil.example"})
        assert answer.status_code in (404, 405) and "location" not in answer.headers


@pytest.mark.parametrize("raw_path", ["/%761/responses", "/v1/%72esponses", "/%76%31/responses"])
async def test_an_encoded_path_is_no_such_path(service: Service, raw_path: str) -> None:
    caller = Caller(await secret_of(service), "/v1/responses", ASK, raw_path)
    await caller.ask(service)
    assert caller.sent[0]["status"] == 404


@pytest.mark.parametrize("value", ["€", "\udce9", "a\x01b", "a\r\nset-cookie: b"])
async def test_a_providers_header_that_cannot_be_passed_on_is_left_out(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, value: str
) -> None:
    headers = {"content-type": "application/json", "x-ratelimit-x": value, "retry-after": "1"}
    upstream.script = lambda call: (200, headers, [b'{"choices":[]}'])
    answer = await client.post(CHAT, json=ASK)
    assert answer.status_code == 200 and answer.headers["retry-after"] == "1"
    assert "x-ratelimit-x" not in answer.headers


async def test_a_header_of_an_error_is_sent_once(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    headers = {"content-type": "text/html", "retry-after": "900", "x-amzn-errortype": "Odd"}
    upstream.script = lambda call: (503, headers, [b"<html>"])
    answer = await client.post("/model/lab-bedrock%2Fm/converse", json={"messages": []})
    assert answer.headers.get_list("retry-after") == ["900"]
    assert answer.headers.get_list("x-amzn-errortype") == ["ServiceUnavailableException"]


@pytest.mark.parametrize("retry_after", ["nan", "inf", "soon", "-1"])
def test_a_wait_that_is_no_time_is_as_none(retry_after: str) -> None:
    assert read_wait_s({"retry-after": retry_after}) is None
    assert RetryPolicy().delay_s(1, None) is not None and RetryPolicy().delay_s(1, 1e9) is None


@pytest.mark.parametrize("target", ["lab-openai", "lab-anthropic", "lab-bedrock"])
async def test_a_body_of_any_depth_is_sent_or_refused(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, target: str
) -> None:
    upstream.script = json_reply(b"{}", 400)
    for depth in range(900, 1000):
        schema = '{"a":' * depth + "1" + "}" * depth
        tool = f'{{"name":"f","input_schema":{schema}}}'
        for path, body in (
            ("/v1/messages", f'{{"model":"{target}/m","max_tokens":5,"messages":[{{"role":"user","content":"x"}}],'),
            (CHAT, f'{{"model":"{target}/m","messages":[{{"role":"user","content":"x"}}],'),
        ):
            own = tool if path != CHAT else f'{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}'
            answer = await client.post(path, content=f'{body}"tools":[{own}]}}')
            assert answer.status_code == 400, (depth, path, answer.text)


async def test_what_a_message_repeats_of_a_request_is_bounded(client: httpx.AsyncClient) -> None:
    for message in (
        {"role": "w" * 100_000, "content": "x"},
        {"role": "tool", "tool_call_id": "w" * 100_000, "content": "x"},
    ):
        answer = await client.post(CHAT, json={**ASK, "messages": [message]})
        assert answer.status_code == 400 and len(answer.content) < 1000


async def test_a_pass_through_call_that_is_refused_leaves_a_trace(service: Service, client: httpx.AsyncClient) -> None:
    await client.post("/v1/responses", json={"model": "no-such-model"}, headers={"x-orqen-session-id": "s" * 5000})
    await client.post("/v1/embeddings", json={})
    await client.post("/model/lab-openai%2Fm/invoke", json={})
    found = await rows(service)
    assert [row["error_code"] for row in found] == ["model_not_found", "invalid_request", "invalid_request"]
    assert found[0]["session_id"].startswith("hashed-")


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
@pytest.mark.parametrize("stops_reading_after", [2, 3])
async def test_a_cut_stream_is_counted_as_far_as_it_came(
    service: Service, upstream: ScriptedUpstream, path: str, stops_reading_after: int
) -> None:
    upstream.script = lambda call: (200, {"content-type": "text/event-stream"}, [b"".join(START)] * 2)
    body = {**ASK, "model": "lab-anthropic/m", "stream": True, "max_tokens": 5}
    caller = Caller(await secret_of(service), path, body)
    caller.stops_reading_after = stops_reading_after
    await caller.ask(service)
    (row,) = await rows(service)
    assert row["client_disconnected"] and row["served_model"] == "claude-x" and row["input_tokens"] == 9
    assert row["output_tokens"] >= len(TEXT) // 4 and row["usage_source"] == "estimated"


async def test_a_caller_that_leaves_before_the_first_byte_frees_the_provider(
    service: Service, upstream: ScriptedUpstream
) -> None:
    cancelled = asyncio.Event()

    async def stalled(call: Call) -> UpstreamReply:
        caller.gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    upstream.send = stalled  # type: ignore[method-assign]
    caller = Caller(await secret_of(service), CHAT, ASK)
    await caller.ask(service)
    assert cancelled.is_set() and not caller.sent
    (row,) = await rows(service)
    assert row["status"] == 499 and row["client_disconnected"]


async def test_sound_is_passed_on_as_it_comes(service: Service, upstream: ScriptedUpstream) -> None:
    caller = Caller(await secret_of(service), "/v1/audio/speech", {"model": "lab-openai/m"})
    seen_before_each: list[int] = []

    async def speech(call: Call) -> UpstreamReply:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in (b"a", b"b"):
                seen_before_each.append(len(caller.sent))
                yield chunk

        return UpstreamReply(status=200, headers={"content-type": "audio/mpeg"}, chunks=chunks())

    upstream.send = speech  # type: ignore[method-assign]
    await caller.ask(service)
    assert b"".join(message.get("body", b"") for message in caller.sent) == b"ab"
    assert seen_before_each == [1, 2]


async def test_sound_that_breaks_off_is_not_passed_on_as_whole(service: Service, upstream: ScriptedUpstream) -> None:
    async def speech(call: Call) -> UpstreamReply:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a"
            raise UpstreamUnavailable("gone")

        return UpstreamReply(status=200, headers={"content-type": "audio/mpeg"}, chunks=chunks())

    upstream.send = speech  # type: ignore[method-assign]
    caller = Caller(await secret_of(service), "/v1/audio/speech", {"model": "lab-openai/m"})
    with pytest.raises(UpstreamUnavailable):
        await caller.ask(service)
    assert caller.sent[-1]["more_body"]
    (row,) = await rows(service)
    assert row["error_code"] == "upstream_stream_failed" and not row["client_disconnected"]


@pytest.mark.parametrize("model", ["lab-openai/m", "lab-anthropic/m", "lab-bedrock/m"])
async def test_an_event_without_end_is_not_waited_for(
    service: Service, client: httpx.AsyncClient, upstream: ScriptedUpstream, model: str
) -> None:
    taken = 0

    async def endless(call: Call) -> UpstreamReply:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal taken
            yield b"data: "
            while taken < 200:
                taken += 1
                yield b"x" * (1 << 20)

        return UpstreamReply(status=200, headers={"content-type": "text/event-stream"}, chunks=chunks())

    upstream.send = endless  # type: ignore[method-assign]
    answer = await client.post(CHAT, json={**ASK, "model": model, "stream": True})
    assert taken < 100 and ("event of more than 64 MiB" in answer.text or "corrupt" in answer.text)
    (row,) = await rows(service)
    assert row["error_code"] in ("upstream_stream_failed", "upstream_error", "upstream_rejected")


async def test_a_provider_that_wants_no_second_try_gets_none(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    upstream.script = lambda call: (429, headers, [b'{"error":{"code":"insufficient_quota"}}'])
    assert (await client.post(CHAT, json=ASK)).status_code == 429
    assert len(upstream.calls) == 1


async def test_a_wrong_method_is_told_the_right_one(client: httpx.AsyncClient) -> None:
    answer = await client.post("/healthz", json={})
    assert answer.status_code == 405 and "try GET" in answer.json()["error"]["message"]


async def test_a_picture_is_not_estimated_by_its_size(service: Service, client: httpx.AsyncClient) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 100_000}}
    await client.post(CHAT, json={**ASK, "messages": [{"role": "user", "content": [picture]}]})
    (row,) = await rows(service)
    assert row["usage_source"] == "estimated" and 1000 < row["input_tokens"] < 3000


async def test_the_trace_of_an_unknown_model_names_it(service: Service, client: httpx.AsyncClient) -> None:
    await client.post(CHAT, json={**ASK, "model": "no-such-model"})
    (row,) = await rows(service)
    assert (row["status"], row["requested_model"]) == (404, "no-such-model")


async def test_an_error_that_many_requests_share_carries_the_headers_of_none_of_the_others(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    shared = StoreUnavailable("the gateway's database does not answer")

    async def fails(call: Call) -> UpstreamReply:
        raise shared

    upstream.send = fails  # type: ignore[method-assign]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    first = await client.post(CHAT, json={**ASK, "tools": [tool]})
    second = await client.post(CHAT, json=ASK)
    assert first.headers["x-orqen-tools-input"] == "1" and "x-orqen-tools-input" not in second.headers


async def test_conversations_of_two_keys_are_two_whatever_their_callers_name_them(
    service: Service, client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    other = {"authorization": f"Bearer {await secret_of(service)}"}
    for path in (CHAT, "/v1/embeddings"):
        upstream.calls.clear()
        for headers in ({}, {}, other):
            await client.post(path, json={**ASK, "input": "x"}, headers={"x-orqen-session-id": "1", **headers})
        first, again, others = (call.conversation for call in upstream.calls)
        assert first == again != others


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_what_a_provider_says_of_waiting_reaches_a_caller_of_any_format(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str
) -> None:
    said = {"retry-after-ms": "1500", "x-should-retry": "false", "x-ratelimit-remaining-requests": "0"}
    upstream.script = lambda call: (429, {"content-type": "application/json", **said}, [b'{"error":{"message":"no"}}'])
    answer = await client.post(path, json={**ASK, "max_tokens": 9})
    assert answer.status_code == 429 and {name: answer.headers[name] for name in said} == said
