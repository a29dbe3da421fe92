"""A Converse or ConverseStream request body to a `Conversation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from orqen_ray.conversation import (
    Conversation,
    JsonObject,
    Message,
    OutputFormat,
    Reasoning,
    Role,
    Tool,
    ToolChoice,
)
from orqen_ray.errors import BadRequest
from orqen_ray.formats.bedrock_converse.blocks import read_blocks, take_marker
from orqen_ray.formats.bedrock_converse.fields import leftover
from orqen_ray.formats.reading import (
    as_list,
    as_object,
    as_str,
    check_tool_results,
    expected,
    optional_bool,
    optional_int,
    optional_number,
    optional_str,
    required,
)

_ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
_SAMPLING = {"temperature": "temperature", "topP": "top_p"}
_CHOICES: tuple[Literal["tool", "any", "auto"], ...] = ("tool", "any", "auto")
THINKING_MODES: Mapping[str, Literal["on", "off", "adaptive"]] = {
    "enabled": "on",
    "disabled": "off",
    "adaptive": "adaptive",
}


def read_request(body: JsonObject, model: str | None) -> Conversation:
    """The request in `body`; whether it is to be streamed is said by the URL, not by the body.

    Raises:
        BadRequest: a field that this code knows has the wrong type, or a tool result answers no call.
    """
    if not model:
        raise BadRequest("the URL names no model; call /model/{modelId}/converse", param="modelId")
    messages = _read_messages(body)
    system = read_blocks(body["system"], "system") if body.get("system") is not None else ()
    inference = _optional_object(body, "inferenceConfig")
    max_tokens = optional_int(inference, "maxTokens", "inferenceConfig")
    stop = _read_strings(inference.get("stopSequences"), "inferenceConfig.stopSequences")
    sampling = {
        neutral: value
        for wire, neutral in _SAMPLING.items()
        if (value := optional_number(inference, wire, "inferenceConfig")) is not None
    }
    tool_config = _optional_object(body, "toolConfig")
    tools = _read_tools(tool_config.get("tools"))
    choice = _read_tool_choice(tool_config.get("toolChoice"))
    tier = optional_str(_optional_object(body, "serviceTier"), "type", "serviceTier")
    reasoning, reasoning_taken = _read_reasoning(body)
    output, output_taken = _read_output_format(_optional_object(body, "outputConfig"))
    top_k = _top_k(body)
    taken = {
        "messages": bool(messages),
        "system": bool(system),
        "inferenceConfig": {
            "maxTokens": max_tokens is not None,
            "stopSequences": bool(stop),
            **{wire: neutral in sampling for wire, neutral in _SAMPLING.items()},
        },
        "toolConfig": {"tools": bool(tools), "toolChoice": choice is not None},
        "serviceTier": {"type": tier is not None},
        "outputConfig": {"effort": "effort" in reasoning_taken, "textFormat": output_taken},
        "additionalModelRequestFields": {"thinking": reasoning_taken.get("thinking"), "top_k": top_k is not None},
    }
    return check_tool_results(
        Conversation(
            format="bedrock_converse",
            model=model,
            messages=messages,
            system=system,
            tools=tools,
            tool_choice=choice,
            max_tokens=max_tokens,
            stop=stop,
            sampling=sampling if top_k is None else {**sampling, "top_k": top_k},
            reasoning=reasoning,
            output_format=output,
            include_usage=True,
            service_tier=tier,
            extra=leftover(body, taken),
        )
    )


def _optional_object(body: JsonObject, key: str) -> JsonObject:
    return {} if body.get(key) is None else as_object(body[key], key)


def _read_strings(value: object, path: str) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(as_str(item, f"{path}[{i}]") for i, item in enumerate(as_list(value, path)))


def _read_messages(body: JsonObject) -> tuple[Message, ...]:
    # A prompt that Bedrock stores (its ARN is the model) needs no messages.
    if body.get("messages") is None:
        return ()
    messages: list[Message] = []
    for i, item in enumerate(as_list(body["messages"], "messages")):
        path = f"messages[{i}]"
        message = as_object(item, path)
        wire_role = as_str(required(message, "role", path), f"{path}.role")
        role = _ROLES.get(wire_role)
        if role is None:
            raise BadRequest(
                f"unknown role {wire_role[:80]!r}; expected user, assistant or system", param=f"{path}.role"
            )
        blocks = read_blocks(required(message, "content", path), f"{path}.content")
        messages.append(Message(role=role, blocks=blocks, extra=leftover(message, {"role": True, "content": True})))
    return tuple(messages)


def _read_tools(value: object) -> tuple[Tool, ...]:
    if value is None:
        return ()
    tools: list[Tool] = []
    for i, item in enumerate(as_list(value, "toolConfig.tools")):
        path = f"toolConfig.tools[{i}]"
        body = as_object(item, path)
        if not take_marker(tools, body, path):
            tools.append(_read_tool(body, path))
    return tuple(tools)


def _read_tool(item: JsonObject, path: str) -> Tool:
    if not item:
        raise BadRequest("the tool is empty; expected a toolSpec", param=path)
    if "toolSpec" not in item:
        kind, value = next(iter(item.items()))
        name = value.get("name") if isinstance(value, dict) else None
        return Tool(name=name if isinstance(name, str) else kind, raw=item)
    at = f"{path}.toolSpec"
    spec = as_object(item["toolSpec"], at)
    schema = as_object(required(spec, "inputSchema", at), f"{at}.inputSchema")
    parameters = as_object(schema["json"], f"{at}.inputSchema.json") if "json" in schema else None
    description, strict = optional_str(spec, "description", at), optional_bool(spec, "strict", at)
    taken = {
        "name": True,
        "description": description is not None,
        "strict": strict is not None,
        "inputSchema": {"json": True},
        "x-orqen-examples": True,
        "x-orqen-keep": True,
    }
    return Tool(
        name=as_str(required(spec, "name", at), f"{at}.name"),
        description=description,
        parameters=parameters,
        strict=strict,
        examples=_read_strings(spec.get("x-orqen-examples"), f"{at}.x-orqen-examples"),
        keep=optional_bool(spec, "x-orqen-keep", at) or False,
        extra=leftover(item, {"toolSpec": taken}),
    )


def _read_tool_choice(value: object) -> ToolChoice | None:
    """The choice, or None for one newer than this code, which then travels in `extra`."""
    if value is None:
        return None
    path = "toolConfig.toolChoice"
    choice = as_object(value, path)
    mode = next((mode for mode in _CHOICES if mode in choice), None)
    if mode is None:
        return None
    at = f"{path}.{mode}"
    inner = as_object(choice[mode], at)
    names = (as_str(required(inner, "name", at), f"{at}.name"),) if mode == "tool" else ()
    return ToolChoice(mode=mode, names=names, extra=leftover(choice, {mode: {"name": bool(names)} if inner else True}))


def _top_k(body: JsonObject) -> int | None:
    fields = body.get("additionalModelRequestFields")
    top_k = fields.get("top_k") if isinstance(fields, dict) else None
    return top_k if type(top_k) is int else None


def _read_reasoning(body: JsonObject) -> tuple[Reasoning | None, dict[str, Any]]:
    """What is asked of reasoning, and which fields were taken for it.

    `thinking` and `output_config.effort` are Claude's own fields; the additional fields belong to whatever model is
    called, so that a shape not known here is left alone and never an error.
    Source: docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-adaptive-thinking.html
    """
    taken: dict[str, Any] = {}
    effort = optional_str(_optional_object(body, "outputConfig"), "effort", "outputConfig")
    fields = body.get("additionalModelRequestFields")
    fields = fields if isinstance(fields, dict) else {}
    older = fields.get("output_config")
    if isinstance(older, dict) and "effort" in older:  # it stays there, and whatever stands beside it too
        effort = effort or (older["effort"] if isinstance(older["effort"], str) else None)
    elif effort is not None:
        taken["effort"] = True
    thinking = fields.get("thinking")
    mode = THINKING_MODES.get(str(thinking.get("type"))) if isinstance(thinking, dict) else None
    budget = display = None
    if mode is not None and isinstance(thinking, dict):
        budget, display = thinking.get("budget_tokens"), thinking.get("display")
        budget = budget if type(budget) is int else None
        display = display if isinstance(display, str) else None
        taken["thinking"] = {"type": True, "budget_tokens": budget is not None, "display": display is not None}
    if mode is None and effort is None:
        return None, taken
    return Reasoning(mode=mode, budget_tokens=budget, effort=effort, display=display), taken


def _read_output_format(config: JsonObject) -> tuple[OutputFormat | None, dict[str, Any]]:
    """Structured output, and which fields were taken for it. The schema travels as JSON text."""
    if config.get("textFormat") is None:
        return None, {}
    path = "outputConfig.textFormat"
    text_format = as_object(config["textFormat"], path)
    if text_format.get("type") != "json_schema":
        return None, {}
    structure = as_object(required(text_format, "structure", path), f"{path}.structure")
    if "jsonSchema" not in structure:
        return None, {}
    path = f"{path}.structure.jsonSchema"
    definition = as_object(structure["jsonSchema"], path)
    text = as_str(required(definition, "schema", path), f"{path}.schema")
    try:
        schema = msgspec.json.decode(text)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"expected a JSON schema as text: {exc}", param=f"{path}.schema") from exc
    if not isinstance(schema, dict):
        raise expected(f"{path}.schema", "the text of a JSON object", schema)
    name, description = optional_str(definition, "name", path), optional_str(definition, "description", path)
    taken = {"schema": True, "name": name is not None, "description": description is not None}
    output = OutputFormat(kind="schema", schema=schema, schema_text=text, name=name, description=description)
    return output, {"type": True, "structure": {"jsonSchema": taken}}
