"""AWS Signature Version 4 for Bedrock, by botocore."""

from __future__ import annotations

from collections.abc import Sequence

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from orqen_ray.types import AwsCredentials

SERVICE = "bedrock"  # the signing name of bedrock-runtime in botocore's service model


def sign(
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    *,
    credentials: AwsCredentials,
    region: str,
) -> list[tuple[str, str]]:
    """`headers` and the signature's own (`authorization`, `x-amz-date`, `x-amz-security-token`).

    Args:
        url: exactly as it will be sent, `%3A` and all: the signature covers the path as written.
        headers: all headers that will be sent but those that the connection adds; each is signed.
    """
    request = AWSRequest(method=method, url=url, data=body)
    for name, value in headers:
        request.headers[name] = value
    secret = BotoCredentials(
        credentials.access_key_id, credentials.secret_access_key, credentials.session_token or None
    )
    SigV4Auth(secret, SERVICE, region).add_auth(request)
    return [(name.lower(), str(value)) for name, value in request.headers.items()]
