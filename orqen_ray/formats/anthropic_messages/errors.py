"""Reads the vendor's errors and writes the gateway's in the same shape, so that the SDKs raise their own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from orqen_ray.conversation import JsonObject, StreamFailure
from orqen_ray.errors import GatewayError, UpstreamRejected
from orqen_ray.formats.format import WireError
from orqen_ray.retry_after import read_wait_s, retry_after_of

# Source: platform.claude.com/docs/api/errors
_KIND_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STATUS_OF_KIND = {kind: status for status, kind in _KIND_OF_STATUS.items()}
_EXCERPT_CHARS = 200


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamRejected:
    """The error in an answer of the vendor's, or of whatever stands before it: a proxy's page, an empty body."""
    kind, message = _parse_error(body)
    return UpstreamRejected(
        message or f"the provider answered {status} and gave no reason",
        status=status if 400 <= status <= 599 else 502,
        kind=kind,
        retry_after_s=read_wait_s(headers),
    )


def write_error(error: GatewayError, request_id: str) -> WireError:
    retry_after = retry_after_of(error)
    kind = _kind(getattr(error, "kind", None), error.status)
    return WireError(
        status=error.status,
        headers={} if retry_after is None else {"retry-after": retry_after},
        body={**_error_object(kind, error.message), "request_id": request_id},
    )


def read_failure(event: JsonObject) -> StreamFailure:
    """The failure in an `error` event of a stream, which has no status of its own."""
    kind, message = _error_fields(event)
    status = _STATUS_OF_KIND.get(kind or "", 500)
    return StreamFailure(
        message=message or "the provider reported an error and gave no reason", status=status, kind=kind
    )


def write_failure(failure: StreamFailure) -> JsonObject:
    return _error_object(_kind(failure.kind, failure.status), failure.message)


def _error_object(kind: str, message: str) -> JsonObject:
    return {"type": "error", "error": {"type": kind, "message": message}}


def _kind(kind: str | None, status: int) -> str:
    if kind in _STATUS_OF_KIND:
        return str(kind)
    return _KIND_OF_STATUS.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def _parse_error(body: bytes) -> tuple[str | None, str | None]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        text = body[:_EXCERPT_CHARS].decode("utf-8", "replace").strip()
        return None, None if text.startswith("<") else text or None
    return _error_fields(value)


def _error_fields(value: Any) -> tuple[str | None, str | None]:
    """Type and message of `{"error": {"type", "message"}}`, or of looser forms that compatible servers send."""
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        return _text(error.get("type")), _text(error.get("message")) or _text(error.get("detail"))
    return None, _text(error)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
