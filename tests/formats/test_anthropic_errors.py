"""Anthropic errors: read from whatever answers, written so that the SDK raises its own classes."""

from __future__ import annotations

import anthropic
import httpx2
import pytest

from orqen_ray.errors import (
    BadRequest,
    Forbidden,
    GatewayError,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    Unauthenticated,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from orqen_ray.formats.anthropic_messages.errors import read_error, write_error


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}', "overloaded_error", "busy"),
        (b'{"error":"plain"}', None, "plain"),
        (b'{"message":"bare"}', None, "bare"),
        (b"upstream connect error", None, "upstream connect error"),
        (b"<html><h1>502</h1></html>", None, "the provider answered 529 and gave no reason"),
        (b"", None, "the provider answered 529 and gave no reason"),
        (b"null", None, "the provider answered 529 and gave no reason"),
        (b'{"error":{"type":1,"message":[]}}', None, "the provider answered 529 and gave no reason"),
        (b"\xff\xfe{" * 999, None, None),
    ],
)
def test_any_body_gives_an_error(body: bytes, kind: str | None, message: str | None) -> None:
    error = read_error(529, {"retry-after": "7"}, body)
    assert (error.status, error.kind, error.retry_after_s) == (529, kind, 7)
    assert error.message == message or (message is None and len(error.message) <= 200)


@pytest.mark.parametrize("value", ["", "soon", "-1", "inf", "nan", "Wed, 41 Oct"])
def test_a_retry_after_that_is_no_time_is_ignored(value: str) -> None:
    assert read_error(429, {"retry-after": value}, b"").retry_after_s is None


def rejected(status: int, kind: str | None = None) -> UpstreamRejected:
    return UpstreamRejected("no", status=status, kind=kind)


@pytest.mark.parametrize(
    ("error", "status", "kind", "raised"),
    [
        (BadRequest("no"), 400, "invalid_request_error", anthropic.BadRequestError),
        (Unauthenticated("no"), 401, "authentication_error", anthropic.AuthenticationError),
        (Forbidden("no"), 403, "permission_error", anthropic.PermissionDeniedError),
        (NotFound("no"), 404, "not_found_error", anthropic.NotFoundError),
        (PayloadTooLarge("no"), 413, "request_too_large", anthropic.APIStatusError),
        (Overloaded("no", retry_after_s=1.2), 429, "rate_limit_error", anthropic.RateLimitError),
        (GatewayError("no"), 500, "api_error", anthropic.InternalServerError),
        (UpstreamUnavailable("no"), 503, "api_error", anthropic.InternalServerError),
        (UpstreamTimeout("no"), 504, "timeout_error", anthropic.InternalServerError),
        (rejected(529), 529, "overloaded_error", anthropic.InternalServerError),
        (rejected(422), 422, "invalid_request_error", anthropic.UnprocessableEntityError),
        (rejected(400, "billing_error"), 400, "billing_error", anthropic.BadRequestError),
        (rejected(429, "insufficient_quota"), 429, "rate_limit_error", anthropic.RateLimitError),
    ],
)
def test_the_sdk_raises_its_own_class(error: GatewayError, status: int, kind: str, raised: type[Exception]) -> None:
    wire = write_error(error, "req_1")
    assert wire.body == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "req_1"}
    assert wire.headers == ({"retry-after": "2"} if isinstance(error, Overloaded) else {})
    transport = httpx2.MockTransport(lambda _: httpx2.Response(wire.status, json=wire.body))
    with anthropic.Anthropic(
        api_key="k", base_url="http://gateway", max_retries=0, http_client=httpx2.Client(transport=transport)
    ) as client:
        with pytest.raises(raised) as caught:
            client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
    assert isinstance(caught.value, anthropic.APIStatusError)
    assert caught.value.status_code == status
