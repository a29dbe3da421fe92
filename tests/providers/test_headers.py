"""Nothing of the caller's own reaches a provider, and nothing of the provider's connection reaches a caller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.conversation import FormatName
from orqen_ray.providers.headers import allowed_reply_headers, allowed_request_headers

DIALECTS: list[FormatName] = ["openai_chat", "anthropic_messages", "bedrock_converse"]
FORBIDDEN = [
    "Authorization", "x-api-key", "api-key", "Cookie", "Host", "X-Orqen-Session-Id", "Forwarded", "X-Forwarded-For",
    "X-Amz-Date", "X-Amz-Security-Token", "X-Amz-Content-Sha256", "OpenAI-Organization", "X-Stainless-Lang",
    "Transfer-Encoding", "Content-Length", "Accept-Encoding", "User-Agent", "traceparent", "Expect",
    "Proxy-Authorization", "Connection",
]  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", FORBIDDEN)
def test_headers_of_the_callers_own_stay_behind(dialect: FormatName, name: str) -> None:
    assert allowed_request_headers(dialect, {name: "v"}) == ()


def test_each_dialect_gets_its_own_headers() -> None:
    mixed = {
        "Content-Type": "application/json", "Anthropic-Version": "2023-06-01", "anthropic-beta": "a,b",
        "OpenAI-Beta": "x", "X-Amzn-Bedrock-GuardrailIdentifier": "g",
    }  # fmt: skip
    assert {dialect: [name for name, _ in allowed_request_headers(dialect, mixed)] for dialect in DIALECTS} == {
        "openai_chat": ["content-type", "openai-beta"],
        "anthropic_messages": ["content-type", "anthropic-version", "anthropic-beta"],
        "bedrock_converse": ["content-type", "x-amzn-bedrock-guardrailidentifier"],
    }


def test_repeated_beta_headers_are_all_kept() -> None:
    pairs = (("anthropic-beta", "a"), ("anthropic-beta", "b"))
    assert allowed_request_headers("anthropic_messages", pairs) == pairs


@given(st.sampled_from(DIALECTS), st.dictionaries(st.text(), st.text()))
def test_no_value_can_break_out_of_its_line(dialect: FormatName, headers: dict[str, str]) -> None:
    found = allowed_request_headers(dialect, {**headers, "accept": "a\r\nx-evil: 1", "content-type": "a/b"})
    assert ("content-type", "a/b") in found and "accept" not in dict(found)
    assert all(value.isprintable() for _, value in found)


def test_a_caller_sees_rate_limits_and_ids_and_no_more() -> None:
    assert allowed_reply_headers(
        {
            "Content-Type": "application/json", "Retry-After": "2", "X-Request-Id": "up", "request-id": "r",
            "anthropic-ratelimit-tokens-remaining": "9", "X-RateLimit-Limit-Requests": "5", "x-amzn-RequestId": "a",
            "x-amzn-ErrorType": "ThrottlingException", "Set-Cookie": "s=1", "Server": "x", "Via": "y",
            "Content-Length": "3", "Content-Encoding": "gzip", "Transfer-Encoding": "chunked", "Connection": "close",
            "Strict-Transport-Security": "z", "cf-ray": "q", "openai-organization": "secret-org",
        }
    ) == {
        "content-type": "application/json", "retry-after": "2", "x-upstream-request-id": "up", "request-id": "r",
        "anthropic-ratelimit-tokens-remaining": "9", "x-ratelimit-limit-requests": "5", "x-amzn-requestid": "a",
        "x-amzn-errortype": "ThrottlingException",
    }  # fmt: skip
