"""The caller's own bytes, changed only where the gateway must: the model's name, its own fields, usage in a stream."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from orqen_ray.conversation import Conversation, JsonObject
from orqen_ray.errors import BadRequest
from orqen_ray.formats.rawjson import splice, strip_tool_extensions
from orqen_ray.types import AwsCredentials, Capabilities, Credentials

_AWS_FIELDS = (
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_region_name",
    "aws_bearer_token_bedrock",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulBody:
    """`body` is the caller's very object when nothing had to change."""

    body: bytes
    asked_usage: bool = False
    """The gateway asked for the usage chunk of an OpenAI stream, and must take it out of the answer."""


def faithful_body(
    body: bytes, payload: JsonObject, conversation: Conversation, model_id: str, capabilities: Capabilities
) -> FaithfulBody:
    """The body for a provider that speaks the caller's own format. `payload` is `body` decoded."""
    changes: dict[str, bytes] = {}
    asked_usage = False
    if "model" in payload and payload["model"] != model_id:
        changes["model"] = msgspec.json.encode(model_id)
    if conversation.format == "openai_chat":
        body = strip_tool_extensions(body)
        if conversation.stream and not conversation.include_usage and capabilities.stream_usage:
            options = payload.get("stream_options") or {}
            changes["stream_options"] = msgspec.json.encode({**options, "include_usage": True})
            asked_usage = True
    removed = own_fields(payload) if conversation.format == "openai_chat" else ()
    return FaithfulBody(body=splice(body, changes, removed), asked_usage=asked_usage)


def own_fields(payload: JsonObject) -> tuple[str, ...]:
    """The gateway's own top-level fields of a chat request that are present; they are never forwarded."""
    return tuple(name for name in _AWS_FIELDS if name in payload)


def request_credentials(payload: JsonObject) -> Credentials | None:
    """The caller's own Bedrock credentials, if the chat request carries any.

    Raises:
        BadRequest: a field is not a string, or one half of a key pair is missing.
    """
    fields = {name: payload[name] for name in own_fields(payload) if payload[name] is not None}
    for name, value in fields.items():
        if not isinstance(value, str) or not value:
            raise BadRequest("expected a string that is not empty", param=name)
    token = fields.get("aws_bearer_token_bedrock")
    key_id, secret = fields.get("aws_access_key_id"), fields.get("aws_secret_access_key")
    if (key_id is None) != (secret is None):
        raise BadRequest("send aws_access_key_id and aws_secret_access_key together")
    if token is None and key_id is None:
        return None
    aws = None
    if key_id is not None and secret is not None:
        aws = AwsCredentials(
            access_key_id=key_id, secret_access_key=secret, session_token=fields.get("aws_session_token")
        )
    return Credentials(api_key=token, aws=aws, region=fields.get("aws_region_name"))
