"""When a provider fails: which other model answers, what of the conversation it gets, and what the caller sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orqen_ray.config import SettingsError
from orqen_ray.errors import (
    CircuitOpen,
    Overloaded,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from orqen_ray.types import Call, UpstreamReply
from tests.api.conftest import ScriptedUpstream
from tests.api.lab import Lab, lab_gateway

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
ASK: dict[str, Any] = {"model": "lab-openai/m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
FALLBACKS = {"lab-openai/m": ["lab-anthropic/n", "lab-bedrock/o"]}
NONE = {"max_retries": 0}
OPENAI = (
    b'{"id":"c","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},'
    b'"finish_reason":"stop"}]}'
)
ANTHROPIC = (
    b'{"id":"msg_1","type":"message","role":"assistant","model":"n","content":[{"type":"text","text":"hi"}],'
    b'"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}'
)
BEDROCK = (
    b'{"output":{"message":{"role":"assistant","content":[{"text":"hi"}]}},"stopReason":"end_turn",'
    b'"usage":{"inputTokens":1,"outputTokens":1,"totalTokens":2}}'
)
BODIES = {"lab-openai": OPENAI, "lab-anthropic": ANTHROPIC, "lab-bedrock": BEDROCK}
JSON = {"content-type": "application/json"}
BUSY = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'

Failure = Callable[[], Exception] | int


class Failing(ScriptedUpstream):
    """Each provider in `failures` fails in its way; the others answer."""

    def __init__(self, **failures: Failure) -> None:
        super().__init__()
        self.failures = {name.replace("_", "-"): failure for name, failure in failures.items()}

    async def send(self, call: Call) -> UpstreamReply:
        failure = self.failures.get(call.provider, 200)
        if not isinstance(failure, int):
            self.calls.append(call)
            raise failure()
        self.script = lambda call: (failure, JSON, [BODIES[call.provider] if failure == 200 else BUSY])
        return await super().send(call)

    @property
    def asked(self) -> list[str]:
        return [call.provider for call in self.calls]


def metric(lab: Lab, name: str, **labels: str) -> float:
    return lab.service.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    "failure",
    [
        *(408, 429, 500, 502, 503, 504, 529, 520),
        lambda: UpstreamUnavailable("no connection"),
        lambda: UpstreamTimeout("silent"),
        lambda: UpstreamError("answered with what is not HTTP"),
        lambda: CircuitOpen("failed too often", retry_after_s=9),
        lambda: Overloaded("too many calls open", retry_after_s=1),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_another_model_answers_when_one_cannot(tmp_path: Path, failure: Failure, path: str) -> None:
    upstream = Failing(lab_openai=failure)
    async with lab_gateway(tmp_path, upstream, fallbacks=FALLBACKS, retries=NONE) as lab:
        answer = await lab.client.post(path, json=ASK)
        assert answer.status_code == 200 and '"hi"' in answer.text
        assert upstream.asked == ["lab-openai", "lab-anthropic"]
        assert (answer.headers["x-orqen-provider"], answer.headers["x-orqen-model"]) == ("lab-anthropic", "n")
        assert metric(lab, "orqen_fallbacks_total", provider="lab-anthropic") == 1
        (row,) = await lab.rows()
    assert (row["requested_model"], row["sent_model"], row["provider"]) == ("lab-openai/m", "n", "lab-anthropic")
    assert (row["status"], row["error_code"], row["attempts"]) == (200, None, 2)


@pytest.mark.parametrize("failure", [400, 401, 403, 404, 413, 422, lambda: UpstreamRefused("address not allowed")])
async def test_what_another_model_would_refuse_too_is_told_at_once(tmp_path: Path, failure: Failure) -> None:
    upstream = Failing(lab_openai=failure)
    async with lab_gateway(tmp_path, upstream, fallbacks=FALLBACKS) as lab:
        answer = await lab.client.post(CHAT, json=ASK)
    assert answer.status_code == (failure if isinstance(failure, int) else 400) and upstream.asked == ["lab-openai"]
    assert answer.headers["x-orqen-provider"] == "lab-openai"


async def test_when_all_fail_the_caller_gets_the_last_error_in_its_own_format(tmp_path: Path) -> None:
    upstream = Failing(lab_openai=500, lab_anthropic=503, lab_bedrock=529)
    async with lab_gateway(tmp_path, upstream, fallbacks=FALLBACKS, retries=NONE) as lab:
        answer = await lab.client.post(CHAT, json=ASK)
        assert answer.status_code == 529 and "error" in answer.json()
        assert answer.headers["x-orqen-provider"] == "lab-bedrock"
        same = await lab.client.post(MESSAGES, json={**ASK, "model": "lab-openai/m"})
        assert same.status_code == 529
    upstream = Failing(lab_openai=500, lab_anthropic=503)
    fallbacks = {"lab-openai/m": ["lab-anthropic/n"]}
    async with lab_gateway(tmp_path, upstream, fallbacks=fallbacks, retries=NONE) as lab:
        same = await lab.client.post(MESSAGES, json=ASK)
    assert (same.status_code, same.content) == (503, BUSY), "an error of the caller's own format stays as it came"


async def test_each_model_is_retried_before_the_next_one_is_asked(tmp_path: Path) -> None:
    upstream = Failing(lab_openai=503, lab_anthropic=503)
    async with lab_gateway(tmp_path, upstream, fallbacks=FALLBACKS) as lab:
        assert (await lab.client.post(CHAT, json=ASK)).status_code == 200
        assert metric(lab, "orqen_retries_total", provider="lab-openai") == 2
    assert upstream.asked == ["lab-openai"] * 3 + ["lab-anthropic"] * 3 + ["lab-bedrock"]


async def test_only_the_model_string_that_was_written_has_its_fallbacks(tmp_path: Path) -> None:
    upstream = Failing(lab_openai=503)
    async with lab_gateway(tmp_path, upstream, fallbacks=FALLBACKS, retries=NONE) as lab:
        assert (await lab.client.post(CHAT, json={**ASK, "model": "lab-openai/other"})).status_code == 503
    assert upstream.asked == ["lab-openai"]


async def test_a_fallback_of_the_callers_format_gets_the_callers_bytes(tmp_path: Path) -> None:
    upstream = Failing(lab_anthropic=529)
    fallbacks = {"lab-anthropic/n": ["lab-anthropic/second", "lab-openai/m"]}
    body = b'{ "max_tokens":9, "model":"lab-anthropic/n", "messages":[{"role":"user","content":"x"}],"new":{"z":1.50}}'
    async with lab_gateway(tmp_path, upstream, fallbacks=fallbacks, retries=NONE) as lab:
        answer = await lab.client.post(MESSAGES, content=body)
    before, after = (msgspec.json.decode(each, type=dict[str, msgspec.Raw]) for each in (body, upstream.calls[1].body))
    assert bytes(after.pop("model")) == b'"second"' and before.pop("model")
    assert {name: bytes(value) for name, value in after.items()} == {k: bytes(v) for k, v in before.items()}
    assert msgspec.json.decode(upstream.calls[2].body)["model"] == "m", "converted for the last one"
    assert answer.status_code == 200 and answer.headers["x-orqen-dropped"] == "new"


async def test_a_fallback_that_turns_out_to_be_the_model_itself_is_not_asked_again(tmp_path: Path) -> None:
    rows = {
        "first": {"dialect": "openai", "base_url": "http://lab.invalid/v1", "models": [{"id": "m"}]},
        "lab-openai": {"dialect": "openai", "base_url": "http://lab.invalid/v1", "models": [{"id": "m"}]},
        "lab-anthropic": {"dialect": "anthropic", "base_url": "http://lab.invalid"},
    }
    upstream = Failing(lab_openai=503)  # `first` is not connected
    fallbacks = {"m": ["lab-openai/m", "lab-anthropic/n"]}
    async with lab_gateway(tmp_path, upstream, rows, fallbacks=fallbacks, retries=NONE) as lab:
        assert (await lab.client.post(CHAT, json={**ASK, "model": "m"})).status_code == 200
    assert upstream.asked == ["lab-openai", "lab-anthropic"]


async def test_a_bug_on_the_way_to_a_fallback_leaves_the_caller_with_the_first_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Failing(lab_openai=lambda: CircuitOpen("failed too often", retry_after_s=9))
    connected, asked = upstream.connected, list[int]()

    async def fails_later() -> frozenset[str]:
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("a bug")
        return await connected()

    upstream.connected = fails_later  # type: ignore[method-assign]
    fallbacks = {"lab-openai/m": ["lab-anthropic/n"]}
    async with lab_gateway(tmp_path, upstream, fallbacks=fallbacks) as lab:
        answer = await lab.client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")
    assert "fallback" in caplog.text


# --- Only a model that can read what is there ----------------------------------------------------------------------

THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sealed-by-one"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok"}
BOUND = "lab-anthropic/claude-opus-5-5"
TOOLS = [{"name": "f", "input_schema": {"type": "object"}}]


def held(*turns: Any) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"model": BOUND, "max_tokens": 9, "messages": messages, "tools": TOOLS}


async def test_reasoning_that_another_account_cannot_read_is_taken_out_and_named(tmp_path: Path) -> None:
    upstream = Failing(lab_anthropic=529)
    fallbacks = {BOUND: ["lab-anthropic/claude-sonnet-5-5", "lab-openai/m"]}
    body = held("go", [THOUGHT, USE], [RESULT], [{"type": "text", "text": "done"}], "more")
    async with lab_gateway(tmp_path, upstream, fallbacks=fallbacks, retries=NONE) as lab:
        answer = await lab.client.post(MESSAGES, json=body)
    first, second, third = upstream.calls
    assert b"sealed-by-one" in first.body and first.key_bound
    assert b"sealed-by-one" not in second.body + third.body and b"toolu_1" in second.body
    assert not second.key_bound and not third.key_bound
    assert answer.status_code == 200 and "messages.thinking" in answer.headers["x-orqen-dropped"]


async def test_no_other_model_takes_over_a_tool_loop_that_holds_sealed_reasoning(tmp_path: Path) -> None:
    upstream = Failing(lab_anthropic=529)
    fallbacks = {BOUND: ["lab-anthropic/claude-sonnet-5-5", "lab-openai/m"]}
    async with lab_gateway(tmp_path, upstream, fallbacks=fallbacks, retries=NONE) as lab:
        answer = await lab.client.post(MESSAGES, json=held("go", [THOUGHT, USE], [RESULT]))
    assert (answer.status_code, answer.content, upstream.asked) == (529, BUSY, ["lab-anthropic"])


async def test_a_model_that_cannot_read_the_request_is_passed_over(tmp_path: Path) -> None:
    small = {"id": "small", "context_tokens": 50}
    rows = {
        "lab-openai": {"dialect": "openai", "base_url": "http://lab.invalid/v1"},
        "lab-anthropic": {"dialect": "anthropic", "base_url": "http://lab.invalid", "models": [small]},
        "lab-bedrock": {"dialect": "bedrock", "base_url": "http://lab.invalid", "capabilities": {"images": False}},
    }
    chain = ["lab-anthropic/small", "lab-bedrock/o", "groq/not-connected", "lab-anthropic/n"]
    upstream = Failing(lab_openai=503)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {**ASK, "messages": [{"role": "user", "content": [picture]}]}
    fallbacks = {"lab-openai/m": chain}
    async with lab_gateway(tmp_path, upstream, rows, fallbacks=fallbacks, retries=NONE) as lab:
        answer = await lab.client.post(CHAT, json=body)
    assert (answer.status_code, [call.model for call in upstream.calls]) == (200, ["m", "n"])


async def test_the_gateways_choice_ends_with_the_first_byte(tmp_path: Path) -> None:
    upstream = Failing()

    async def breaks_off(call: Call) -> UpstreamReply:
        upstream.calls.append(call)

        async def chunks() -> AsyncIterator[bytes]:
            yield b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
            raise UpstreamUnavailable("gone")

        return UpstreamReply(status=200, headers={"content-type": "text/event-stream"}, chunks=chunks())

    upstream.send = breaks_off  # type: ignore[method-assign]
    async with lab_gateway(tmp_path, upstream, fallbacks=FALLBACKS) as lab:
        answer = await lab.client.post(CHAT, json={**ASK, "stream": True})
    assert answer.status_code == 200 and '"content":"a"' in answer.text and "gone" in answer.text
    assert upstream.asked == ["lab-openai"]


# --- Settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fallbacks", "message"),
    [
        ({"gpt-4o": ["nowhere/x"]}, r"fallbacks\.gpt-4o\[0\]: no provider owns the model 'nowhere/x'"),
        ({"nobodys-model": ["gpt-4o"]}, r"fallbacks\.nobodys-model: no provider owns the model"),
        ({"gpt-4o": ["openai/gpt-4o"]}, r"'openai/gpt-4o' is the model itself"),
        ({"gpt-4o": ["groq/x", "groq/x"]}, r"fallbacks\.gpt-4o\[1\]: 'groq/x' is there twice"),
        ({"gpt-4o": ["orqen/auto"]}, r"fallbacks\.gpt-4o\[0\]: .*orqen/auto"),
        ({"gpt-4o": []}, r"fallbacks\.gpt-4o: expected at least one entry"),
        ({"gpt-4o": "groq/x"}, r"fallbacks\.gpt-4o: expected a list"),
    ],
)
async def test_what_cannot_be_a_fallback_stops_the_start_and_is_named(
    tmp_path: Path, fallbacks: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, SettingsError), match=message):
        async with lab_gateway(tmp_path, Failing(), fallbacks=fallbacks):
            pass


async def test_models_that_exist_may_be_fallbacks_before_they_are_connected(tmp_path: Path) -> None:
    async with lab_gateway(tmp_path, Failing(), fallbacks={"gpt-4o": ["anthropic/claude-sonnet-4-6", "groq/x"]}):
        pass
