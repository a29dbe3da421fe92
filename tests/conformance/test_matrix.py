"""Three SDKs, three dialects: each cell of the matrix in `cells.py`, through Ray Serve."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.conformance import asks, cells
from tests.conformance.asks import ASKS, with_turn
from tests.conformance.lab import Lab
from tests.conformance.scenarios import FAILURE, PNG, SCRIPTS, SEALED, SIGNATURE, TEXT, THOUGHT
from tests.conformance.sdks import Got, Sdk
from tests.conformance.upstream import Received

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
STOPS = {
    "openai": {"end": "stop", "tools": "tool_calls", "length": "length", "sequence": "stop"},
    "anthropic": {"end": "end_turn", "tools": "tool_use", "length": "max_tokens", "sequence": "stop_sequence"},
    "boto3": {"end": "end_turn", "tools": "tool_use", "length": "max_tokens", "sequence": "stop_sequence"},
}
OWN_DIALECT = {"openai": "openai", "anthropic": "anthropic", "boto3": "bedrock"}
SEALING = ("anthropic", "bedrock")


def rows(*names: str) -> pytest.MarkDecorator:
    """Parametrize over all cells of `names`."""
    found = [(name, *pair) for name in names for pair in cells.pairs_of(name)]
    ids = [f"{name}-{sdk}-{dialect}".replace(" ", "-") for name, sdk, dialect in found]
    return pytest.mark.parametrize(("row", "sdk_name", "dialect"), found, ids=ids)


@pytest.fixture
def sdk(lab: Lab, sdk_name: str) -> Sdk:
    return lab.sdks[sdk_name]


def ask(sdk: Sdk, row: str, topic: str, model: str, dialect: str) -> Got:
    """Ask, as a stream when the row says so."""
    body = ASKS[sdk.name](topic, f"lab-{dialect}/{model}")
    return sdk.stream(body) if row.endswith("stream") else sdk.ask(body)


def check(lab: Lab, got: Got, sdk: Sdk, dialect: str) -> Received:
    """What holds of every exchange: a request that the vendor takes, and the gateway's headers."""
    received = lab.upstream.last
    assert received.refused == "" and received.dialect == dialect
    assert got.headers["x-orqen-model"] == received.model
    assert got.headers["x-orqen-provider"] == f"lab-{dialect}"
    assert float(got.headers["x-orqen-overhead-ms"]) >= 0
    assert got.headers["x-request-id"] and "," not in got.headers["x-request-id"]
    if dialect == OWN_DIALECT[sdk.name]:
        assert received.body == faithful(got.sent, dialect)
        assert not got.dropped
    return received


def faithful(sent: bytes, dialect: str) -> bytes:
    """What the client sent, with the documented edits: the provider's prefix, and usage asked of OpenAI streams."""
    expected = sent.replace(f'"lab-{dialect}/'.encode(), b'"', 1)
    if dialect == "openai" and b'"stream":true' in sent:
        expected = expected[:-1] + b',"stream_options":{"include_usage":true}}'
    return expected


def check_usage(got: Got, model: str, sdk: Sdk, dialect: str, row: str) -> None:
    """The provider's own count. An OpenAI stream whose caller asked for none has none."""
    tokens = SCRIPTS.get(model, SCRIPTS["plain"]).tokens
    if sdk.name == "openai" and row.endswith("stream"):
        assert (got.prompt, got.out) == (0, 0)
        return
    assert (got.prompt, got.read, got.out) == (tokens.fresh + tokens.read + tokens.written, tokens.read, tokens.out)
    assert got.written == (0 if dialect == "openai" else tokens.written)


@rows("plain", "stream")
def test_text_comes_back(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "plain", "plain", dialect)
    received = check(lab, got, sdk, dialect)
    assert (got.text, got.calls, got.stop) == (TEXT, [], STOPS[sdk.name]["end"])
    check_usage(got, "plain", sdk, dialect, row)
    assert received.seen.system == [asks.SYSTEM]
    assert received.seen.turns == [("user", [("text", asks.QUESTION)])]
    assert not got.dropped


@rows("async stream")
async def test_text_comes_back_to_an_asyncio_client(lab: Lab, sdk_name: str, row: str, dialect: str) -> None:
    body = ASKS[sdk_name]("plain", f"lab-{dialect}/plain")
    if sdk_name == "openai":
        async with openai.AsyncOpenAI(base_url=f"{lab.url}/v1", api_key=lab.key, max_retries=0) as client:
            stream = await client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        usage = chunks[-1].usage
        assert (text, chunks[-1].choices, usage and usage.completion_tokens) == (TEXT, [], 7)
    else:
        async with anthropic.AsyncAnthropic(base_url=lab.url, api_key=lab.key, max_retries=0) as other:
            async with other.messages.stream(**body) as events:
                text = "".join([piece async for piece in events.text_stream])
                message = await events.get_final_message()
        assert (text, message.usage.output_tokens) == (TEXT, 7)


@rows("tools", "tools stream")
def test_a_tool_is_called(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "tools", "tools", dialect)
    received = check(lab, got, sdk, dialect)
    [(call_id, name, arguments)] = got.calls
    assert call_id and (name, arguments) == ("get_weather", {"city": "Zürich 🏔", "days": 3})
    assert (got.text, got.stop) == ("I will look.", STOPS[sdk.name]["tools"])
    assert {name: received.seen.tools[name] for name in asks.TOOLS} == {n: s for n, (_, s) in asks.TOOLS.items()}
    assert (got.headers["x-orqen-tools-input"], got.headers["x-orqen-prune-ratio"]) == ("2", "2/2")
    check_usage(got, "tools", sdk, dialect, row)


@rows("parallel", "parallel stream")
def test_several_tools_are_called_at_once(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "tools", "parallel", dialect)
    check(lab, got, sdk, dialect)
    assert [call[1:] for call in got.calls] == [
        ("get_weather", {"city": "Zürich 🏔", "days": 3}),
        ("get_weather", {"city": "Oslo"}),
        ("clock", {}),
    ]
    assert len({call[0] for call in got.calls}) == 3
    assert (got.text, got.stop) == ("", STOPS[sdk.name]["tools"])


@rows("results")
def test_tool_results_reach_the_provider(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "results", "results", dialect)
    seen = check(lab, got, sdk, dialect).seen
    assert [(name, given) for _, name, given in seen.parts("call")] == [
        ("get_weather", {"city": "Zürich"}),
        ("get_weather", {"city": "Atlantis"}),
    ]
    fine, failed = seen.parts("result")
    assert [fine[0], failed[0]] == [call[0] for call in seen.parts("call")]
    assert fine[1].startswith(asks.RESULT) and asks.MISHAP in failed[1]
    if sdk.name != "openai":  # whose results cannot be errors
        assert failed[2] is True if dialect != "openai" else failed[1].startswith("Error")
        assert fine[2] in (False, None)
    assert seen.turns[-1][1][-1] == ("text", "And now?")
    assert got.text == TEXT


@rows("result images")
def test_an_image_in_a_tool_result_reaches_the_provider(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    seen = check(lab, ask(sdk, row, "results", "results", dialect), sdk, dialect).seen
    if dialect == "openai":  # whose results are text: the image follows in the user's words
        assert seen.parts("image") == [(PNG,)]
    else:
        assert seen.parts("result")[0][3:] == (PNG,)


@rows("images")
def test_an_image_reaches_the_provider(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "images", "images", dialect)
    seen = check(lab, got, sdk, dialect).seen
    assert seen.turns == [("user", [("text", asks.QUESTION), ("image", PNG)])]
    assert not got.dropped


@rows("thinking", "thinking stream")
def test_reasoning_comes_back(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "thinking", "thinking", dialect)
    assert check(lab, got, sdk, dialect).seen.thinks
    assert (got.thought, got.text) == (THOUGHT, TEXT)
    if dialect in SEALING and sdk.name == "openai":
        assert row.endswith("stream") or got.dropped == {
            "reply.content.signature"
        }  # a stream's headers are gone by then
    elif dialect in SEALING:
        assert got.signature == SIGNATURE
    check_usage(got, "thinking", sdk, dialect, row)


@rows("replay")
def test_reasoning_that_is_sent_back_arrives_as_it_was(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    body = ASKS[sdk.name]("tools", f"lab-{dialect}/thinking-tools")
    body |= {key: value for key, value in ASKS[sdk.name]("thinking", "").items() if key not in body}
    first = sdk.ask(body)
    [(call_id, *_)] = first.calls
    second = sdk.ask(with_turn(sdk.name, body, first.turn, call_id))
    seen = check(lab, second, sdk, dialect).seen
    assert len(seen.parts("result")) == 1
    if sdk.name != "openai" and dialect in SEALING:
        assert seen.parts("thinking") == [(THOUGHT, SIGNATURE)] and len(seen.parts("sealed")) == 1
        assert first.sealed in (SEALED, base64.b64decode(SEALED)) and not second.dropped
    elif dialect == "openai":
        assert seen.parts("thinking") == [(THOUGHT, None)]
    else:
        assert not seen.parts("thinking")
        assert any(name.startswith("messages") for name in second.dropped)


@rows("cache")
def test_cache_markers_arrive_and_cached_tokens_are_told(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    topic = "plain" if sdk.name == dialect == "openai" else "cache"  # OpenAI itself caches unasked
    got = ask(sdk, row, topic, "cache", dialect)
    seen = check(lab, got, sdk, dialect).seen
    check_usage(got, "cache", sdk, dialect, row)
    if dialect == "openai":
        assert not seen.marked
        assert sdk.name == "openai" or any("cache_control" in name for name in got.dropped)
    else:
        assert sorted(seen.marked) == (["system:1h"] if sdk.name == "openai" else ["messages", "system:1h", "tools:1h"])
        assert not got.dropped


@rows("stop")
def test_a_stop_sequence_is_told(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "stop", "stop", dialect)
    assert check(lab, got, sdk, dialect).seen.stop == ["three", "four"]
    assert got.text == "one two"
    assert got.stop == STOPS[sdk.name]["end" if dialect == "openai" else "sequence"]
    if sdk.name != "openai" and dialect == OWN_DIALECT[sdk.name]:
        assert got.stop_sequence == "three"
    if sdk.name == "boto3" and dialect != "bedrock":
        assert "additionalModelResponseFieldPaths" in got.dropped


@rows("length")
def test_the_token_limit_is_told(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    got = ask(sdk, row, "plain", "length", dialect)
    check(lab, got, sdk, dialect)
    assert (got.text, got.stop) == ("one two", STOPS[sdk.name]["length"])


CLASSES: dict[str, dict[int, str]] = {
    "openai": {
        400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 429: "RateLimitError",
        500: "InternalServerError", 503: "InternalServerError", 529: "InternalServerError",
    },
    "anthropic": {
        400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 429: "RateLimitError",
        500: "InternalServerError", 503: "ServiceUnavailableError", 529: "OverloadedError",
    },
    "boto3": {
        400: "ValidationException", 401: "AccessDeniedException", 403: "AccessDeniedException",
        429: "ThrottlingException", 500: "InternalServerException", 503: "ServiceUnavailableException",
    },
}  # fmt: skip


@rows("error 400", "error 401", "error 429", "error 500", "error 529")
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_a_providers_error_is_the_sdks_own(lab: Lab, sdk: Sdk, row: str, dialect: str, streams: bool) -> None:
    said = int(row.removeprefix("error "))
    body = ASKS[sdk.name]("plain", f"lab-{dialect}/error-{said}")
    failed = sdk.fail(lambda: sdk.stream(body) if streams else sdk.ask(body))
    status = {401: 403, 529: 503}.get(said, said) if dialect == "bedrock" else said
    if sdk.name == "boto3" and status == 529:
        status = 503
    assert failed.status == status, failed
    known = CLASSES[sdk.name][status]
    if (sdk.name, dialect, said) == ("boto3", "bedrock", 401):
        known = "ClientError"  # the service model has no class for AWS's own UnrecognizedClientException
    assert failed.name == known
    assert f"the scripted provider says {said}" in failed.message
    assert lab.upstream.last.refused == ""
    assert failed.headers["x-request-id"] and failed.headers["x-orqen-provider"] == f"lab-{dialect}"
    if said == 429 and dialect != "bedrock":
        assert failed.headers["retry-after"] == "7"


BREAKS = {
    "openai": {"APIError"},
    "anthropic": {"APIStatusError", "OverloadedError", "InternalServerError", "ServiceUnavailableError"},
    "boto3": {"throttlingException", "serviceUnavailableException", "modelStreamErrorException"},
}


@rows("break error", "break cut")
def test_a_stream_that_breaks_ends_in_the_sdks_own_error(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    body = ASKS[sdk.name]("plain", f"lab-{dialect}/{row.replace(' ', '-')}")
    failed = sdk.fail(lambda: sdk.stream(body))
    assert failed.name in BREAKS[sdk.name], failed
    if row == "break error":
        assert FAILURE in failed.message


@rows("disconnect")
def test_a_client_that_leaves_is_left_by_the_provider(lab: Lab, sdk: Sdk, row: str, dialect: str) -> None:
    body: dict[str, Any] = ASKS[sdk.name]("plain", f"lab-{dialect}/stall-within")
    sdk.leave(body, lambda: None)
    received = lab.upstream.last
    assert lab.upstream.wait_until(lambda: received.cut_at, 1.0), "still connected after a second"


def test_the_page_says_what_is_declared() -> None:
    if os.environ.get("ORQEN_WRITE_DOCS") == "1":
        DOCUMENT.write_text(cells.document(), encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == cells.document(), "run with ORQEN_WRITE_DOCS=1 and commit the page"
