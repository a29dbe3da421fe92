"""Who has a whole answer has its trace row: it is in the spool before the last byte goes out, and once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from orqen_ray.api.app import create_app
from orqen_ray.service import Service
from orqen_ray.traces.reader import read_traces
from tests.api.conftest import ScriptedUpstream, json_reply

CHAT = "/v1/chat/completions"
REPLY = b'{"model":"m-1","choices":[{"message":{"content":"hello"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}'
EVENTS = [
    b'data: {"model":"m-1","choices":[{"delta":{"content":"hello"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
]


def rows(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_traces(service.settings.storage.traces_uri).to_pylist()
    return found


async def ask(service: Service, path: str, body: object) -> tuple[list[Message], list[int]]:
    """The messages of the answer, and how many rows there were when each was sent."""
    _, secret = await service.keys.create("test")
    received = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent: list[Message] = []
    rows_at: list[int] = []

    async def receive() -> Message:
        return received.pop() if received else await _never()

    async def send(message: Message) -> None:
        sent.append(message)
        rows_at.append(len(rows(service)))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {secret}".encode()), (b"content-type", b"application/json")],
    }
    await create_app(service)(scope, receive, send)
    return sent, rows_at


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def request(model: str, *, stream: bool) -> dict[str, Any]:
    return {"model": model, "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_row_is_there_before_the_last_byte(
    service: Service, upstream: ScriptedUpstream, path: str, stream: bool
) -> None:
    upstream.script = (
        (lambda call: (200, {"content-type": "text/event-stream"}, EVENTS)) if stream else json_reply(REPLY)
    )
    sent, rows_at = await ask(service, path, request("lab-openai/m", stream=stream))
    assert not sent[-1].get("more_body") and rows_at[-1] == 1
    assert rows_at[:-1] == [0] * (len(sent) - 1) if stream else rows_at == [1] * len(sent)
    (row,) = rows(service)
    body = b"".join(message.get("body", b"") for message in sent)
    assert row["response_bytes"] == len(body) > 0 and row["request_bytes"] == len(upstream.calls[0].body)
    assert (row["status"], row["input_tokens"], row["served_model"]) == (200, 5, "m-1")
    assert not row["client_disconnected"]


async def test_the_row_of_an_error_is_there_before_the_error(service: Service, upstream: ScriptedUpstream) -> None:
    upstream.script = json_reply(b'{"error":{"message":"no"}}', 400)
    for model in ("lab-openai/m", "lab-anthropic/m", "no-such-model"):
        before = len(rows(service))
        _, rows_at = await ask(service, CHAT, request(model, stream=False))
        assert set(rows_at) == {before + 1}
    assert [row["error_class"] for row in rows(service)] == ["provider", "provider", "caller"]


async def test_a_row_tells_of_its_attempts_and_its_stages(service: Service, upstream: ScriptedUpstream) -> None:
    upstream.script = lambda call: json_reply(REPLY, 529 if len(upstream.calls) == 1 else 200)(call)
    await ask(service, CHAT, request("lab-openai/m", stream=False))
    (row,) = rows(service)
    first, second = row["attempt_log"]
    assert row["attempts"] == 2 and (first["status"], second["status"]) == (529, 200)
    assert (first["error_code"], second["error_code"]) == ("upstream_rejected", None)
    assert first["provider"] == "lab-openai" and first["started_ms"] < second["started_ms"]
    stages = [row[name] for name in ("read_ms", "select_ms", "build_ms")]
    assert all(stage > 0 for stage in stages)
    assert sum(stages) <= row["overhead_ms"] + 0.01 <= row["first_byte_ms"] + 0.01 <= row["total_ms"] + 0.02


async def test_what_others_wrote_takes_little_room_in_a_row(service: Service, upstream: ScriptedUpstream) -> None:
    claims = {"prompt_tokens": 10**10, "completion_tokens": 10**10}
    upstream.script = json_reply(json.dumps({**json.loads(REPLY), "usage": claims}).encode())
    await ask(service, CHAT, request("lab-openai/m", stream=False))
    await ask(service, CHAT, request("lab-openai/" + "x" * 10_000, stream=False))
    claimed, refused = rows(service)
    assert len(refused["requested_model"]) == 256
    assert claimed["output_tokens"] == 2**31 - 1


@pytest.mark.parametrize("model", ["lab-anthropic/m", "lab-bedrock/m", f"lab-openai/{'é' * 500}", "m" * 10_000])
async def test_nothing_that_a_caller_writes_makes_a_row_too_large_to_be_kept(
    service: Service, upstream: ScriptedUpstream, model: str
) -> None:
    upstream.script = json_reply(REPLY)
    fields = {f"{number}{chr(1) * 252}": 1 for number in range(300)}
    await ask(service, CHAT, {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields})
    assert len(rows(service)) == 1


async def test_nothing_that_a_provider_answers_makes_a_row_too_large_to_be_kept(
    service: Service, upstream: ScriptedUpstream
) -> None:
    calls = [
        {"id": str(number), "type": "function", "function": {"name": "\x01" * 400, "arguments": "{}"}}
        for number in range(400)
    ]
    message = {"content": None, "tool_calls": calls}
    reply = {"model": "\x01" * 100_000, "choices": [{"message": message, "finish_reason": "\x01" * 100_000}]}
    upstream.script = json_reply(json.dumps(reply).encode())
    await ask(service, CHAT, {"model": "lab-openai/m", "messages": [{"role": "user", "content": "hi"}]})
    (row,) = rows(service)
    assert row["tools_called"]
