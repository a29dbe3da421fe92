"""The same requests in the words of each SDK, written by hand: what an application would send."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from tests.conformance.scenarios import PNG

Body = dict[str, Any]

SYSTEM = "You are terse. Über-terse."
QUESTION = "What is 6 × 7? 🤔"
PARAMETERS: Body = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING: Body = {"type": "object", "properties": {}}
TOOLS = {"get_weather": ("The weather of a city.", PARAMETERS), "clock": ("The time.", NOTHING)}
PNG_BASE64 = base64.b64encode(PNG).decode()
RESULT = "sunny, 21 °C"
MISHAP = "no such city: Atlantis"


def openai(topic: str, model: str) -> Body:
    system, question = {"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}
    body: Body = {"model": model, "messages": [system, question], "max_tokens": 4096}
    match topic:
        case "tools":
            body = with_tools("openai", body, TOOLS)
        case "results":
            body |= openai("tools", model)
            calls = [("call_A", '{"city": "Zürich"}'), ("call_B", '{"city":"Atlantis"}')]
            made = [
                {"id": id_, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
                for id_, arguments in calls
            ]
            body["messages"] += [
                {"role": "assistant", "content": None, "tool_calls": made},
                {"role": "tool", "tool_call_id": "call_A", "content": RESULT},
                {"role": "tool", "tool_call_id": "call_B", "content": MISHAP},
                {"role": "user", "content": "And now?"},
            ]
        case "images":
            url = f"data:image/png;base64,{PNG_BASE64}"
            parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": url}}]
            body["messages"] = [system, {"role": "user", "content": parts}]
        case "thinking":
            body["reasoning_effort"] = "low"
        case "cache":  # as OpenRouter and other gateways take them; OpenAI itself has no markers
            marked = {"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
            body["messages"] = [{"role": "system", "content": [marked]}, question]
        case "stop":
            body["stop"] = ["three", "four"]
    return body


def anthropic(topic: str, model: str) -> Body:
    question = {"role": "user", "content": QUESTION}
    body: Body = {"model": model, "system": SYSTEM, "messages": [question], "max_tokens": 4096}
    match topic:
        case "tools":
            body = with_tools("anthropic", body, TOOLS)
        case "results":
            body |= anthropic("tools", model)
            calls = [("toolu_A", {"city": "Zürich"}), ("toolu_B", {"city": "Atlantis"})]
            made = [{"type": "tool_use", "id": id_, "name": "get_weather", "input": given} for id_, given in calls]
            source = {"type": "base64", "media_type": "image/png", "data": PNG_BASE64}
            shown = [{"type": "text", "text": RESULT}, {"type": "image", "source": source}]
            answers = [
                {"type": "tool_result", "tool_use_id": "toolu_A", "content": shown},
                {"type": "tool_result", "tool_use_id": "toolu_B", "content": MISHAP, "is_error": True},
                {"type": "text", "text": "And now?"},
            ]
            body["messages"] = [question, {"role": "assistant", "content": made}, {"role": "user", "content": answers}]
        case "images":
            source = {"type": "base64", "media_type": "image/png", "data": PNG_BASE64}
            blocks = [{"type": "text", "text": QUESTION}, {"type": "image", "source": source}]
            body["messages"] = [{"role": "user", "content": blocks}]
        case "thinking":
            body["thinking"] = {"type": "enabled", "budget_tokens": 2048}
        case "cache":
            long, short = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral"}
            body |= anthropic("tools", model)
            body["tools"][-1]["cache_control"] = long
            body["system"] = [{"type": "text", "text": SYSTEM, "cache_control": long}]
            body["messages"] = [
                {"role": "user", "content": [{"type": "text", "text": QUESTION, "cache_control": short}]}
            ]
        case "stop":
            body["stop_sequences"] = ["three", "four"]
    return body


def boto3(topic: str, model: str) -> Body:
    question = {"role": "user", "content": [{"text": QUESTION}]}
    body: Body = {
        "modelId": model,
        "system": [{"text": SYSTEM}],
        "messages": [question],
        "inferenceConfig": {"maxTokens": 4096},
    }
    match topic:
        case "tools":
            body = with_tools("boto3", body, TOOLS)
        case "results":
            body |= boto3("tools", model)
            calls = [("tooluse_A", {"city": "Zürich"}), ("tooluse_B", {"city": "Atlantis"})]
            made = [{"toolUse": {"toolUseId": id_, "name": "get_weather", "input": given}} for id_, given in calls]
            shown = [{"text": RESULT}, {"image": {"format": "png", "source": {"bytes": PNG}}}]
            answers = [
                {"toolResult": {"toolUseId": "tooluse_A", "content": shown}},
                {"toolResult": {"toolUseId": "tooluse_B", "content": [{"text": MISHAP}], "status": "error"}},
                {"text": "And now?"},
            ]
            body["messages"] = [question, {"role": "assistant", "content": made}, {"role": "user", "content": answers}]
        case "images":
            image = {"format": "png", "source": {"bytes": PNG}}
            body["messages"] = [{"role": "user", "content": [{"text": QUESTION}, {"image": image}]}]
        case "thinking":
            body["additionalModelRequestFields"] = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
        case "cache":
            long, short = {"cachePoint": {"type": "default", "ttl": "1h"}}, {"cachePoint": {"type": "default"}}
            body |= boto3("tools", model)
            body["toolConfig"]["tools"].append(long)
            body["system"].append(long)
            body["messages"] = [{"role": "user", "content": [{"text": QUESTION}, short]}]
        case "stop":
            body["inferenceConfig"]["stopSequences"] = ["three", "four"]
            body["additionalModelResponseFieldPaths"] = ["/stop_sequence"]
    return body


ASKS: dict[str, Callable[[str, str], Body]] = {"openai": openai, "anthropic": anthropic, "boto3": boto3}


def with_tools(sdk: str, body: Body, tools: Mapping[str, tuple[str, Body]]) -> Body:
    """`body` with these tools: name -> what it is for, and its JSON Schema."""
    listed = [(name, words, schema) for name, (words, schema) in tools.items()]
    match sdk:
        case "openai":
            functions = [{"name": name, "description": words, "parameters": schema} for name, words, schema in listed]
            return {**body, "tools": [{"type": "function", "function": function} for function in functions]}
        case "anthropic":
            return {**body, "tools": [{"name": n, "description": words, "input_schema": s} for n, words, s in listed]}
        case _:
            specs = [{"name": n, "description": words, "inputSchema": {"json": s}} for n, words, s in listed]
            return {**body, "toolConfig": {"tools": [{"toolSpec": spec} for spec in specs]}}


def with_words(sdk: str, body: Body, turn: Any, words: str) -> Body:
    """`body` with the model's turn sent back as it came, and the user's next words."""
    message = {"role": "user", "content": [{"text": words}] if sdk == "boto3" else words}
    return {**body, "messages": [*body["messages"], turn, message]}


def with_turn(sdk: str, body: Body, turn: Any, call_id: str) -> Body:
    """`body` with the model's turn sent back as it came, and a result for the call in it."""
    answers: dict[str, Any] = {
        "openai": {"role": "tool", "tool_call_id": call_id, "content": RESULT},
        "anthropic": {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call_id, "content": RESULT}],
        },
        "boto3": {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": call_id, "content": [{"text": RESULT}]}}],
        },
    }
    return {**body, "messages": [*body["messages"], turn, answers[sdk]]}
