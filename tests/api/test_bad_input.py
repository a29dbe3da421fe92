"""Bad input: a 4xx in the shape of the called API that says what was wrong; nothing of it reaches a provider."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from orqen_ray.service import Service
from tests.api.conftest import ScriptedUpstream

PATHS = ["/v1/chat/completions", "/v1/messages", "/model/lab-bedrock%2Fm/converse"]


def message_of(answer: httpx.Response) -> str:
    """The error's text, once its shape is known to be that of the called API."""
    body = msgspec.json.decode(answer.content)
    path = answer.request.url.path
    if path.startswith("/model/"):
        assert set(body) == {"message"} and answer.headers["x-amzn-errortype"]
        return str(body["message"])
    if path.startswith("/v1/messages"):
        assert body["type"] == "error" and set(body["error"]) == {"type", "message"}
    else:
        assert set(body["error"]) >= {"message", "type", "param", "code"}
    return str(body["error"]["message"])


def request_body(path: str, **fields: object) -> dict[str, object]:
    content: object = [{"text": "x"}] if path.startswith("/model/") else "x"
    named = {} if path.startswith("/model/") else {"model": "lab-openai/m", "max_tokens": 5}
    return {**named, "messages": [{"role": "user", "content": content}], **fields}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b'{"messages": [', "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "too deep"),
        (b'{"model": "lab-openai/m", "max_tokens": 1, "messages": {}}', "messages"),
        (b'{"model": "lab-openai/m", "max_tokens": 1, "messages": [7]}', "messages[0]"),
        (b'{"model": "lab-openai/m", "max_tokens": 1, "messages": [{"role": "wizard", "content": []}]}', "wizard"),
    ],
)
async def test_unreadable_bodies(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, body: bytes, says: str
) -> None:
    answer = await client.post(path, content=body)
    assert answer.status_code == 400
    assert says in message_of(answer)
    assert not upstream.calls


@pytest.mark.parametrize("path", PATHS[:2])
async def test_a_chat_without_messages(client: httpx.AsyncClient, path: str) -> None:
    # Bedrock's Converse may name a stored prompt instead.
    answer = await client.post(path, json={"model": "lab-openai/m", "max_tokens": 1})
    assert answer.status_code == 400 and "messages: is required" in message_of(answer)


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_over_the_limit(client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str) -> None:
    answer = await client.post(path, content=b" " * ((1 << 20) + 1))
    assert answer.status_code == 413 and "1 MiB" in message_of(answer)
    assert not upstream.calls


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "\x7f"]
)
async def test_unknown_content_types(client: httpx.AsyncClient, path: str, content_type: str) -> None:
    answer = await client.post(path, json=request_body(path), headers={"content-type": content_type})
    assert answer.status_code == 415 and "application/json" in message_of(answer)


@pytest.mark.parametrize("path", PATHS)
async def test_compressed_bodies_are_refused(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json=request_body(path), headers={"content-encoding": "gzip"})
    assert answer.status_code == 415 and "Content-Encoding" in message_of(answer)


@pytest.mark.parametrize("path", PATHS)
async def test_the_wrong_method(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 405 and "POST" in message_of(answer)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/chat", "/model/x", "/v1/chat/completions/x"])
async def test_unknown_paths(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={})
    assert answer.status_code == 404
    assert "docs/api.md" in answer.text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat/completions", "ends with /v1"),
        ("/embeddings", "ends with /v1"),
        ("/v1/v1/messages", "end without /v1"),
        ("/v1/model/x/converse", "end without /v1"),
    ],
)
async def test_a_wrong_base_url_is_recognized(client: httpx.AsyncClient, path: str, says: str) -> None:
    answer = await client.post(path, json={})
    assert answer.status_code == 404 and says in answer.text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer sk-orq-short",
        f"Bearer sk-orq-{'0' * 64}",
        "Basic eDp5",
        "Bearer \x00",
        "AWS4-HMAC-SHA256 Credential=AKIA/x/y",
    ],
)
async def test_a_missing_or_unknown_key(client: httpx.AsyncClient, path: str, authorization: str) -> None:
    answer = await client.post(path, json=request_body(path), headers={"authorization": authorization})
    assert answer.status_code == 401
    assert "key" in message_of(answer)


async def test_a_revoked_key_is_refused(client: httpx.AsyncClient, service: Service) -> None:
    record, secret = await service.keys.create("gone")
    await service.keys.revoke(record.id)
    answer = await client.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
    assert answer.status_code == 401


@pytest.mark.parametrize("where", ["authorization", "x-api-key", "aws"])
async def test_each_sdks_way_to_send_the_key(client: httpx.AsyncClient, where: str) -> None:
    secret = client.headers["authorization"].removeprefix("Bearer ")
    aws = (
        f"AWS4-HMAC-SHA256 Credential={secret}/20261123/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=0"
    )
    ways = {"authorization": f"bearer {secret}", "x-api-key": secret, "aws": aws}
    name = "x-api-key" if where == "x-api-key" else "authorization"
    answer = await client.get("/v1/models", headers={"authorization": "", name: ways[where]})
    assert answer.status_code == 200


@pytest.mark.parametrize("model", ["orqen/auto", "orqen/cheap", "orqen/fast", "orqen/capable"])
async def test_routing_strings_answer_with_a_clear_400(client: httpx.AsyncClient, model: str) -> None:
    answer = await client.post(PATHS[0], json=request_body(PATHS[0], model=model))
    assert answer.status_code == 400 and model in message_of(answer)


async def test_an_unknown_model_names_the_nearest(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATHS[0], json=request_body(PATHS[0], model="sandbox/echoo-x/"))
    assert answer.status_code in (200, 404)
    answer = await client.post(PATHS[0], json=request_body(PATHS[0], model="no-such-model"))
    assert answer.status_code == 404 and message_of(answer)


async def test_a_provider_that_is_not_connected_says_how_to_connect_it(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATHS[0], json=request_body(PATHS[0], model="gpt-4o"))
    assert answer.status_code == 400 and "orqen providers connect openai" in message_of(answer)


@pytest.mark.parametrize("model", ["a\nb", "x" * 600, "", "lab-openai/m\r\nx-evil: 1", 7, None])
async def test_hostile_model_names(client: httpx.AsyncClient, upstream: ScriptedUpstream, model: object) -> None:
    answer = await client.post(PATHS[0], json=request_body(PATHS[0], model=model))
    assert answer.status_code in (400, 404) and "model" in message_of(answer)
    assert not upstream.calls


@pytest.mark.parametrize("given", ["ok-1", "x" * 200, "a b", "<script>", ""])
async def test_the_request_id_is_kept_when_it_is_sane(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.get("/v1/models", headers={"x-request-id": given})
    assert (answer.headers["x-request-id"] == given) is (given == "ok-1")
    assert len(answer.headers.get_list("x-request-id")) == 1


async def test_a_bug_shows_nothing_but_the_request_id(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    def broken(call: object) -> object:
        raise RuntimeError("/secret/path sk-orq-secret")

    upstream.script = broken  # type: ignore[assignment]
    answer = await client.post(PATHS[0], json=request_body(PATHS[0]))
    assert answer.status_code == 500
    assert "secret" not in answer.text and answer.headers["x-request-id"] in message_of(answer)


async def test_newer_fields_and_blocks_are_forwarded(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    content = [{"type": "hologram", "url": "x"}]
    body = {"model": "lab-openai/m", "messages": [{"role": "user", "content": content}], "warp": 9}
    await client.post(PATHS[0], json=body)
    assert msgspec.json.decode(upstream.calls[0].body) == {**body, "model": "m"}
