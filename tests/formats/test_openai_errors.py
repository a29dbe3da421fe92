from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import BadRequest, GatewayError, Overloaded, Unauthenticated, UnknownModel, UpstreamRejected
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        (
            b'{"error":{"message":"bad","type":"invalid_request_error","param":"n","code":null}}',
            "bad",
            "invalid_request_error",
        ),
        (b'{"error":{"message":"bad","code":"model_not_found"}}', "bad", "model_not_found"),
        (b'[{"error":{"code":400,"message":"bad","status":"INVALID_ARGUMENT"}}]', "bad", "INVALID_ARGUMENT"),
        (b'{"error":"bad"}', "bad", None),
        (b'{"detail":"bad"}', "bad", None),
        (b'{"detail":[{"loc":["body","n"],"msg":"bad"}]}', "body.n: bad", None),
        (b'{"object":"error","message":"bad","type":"BadRequestError","code":400}', "bad", "BadRequestError"),
        (b"bad", "bad", None),
        (b"<html><h1>Bad gateway</h1></html>", "the provider answered 418 without a message", None),
        (b"", "the provider answered 418 without a message", None),
        (b"\xff{", "\ufffd{", None),
        (b"null", "the provider answered 418 without a message", None),
    ],
)
def test_every_shape_of_error_is_read(body: bytes, message: str, kind: str | None) -> None:
    error = OPENAI_CHAT.read_error(418, {}, body)
    assert (error.message, error.kind, error.status) == (message, kind, 418)


@given(st.integers(400, 599), st.binary(max_size=30))
def test_reading_an_error_never_raises_and_keeps_the_status(status: int, body: bytes) -> None:
    assert OPENAI_CHAT.read_error(status, {}, body).status == status


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"Retry-After": "7", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_the_time_to_wait_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert OPENAI_CHAT.read_error(429, headers, b"{}").retry_after_s == seconds


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (BadRequest("wrong", param="n"), 400, "invalid_request_error", "invalid_request"),
        (Unauthenticated("no key"), 401, "authentication_error", "invalid_api_key"),
        (UnknownModel("no such model"), 404, "not_found_error", "model_not_found"),
        (Overloaded("wait", retry_after_s=1.2), 429, "rate_limit_error", "rate_limited"),
        (UpstreamRejected("busy", status=529, kind="overloaded_error"), 529, "server_error", "overloaded_error"),
        (GatewayError("internal"), 500, "server_error", "internal"),
    ],
)
def test_an_error_takes_the_shape_that_the_sdk_knows(error: GatewayError, status: int, kind: str, code: str) -> None:
    written = OPENAI_CHAT.write_error(error, "req_1")
    assert written.status == status
    assert written.body["error"] == {
        "message": error.message,
        "type": kind,
        "param": getattr(error, "param", None),
        "code": code,
    }
    assert written.headers["x-request-id"] == "req_1"
    assert written.headers.get("retry-after") == ("2" if status == 429 else None)
