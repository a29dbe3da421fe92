"""Converse requests: read, and written back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import (
    CacheMarker,
    Conversation,
    Document,
    Image,
    JsonObject,
    Opaque,
    OutputFormat,
    Reasoning,
    Source,
    Text,
    Thinking,
    ToolCall,
    ToolChange,
    ToolResult,
)
from orqen_ray.errors import BadRequest
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE
from orqen_ray.types import Capabilities

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


def read(body: JsonObject) -> Conversation:
    return BEDROCK_CONVERSE.read_request(body, MODEL)


def rewritten(body: JsonObject) -> Any:
    written = BEDROCK_CONVERSE.write_request(read(body), MODEL, Capabilities())
    assert written.dropped == ()
    return msgspec.json.decode(msgspec.json.encode(written.body))


# --- Strategies -------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
UNKNOWN = st.dictionaries(st.sampled_from(["newField", "other"]), JSON, max_size=2)
BASE64 = st.sampled_from(["AAAA", "aGVsbG8=", "iVBORw0KGgo="])
CACHE = st.fixed_dictionaries(
    {"cachePoint": st.fixed_dictionaries({"type": st.just("default")}, optional={"ttl": st.sampled_from(["5m", "1h"])})}
)


def known(required: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[JsonObject]:
    """An object of these fields, with fields newer than the code."""
    return st.builds(lambda a, b: {**b, **a}, st.fixed_dictionaries(required, optional=optional or {}), UNKNOWN)


S3 = known({"s3Location": known({"uri": st.just("s3://bucket/a.png")}, {"bucketOwner": st.just("123456789012")})})
IMAGE = known({"format": st.sampled_from(["png", "jpeg", "avif"]), "source": known({"bytes": BASE64}) | S3})
DOCUMENT = known(
    {"source": known({"bytes": BASE64}) | known({"text": TEXT}) | S3 | known({"content": st.just([{"text": "x"}])})},
    {
        "format": st.sampled_from(["pdf", "txt", "md", "odt"]),
        "name": TEXT,
        "context": TEXT,
        "citations": known({}, {"enabled": st.booleans()}),
    },
)
MEDIA = known({"image": IMAGE}) | known({"document": DOCUMENT}) | known({"text": TEXT})
RESULT = known(
    {"toolUseId": st.just("call_1"), "content": st.lists(MEDIA | known({"json": JSON}), max_size=3)},
    {"status": st.sampled_from(["success", "error", "partial"])},
)
REASONING = known({"reasoningText": known({"text": TEXT}, {"signature": TEXT})}) | known({"redactedContent": BASE64})
BLOCK = st.one_of(
    MEDIA,
    known({"toolUse": known({"toolUseId": st.just("call_1"), "name": st.just("f"), "input": OBJECT})}),
    known({"reasoningContent": REASONING | st.just({"newKind": {}})}),
    known({"guardContent": known({"text": known({"text": TEXT})})}),
    known({"citationsContent": known({"content": st.just([{"text": "a"}, {"text": "b"}])})}),
    known({"toolAddition": known({"tool": known({}, {"name": TEXT, "type": TEXT})})}),
    known({"video": OBJECT}),
    st.just({"brandNew": {"a": 1}}),
    CACHE,
)
CALL = {"role": "assistant", "content": [{"toolUse": {"toolUseId": "call_1", "name": "f", "input": {}}}]}
MESSAGE = known({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.lists(BLOCK, max_size=4)})
RESULTS = known({"role": st.just("user"), "content": st.lists(known({"toolResult": RESULT}) | CACHE, max_size=3)})
TOOL = st.one_of(
    known(
        {
            "toolSpec": known(
                {"name": st.just("f"), "inputSchema": known({"json": OBJECT})},
                {"description": TEXT, "strict": st.booleans()},
            )
        }
    ),
    CACHE,
    st.just({"systemTool": {"name": "nova_grounding"}}),
)
CHOICE = known({"auto": UNKNOWN}) | known({"any": UNKNOWN}) | known({"tool": known({"name": st.just("f")})}) | UNKNOWN
SCHEMA = OBJECT.map(json.dumps) | OBJECT.map(lambda value: json.dumps(value, indent=1))
TEXT_FORMAT = known(
    {
        "type": st.just("json_schema"),
        "structure": known({"jsonSchema": known({"schema": SCHEMA}, {"name": TEXT, "description": TEXT})}),
    }
)
ADDITIONAL = known(
    {},
    {
        "thinking": known(
            {"type": st.sampled_from(["enabled", "adaptive", "disabled", "new"])}, {"budget_tokens": JSON}
        ),
        "top_k": JSON,
        "output_config": known({}, {"effort": TEXT}),
    },
)
REQUEST = known(
    {"messages": st.lists(MESSAGE, max_size=3).flatmap(lambda a: st.builds(lambda b: [*a, CALL, b], RESULTS))},
    {
        "system": st.lists(known({"text": TEXT}) | CACHE | st.just({"newer": 1}), max_size=3),
        "inferenceConfig": known(
            {},
            {
                "maxTokens": st.integers(1, 9),
                "temperature": st.floats(0, 1),
                "topP": st.floats(0, 1),
                "stopSequences": st.lists(TEXT, max_size=2),
            },
        ),
        "toolConfig": known({"tools": st.lists(TOOL, max_size=4)}, {"toolChoice": CHOICE}),
        "additionalModelRequestFields": ADDITIONAL,
        "outputConfig": known({}, {"effort": TEXT, "textFormat": TEXT_FORMAT | st.just({"type": "newer"})}),
        "serviceTier": known({}, {"type": TEXT}),
        "guardrailConfig": OBJECT,
        "performanceConfig": OBJECT,
        "requestMetadata": st.none() | OBJECT,
    },
)


@settings(max_examples=200, deadline=None)
@given(REQUEST)
def test_a_request_read_and_written_is_the_same_json(body: JsonObject) -> None:
    assert rewritten(body) == body


# --- What the neutral form says ---------------------------------------------------------------------------------

FULL: JsonObject = {
    "system": [{"text": "Be brief."}, {"cachePoint": {"type": "default", "ttl": "1h"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"text": "See"},
                {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
                {"document": {"format": "pdf", "name": "a", "source": {"s3Location": {"uri": "s3://b/a.pdf"}}}},
                {"cachePoint": {"type": "default"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}},
                {"reasoningContent": {"redactedContent": "AAAA"}},
                {"toolUse": {"toolUseId": "t1", "name": "f", "input": {"a": [1, 2.5]}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "t1", "status": "error", "content": [{"json": {"b": 1}}, {"text": "x"}]}}
            ],
        },
        {"role": "system", "content": [{"toolRemoval": {"tool": {"name": "f"}}}]},
    ],
    "toolConfig": {
        "tools": [
            {"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}}},
            {"cachePoint": {"type": "default"}},
            {"systemTool": {"name": "nova_grounding"}},
        ],
        "toolChoice": {"tool": {"name": "f"}},
    },
    "inferenceConfig": {"maxTokens": 10, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]},
    "additionalModelRequestFields": {"thinking": {"type": "enabled", "budget_tokens": 2000}, "top_k": 5, "x": 1},
    "outputConfig": {
        "effort": "high",
        "textFormat": {
            "type": "json_schema",
            "structure": {"jsonSchema": {"schema": '{"type": "object"}', "name": "n"}},
        },
    },
    "serviceTier": {"type": "priority"},
    "requestMetadata": {"team": "a"},
}


def test_every_part_of_a_request_is_understood() -> None:
    conversation = read(FULL)
    assert conversation.model == MODEL and conversation.include_usage
    assert conversation.system == (Text(text="Be brief.", cache=CacheMarker(ttl="1h")),)
    user, assistant, result, system = conversation.messages
    assert user.blocks == (
        Text(text="See"),
        Image(source=Source(kind="base64", data="AAAA", media_type="image/png")),
        Document(
            source=Source(kind="s3", data="s3://b/a.pdf", media_type="application/pdf"), name="a", cache=CacheMarker()
        ),
    )
    assert assistant.blocks == (
        Thinking(text="hm", signature="sig"),
        Thinking(redacted="AAAA"),
        ToolCall(id="t1", name="f", arguments='{"a":[1,2.5]}'),
    )
    parts = (Text(text='{"b":1}', json=True), Text(text="x"))
    assert result.blocks == (ToolResult(call_id="t1", blocks=parts, is_error=True, wire_status="error"),)
    assert system.role == "system" and system.blocks == (ToolChange(action="remove", name="f"),)
    function, built_in = conversation.tools
    assert (function.name, function.description, function.parameters) == ("f", "d", {"type": "object"})
    assert function.cache == CacheMarker() and built_in.raw == {"systemTool": {"name": "nova_grounding"}}
    assert conversation.tool_choice is not None and conversation.tool_choice.names == ("f",)
    assert (conversation.max_tokens, conversation.stop) == (10, ("END",))
    assert conversation.sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 5}
    assert conversation.reasoning == Reasoning(mode="on", budget_tokens=2000, effort="high")
    assert conversation.output_format == OutputFormat(
        kind="schema", schema={"type": "object"}, schema_text='{"type": "object"}', name="n"
    )
    assert conversation.service_tier == "priority"
    assert conversation.extra == {"additionalModelRequestFields": {"x": 1}, "requestMetadata": {"team": "a"}}


def test_a_cache_point_with_nothing_to_mark_is_kept_as_it_is() -> None:
    point = {"cachePoint": {"type": "default"}}
    body = {"messages": [{"role": "user", "content": [point, {"text": "a"}, point, point]}]}
    blocks = read(body).messages[0].blocks
    assert blocks == (
        Opaque(kind="cachePoint", raw=point),
        Text(text="a", cache=CacheMarker()),
        Opaque(kind="cachePoint", raw=point),
    )
    assert rewritten(body) == body


@pytest.mark.parametrize("point", [{"type": "default", "newer": 1}, {"type": "newer"}, {"type": "default", "ttl": 3}])
def test_a_cache_point_newer_than_the_code_is_kept_as_it_is(point: JsonObject) -> None:
    body = message({"text": "a"}, {"cachePoint": point})
    assert read(body).messages[0].blocks[1] == Opaque(kind="cachePoint", raw={"cachePoint": point})
    assert rewritten(body) == body


def test_a_null_is_written_back_where_it_stood() -> None:
    document = {"name": None, "source": {"text": "x"}, "citations": {"enabled": None}}
    body = {**message({"document": document}), "system": None, "inferenceConfig": {"maxTokens": None}}
    assert rewritten(body) == body


def test_a_tool_that_the_provider_runs_itself_is_no_call_for_the_client() -> None:
    use = {"toolUse": {"toolUseId": "s1", "name": "nova_grounding", "input": {}, "type": "server_tool_use"}}
    result = {"toolResult": {"toolUseId": "s1", "content": [], "type": "nova_grounding_result"}}
    body = {"messages": [{"role": "assistant", "content": [use, result]}]}
    assert read(body).messages[0].blocks == (Opaque(kind="toolUse", raw=use), Opaque(kind="toolResult", raw=result))


def test_text_under_a_guardrail_or_with_citations_is_text_to_other_formats() -> None:
    guarded = {"guardContent": {"text": {"text": "ask", "qualifiers": ["query"]}}}
    cited = {"citationsContent": {"content": [{"text": "so "}, {"text": "it is"}], "citations": [{"title": "t"}]}}
    body = {"messages": [{"role": "user", "content": [guarded, cited]}]}
    assert [getattr(block, "text", None) for block in read(body).messages[0].blocks] == ["ask", "so it is"]


def test_the_gateways_own_tool_fields_are_read_and_never_forwarded() -> None:
    spec = {"name": "f", "inputSchema": {"json": {}}}
    own = {"x-orqen-examples": ["do f"], "x-orqen-keep": True}
    body = {"messages": [], "toolConfig": {"tools": [{"toolSpec": {**spec, **own}}]}}
    tool = read(body).tools[0]
    assert tool.examples == ("do f",) and tool.keep
    assert rewritten(body)["toolConfig"] == {"tools": [{"toolSpec": spec}]}


def test_effort_among_the_additional_fields_is_understood_and_stays_there() -> None:
    body = {"messages": [], "additionalModelRequestFields": {"output_config": {"effort": "low"}}}
    assert read(body).reasoning == Reasoning(effort="low")
    assert rewritten(body) == body


# --- Malformed requests -----------------------------------------------------------------------------------------


def message(*content: Any, role: Any = "user") -> JsonObject:
    return {"messages": [{"role": role, "content": list(content)}]}


def image(**fields: Any) -> JsonObject:
    return message({"image": {"format": "png", "source": {"bytes": "AAAA"}, **fields}})


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": []}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (message(role="tool"), "messages[0].role"),
        (message(role=1), "messages[0].role"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages[0].content"),
        (message("hi"), "messages[0].content[0]"),
        (message({}), "messages[0].content[0]"),
        (message({"text": 1}), "messages[0].content[0].text"),
        (message({"cachePoint": "default"}), "messages[0].content[0].cachePoint"),
        (image(source={"bytes": "not base64"}), "messages[0].content[0].image.source.bytes"),
        (image(source="x"), "messages[0].content[0].image.source"),
        (image(format=3), "messages[0].content[0].image.format"),
        (image(source={"s3Location": {}}), "messages[0].content[0].image.source.s3Location.uri"),
        (message({"document": {"source": {"bytes": 1}}}), "messages[0].content[0].document.source.bytes"),
        (message({"document": {"name": "a"}}), "messages[0].content[0].document.source"),
        (
            message({"document": {"source": {"text": ""}, "citations": {"enabled": "yes"}}}),
            "messages[0].content[0].document.citations.enabled",
        ),
        (message({"toolUse": {"name": "f", "input": {}}}), "messages[0].content[0].toolUse.toolUseId"),
        (message({"toolUse": {"toolUseId": "a", "name": "f"}}), "messages[0].content[0].toolUse.input"),
        (message({"toolResult": {"toolUseId": "a"}}), "messages[0].content[0].toolResult.content"),
        (message({"toolResult": {"toolUseId": "a", "content": []}}), "messages[0]"),
        (message(CALL["content"][0], {"toolResult": {"toolUseId": "other", "content": []}}), "messages[0]"),
        (
            message({"toolResult": {"toolUseId": "a", "content": [{"text": 2}]}}),
            "messages[0].content[0].toolResult.content[0].text",
        ),
        (
            message({"reasoningContent": {"redactedContent": "%"}}),
            "messages[0].content[0].reasoningContent.redactedContent",
        ),
        (
            message({"reasoningContent": {"reasoningText": {}}}),
            "messages[0].content[0].reasoningContent.reasoningText.text",
        ),
        ({"system": "Be brief."}, "system"),
        ({"system": [{"text": None}]}, "system[0].text"),
        ({"inferenceConfig": []}, "inferenceConfig"),
        ({"inferenceConfig": {"maxTokens": "9"}}, "inferenceConfig.maxTokens"),
        ({"inferenceConfig": {"maxTokens": True}}, "inferenceConfig.maxTokens"),
        ({"inferenceConfig": {"temperature": "hot"}}, "inferenceConfig.temperature"),
        ({"inferenceConfig": {"stopSequences": "END"}}, "inferenceConfig.stopSequences"),
        ({"inferenceConfig": {"stopSequences": [1]}}, "inferenceConfig.stopSequences[0]"),
        ({"toolConfig": []}, "toolConfig"),
        ({"toolConfig": {"tools": {}}}, "toolConfig.tools"),
        ({"toolConfig": {"tools": [{}]}}, "toolConfig.tools[0]"),
        ({"toolConfig": {"tools": [{"toolSpec": {"inputSchema": {}}}]}}, "toolConfig.tools[0].toolSpec.name"),
        ({"toolConfig": {"tools": [{"toolSpec": {"name": "f"}}]}}, "toolConfig.tools[0].toolSpec.inputSchema"),
        (
            {"toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": "{}"}}}]}},
            "toolConfig.tools[0].toolSpec.inputSchema.json",
        ),
        ({"toolConfig": {"toolChoice": "auto"}}, "toolConfig.toolChoice"),
        ({"toolConfig": {"toolChoice": {"tool": {}}}}, "toolConfig.toolChoice.tool.name"),
        ({"serviceTier": "flex"}, "serviceTier"),
        ({"outputConfig": {"effort": 1}}, "outputConfig.effort"),
        (
            {"outputConfig": {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{"}}}}},
            "outputConfig.textFormat.structure.jsonSchema.schema",
        ),
    ],
)
def test_a_malformed_request_names_the_field(body: JsonObject, path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert caught.value.param == path


def test_a_request_without_a_model_is_refused() -> None:
    with pytest.raises(BadRequest, match="model"):
        BEDROCK_CONVERSE.read_request({"messages": []}, None)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(list(FULL)), JSON) | OBJECT)
def test_any_json_is_read_or_refused(body: JsonObject) -> None:
    try:
        read(body)
    except BadRequest as exc:
        assert exc.message
