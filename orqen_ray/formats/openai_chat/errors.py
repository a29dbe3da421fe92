"""Errors of Chat Completions servers, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from orqen_ray.conversation import StreamFailure
from orqen_ray.errors import GatewayError, UpstreamRejected
from orqen_ray.formats.format import WireError
from orqen_ray.retry_after import read_wait_s, retry_after_of

_MESSAGE_LIMIT = 2000
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# What a word in an error of a 200 answer means; servers that relay others put no status there.
_STATUS_OF_WORD = (
    (re.compile("rate_?limit|too_many|quota", re.I), 429),
    (re.compile("overload|unavailable", re.I), 503),
    (re.compile("auth", re.I), 401),
    (re.compile("permission", re.I), 403),
    (re.compile("not_found", re.I), 404),
    (re.compile("invalid_request|bad_request", re.I), 400),
)


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamRejected:
    """The provider's refusal, in whatever shape it came: OpenAI's, FastAPI's, Gemini's list, plain text, a web page."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _plain_text(body)
    error = read_error_object(status, value)
    error.status = status
    error.retry_after_s = read_wait_s({name.lower(): value for name, value in headers.items()})
    return error


def read_error_object(status: int, value: object) -> UpstreamRejected:
    """The error in a decoded body. A status of 502 gives way to the one that the error itself names."""
    if isinstance(value, list) and value:  # Gemini's OpenAI endpoint wraps the object in a list
        value = value[0]
    outer = value if isinstance(value, dict) else {"message": value}
    inner = outer.get("error")
    fields = inner if isinstance(inner, dict) else {**outer, "message": inner or outer.get("message")}
    message = _text(fields.get("message")) or _text(fields.get("detail")) or _text(outer.get("detail"))
    words = [word for key in ("type", "code", "status") if isinstance(word := fields.get(key), str) and word]
    param = fields.get("param")
    return UpstreamRejected(
        (message or f"the provider answered {status} without a message")[:_MESSAGE_LIMIT],
        status=_status_of(fields.get("code"), words) if status == 502 else status,
        kind=words[0] if words else None,
        param=param if isinstance(param, str) else None,
    )


def _status_of(code: object, words: list[str]) -> int:
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    return next((status for word in words for pattern, status in _STATUS_OF_WORD if pattern.search(word)), 502)


def _text(value: object) -> str:
    """Words for people. FastAPI puts a list of objects with `loc` and `msg` into `detail`."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict):
        at = value.get("loc")
        place = ".".join(str(step) for step in at) + ": " if isinstance(at, list) else ""
        text = _text(value.get("msg") or value.get("message"))
        return place + text if text else ""
    return "; ".join(filter(None, map(_text, value))) if isinstance(value, list) else ""


def _plain_text(body: bytes) -> str:
    text = body[: 4 * _MESSAGE_LIMIT].decode("utf-8", "replace").strip()
    return "" if text.startswith("<") else text


def write_error(error: GatewayError, request_id: str) -> WireError:
    """The error as OpenAI's SDK expects it; it picks its class by the status."""
    headers = {"x-request-id": request_id}
    if retry_after := retry_after_of(error):
        headers["retry-after"] = retry_after
    body = {
        "message": error.message,
        "type": _type_of(error.status),
        "param": getattr(error, "param", None),
        "code": getattr(error, "kind", None) or error.code,
    }
    return WireError(status=error.status, headers=headers, body={"error": body})


def write_failure(failure: StreamFailure) -> dict[str, Any]:
    """The error that takes the place of the rest of a stream."""
    code = failure.kind or "upstream_error"
    return {"error": {"message": failure.message, "type": _type_of(failure.status), "param": None, "code": code}}


def _type_of(status: int) -> str:
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
