"""A `Conversation` to a Converse request body."""

from __future__ import annotations

from typing import Any

from orqen_ray.conversation import (
    CacheMarker,
    Conversation,
    JsonObject,
    Message,
    OutputFormat,
    Reasoning,
    Tool,
    ToolChoice,
)
from orqen_ray.formats.bedrock_converse.blocks import json_text, write_blocks, write_marked
from orqen_ray.formats.bedrock_converse.fields import merge
from orqen_ray.formats.bedrock_converse.legal import legal_conversation
from orqen_ray.formats.bedrock_converse.request_in import THINKING_MODES
from orqen_ray.types import Capabilities, Written

_THINKING_TYPES = {mode: name for name, mode in THINKING_MODES.items()}


def write_request(conversation: Conversation, model: str, capabilities: Capabilities) -> Written:
    """The body for `model`, which itself travels in the URL. Another format's conversation is first made legal here."""
    if conversation.format == "bedrock_converse":
        return Written(body=_write_body(conversation))
    adapted = legal_conversation(conversation, model, capabilities)
    return Written(body=_write_body(adapted.conversation), dropped=adapted.dropped)


def _write_body(conversation: Conversation) -> JsonObject:
    sampling = conversation.sampling
    additional = _filled(thinking=_write_thinking(conversation.reasoning), top_k=sampling.get("top_k"))
    body = _filled(
        messages=_write_messages(conversation.messages, conversation.auto_cache),
        system=write_blocks(conversation.system),
        inferenceConfig=_filled(
            maxTokens=conversation.max_tokens,
            temperature=sampling.get("temperature"),
            topP=sampling.get("top_p"),
            stopSequences=list(conversation.stop),
        ),
        toolConfig=_filled(
            tools=write_marked(conversation.tools, _write_tool), toolChoice=_write_tool_choice(conversation.tool_choice)
        ),
        additionalModelRequestFields=additional,
        outputConfig=_filled(effort=_effort(conversation), textFormat=_write_output_format(conversation.output_format)),
        serviceTier=_filled(type=conversation.service_tier),
    )
    return merge(body, conversation.extra)


def _filled(**fields: Any) -> JsonObject:
    """The fields that say something: an empty list or object, or None, does not."""
    return {name: value for name, value in fields.items() if value is not None and value != [] and value != {}}


def _write_messages(messages: tuple[Message, ...], auto_cache: CacheMarker | None) -> list[JsonObject]:
    written = [merge({"role": m.role, "content": write_blocks(m.blocks)}, m.extra) for m in messages]
    if auto_cache is not None and written:
        content = written[-1]["content"]
        if content and "cachePoint" not in content[-1]:
            content.append({"cachePoint": {"type": "default"} | _filled(ttl=auto_cache.ttl)})
    return written


def _write_tool(tool: Tool) -> JsonObject:
    if tool.raw is not None:
        return tool.raw
    spec: JsonObject = {
        "name": tool.name,
        "inputSchema": {} if tool.parameters is None else {"json": tool.parameters},
        **_filled(description=tool.description, strict=tool.strict),
    }
    return merge({"toolSpec": spec}, tool.extra)


def _write_tool_choice(choice: ToolChoice | None) -> JsonObject | None:
    if choice is None or choice.mode not in ("auto", "any", "tool"):
        return None
    return merge({choice.mode: {"name": choice.names[0]} if choice.mode == "tool" else {}}, choice.extra)


def _write_thinking(reasoning: Reasoning | None) -> JsonObject | None:
    if reasoning is None or reasoning.mode is None:
        return None
    return {
        "type": _THINKING_TYPES[reasoning.mode],
        **_filled(budget_tokens=reasoning.budget_tokens, display=reasoning.display),
    }


def _effort(conversation: Conversation) -> str | None:
    """The effort, unless the caller's own additional fields say it already, the older way."""
    older = conversation.extra.get("additionalModelRequestFields")
    said = isinstance(older, dict) and isinstance(older.get("output_config"), dict) and older["output_config"]
    if conversation.reasoning is None or (said and "effort" in said):
        return None
    return conversation.reasoning.effort


def _write_output_format(output: OutputFormat | None) -> JsonObject | None:
    if output is None or output.schema is None:
        return None
    schema = output.schema_text if output.schema_text is not None else json_text(output.schema)
    definition = {"schema": schema, **_filled(name=output.name, description=output.description)}
    return {"type": "json_schema", "structure": {"jsonSchema": definition}}
