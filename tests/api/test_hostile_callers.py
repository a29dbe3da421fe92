"""What a hostile caller puts into headers, URLs and bodies: nothing of it breaks out, is believed, or is kept."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqen_ray.service import Service
from tests.api.conftest import ScriptedUpstream, json_reply
from tests.api.test_bad_input import PATHS, message_of, request_body
from tests.api.test_edges import ASK, CHAT, Caller, rows, secret_of

ANSWER = b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
INJECTED: list[bytes] = [
    b"a\r\nx-evil: 1", b"a\nx-evil: 1", b"a\rx-evil: 1", b"a\x00b", b"a\r\n x-folded: 1", b"a\x0bb", b"a\x1b[31m",
    b"a\x7f", b"\xc3\xa9", b"\xe9", b"\xff\xfe", b"\xe2\x80\xa8", b"a\x85b", b"\xa0", b"",
]  # fmt: skip


async def ask(
    service: Service, *headers: tuple[bytes, bytes], path: str = CHAT, body: Any = ASK, raw_path: str | None = None
) -> Caller:
    caller = Caller(await secret_of(service), path, body, raw_path)
    caller.scope["headers"] = [*caller.scope["headers"], *headers]
    await caller.ask(service)
    return caller


def check_answer(caller: Caller) -> int:
    """The status of an answer each of whose headers is one clean line."""
    for name, value in caller.sent[0]["headers"]:
        assert name.isascii() and value.decode("ascii").isprintable() and b"x-evil" not in name + value
    status: int = caller.sent[0]["status"]
    return status


@pytest.mark.parametrize("value", INJECTED)
@pytest.mark.parametrize(
    "name",
    [
        b"x-orqen-session-id", b"x-request-id", b"anthropic-version", b"anthropic-beta", b"openai-organization",
        b"openai-project", b"openai-beta", b"idempotency-key", b"accept", b"user-agent", b"x-orqen-optimize",
    ],
)  # fmt: skip
async def test_no_header_of_a_caller_breaks_out_of_its_line(
    service: Service, upstream: ScriptedUpstream, name: bytes, value: bytes
) -> None:
    upstream.script = json_reply(ANSWER)
    for path, model in ((CHAT, "lab-openai/m"), ("/v1/messages", "lab-anthropic/m")):
        caller = await ask(service, (name, value), path=path, body={**ASK, "model": model, "max_tokens": 5})
        if name == b"x-orqen-optimize" and value.decode("latin-1").strip():  # none of these can be optimized
            assert check_answer(caller) == 400 and not upstream.calls
            continue
        assert check_answer(caller) == 200
        sent = upstream.calls[-1]
        assert all(value.isprintable() and "x-evil" not in name for name, value in sent.headers)
        assert "openai-organization" not in dict(sent.headers) and "openai-project" not in dict(sent.headers)
    assert all(row["session_id"].isprintable() and row["request_id"].isprintable() for row in await rows(service))


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\x00b", "é\u2028", "a b\x1b[31m", "x" * 513, "\ud7ff\ue000"])
async def test_no_model_name_breaks_out_of_a_header_or_a_path(
    service: Service, upstream: ScriptedUpstream, value: str
) -> None:
    upstream.script = json_reply(ANSWER)
    for model in (f"lab-openai/{value}", value):
        assert check_answer(await ask(service, body={**ASK, "model": model})) in (200, 400, 404)
    caller = await ask(
        service, path=f"/model/lab-bedrock/{value}/converse", body={"messages": []}, raw_path="/model/x/converse"
    )
    assert check_answer(caller) in (200, 400, 404)
    assert all(call.path.isascii() and call.path.isprintable() and " " not in call.path for call in upstream.calls)


async def test_a_served_model_cannot_break_out_of_the_answer(service: Service, upstream: ScriptedUpstream) -> None:
    upstream.script = json_reply(ANSWER.replace(b'"id":"x"', b'"id":"x","model":"a\\r\\nx-evil: 1"'))
    assert check_answer(await ask(service)) == 200


async def test_ten_thousand_headers_are_read_in_no_time(service: Service, upstream: ScriptedUpstream) -> None:
    upstream.script = json_reply(ANSWER)
    same = [(b"anthropic-beta", b"x" * 100)] * 10_000
    different = [(f"x-{number}".encode(), b"y") for number in range(10_000)]
    started = time.process_time()
    assert check_answer(await ask(service, *different)) == 200
    caller = await ask(service, *same, path="/v1/messages", body={**ASK, "model": "lab-anthropic/m", "max_tokens": 5})
    assert check_answer(caller) == 200
    assert time.process_time() - started < 1.0
    assert dict(upstream.calls[-1].headers)["anthropic-beta"].count("x" * 100) == 10_000


@pytest.mark.parametrize(
    "query", [b"a=" + b"x" * 1_000_000, b"&" * 100_000, b"\xff\xfe=\x00", b"a=b#c", b"%", b"\r\nx: y"]
)
async def test_a_query_of_any_kind_is_sent_on_or_refused(
    service: Service, upstream: ScriptedUpstream, query: bytes
) -> None:
    upstream.script = json_reply(ANSWER)
    caller = Caller(await secret_of(service), CHAT, ASK)
    caller.scope["query_string"] = query
    await caller.ask(service)
    assert check_answer(caller) == 200 and upstream.calls[0].query == query.decode("latin-1")


NUMBERS = ["1" + "0" * 5000, "-1" + "0" * 5000, "1e400", "-1e400", "1e-400", "0." + "9" * 5000, "9223372036854775808"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12])
@pytest.mark.parametrize("field", ["max_tokens", "temperature", "n", "seed", "unknown", "messages", "model"])
@pytest.mark.parametrize("target", ["lab-openai", "lab-anthropic", "lab-bedrock"])
async def test_a_huge_number_is_sent_on_or_refused(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, target: str, field: str, number: str
) -> None:
    upstream.script = json_reply(b"{}", 400)
    for path, more in ((CHAT, {}), ("/v1/messages", {"max_tokens": 5})):
        body = {"model": f"{target}/m", "messages": [{"role": "user", "content": "x"}], **more, field: "NUMBER"}
        answer = await client.post(path, content=json.dumps(body).replace('"NUMBER"', number))
        assert answer.status_code == 400, answer.text
        assert len(answer.content) < 2000


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"lab-openai/a","model":"lab-openai/b","messages":[{"role":"user","content":"x"}],"max_tokens":5}',
        b'{"model":"a","messages":[{"role":"user","content":"x"}],"max_tokens":5,"model":"lab-openai/b"}',
        b'{"mod\\u0065l":"a","model":"lab-openai/b","messages":[{"role":"user","content":"x"}],"max_tokens":5}',
        b'{"\\u006Dodel":"a","mode\\u006c":"lab-openai/b","messages":[{"role":"user","content":"x"}],"max_tokens":5}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/v1/messages/count_tokens"])
async def test_two_models_in_one_body_are_refused(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, body: bytes
) -> None:
    answer = await client.post(path, content=body)
    assert answer.status_code == 400 and "more than once" in message_of(answer)
    assert not upstream.calls


@pytest.mark.parametrize(
    "content", ['{"model": 1, "model": 2}', '"model": "model":', 'the key "mod\u0065l"', "model", '\\"model\\"']
)
async def test_a_body_that_only_speaks_of_models_passes_untouched(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, content: str
) -> None:
    upstream.script = json_reply(ANSWER)
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {"x": {"model": 1}}}}}}
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "tools": tools}
    raw = json.dumps(body).encode()
    assert (await client.post(CHAT, content=raw)).status_code == 200
    assert upstream.calls[0].body == raw


@pytest.mark.parametrize("path", PATHS)
async def test_other_repeated_keys_count_as_their_last(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str
) -> None:
    upstream.script = json_reply(b"{}", 400)
    raw = json.dumps(request_body(path)).encode()
    answer = await client.post(path, content=b'{"messages": 7,' + raw[1:])
    assert answer.status_code == 400 and len(upstream.calls) == 1, "it was the provider that answered"


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=200))
async def test_no_bytes_make_a_bug(client: httpx.AsyncClient, path: str, garbage: bytes) -> None:
    answer = await client.post(path, content=garbage)
    assert answer.status_code == 400 and message_of(answer)


@pytest.mark.parametrize("path", PATHS)
async def test_text_that_is_not_utf8_is_refused_in_every_place(client: httpx.AsyncClient, path: str) -> None:
    raw = json.dumps(request_body(path)).encode()
    for broken in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        answer = await client.post(path, content=raw.replace(b'"x"', b'"' + broken + b'"'))
        assert answer.status_code == 400 and "UTF-8" in message_of(answer)


async def test_a_caller_that_sends_a_thousand_chunks_and_leaves_is_answered_by_nobody(service: Service) -> None:
    class Trickle(Caller):
        left = 1000

        async def receive(self) -> Any:
            self.left -= 1
            await asyncio.sleep(0)
            return (
                {"type": "http.request", "body": b" ", "more_body": True} if self.left else {"type": "http.disconnect"}
            )

    caller = Trickle(await secret_of(service), CHAT, ASK)
    await caller.ask(service)
    assert caller.sent[0]["status"] == 400
