"""Bedrock's errors, as answers and inside streams."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from orqen_ray.conversation import JsonObject, StreamFailure
from orqen_ray.errors import GatewayError, UpstreamRejected
from orqen_ray.formats.format import WireError
from orqen_ray.retry_after import read_wait_s, retry_after_of

# HTTP status -> (the status that boto3 sees, the exception that it raises); each is in Converse's service model.
_EXCEPTIONS: Mapping[int, tuple[int, str]] = {
    400: (400, "ValidationException"),
    401: (401, "AccessDeniedException"),
    403: (403, "AccessDeniedException"),
    404: (404, "ResourceNotFoundException"),
    408: (408, "ModelTimeoutException"),
    424: (424, "ModelErrorException"),
    429: (429, "ThrottlingException"),
    500: (500, "InternalServerException"),
    502: (503, "ServiceUnavailableException"),
    503: (503, "ServiceUnavailableException"),
    504: (504, "ModelTimeoutException"),
    529: (503, "ServiceUnavailableException"),
}
EXCEPTION_STATUS: Mapping[str, int] = {
    "validationexception": 400,
    "accessdeniedexception": 403,
    "resourcenotfoundexception": 404,
    "modeltimeoutexception": 408,
    "modelerrorexception": 424,
    "modelstreamerrorexception": 424,
    "throttlingexception": 429,
    "internalserverexception": 500,
    "serviceunavailableexception": 503,
}
"""An exception's name in lower case, as streams and answers write it differently -> HTTP status."""

_STREAM_EXCEPTIONS: Mapping[int, str] = {
    429: "throttlingException",
    500: "internalServerException",
    503: "serviceUnavailableException",
    529: "serviceUnavailableException",
}
_MAX_TEXT = 500


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamRejected:
    """The provider's refusal. Header names are in lower case."""
    try:
        payload = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        payload = None
    fields = payload if isinstance(payload, dict) else {}
    message = next((fields[name] for name in ("message", "Message", "errorMessage") if fields.get(name)), None)
    if not isinstance(message, str):
        text = "" if fields else body[:_MAX_TEXT].decode("utf-8", "replace").strip()
        readable = text and not text.startswith("<")  # a proxy's page is for no caller
        message = text if readable else f"the provider answered with status {status}"
    kind = headers.get("x-amzn-errortype") or fields.get("__type") or fields.get("code")
    if isinstance(kind, str):  # `ValidationException:http://...`, `com.amazon.coral.service#ValidationException`
        kind = kind.partition(":")[0].rpartition("#")[2]
    return UpstreamRejected(
        message,
        status=status,
        kind=kind if isinstance(kind, str) and kind else None,
        retry_after_s=read_wait_s(headers),
    )


def write_error(error: GatewayError, request_id: str) -> WireError:
    """`error` such that boto3 raises the exception of the same meaning."""
    fallback = (error.status, "ValidationException" if error.status < 500 else "InternalServerException")
    status, kind = _EXCEPTIONS.get(error.status, fallback)
    headers = {"x-amzn-ErrorType": kind, "x-amzn-RequestId": request_id}
    if retry_after := retry_after_of(error):
        headers["Retry-After"] = retry_after
    return WireError(status=status, headers=headers, body={"message": error.message})


def stream_exception(failure: StreamFailure) -> tuple[str, JsonObject]:
    """The exception event for `failure`: its type and its payload."""
    name = _STREAM_EXCEPTIONS.get(failure.status)
    if name is not None:
        return name, {"message": failure.message}
    if 400 <= failure.status < 500 and failure.status not in (408, 424):
        return "validationException", {"message": failure.message}
    return "modelStreamErrorException", {"message": failure.message, "originalStatusCode": failure.status}
