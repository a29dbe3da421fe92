"""HTTP in, before any format is known: headers, the caller's key, the request id, the bounded body."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from starlette.types import Receive, Scope

from orqen_ray.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

KEY_PREFIX = "sk-orq-"
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_AWS_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)")
_JSON_TYPE = re.compile(r"application/(?:[\w.+-]*\+)?json|application/x-amz-json-1\.[01]", re.IGNORECASE)


def headers_of(scope: Scope) -> dict[str, str]:
    """The request's headers by lower-case name; of a repeated one the values are joined, as HTTP allows."""
    headers: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}  # joined once, so that ten thousand of one name cost no more than of many
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name in headers:
            repeated.setdefault(name, [headers[name]]).append(value)
        else:
            headers[name] = value
    return {**headers, **{name: ", ".join(values) for name, values in repeated.items()}} if repeated else headers


def secret_of(headers: Mapping[str, str]) -> str:
    """The gateway key that the request carries, or `""`.

    Where the SDKs put it: OpenAI `Authorization: Bearer`; Anthropic `x-api-key`; boto3 a Bedrock bearer token or, with
    SigV4, the access key id. That signature is not checked: possession of the key is the proof, as with a token.
    """
    authorization = headers.get("authorization", "")
    scheme, _, rest = authorization.partition(" ")
    candidates = [headers.get("x-api-key", ""), headers.get("api-key", "")]
    if scheme.lower() == "bearer":
        candidates.insert(0, rest.strip())
    elif scheme.upper().startswith("AWS4-") and (match := _AWS_CREDENTIAL.search(rest)):
        candidates.insert(0, match[1])
    ours = [candidate for candidate in candidates if candidate.startswith(KEY_PREFIX)]
    return next(iter(ours or filter(None, candidates)), "")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's own X-Request-ID when it is sane (at most 128 letters, digits and `._:-`), else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def check_content(headers: Mapping[str, str], *, forms: bool = False) -> None:
    """Refuse bodies that nobody here can read.

    Raises:
        UnsupportedMediaType: neither JSON nor, with `forms`, a multipart form; or compressed.
    """
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise UnsupportedMediaType("compressed request bodies are not accepted; send the body without Content-Encoding")
    media_type = headers.get("content-type", "").partition(";")[0].strip()
    if not media_type or _JSON_TYPE.fullmatch(media_type) or (forms and media_type.lower() == "multipart/form-data"):
        return
    raise UnsupportedMediaType(f"expected Content-Type: application/json, got {media_type[:100]!r}")


async def read_body(receive: Receive, headers: Mapping[str, str], max_body_bytes: int) -> bytes:
    """The request's body.

    A body over the limit is read to its end but not kept, up to four times the limit: a client that is still sending
    would otherwise see a broken connection and not the reason.

    Raises:
        PayloadTooLarge: over `max_body_bytes`.
        BadRequest: the client went away, or broke HTTP.
    """
    length = headers.get("content-length", "")
    declared_bytes = int(length) if length.isdecimal() else 0
    chunks: list[bytes] = []
    received_bytes = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequest("the request ended before its body was complete")
        chunk = message.get("body", b"")
        received_bytes += len(chunk)
        over = max(received_bytes, declared_bytes) > max_body_bytes
        if over:
            chunks.clear()
        elif chunk:
            chunks.append(chunk)
        if not message.get("more_body", False) or received_bytes > 4 * max_body_bytes:
            break
    if over:
        raise PayloadTooLarge(f"the body is larger than {max_body_bytes / (1 << 20):g} MiB, the limit of this gateway")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
