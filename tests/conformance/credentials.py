"""The scripted provider's own keys, and whether a request carries those and nothing of the gateway's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

if TYPE_CHECKING:
    from tests.conformance.upstream import Received

API_KEY = "lab-secret-0123456789abcdef"
OTHER_KEY = "lab-second-0123456789abcdef"
AWS_KEY_ID = "AKIACONFORMANCE00001"
AWS_SECRET = "lab/secret+aws/0123456789abcdef"
REGION = "us-east-1"
ENVIRONMENT = {
    "LAB_API_KEY": API_KEY,
    "LAB_BEDROCK_TOKEN": API_KEY,
    "LAB_OTHER_KEY": OTHER_KEY,
    "AWS_ACCESS_KEY_ID": AWS_KEY_ID,
    "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
}
"""What the gateway's environment must hold."""

_GATEWAY_HEADER = re.compile(r"x-orqen-|x-forwarded-|forwarded$|cookie$|x-request-id$|x-stainless-|x-real-ip$|via$")
_GATEWAY_KEY = b"sk-orq-"


def leaks(received: Received) -> list[str]:
    """Names of headers, and "body", that tell the provider what is none of its business."""
    found = [name for name, _ in received.headers if _GATEWAY_HEADER.match(name.lower())]
    found += [name for name, value in received.headers if _GATEWAY_KEY.decode() in value]
    if _GATEWAY_KEY in received.body or b"x-orqen" in received.body or _GATEWAY_KEY.decode() in received.query:
        found.append("body")
    return found


def rightly_signed(received: Received) -> bool:
    """Whether the request carries this provider's own key, the way its vendor wants it, and no other."""
    authorization, api_key = received["authorization"], received["x-api-key"]
    if received.dialect == "anthropic":
        return authorization is None and api_key in (API_KEY, OTHER_KEY)
    if received.dialect == "openai" or (authorization or "").startswith("Bearer "):
        return api_key is None and authorization in (f"Bearer {API_KEY}", f"Bearer {OTHER_KEY}")
    return authorization is not None and _sigv4(received, authorization)


def account(received: Received) -> str:
    """Whose request it is: the vendor's reasoning is bound to that, too."""
    given = received["authorization"] or received["x-api-key"] or ""
    return AWS_KEY_ID if given.startswith("AWS4") else given.removeprefix("Bearer ")


def _sigv4(received: Received, authorization: str) -> bool:
    """AWS's own check: the signature, computed again from what was received."""
    form = r"AWS4-HMAC-SHA256 Credential=(\S+?)/\d{8}/(\S+?)/(\S+?)/aws4_request, SignedHeaders=(\S+), Signature=(\S+)"
    found = re.fullmatch(form, authorization)
    if found is None or found[1] != AWS_KEY_ID or (found[2], found[3]) != (REGION, "bedrock"):
        return False
    signed = {name: received[name] or "" for name in found[4].split(";")}
    if not {"host", "x-amz-date"} <= signed.keys():
        return False
    url = f"http://{signed['host']}{received.path}" + (f"?{received.query}" if received.query else "")
    request = AWSRequest(method=received.method, url=url, data=received.body, headers=signed)
    request.context["timestamp"] = signed["x-amz-date"]
    signer = SigV4Auth(Credentials(AWS_KEY_ID, AWS_SECRET), "bedrock", REGION)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    return bool(signer.signature(text, request) == found[5])
