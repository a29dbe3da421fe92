"""The caller's own bytes, changed only where the gateway must: the model's name, its own fields, usage in a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from orqen_ray.conversation import Conversation, JsonObject, Message, Tool
from orqen_ray.errors import BadRequest
from orqen_ray.formats.rawjson import array, splice, strip_tool_extensions, top_level
from orqen_ray.types import AwsCredentials, Capabilities, Credentials

_AWS_FIELDS = (
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_region_name",
    "aws_bearer_token_bedrock",
)


WriteMessages = Callable[[tuple[Message, ...]], list[JsonObject]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulBody:
    """`body` is the caller's very object when nothing had to change."""

    body: bytes
    asked_usage: bool = False
    """The gateway asked for the usage chunk of an OpenAI stream, and must take it out of the answer."""


def faithful_body(
    body: bytes,
    payload: JsonObject,
    conversation: Conversation,
    model_id: str,
    capabilities: Capabilities,
    edits: Mapping[str, bytes] | None = None,
) -> FaithfulBody:
    """The body for a provider that speaks the caller's own format. `payload` is `body` decoded.

    Args:
        edits: top-level fields to be set, see `edited_fields`.
    """
    changes: dict[str, bytes] = dict(edits or {})
    asked_usage = False
    if "model" in payload and payload["model"] != model_id:
        changes["model"] = msgspec.json.encode(model_id)
    if conversation.format == "openai_chat":
        if "tools" not in changes:
            body = strip_tool_extensions(body)
        if conversation.stream and not conversation.include_usage and capabilities.stream_usage:
            options = payload.get("stream_options") or {}
            changes["stream_options"] = msgspec.json.encode({**options, "include_usage": True})
            asked_usage = True
    removed = own_fields(payload) if conversation.format == "openai_chat" else ()
    return FaithfulBody(body=splice(body, changes, removed), asked_usage=asked_usage)


def edited_fields(
    body: bytes,
    payload: JsonObject,
    conversation: Conversation,
    edited: Conversation,
    write_tools: Callable[[tuple[Tool, ...]], bytes],
    write_messages: WriteMessages,
) -> dict[str, bytes] | None:
    """The top-level fields in which `edited` differs from the caller's request, all else left as it was spelled.

    Args:
        write_tools, write_messages: these in the caller's own format, the former as a JSON array.
    Returns:
        None where more was changed than tools, and messages and their limit as `_with_additions` has it.
    """
    same = {name: getattr(conversation, name) for name in ("tools", "messages", "max_tokens")}
    if not edited.tools or replace(edited, **same) != conversation:
        return None
    fields: dict[str, bytes] = {}
    if edited.max_tokens != conversation.max_tokens:
        if conversation.format != "anthropic_messages":
            return None
        fields["max_tokens"] = msgspec.json.encode(edited.max_tokens)
    if edited.messages is not conversation.messages:
        messages = _with_additions(top_level(body)["messages"], conversation, edited, write_messages)
        if messages is None:
            return None
        fields["messages"] = messages
    if edited.tools is not conversation.tools:
        tools = write_tools(edited.tools)
        if conversation.format == "bedrock_converse":
            config = {**(payload.get("toolConfig") or {}), "tools": msgspec.Raw(tools)}
            fields["toolConfig"] = msgspec.json.encode(config)
        else:
            fields["tools"] = tools
    return fields


def _with_additions(
    raw: msgspec.Raw, conversation: Conversation, edited: Conversation, write_messages: WriteMessages
) -> bytes | None:
    """Anthropic's messages with tool additions, between the caller's own or at the end of a system message of its own,
    and with further messages behind them all. What is the caller's stays as it was spelled.
    """
    if conversation.format != "anthropic_messages":
        return None
    own = array(raw)
    written: list[msgspec.Raw | JsonObject] = []
    at = 0
    for message in edited.messages:
        mine = conversation.messages[at] if at < len(own) else None
        if message is mine:
            written.append(own[at])
            at += 1
        elif mine is not None and message.role == mine.role == "system":
            if message.blocks[: len(mine.blocks)] != mine.blocks:
                return None
            before = top_level(own[at])
            [more] = write_messages((replace(message, blocks=message.blocks[len(mine.blocks) :], wire=None),))
            written.append({**before, "content": [*_content(before["content"]), *more["content"]]})
            at += 1
        elif mine is None or message.role == "system":
            written += write_messages((message,))
        else:
            return None
    return msgspec.json.encode(written) if at == len(own) else None


def _content(raw: msgspec.Raw) -> list[Any]:
    """The blocks of a message's content; a string is one."""
    return [{"type": "text", "text": raw}] if bytes(raw)[:1] == b'"' else list(array(raw))


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
