"""A provider that stalls, breaks off or sends rubbish: the caller gets a clear end, and the connection is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.eventstream import EventStreamBuffer

from orqen_ray.formats.eventstream import write_frame
from tests.api.lab import Lab, lab_gateway
from tests.providers.scripted import CHUNKED_HEAD, Script, Scripted, framed, reply, scripted, until_eof

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "bedrock": "/model/bedrock%2Fm/converse-stream"}
OPENAI = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"m","usage":{'
    b'"input_tokens":9,"output_tokens":1}}}\n\nevent: content_block_start\ndata: {"type":"content_block_start",'
    b'"index":0,"content_block":{"type":"text","text":""}}\n\nevent: content_block_delta\ndata: '
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello"}}\n\n'
)


def event(kind: str, payload: bytes) -> bytes:
    return write_frame({":message-type": "event", ":event-type": kind, ":content-type": "application/json"}, payload)


BEDROCK = event("messageStart", b'{"role":"assistant"}') + event(
    "contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"hello"}}'
)
STARTS = {"openai": OPENAI, "anthropic": ANTHROPIC, "bedrock": BEDROCK}
TYPES = {name: b"text/event-stream" for name in STARTS} | {"bedrock": b"application/vnd.amazon.eventstream"}
QUICK = {"connect_s": 1, "first_byte_s": 0.2, "idle_s": 0.2}

Fault = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


async def ends_cleanly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")


async def ends_in_an_event(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(framed(b'data: {"cut') + b"0\r\n\r\n")


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await until_eof(reader)


async def babbles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(framed(b"<html>what is no event of any stream, and long enough to be seen</html>\n\n") + b"0\r\n\r\n")


FAULTS: list[Fault] = [ends_cleanly, ends_in_an_event, resets, stalls, babbles]


@asynccontextmanager
async def faulty(tmp_path: Path, script: bytes | Script, **settings: Any) -> AsyncIterator[tuple[Lab, Scripted]]:
    """A gateway whose three providers all answer by `script`, each in its dialect."""
    async with scripted(script) as server:
        row = {"auth": "none", "allow_private_network": True}
        rows = {
            "openai": {**row, "dialect": "openai", "base_url": f"{server.url}/v1"},
            "anthropic": {**row, "dialect": "anthropic", "base_url": server.url},
            "bedrock": {**row, "dialect": "bedrock", "base_url": server.url},
        }
        given = {"timeouts": QUICK, "retries": {"max_retries": 0}, **settings}
        async with lab_gateway(tmp_path, providers=rows, **given) as lab:
            yield lab, server


def begins(provider: str, fault: Fault) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = CHUNKED_HEAD.replace(b"text/event-stream", TYPES[provider])
        writer.write(head + framed(STARTS[provider]))
        await writer.drain()
        await fault(reader, writer)

    return script


def asked(provider: str, caller: str, *, stream: bool = True) -> tuple[str, dict[str, Any]]:
    if caller == "bedrock":
        path = f"/model/{provider}%2Fm/converse" + ("-stream" if stream else "")
        return path, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}
    body = {"model": f"{provider}/m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    return PATHS[caller], {**body, "stream": stream}


def error_at_the_end(caller: str, answer: httpx.Response) -> str:
    """The message of the error event with which the answer ends; every byte before it is whole events."""
    if caller == "bedrock":
        buffer = EventStreamBuffer()
        buffer.add_data(answer.content)
        events = list(buffer)
        assert events[-1].headers[":message-type"] == "exception"
        return str(json.loads(events[-1].payload)["message"])
    assert answer.text.endswith("\n\n")
    *_, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert caller == "openai" or last.startswith("event: error\n")
    data = json.loads(last.partition("data: ")[2])
    return str(data["error"]["message"])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("caller", STARTS)
@pytest.mark.parametrize("provider", STARTS)
async def test_a_stream_that_goes_wrong_ends_in_an_error_of_the_callers_format(
    tmp_path: Path, provider: str, caller: str, fault: Fault
) -> None:
    path, body = asked(provider, caller)
    async with faulty(tmp_path, begins(provider, fault)) as (lab, server), asyncio.timeout(10):
        answer = await lab.client.post(path, json=body)
        assert answer.status_code == 200 and b"hello" in answer.content
        assert error_at_the_end(caller, answer)
        assert b"cut" not in answer.content
        if fault is stalls:
            await asyncio.wait_for(server.closed.wait(), 1)
        (row,) = await lab.rows()
    assert row["error_code"] == "upstream_stream_failed" and row["output_tokens"] >= 1
    assert not row["client_disconnected"]


@pytest.mark.parametrize("caller", STARTS)
@pytest.mark.parametrize("provider", STARTS)
@pytest.mark.parametrize("fault", ["silence", "reset", "no body", "rubbish"])
async def test_a_stream_that_fails_before_it_begins_has_a_status_of_its_own(
    tmp_path: Path, provider: str, caller: str, fault: str
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fault != "silence":
            writer.write(CHUNKED_HEAD.replace(b"text/event-stream", TYPES[provider]))
            await writer.drain()
        if fault == "reset":
            writer.transport.abort()
        if fault == "silence":
            await until_eof(reader)
        if fault == "rubbish":
            writer.write(framed(b"<html>no stream</html>"))
        writer.write(b"0\r\n\r\n")

    path, body = asked(provider, caller)
    async with faulty(tmp_path, script) as (lab, server), asyncio.timeout(10):
        answer = await lab.client.post(path, json=body)
        expected = {"silence": 504, "reset": 503}.get(fault, 502)
        assert answer.status_code == (503 if caller == "bedrock" and expected == 502 else expected)
        assert answer.headers["content-type"] == "application/json" and answer.json()
        if fault == "silence":
            await asyncio.wait_for(server.closed.wait(), 1)
        (row,) = await lab.rows()
    assert row["status"] == expected


@pytest.mark.parametrize("caller", STARTS)
@pytest.mark.parametrize("fault", ["cut json", "short length", "not json"])
async def test_a_whole_answer_that_is_cut_off_is_an_error(tmp_path: Path, caller: str, fault: str) -> None:
    body = b'{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"he'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fault == "short length":
            writer.write(head % (len(body) + 100) + body)
            await writer.drain()
            raise ConnectionResetError
        text = body if fault == "cut json" else b"<html>"
        writer.write(head % len(text) + text)

    path, request = asked("openai", caller, stream=False)
    async with faulty(tmp_path, script) as (lab, _):
        answer = await lab.client.post(path, json=request)
        (row,) = await lab.rows()
    if fault == "not json" and caller == "openai":
        assert (answer.status_code, answer.content) == (200, b"<html>"), "odd, but whole: the caller's own bytes"
        return
    assert answer.status_code in (502, 503) and answer.json() and row["status"] in (502, 503)
    assert row["error_code"] in ("upstream_error", "upstream_unavailable")


async def test_an_error_whose_body_stalls_is_given_as_far_as_it_came(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 X\r\ncontent-type: text/plain\r\ncontent-length: 99\r\n\r\noops")
        await until_eof(reader)

    path, body = asked("openai", "anthropic")
    async with faulty(tmp_path, script) as (lab, server), asyncio.timeout(10):
        answer = await lab.client.post(path, json=body)
        await asyncio.wait_for(server.closed.wait(), 1)
    assert answer.status_code == 500 and "oops" in answer.json()["error"]["message"]


async def test_the_time_for_a_request_holds_for_its_whole_stream(tmp_path: Path) -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED_HEAD)
        closed = asyncio.ensure_future(until_eof(reader))
        while not closed.done():
            writer.write(framed(OPENAI))
            await asyncio.wait([closed], timeout=0.02)
        await closed

    path, body = asked("openai", "openai")
    settings = {"timeouts": {**QUICK, "total_s": 0.4}}
    async with faulty(tmp_path, drips, **settings) as (lab, server), asyncio.timeout(10):
        answer = await lab.client.post(path, json=body)
        await asyncio.wait_for(server.closed.wait(), 1)
        (row,) = await lab.rows()
    assert "time for the request was over" in error_at_the_end("openai", answer)
    assert 400 <= row["total_ms"] < 2000


async def test_a_second_key_answers_what_the_first_may_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b'{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
    seen: list[str] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = server.requests[-1]["authorization"] or ""
        seen.append(key)
        first = seen[0] == key
        writer.write(
            reply(429, b"{}", retry_after="40") if first else reply(200, whole, content_type="application/json")
        )

    monkeypatch.setenv("LAB_ONE", "sk-one")
    monkeypatch.setenv("LAB_TWO", "sk-two")
    async with scripted(script) as server:
        row = {"dialect": "openai", "base_url": server.url, "allow_private_network": True}
        rows = {"lab": {**row, "api_key_env": ["LAB_ONE", "LAB_TWO"]}}
        async with lab_gateway(tmp_path, providers=rows) as lab:
            body = {"model": "lab/m", "messages": [{"role": "user", "content": "x"}]}
            for _ in range(3):
                assert (await lab.client.post(PATHS["openai"], json=body)).status_code == 200
    assert sorted(set(seen)) == ["Bearer sk-one", "Bearer sk-two"] and len(seen) == 4
    assert seen[1:] == [seen[1]] * 3, "the conversation stays with the key that answers"
