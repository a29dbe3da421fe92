"""What nobody should send, through the front door: a 4xx in the caller's shape, never a 5xx, a hang or a secret."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys
from tests.conformance.asks import ASKS
from tests.conformance.credentials import API_KEY, AWS_SECRET
from tests.conformance.lab import DIALECTS, Lab
from tests.conftest import ROOT

WITHIN_S = 10.0
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "boto3": "/model/lab-{}%2Fplain/converse"}
TELLTALE = re.compile(rf"Traceback|File \"|\.py\b|site-packages|sk-orq-[0-9a-f]{{8}}|/tmp/|{re.escape(str(ROOT))}")
SDK_NAMES = tuple(PATHS)
OWN_DIALECT = {"openai": "openai", "anthropic": "anthropic", "boto3": "bedrock"}


@pytest.fixture(scope="package")
def client(lab: Lab) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {lab.key}", "content-type": "application/json"}
    with httpx.Client(base_url=lab.url, headers=headers, timeout=WITHIN_S) as client:
        yield client


def check_refusal(answer: httpx.Response, sdk: str, *statuses: int) -> str:
    """The message of a refusal in the shape that `sdk` reads."""
    assert answer.status_code in (statuses or (400,)), answer.text
    assert answer.headers["x-request-id"]
    assert not TELLTALE.search(answer.text) and API_KEY not in answer.text and AWS_SECRET not in answer.text
    body = answer.json()
    if sdk == "boto3":
        assert answer.headers["x-amzn-errortype"] and body.keys() == {"message"}
        return str(body["message"])
    if sdk == "anthropic":
        assert body["type"] == "error" and body["error"]["type"]
    else:
        assert body["error"].keys() >= {"message", "type", "param", "code"}
    message = str(body["error"]["message"])
    assert len(message) > 10
    return message


def body_of(sdk: str, topic: str, dialect: str) -> dict[str, Any]:
    body = ASKS[sdk](topic, f"lab-{dialect}/plain")
    body.pop("modelId", None)
    return body


UNREADABLE = {
    "empty": b"",
    "not JSON": b"{model: 'x'}",
    "cut short": b'{"messages": [{"role": "us',
    "two values": b"{} {}",
    "an array": b"[]",
    "null": b"null",
    "NaN": b'{"messages": NaN}',
    "bad UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "a lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"messages": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "a huge number": b'{"max_tokens": 1' + b"0" * 5000 + b"}",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_an_unreadable_body_is_refused(client: httpx.Client, sdk: str, body: bytes) -> None:
    check_refusal(client.post(PATHS[sdk].format("openai"), content=body), sdk)


WRONG: dict[str, Any] = {"number": 7, "text": "hi", "list of numbers": [7], "list of lists": [[]], "object": {"a": 1}}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("field", ["messages", "tools", "toolConfig", "system", "inferenceConfig", "model", "stop"])
@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_a_field_of_the_wrong_type_never_breaks_anything(
    client: httpx.Client, sdk: str, field: str, value: Any
) -> None:
    for dialect in DIALECTS:
        body = {**body_of(sdk, "plain", dialect), field: value}
        answer = client.post(PATHS[sdk].format(dialect), json=body)
        if answer.status_code != 200:  # a stop or a system may be text; of another API's field nobody may mind
            check_refusal(answer, sdk, 400, 404)


def _broken_conversations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    png = {"type": "base64", "media_type": "image/png", "data": "%%%not base64%%%"}
    result = {"type": "tool_result", "tool_use_id": "toolu_nobody", "content": "x"}
    function = {"name": "f", "arguments": "{}"}
    yield "unknown role", "openai", {"messages": [{"role": "wizard", "content": "x"}]}
    yield "unknown role", "anthropic", {"messages": [{"role": "wizard", "content": "x"}]}
    yield "unknown role", "boto3", {"messages": [{"role": "wizard", "content": [{"text": "x"}]}]}
    yield "orphan result", "openai", {"messages": [{"role": "tool", "tool_call_id": "call_nobody", "content": "x"}]}
    yield "orphan result", "anthropic", {"messages": [{"role": "user", "content": [result]}]}
    orphan = {"toolResult": {"toolUseId": "nobody", "content": [{"text": "x"}]}}
    yield "orphan result", "boto3", {"messages": [{"role": "user", "content": [orphan]}]}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}
    yield "bad base64", "openai", {"messages": [{"role": "user", "content": [image]}]}
    yield "bad base64", "anthropic", {"messages": [{"role": "user", "content": [{"type": "image", "source": png}]}]}
    picture = {"image": {"format": "png", "source": {"bytes": "%%%"}}}
    yield "bad base64", "boto3", {"messages": [{"role": "user", "content": [picture]}]}
    unanswered = {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
    yield "call without result", "openai", {"messages": [{"role": "user", "content": "x"}, unanswered]}
    yield "no messages", "openai", {"messages": []}
    yield "no messages", "anthropic", {"messages": []}
    yield "no messages", "boto3", {"messages": []}


BROKEN = list(_broken_conversations())


@pytest.mark.parametrize(("name", "sdk", "change"), BROKEN, ids=[f"{name}-{sdk}" for name, sdk, _ in BROKEN])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_broken_conversation_is_refused(
    client: httpx.Client, dialect: str, name: str, sdk: str, change: dict[str, Any]
) -> None:
    """By the gateway, or by the provider that gets the caller's own bytes."""
    body = {**body_of(sdk, "tools", dialect), **change}
    check_refusal(client.post(PATHS[sdk].format(dialect), json=body), sdk)


@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_a_body_over_the_limit_is_413(client: httpx.Client, sdk: str) -> None:
    body = b'{"messages": "' + b"x" * (33 << 20) + b'"}'
    assert "32 MiB" in check_refusal(client.post(PATHS[sdk].format("openai"), content=body), sdk, 413)


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "%%%"])
@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_an_unknown_content_type_is_415(client: httpx.Client, sdk: str, content_type: str) -> None:
    answer = client.post(PATHS[sdk].format("openai"), content=b"{}", headers={"content-type": content_type})
    check_refusal(answer, sdk, 415)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_the_wrong_method_is_405(client: httpx.Client, sdk: str, method: str) -> None:
    answer = client.request(method, PATHS[sdk].format("openai"))
    check_refusal(answer, sdk, 405)
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize("key", ["", "sk-orq-" + "0" * 64, "sk-orq-", "Bearer", "é" * 50, "x" * 5000])
@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_a_missing_or_unknown_key_is_401(client: httpx.Client, sdk: str, key: str) -> None:
    headers = [(b"authorization", f"Bearer {key}".strip().encode())]
    answer = client.post(PATHS[sdk].format("openai"), json=body_of(sdk, "plain", "openai"), headers=headers)
    check_refusal(answer, sdk, 401)


async def test_a_revoked_key_is_refused_within_five_seconds(lab: Lab) -> None:
    database = Database(f"sqlite+aiosqlite:///{lab.folder}/orqen.db")
    async with httpx.AsyncClient(base_url=lab.url, timeout=WITHIN_S) as client:
        try:
            keys = Keys(database)
            record, secret = await keys.create("to be revoked")
            headers = {"authorization": f"Bearer {secret}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
            await keys.revoke(record.id)
            revoked_at = time.monotonic()
            while (answer := await client.get("/v1/models", headers=headers)).status_code == 200:
                assert time.monotonic() - revoked_at < 5.0
        finally:
            await database.aclose()
    check_refusal(answer, "openai", 401)


TRICKS: dict[str, bytes] = {
    "no host": b"POST {path} HTTP/1.1\r\n{key}content-length: 2\r\n\r\n{}",
    "two hosts": b"POST {path} HTTP/1.1\r\nhost: a\r\nhost: b\r\n{key}content-length: 2\r\n\r\n{}",
    "a host with a path": b"POST {path} HTTP/1.1\r\nhost: a/healthz?\r\n{key}content-length: 2\r\n\r\n{}",
    "absolute form": b"POST http://evil.example{path} HTTP/1.1\r\nhost: x\r\n{key}content-length: 2\r\n\r\n{}",
    "two lengths": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "length and chunks": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}content-length: 2\r\ntransfer-encoding: chunked\r\n"
    b"\r\n0\r\n\r\n",
    "a bad chunk": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a negative length": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}content-length: -2\r\n\r\n{}",
    "a folded header": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}x-a: b\r\n c\r\ncontent-length: 2\r\n\r\n{}",
    "a space in a name": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}x a: b\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a value": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}x-a: b\x00c\r\ncontent-length: 2\r\n\r\n{}",
    "a huge header": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}x-a: "
    + b"y" * 70_000
    + b"\r\ncontent-length: 2\r\n\r\n{}",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "dots": b"POST /v1/../v1/../{path} HTTP/1.1\r\nhost: x\r\n{key}content-length: 2\r\n\r\n{}",
    "two slashes": b"POST /{path} HTTP/1.1\r\nhost: x\r\n{key}content-length: 2\r\n\r\n{}",
    "NUL in the path": b"POST /v1/%00 HTTP/1.1\r\nhost: x\r\n{key}content-length: 2\r\n\r\n{}",
    "bad escapes": b"POST /model/%zz%ff/converse HTTP/1.1\r\nhost: x\r\n{key}content-length: 2\r\n\r\n{}",
    "Serve's headers": b"POST {path} HTTP/1.1\r\nhost: x\r\n{key}serve_multiplexed_model_id: x\r\nx-request-id: a b\r\n"
    b"x-request-timeout-seconds: 0\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_tricks_with_hosts_and_headers_are_refused(lab: Lab, trick: bytes) -> None:
    key = f"authorization: Bearer {lab.key}\r\n".encode()
    request = trick.replace(b"{path}", b"/v1/chat/completions").replace(b"{key}", key)
    address = urlsplit(lab.url)
    with socket.create_connection((address.hostname, address.port), timeout=WITHIN_S) as connection:
        answer = b""
        with suppress(OSError):  # who closes at once has refused
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while received := connection.recv(65536):
                answer += received
    if answer.startswith(b"HTTP/1"):  # a connection that is only closed was refused, too
        status = int(answer.split(b" ", 2)[1])
        assert 400 <= status < 500, answer[:500]
        assert not TELLTALE.search(answer.decode("latin-1"))


NEWER: dict[str, tuple[str, Any]] = {
    "openai": ("content", {"type": "hologram", "hologram": {"x": 1}}),
    "anthropic": ("content", {"type": "hologram", "source": {"x": 1}}),
    "boto3": ("content", {"hologram": {"x": 1}}),
}


@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_newer_fields_and_blocks_are_forwarded(lab: Lab, client: httpx.Client, sdk: str) -> None:
    dialect = OWN_DIALECT[sdk]
    field, block = NEWER[sdk]
    body = {**body_of(sdk, "plain", dialect), "newer_than_the_gateway": [1, {"a": None}]}
    body["messages"] = [{"role": "user", field: [block]}]
    client.post(PATHS[sdk].format(dialect), json=body)
    received = lab.upstream.last.json
    assert received["newer_than_the_gateway"] == [1, {"a": None}]
    assert received["messages"][0]["content"] == [block]


@pytest.mark.parametrize("sdk", SDK_NAMES)
def test_newer_blocks_are_named_where_they_cannot_be_carried(client: httpx.Client, sdk: str) -> None:
    other = next(dialect for dialect in DIALECTS if dialect != OWN_DIALECT[sdk])
    body = body_of(sdk, "plain", other)
    body["messages"][-1] = {"role": "user", "content": [*_words(sdk), NEWER[sdk][1]]}
    answer = client.post(PATHS[sdk].format(other), json={**body, "newer_than_the_gateway": 1})
    assert answer.status_code == 200, answer.text
    dropped = answer.headers["x-orqen-dropped"]
    assert "newer_than_the_gateway" in dropped and "messages.content" in dropped


def _words(sdk: str) -> list[dict[str, Any]]:
    return [{"text": "hi"}] if sdk == "boto3" else [{"type": "text", "text": "hi"}]


def test_nothing_of_all_this_is_in_the_log(lab: Lab, client: httpx.Client) -> None:
    """The gateway's own output after the worst of the above: no stack trace, no key."""
    secret = base64.b64encode(b"what the caller said").decode()
    for body in (b"\xff", msgspec.json.encode({"model": "lab-openai/plain", "messages": secret})):
        client.post("/v1/chat/completions", content=body)
    printed = "".join(lab.gateway.printed)
    for leak in ("Traceback", lab.key, API_KEY, AWS_SECRET, secret):
        assert leak not in printed
