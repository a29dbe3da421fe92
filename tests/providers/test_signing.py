"""A signature that AWS would accept: checked by the published algorithm, itself checked on a real boto3 client."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from urllib.parse import quote

import boto3
from botocore.config import Config

from orqen_ray.types import AwsCredentials, Credentials
from tests.providers.scripted import Received, call, forwarder, lab, read, reply, scripted

ARN = "arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.anthropic.claude-opus-5-v1:0"
AWS = AwsCredentials(access_key_id="AKIDEXAMPLE", secret_access_key="wJalr/XUtn+FEMI", session_token="token/1==")
AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d+)/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, "
    r"SignedHeaders=(?P<signed>\S+), Signature=(?P<signature>[0-9a-f]{64})"
)


def _signature_of(request: Received, secret: str) -> tuple[str, str]:
    """The signature claimed, and the one that is due.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
    """
    claimed = AUTHORIZATION.fullmatch(request["authorization"] or "")
    assert claimed is not None
    path, _, query = request.target.partition("?")
    headers = "".join(f"{name}:{(request[name] or '').strip()}\n" for name in claimed["signed"].split(";"))
    body = hashlib.sha256(request.body).hexdigest()
    canonical = "\n".join([request.method, quote(path, safe="/~"), query, headers, claimed["signed"], body])
    scope = f"{claimed['day']}/{claimed['region']}/{claimed['service']}/aws4_request"
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", request["x-amz-date"] or "", scope, hashed])
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return claimed["signature"], key.hex()


async def test_the_gateway_and_boto3_sign_the_same_request_alike() -> None:
    answer = reply(body=b'{"output":{"message":{"role":"assistant","content":[]}}}', content_type="application/json")
    async with scripted(answer) as server:
        client = boto3.client(
            "bedrock-runtime",
            endpoint_url=server.url,
            region_name="eu-central-1",
            aws_access_key_id=AWS.access_key_id,
            aws_secret_access_key=AWS.secret_access_key,
            aws_session_token=AWS.session_token,
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        messages = [{"role": "user", "content": [{"text": "hé"}]}]
        await asyncio.to_thread(lambda: client.converse(modelId=ARN, messages=messages))
        theirs = server.requests[0]
        row = lab(server.url, dialect="bedrock", region="eu-central-1")
        async with forwarder(row, lab=Credentials(aws=AWS)) as upstream:
            await read(await upstream.send(call(path=theirs.target, body=theirs.body)))
        ours = server.requests[1]
    assert "%3A" in theirs.target and (ours.target, ours.body) == (theirs.target, theirs.body)
    for request in (theirs, ours):
        claimed, expected = _signature_of(request, AWS.secret_access_key)
        assert claimed == expected
        assert request["x-amz-security-token"] == AWS.session_token
    scopes = [AUTHORIZATION.fullmatch(request["authorization"] or "") for request in (theirs, ours)]
    assert [scope and (scope["region"], scope["service"]) for scope in scopes] == [("eu-central-1", "bedrock")] * 2


async def test_the_callers_region_is_the_one_signed_for() -> None:
    async with (
        scripted(reply()) as server,
        forwarder(lab(server.url, dialect="bedrock", region="us-west-2")) as upstream,
    ):
        await read(await upstream.send(call(credentials=Credentials(aws=AWS, region="ap-southeast-2"))))
        await read(await upstream.send(call(credentials=Credentials(aws=AWS))))
    assert ["ap-southeast-2" in (request["authorization"] or "") for request in server.requests] == [True, False]
    assert "us-west-2" in (server.requests[1]["authorization"] or "")


async def test_a_large_body_is_signed_like_a_small_one() -> None:
    body = b'{"a":"' + b"x" * (2 << 20) + b'"}'
    async with scripted(reply()) as server, forwarder(lab(server.url, dialect="bedrock")) as upstream:
        await read(await upstream.send(call(body=body, credentials=Credentials(aws=AWS))))
    claimed, expected = _signature_of(server.requests[0], AWS.secret_access_key)
    assert claimed == expected
