"""Whole Converse answers and errors, both ways, judged by botocore's parser."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.parsers import create_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import Facts, Opaque, Refusal, Reply, Text, Thinking, ToolCall, Usage
from orqen_ray.errors import BadRequest, GatewayError, Overloaded, UpstreamError, UpstreamRejected, UpstreamTimeout
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE

REASONS = {
    "end_turn": "end",
    "tool_use": "tool_call",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "guardrail_intervened": "refusal",
    "content_filtered": "refusal",
    "malformed_model_output": "malformed",
    "malformed_tool_use": "malformed",
    "model_context_window_exceeded": "context_window",
}


@pytest.fixture(scope="module")
def service() -> Any:
    return ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2"))


def answer(*content: Any, **fields: Any) -> dict[str, Any]:
    output = {"message": {"role": "assistant", "content": list(content)}}
    usage = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}
    return {"output": output, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 7}, **fields}


def parse(service: Any, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    shape = service.operation_model("Converse").output_shape
    response = {"status_code": status, "headers": headers or {}, "body": msgspec.json.encode(body)}
    return create_parser("rest-json").parse(response, shape)


def test_every_stop_reason_of_the_service_model_is_known(service: Any) -> None:
    assert set(service.shape_for("StopReason").enum) == REASONS.keys()


@pytest.mark.parametrize(("wire", "neutral"), [*REASONS.items(), ("brand_new_reason", "end")])
def test_a_stop_reason(wire: str, neutral: str) -> None:
    assert BEDROCK_CONVERSE.read_reply(answer(stopReason=wire)).stop_reason == neutral


def test_an_answer_is_understood() -> None:
    usage = {
        "inputTokens": 5,
        "outputTokens": 2,
        "totalTokens": 107,
        "cacheReadInputTokens": 60,
        "cacheWriteInputTokens": 40,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 10}],
    }
    body = answer(
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
        {"text": "hi"},
        {"toolUse": {"toolUseId": "a", "name": "f", "input": {"x": 1}}},
        {"brandNew": {}},
        usage=usage,
        additionalModelResponseFields={"stop_sequence": "END"},
    )
    reply = BEDROCK_CONVERSE.read_reply(body)
    assert reply.blocks == (
        Thinking(text="hm", signature="s"),
        Text(text="hi"),
        ToolCall(id="a", name="f", arguments='{"x":1}'),
        Opaque(kind="brandNew", raw={"brandNew": {}}),
    )
    assert reply.usage == Usage(
        input_tokens=5, output_tokens=2, cache_read_tokens=60, cache_write_tokens=40, cache_write_1h_tokens=30
    )
    assert reply.stop_sequence == "END" and reply.extra["metrics"] == {"latencyMs": 7}
    written = BEDROCK_CONVERSE.write_reply(reply, "m", "id")
    assert written.body["usage"] == usage and written.body["metrics"] == {"latencyMs": 7}
    facts = BEDROCK_CONVERSE.scan_reply(msgspec.json.encode(body))
    assert (facts.usage, facts.stop_reason, facts.tool_names) == (reply.usage, "end", ("f",))
    assert facts.output_chars >= len("hm" + "hi" + '{"x":1}')


@pytest.mark.parametrize(
    "body", [{}, {"output": 1}, {"output": {}}, {"output": {"message": {"content": [{"text": 1}]}}}]
)
def test_an_answer_that_is_none_is_the_providers_fault(body: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError) as caught:
        BEDROCK_CONVERSE.read_reply(body)
    assert caught.value.status == 502


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"output": 3}', b"[" * 5000])
def test_scanning_never_fails(body: bytes) -> None:
    assert BEDROCK_CONVERSE.scan_reply(body) == Facts()


BLOCKS = st.one_of(
    st.builds(Text, text=st.text(max_size=5)),
    st.builds(Refusal, text=st.just("no")),
    st.builds(Thinking, text=st.text(max_size=5), signature=st.none() | st.just("s")),
    st.builds(Thinking, redacted=st.sampled_from(["AAAA", "not base64"])),
    st.builds(ToolCall, id=st.just("call.1"), name=st.just("f"), arguments=st.sampled_from(["", "{}", '{"a":', "[1]"])),
    st.just(Opaque(kind="server_tool_use", raw={"type": "server_tool_use"})),
)
REPLIES = st.builds(
    Reply,
    id=st.just("x"),
    model=st.just("gpt-x"),
    blocks=st.lists(BLOCKS, max_size=4).map(tuple),
    stop_reason=st.sampled_from(
        ["end", "max_tokens", "stop_sequence", "tool_call", "refusal", "pause", "context_window", "malformed"]
    ),
    usage=st.none() | st.builds(Usage, input_tokens=st.integers(0, 9), output_tokens=st.integers(0, 9)),
    extra=st.just({"system_fingerprint": "fp"}),
)


@settings(deadline=None)
@given(reply=REPLIES)
def test_any_reply_is_read_by_botocore_and_keeps_its_meaning(service: Any, reply: Reply) -> None:
    written = BEDROCK_CONVERSE.write_reply(reply, "m", "id")
    body = msgspec.json.decode(msgspec.json.encode(written.body))
    parsed = parse(service, body)
    assert parsed["output"]["message"]["role"] == "assistant"
    assert parsed["metrics"] == {"latencyMs": 0} and "system_fingerprint" in written.dropped
    usage = reply.usage or Usage()
    assert parsed["usage"]["totalTokens"] == usage.prompt_tokens + usage.output_tokens
    read = BEDROCK_CONVERSE.read_reply(body)
    said = "".join(b.text for b in reply.blocks if isinstance(b, Text | Refusal) and b.text.strip())
    assert "".join(b.text for b in read.blocks if isinstance(b, Text)) == said
    assert [b.name for b in read.blocks if isinstance(b, ToolCall)] == [
        b.name for b in reply.blocks if isinstance(b, ToolCall)
    ]
    assert read.usage == usage
    if reply.stop_reason != "pause":
        assert read.stop_reason == reply.stop_reason


def test_blocks_that_are_bedrocks_own_come_back() -> None:
    own = [{"citationsContent": {"content": [{"text": "a"}], "citations": []}}, {"audio": {"format": "mp3"}}]
    reply = BEDROCK_CONVERSE.read_reply(answer(*own))
    written = BEDROCK_CONVERSE.write_reply(reply, "m", "id")
    assert written.body["output"]["message"]["content"] == own and written.dropped == ()


# --- Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "message", "kind"),
    [
        ({"x-amzn-errortype": "ThrottlingException"}, b'{"message":"slow"}', "slow", "ThrottlingException"),
        (
            {"x-amzn-errortype": "ValidationException:http://internal.amazon.com/"},
            b'{"Message":"bad"}',
            "bad",
            "ValidationException",
        ),
        ({}, b'{"__type":"com.amazon#AccessDeniedException","message":"no"}', "no", "AccessDeniedException"),
        ({}, b"<html>gone</html>", "the provider answered with status 400", None),
        ({}, b"", "the provider answered with status 400", None),
        ({}, b'{"message": 3}', "the provider answered with status 400", None),
        ({}, b"\xff\xfe", "\ufffd\ufffd", None),
    ],
)
def test_an_error_is_read(headers: dict[str, str], body: bytes, message: str, kind: str | None) -> None:
    error = BEDROCK_CONVERSE.read_error(400, headers, body)
    assert (error.message, error.kind, error.status) == (message, kind, 400)


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("soon", None), ("-1", None), ("nan", None)])
def test_retry_after_is_read_in_seconds(value: str, seconds: float | None) -> None:
    assert BEDROCK_CONVERSE.read_error(429, {"retry-after": value}, b"{}").retry_after_s == seconds


def rejected(status: int) -> UpstreamRejected:
    return UpstreamRejected("no", status=status)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("no"), 400, "ValidationException"),
        (rejected(401), 401, "AccessDeniedException"),
        (rejected(403), 403, "AccessDeniedException"),
        (rejected(404), 404, "ResourceNotFoundException"),
        (rejected(405), 405, "ValidationException"),
        (rejected(408), 408, "ModelTimeoutException"),
        (rejected(413), 413, "ValidationException"),
        (rejected(424), 424, "ModelErrorException"),
        (Overloaded("no", retry_after_s=1.2), 429, "ThrottlingException"),
        (GatewayError("no"), 500, "InternalServerException"),
        (UpstreamError("no"), 503, "ServiceUnavailableException"),
        (rejected(529), 503, "ServiceUnavailableException"),
        (UpstreamTimeout("no"), 504, "ModelTimeoutException"),
    ],
)
def test_an_error_is_written_as_boto3_reads_it(service: Any, error: GatewayError, status: int, kind: str) -> None:
    written = BEDROCK_CONVERSE.write_error(error, "req-1")
    assert written.status == status and written.headers["x-amzn-RequestId"] == "req-1"
    headers = {name.lower(): value for name, value in written.headers.items()}
    parsed = parse(service, written.body, status, headers)
    assert parsed["Error"] == {"Message": error.message, "Code": kind}
    assert headers.get("retry-after") == ("2" if isinstance(error, Overloaded) else None)
    assert kind in {shape.name for shape in service.operation_model("Converse").error_shapes}
