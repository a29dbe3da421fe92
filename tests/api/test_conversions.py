"""A provider of another format: what goes out is legal there, what comes back is the caller's."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from tests.api.conftest import ScriptedUpstream

LONG = "mcp__" + "a_server_with_a_very_long_name__" * 3 + "read"
DOTTED = "files.read"
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}}


def openai_reply(name: str, *, stream: bool) -> tuple[str, list[bytes]]:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": '{"path":"a"}'}}
    if not stream:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return "application/json", [msgspec.json.encode({"id": "c", "model": "m", "choices": [choice]})]
    deltas: list[tuple[Any, Any]] = [({"tool_calls": [{"index": 0, **call}]}, None), ({}, "tool_calls")]
    chunks = [{"id": "c", "choices": [{"index": 0, "delta": d, "finish_reason": f}]} for d, f in deltas]
    return "text/event-stream", [b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", [LONG, DOTTED, "plain"])
async def test_a_tool_name_that_the_provider_refuses_is_changed_there_and_back(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, name: str, stream: bool
) -> None:
    def script(call: Any) -> Any:
        sent = msgspec.json.decode(call.body)
        content_type, chunks = openai_reply(sent["tools"][0]["function"]["name"], stream=stream)
        return 200, {"content-type": content_type}, chunks

    upstream.script = script
    use = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
    body = {
        "model": "lab-openai/m",
        "max_tokens": 50,
        "stream": stream,
        "tools": [{"name": name, "input_schema": PARAMETERS}],
        "tool_choice": {"type": "tool", "name": name},
        "messages": [
            {"role": "user", "content": "read"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ],
    }
    answer = await client.post("/v1/messages", json=body)
    sent = msgspec.json.decode(upstream.calls[0].body)
    there = sent["tools"][0]["function"]["name"]
    assert len(there) <= 64 and there.replace("_", "").replace("-", "").isalnum()
    assert (there == name) is (name == "plain")
    assert sent["tool_choice"]["function"]["name"] == there
    assert sent["messages"][1]["tool_calls"][0]["function"]["name"] == there
    assert f'"name":"{name}"' in answer.text and (there == name or there not in answer.text)


async def test_a_provider_that_refuses_the_gateways_key_is_named(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    body = b'{"error":{"message":"bad key","type":"x","code":"invalid_api_key","param":null}}'
    upstream.script = lambda call: (401, {"content-type": "application/json"}, [body])
    request = {"model": "lab-openai/m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    answer = await client.post("/v1/messages", json=request)
    assert answer.status_code == 401
    message = answer.json()["error"]["message"]
    assert message == "the provider 'lab-openai' refuses the gateway's credentials: bad key"


async def test_a_note_to_anthropic_that_is_new_each_time_reaches_nobody_else(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    upstream.script = lambda call: (200, {"content-type": "application/json"}, openai_reply("x", stream=False)[1])
    note = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.177; cc_entrypoint=cli; cch=36ee5;"}
    request = {"max_tokens": 5, "system": [note, {"type": "text", "text": "Be brief."}]}
    request |= {"model": "lab-openai/m", "messages": [{"role": "user", "content": "x"}]}
    answer = await client.post("/v1/messages", json=request)
    assert b"billing" not in upstream.calls[0].body and b"Be brief." in upstream.calls[0].body
    assert "system.x-anthropic-billing-header" in answer.headers["x-orqen-dropped"]
