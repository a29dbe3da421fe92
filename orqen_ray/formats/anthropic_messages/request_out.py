"""Writes a Messages request: faithfully from this format, adapted from another."""

from __future__ import annotations

from typing import Any

from orqen_ray.conversation import (
    Conversation,
    JsonObject,
    Message,
    OutputFormat,
    Reasoning,
    Text,
    ToolChange,
    ToolChoice,
)
from orqen_ray.formats.adapt import MIN_TOP_P_THINKING, adapt
from orqen_ray.formats.anthropic_messages.blocks_out import TOOL_ID_PATTERN, BlockWriter, merge, write_cache
from orqen_ray.formats.anthropic_messages.legal import legal_conversation, strip_prefill
from orqen_ray.formats.anthropic_messages.reasoning import write_thinking
from orqen_ray.types import Capabilities, Written

_MODES = {"on": "enabled", "adaptive": "adaptive", "off": "disabled"}
_TIERS = {"auto": "auto", "standard_only": "standard_only", "default": "standard_only"}
# Values that ask for nothing, so that leaving them out loses nothing.
_NEUTRAL: JsonObject = {"n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}
# The vendor wants the user to speak first, and no message without text.
_OPENING = Message(role="user", blocks=(Text(text="(start)"),))


def write_request(conversation: Conversation, model: str, capabilities: Capabilities) -> Written:
    """The body of a request to `/v1/messages`. What it cannot carry is named in `Written.dropped`."""
    if conversation.format == "anthropic_messages":
        return _write_own(conversation, model)
    adapted = adapt(
        conversation,
        capabilities,
        tool_id_pattern=TOOL_ID_PATTERN,
        mid_system=capabilities.mid_conversation_system,
        mid_tools=capabilities.mid_conversation_tools,
        alternate=True,
    )
    writer = BlockWriter(frozenset(), cache_markers=capabilities.cache_markers)
    writer.dropped.extend(adapted.dropped)
    return _write_foreign(adapted.conversation, model, capabilities, writer)


def _write_own(conversation: Conversation, model: str) -> Written:
    writer = BlockWriter(None)
    body = _write_core(conversation, model, conversation.max_tokens, writer)
    _put(body, "tool_choice", _write_choice(conversation, writer))
    body.update(conversation.sampling)
    reasoning = conversation.reasoning or Reasoning()
    thinking: JsonObject = {}
    _put(thinking, "type", _MODES.get(reasoning.mode or ""))
    _put(thinking, "budget_tokens", reasoning.budget_tokens)
    _put(thinking, "display", reasoning.display)
    _put(body, "thinking", thinking or None)
    _put(body, "output_config", _output_config(conversation.output_format, reasoning.effort))
    _put(body, "service_tier", conversation.service_tier)
    return Written(body=merge(body, conversation.extra), dropped=tuple(writer.dropped))


def _write_foreign(conversation: Conversation, model: str, capabilities: Capabilities, writer: BlockWriter) -> Written:
    dropped = writer.dropped
    conversation = legal_conversation(conversation, capabilities, dropped)
    max_tokens = _max_tokens(conversation, capabilities)
    body = _write_core(conversation, model, max_tokens, writer)
    thinking, effort = write_thinking(conversation, capabilities, max_tokens, dropped)
    _put(body, "thinking", thinking)
    body.update(_sampling(conversation, thinking is not None and thinking["type"] != "disabled", dropped))
    if "tools" in body:
        _put(body, "tool_choice", _write_choice(conversation, writer))
    wanted = conversation.output_format
    if wanted is not None and (
        wanted.kind == "json" or (wanted.kind == "schema" and not capabilities.structured_output)
    ):
        dropped.append("output_format")
        wanted = None
    _put(body, "output_config", _output_config(wanted, effort))
    tier = _TIERS.get(conversation.service_tier or "")
    _put(body, "service_tier", tier)
    if conversation.service_tier is not None and tier is None:
        dropped.append("service_tier")
    writer.extra(body, conversation.extra, "")
    return Written(body=body, dropped=tuple(dict.fromkeys(dropped)))


def _put(body: JsonObject, key: str, value: Any) -> None:
    if value is not None:
        body[key] = value


def _write_core(conversation: Conversation, model: str, max_tokens: int | None, writer: BlockWriter) -> JsonObject:
    """The part that is written alike from every format."""
    body: JsonObject = {"model": model}
    _put(body, "max_tokens", max_tokens)
    _put(body, "system", writer.blocks(conversation.system, "system", only=(Text,)) or None)
    _put(body, "tools", writer.tools(conversation.tools, "tools") or None)
    messages = [_write_message(message, f"messages[{i}]", writer) for i, message in enumerate(conversation.messages)]
    if conversation.format != "anthropic_messages":
        messages = [message for message in messages if message.get("content")]
        if not messages or messages[0]["role"] != "user":
            messages.insert(0, _write_message(_OPENING, "messages", writer))
        strip_prefill(messages[-1])
    body["messages"] = messages
    _put(body, "stop_sequences", list(conversation.stop) or None)
    _put(body, "stream", conversation.stream or None)
    _put(body, "metadata", None if conversation.user is None else {"user_id": conversation.user})
    _put(body, "cache_control", conversation.auto_cache and write_cache(conversation.auto_cache))
    return body


def _write_message(message: Message, path: str, writer: BlockWriter) -> JsonObject:
    fields: JsonObject = {"role": message.role}
    system = message.role == "system"
    content = writer.blocks(message.blocks, f"{path}.content", only=(Text, ToolChange) if system else None)
    if content or not system:
        fields["content"] = content
    return writer.extra(fields, message.extra, path)


def _write_choice(conversation: Conversation, writer: BlockWriter) -> JsonObject | None:
    own = conversation.format == "anthropic_messages"
    parallel = conversation.parallel_tool_calls
    choice = conversation.tool_choice
    if choice is None:
        if parallel is not False:  # calls are parallel by default
            return None
        choice = ToolChoice(mode="auto")
    mode: str = choice.mode
    if mode == "allowed":  # the tools themselves were restricted
        mode = "any" if choice.required else "auto"
    fields: JsonObject = {"type": mode}
    if mode == "tool":
        fields["name"] = choice.names[0]
    if parallel is False and mode != "none" or (own and parallel is not None):
        fields["disable_parallel_tool_use"] = not parallel
    return writer.extra(fields, choice.extra, "tool_choice")


def _output_config(wanted: OutputFormat | None, effort: str | None) -> JsonObject | None:
    config: JsonObject = {}
    _put(config, "effort", effort)
    if wanted is not None and wanted.kind == "schema":
        config["format"] = {"type": "json_schema", "schema": wanted.schema or {}}
    return config or None


def _max_tokens(conversation: Conversation, capabilities: Capabilities) -> int:
    """The vendor requires it, and wants it above the thinking budget (both in tokens)."""
    if conversation.max_tokens is not None:
        return conversation.max_tokens
    budget = conversation.reasoning.budget_tokens if conversation.reasoning else None
    default = capabilities.default_max_tokens
    return default if budget is None or budget < default else default + budget


def _sampling(conversation: Conversation, thinks: bool, dropped: list[str]) -> JsonObject:
    """The fields that the vendor has. A model that thinks takes no `top_k`, no `temperature` and no low `top_p`.

    Source: platform.claude.com/docs/build-with-claude/extended-thinking, "Feature compatibility".
    """
    fields: JsonObject = {}
    refused = {"temperature", "top_k"} if thinks else set()
    if thinks and (conversation.sampling.get("top_p") or 0) < MIN_TOP_P_THINKING:
        refused.add("top_p")
    for name, value in conversation.sampling.items():
        if value is None or value == _NEUTRAL.get(name):
            continue
        if name not in ("temperature", "top_p", "top_k") or name in refused:
            dropped.append(name)
        elif name == "temperature" and value > 1:  # elsewhere the scale goes to 2
            fields[name] = 1
            dropped.append(name)
        else:
            fields[name] = value
    return fields
