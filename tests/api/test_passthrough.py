"""Calls that pass through as they are, the token count, and the list of models."""

from __future__ import annotations

import base64
import json

import httpx
import msgspec
import pytest

from orqen_ray.formats import eventstream
from orqen_ray.service import Service
from orqen_ray.traces.reader import read_traces
from tests.api.conftest import ScriptedUpstream, json_reply


async def test_responses_pass_through_with_query_and_beta(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    reply = b'{ "id":"resp_1","object":"response", "usage":{"input_tokens":3,"output_tokens":2}}'
    upstream.script = json_reply(reply)
    body = b'{"model":"lab-openai/m", "input":[{"type":"future"}],"x":1.0}'
    answer = await client.post("/v1/responses?include=a", content=body, headers={"openai-beta": "r=v1"})
    call = upstream.calls[0]
    assert (call.path, call.query) == ("/responses", "include=a")
    assert msgspec.json.decode(call.body) == {"model": "m", "input": [{"type": "future"}], "x": 1.0}
    assert dict(call.headers)["openai-beta"] == "r=v1"
    assert answer.content == reply


async def test_a_stream_of_responses_passes_through_and_its_usage_is_read(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, service: Service
) -> None:
    frames = [
        b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":30,'
        b'"input_tokens_details":{"cached_tokens":10},"output_tokens":4}}}\n\n',
    ]
    cut = b"".join(frames)
    upstream.script = lambda call: (200, {"content-type": "text/event-stream"}, [cut[:40], cut[40:90], cut[90:]])
    answer = await client.post("/v1/responses", json={"model": "lab-openai/m", "input": "x", "stream": True})
    assert answer.content == cut
    await service.aclose()
    row = read_traces(service.settings.storage.traces_uri).to_pylist()[0]
    assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (20, 10, 4)


async def test_a_form_reaches_the_provider_with_its_model_renamed(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    files = {"file": ("a.wav", b"\x00\xff--RIFF\r\n", "audio/wav")}
    del client.headers["content-type"]
    form = {"model": "lab-openai/whisper-1", "language": "en"}
    request = client.build_request("POST", "/v1/audio/transcriptions", data=form, files=files)
    sent = request.read()
    await client.send(request)
    assert upstream.calls[0].body == sent.replace(b"lab-openai/whisper-1", b"whisper-1")
    assert upstream.calls[0].path == "/audio/transcriptions"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/images/generations", "/v1/moderations", "/v1/rerank"])
async def test_the_other_families_pass_through(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str
) -> None:
    await client.post(path, json={"model": "lab-openai/m", "input": "x"})
    assert upstream.calls[0].path == path.removeprefix("/v1")


async def test_a_family_that_the_models_provider_does_not_offer(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/embeddings", json={"model": "lab-anthropic/m", "input": "x"})
    assert answer.status_code == 400 and "embeddings" in answer.json()["error"]["message"]


async def test_invoke_is_bedrocks_alone_and_untouched(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    inner = base64.b64encode(b'{"type":"message_delta","usage":{"output_tokens":9}}').decode()
    headers = {":message-type": "event", ":event-type": "chunk", ":content-type": "application/json"}
    frame = eventstream.write_frame(headers, json.dumps({"bytes": inner}, separators=(",", ":")).encode())
    stream = {"content-type": "application/vnd.amazon.eventstream"}
    upstream.script = lambda call: (200, stream, [frame[:30], frame[30:]])
    body = b'{ "anthropic_version":"bedrock-2023-05-31","messages":[]}'
    answer = await client.post("/model/lab-bedrock%2Fm/invoke-with-response-stream", content=body)
    assert upstream.calls[0].body == body and upstream.calls[0].path == "/model/m/invoke-with-response-stream"
    assert answer.content == frame
    wrong = await client.post("/model/lab-openai%2Fm/invoke", content=body)
    assert wrong.status_code == 400 and "converse" in wrong.json()["message"]


async def test_tokens_are_counted_by_the_provider_that_can(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    upstream.script = json_reply(b'{"input_tokens": 12}')
    body = {"model": "lab-anthropic/m", "messages": [{"role": "user", "content": "x"}]}
    answer = await client.post("/v1/messages/count_tokens?beta=true", json=body)
    assert answer.content == b'{"input_tokens": 12}' and "x-orqen-estimated" not in answer.headers
    call = upstream.calls[0]
    assert (call.path, call.query) == ("/v1/messages/count_tokens", "beta=true")


async def test_tokens_are_estimated_where_no_provider_counts(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    def body(text: str) -> dict[str, object]:
        return {"model": "lab-openai/m", "messages": [{"role": "user", "content": text}]}

    short = await client.post("/v1/messages/count_tokens", json=body("one two three"))
    long = await client.post("/v1/messages/count_tokens", json=body("one two three " * 100))
    assert 3 <= short.json()["input_tokens"] <= 12
    assert 300 <= long.json()["input_tokens"] <= 312
    assert short.headers["x-orqen-estimated"] == "input_tokens"
    assert not upstream.calls


async def test_models_are_listed_in_the_shape_of_the_sdk_that_asks(client: httpx.AsyncClient) -> None:
    openai = (await client.get("/v1/models")).json()
    assert openai["object"] == "list"
    ids = [model["id"] for model in openai["data"]]
    assert ids[-4:] == ["orqen/auto", "orqen/cheap", "orqen/fast", "orqen/capable"] and "sandbox/echo" in ids
    anthropic = (await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
    assert [model["id"] for model in anthropic["data"]] == ids
    assert anthropic["data"][0]["type"] == "model" and anthropic["has_more"] is False
    for id_ in ids:
        assert (await client.get(f"/v1/models/{id_}")).json()["id"] == id_
    assert (await client.get("/v1/models/none")).status_code == 404


async def test_every_listed_model_can_be_asked_for(client: httpx.AsyncClient, service: Service) -> None:
    for model in (await client.get("/v1/models")).json()["data"][:-4]:
        resolved = await service.gateway.resolve(model["id"])
        assert resolved.provider.name == model["owned_by"]


async def test_a_stream_that_passes_through_and_begins_with_an_error_is_not_asked_for_twice(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    failed = b'event: error\ndata: {"type":"error","error":{"message":"busy","code":503}}\n\n'
    upstream.script = lambda call: (200, {"content-type": "text/event-stream"}, [failed])
    answer = await client.post("/v1/responses", json={"model": "lab-openai/m", "input": "x", "stream": True})
    assert (answer.content, len(upstream.calls)) == (failed, 1)


async def test_calls_that_may_name_what_is_stored_at_a_provider_stay_with_its_first_key(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    asked = {
        "/v1/responses": {"model": "lab-openai/m", "input": "x"},
        "/model/lab-bedrock%2Fm/invoke": {},
        "/v1/embeddings": {"model": "lab-openai/m", "input": "x"},
    }
    for path, body in asked.items():
        await client.post(path, json=body, headers={"x-orqen-session-id": "s"})
    await client.get("/v1/responses/resp_1")
    bound = [(call.key_bound, call.conversation == "") for call in upstream.calls]
    assert bound == [(True, True), (True, True), (False, False), (True, True)]
