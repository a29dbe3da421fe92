"""Hostile tools, in all three formats: an answer, or a clear 4xx in the caller's format, in time; never a 500."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from orqen_ray.api.app import create_app
from orqen_ray.config import Settings
from orqen_ray.service import open_service
from orqen_ray.types import Call
from tests.api.conftest import ROWS, ScriptedUpstream
from tests.api.test_bad_input import message_of

LIMIT_S = 4.0
OPENAI, ANTHROPIC, BEDROCK = "/v1/chat/completions", "/v1/messages", "/model/lab-{provider}%2Fm/converse"
OWN = ((OPENAI, "openai"), (ANTHROPIC, "anthropic"), (BEDROCK, "bedrock"))
OTHERS = ((OPENAI, "anthropic"), (ANTHROPIC, "bedrock"), (BEDROCK, "openai"))
TEXT = "Book a table for two tonight, and tell me what the weather will be."
REPLIES: dict[str, Any] = {
    "/chat/completions": {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    },
    "/messages": {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "Done."}],
        "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1},
    },
    "/converse": {
        "output": {"message": {"role": "assistant", "content": [{"text": "Done."}]}}, "stopReason": "end_turn",
        "usage": {"inputTokens": 9, "outputTokens": 1, "totalTokens": 10}, "metrics": {"latencyMs": 1},
    },
}  # fmt: skip


def _tool(name: Any, description: Any = "Does one thing, when it is asked for.", schema: Any = None) -> tuple[Any, ...]:
    properties = {"city": {"type": "string", "title": "City", "description": "Name of a city."}}
    return name, description, {"type": "object", "properties": properties} if schema is None else schema


def _deep(levels: int) -> Any:
    schema: Any = {"type": "string", "title": "x"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


RING = {
    "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#"}]}},
    "$ref": "#/$defs/a",
}
INVALID: list[Any] = [
    {"type": 5}, {"properties": [1]}, {"required": "x"}, {"enum": {}}, {"$ref": 7}, {"$defs": 1, "items": "x"}, {},
    {"properties": {"a": True, "b": None, "c": []}, "title": {"x": 1}, "description": 3}, {"type": "string"},
]  # fmt: skip
# More than the gateway forwards whole, so that routing has to look at them.
MANY = [_tool(f"tool_{i}", f"Does the thing number {i} of a very long list, when it is asked for.") for i in range(60)]
SETS: dict[str, list[tuple[Any, ...]]] = {
    "5,000 tools": [_tool(f"tool_{i}", f"Does thing {i}.") for i in range(5_000)],
    "empty names": [_tool(""), _tool(" "), *MANY],
    "one name": [_tool("same", f"Does thing {i} of many, when it is asked for it.") for i in range(100)],
    "one definition": [_tool("same")] * 100,
    "the gateway's own name": [_tool("orqen_more_tools"), *MANY],
    "descriptions of a megabyte": [_tool(f"big_{i}", "word  and\n " * 100_000) for i in range(3)] + MANY,
    "a description of spaces": [_tool("wide", "a" + " " * 500_000 + "b"), *MANY],
    "names of ten thousand characters": [_tool("n" * 10_000), *MANY],
    "recursive references": [_tool(f"ring_{i}", schema=RING) for i in range(60)],
    "invalid schemas": [_tool(f"bad_{i}_{j}", schema=each) for i, each in enumerate(INVALID) for j in range(6)],
    "deep schemas": [_tool(f"deep_{i}", schema=_deep(150)) for i in range(30)],
    "other scripts": [_tool(f"天气_{i}", f"查询第{i}个城市的天气。🌦️") for i in range(30)]
    + [
        _tool(f"🌦️{i}", "🌦️" * 50, {"type": "object", "properties": {"город 🌍": {"description": "🏙️"}}})
        for i in range(30)
    ],
    "no descriptions": [_tool(f"f{i}", None) for i in range(100)],
    "words of control": [_tool(f"c\u0000\u202e{i}", "\u0000\u001b[31m\ud7ff" * 30) for i in range(60)],
    "names that are numbers": [_tool(i) for i in range(60)],
}


def _answered(call: Call) -> tuple[int, dict[str, str], list[bytes]]:
    reply = next(reply for end, reply in REPLIES.items() if call.path.endswith(end))
    return 200, {"content-type": "application/json"}, [msgspec.json.encode(reply)]


def _body(path: str, model: str, tools: list[tuple[Any, ...]]) -> dict[str, Any]:
    named = [
        {"name": name, **({} if description is None else {"description": description})}
        for name, description, _ in tools
    ]
    schemas = [schema for *_, schema in tools]
    if path == BEDROCK:
        specs = [{"toolSpec": {**n, "inputSchema": {"json": s}}} for n, s in zip(named, schemas, strict=True)]
        return {"messages": [{"role": "user", "content": [{"text": TEXT}]}], "toolConfig": {"tools": specs}}
    written: list[Any] = [{**n, "input_schema": s} for n, s in zip(named, schemas, strict=True)]
    if path == OPENAI:
        written = [
            {"type": "function", "function": {**n, "parameters": s}} for n, s in zip(named, schemas, strict=True)
        ]
    return {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": TEXT}], "tools": written}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The application over a scripted provider; it takes larger bodies than that of the other tests."""
    storage = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/orqen.db", "traces_uri": f"{tmp_path}/traces"}
    whole = {"storage": storage, "providers": ROWS, "limits": {"max_body_mib": 16}}
    service = await open_service(Settings.model_validate(whole), ScriptedUpstream(script=_answered), ship_traces=False)
    _, secret = await service.keys.create("test")
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        yield client
    await service.aclose()


async def _asked(
    client: httpx.AsyncClient, path: str, provider: str, tools: list[tuple[Any, ...]]
) -> tuple[httpx.Response, float]:
    body = msgspec.json.encode(_body(path, f"lab-{provider}/m", tools))
    started = time.process_time()
    answer = await client.post(path.format(provider=provider), content=body)
    return answer, time.process_time() - started


@pytest.mark.parametrize("named", SETS)
async def test_hostile_tools_are_answered_in_time(client: httpx.AsyncClient, named: str) -> None:
    for path, provider in OWN if len(SETS[named]) > 1_000 else OWN + OTHERS:
        answer, took_s = await _asked(client, path, provider, SETS[named])
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, (path, provider, answer.text[:500])
        assert answer.status_code == 200 or message_of(answer), (path, provider)
        assert answer.status_code != 200 or "Done." in answer.text
        assert took_s < LIMIT_S, (path, provider)


async def test_what_is_refused_is_named(client: httpx.AsyncClient) -> None:
    for path in (OPENAI, ANTHROPIC, BEDROCK):
        answer, _ = await _asked(client, path, "openai", [_tool("fine"), _tool(7)])
        assert answer.status_code == 400 and "tools[1]" in message_of(answer) and "name" in message_of(answer)
