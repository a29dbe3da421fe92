"""Conversations of other formats written for Converse, judged by botocore's own service model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import (
    Block,
    CacheMarker,
    Conversation,
    Document,
    Image,
    JsonObject,
    Message,
    Opaque,
    OutputFormat,
    Reasoning,
    Refusal,
    Role,
    Source,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChange,
    ToolChoice,
    ToolResult,
)
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE
from orqen_ray.providers.catalog import load_catalog
from orqen_ray.types import Capabilities, Written

MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
CLAUDE = Capabilities(cache_markers=True, thinking="budget")


@pytest.fixture(scope="module")
def service() -> Any:
    return ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2"))


def conversation(*messages: Message, **fields: Any) -> Conversation:
    return Conversation(format="openai_chat", model="gpt-x", messages=messages, **fields)


def user(*blocks: Block | str) -> Message:
    return Message(role="user", blocks=tuple(Text(text=b) if isinstance(b, str) else b for b in blocks))


def assistant(*blocks: Block | str) -> Message:
    return replace(user(*blocks), role="assistant")


def write(source: Conversation, capabilities: Capabilities = CLAUDE, model: str = MODEL) -> tuple[Any, Written]:
    written = BEDROCK_CONVERSE.write_request(source, model, capabilities)
    return msgspec.json.decode(msgspec.json.encode(written.body)), written


# --- Whatever comes is legal ------------------------------------------------------------------------------------

TEXT = st.text(max_size=6)
EXTRA: st.SearchStrategy[JsonObject] = st.just({}) | st.just({"unknown": 1})
MARK = st.none() | st.builds(CacheMarker, ttl=st.sampled_from([None, "5m", "1h"]))
SOURCE = st.builds(
    Source,
    kind=st.sampled_from(["base64", "url", "text", "file_id"]),
    data=st.just("AAAA"),
    media_type=st.sampled_from([None, "image/png", "image/bmp", "application/pdf", "text/plain"]),
)
PLAIN = st.one_of(
    st.builds(Text, text=TEXT, cache=MARK, extra=EXTRA),
    st.builds(Image, source=SOURCE, detail=st.sampled_from([None, "high"]), cache=MARK, extra=EXTRA),
    st.builds(Document, source=SOURCE, name=st.none() | TEXT, citations=st.sampled_from([None, True]), cache=MARK),
)
ARGUMENTS = st.sampled_from(["", "{}", '{"a": 1}', "[1]", '{"cut": ', "NaN"])
ASSISTANT = st.one_of(
    PLAIN,
    st.builds(Thinking, text=TEXT, signature=st.none() | st.just("sig"), redacted=st.sampled_from([None, "AAAA", "?"])),
    st.builds(Refusal, text=TEXT),
    st.just(Opaque(kind="server_tool_use", raw={"type": "server_tool_use"})),
)
IDS = st.sampled_from(["call_1", "call.1", "a" * 80, "äöü"])


@st.composite
def turns(draw: st.DrawFn) -> list[Message]:
    """A turn of tool calls with its results, or a message of some role."""
    if draw(st.booleans()):
        role: Role = draw(st.sampled_from(["user", "assistant", "system"]))
        return [
            Message(role=role, blocks=tuple(draw(st.lists(ASSISTANT if role == "assistant" else PLAIN, max_size=3))))
        ]
    ids = draw(st.lists(IDS, min_size=1, max_size=2, unique=True))
    calls = [ToolCall(id=i, name=draw(st.sampled_from(["f", "$bad name"])), arguments=draw(ARGUMENTS)) for i in ids]
    results = [
        user(ToolResult(call_id=i, blocks=tuple(draw(st.lists(PLAIN, max_size=2))), is_error=draw(st.booleans())))
        for i in ids
    ]
    return [assistant(*draw(st.lists(ASSISTANT, max_size=1)), *calls), *results]


TOOLS = st.lists(
    st.builds(
        Tool,
        name=st.just("f"),
        description=st.sampled_from([None, "", "does f"]),
        parameters=st.sampled_from([None, {}, {"type": "object", "properties": {}}]),
        strict=st.sampled_from([None, True, False]),
        custom=st.booleans(),
        cache=MARK,
        raw=st.sampled_from([None, None, {"type": "web_search"}]),
        extra=EXTRA,
    ),
    max_size=2,
)
CHOICE = st.builds(
    ToolChoice,
    mode=st.sampled_from(["auto", "none", "any", "tool", "allowed"]),
    names=st.sampled_from([("f",), ("missing",)]),
    required=st.booleans(),
)
CONVERSATION = st.builds(
    Conversation,
    format=st.sampled_from(["openai_chat", "anthropic_messages"]),
    model=st.just("x"),
    messages=st.lists(turns(), max_size=4).map(lambda groups: tuple(m for group in groups for m in group)),
    system=st.lists(PLAIN, max_size=2).map(tuple),
    tools=TOOLS.map(tuple),
    tool_choice=st.none() | CHOICE,
    parallel_tool_calls=st.sampled_from([None, True, False]),
    max_tokens=st.sampled_from([None, 1, 1500, 9000]),
    stop=st.lists(st.sampled_from(["END", "", " "]), max_size=2).map(tuple),
    sampling=st.dictionaries(st.sampled_from(["temperature", "top_p", "top_k", "seed", "n"]), st.integers(0, 2)),
    reasoning=st.none()
    | st.builds(
        Reasoning,
        mode=st.sampled_from([None, "on", "off", "adaptive"]),
        budget_tokens=st.sampled_from([None, 500, 5000]),
        effort=st.sampled_from([None, "none", "minimal", "high"]),
    ),
    output_format=st.none()
    | st.builds(OutputFormat, kind=st.sampled_from(["text", "json", "schema"]), schema=st.just({"type": "object"})),
    auto_cache=MARK,
    user=st.none() | st.just("u"),
    service_tier=st.sampled_from([None, "auto", "priority", "scale"]),
    extra=EXTRA,
)
CAPABILITIES = st.builds(
    Capabilities,
    cache_markers=st.booleans(),
    cache_markers_on_tools=st.booleans(),
    cache_ttl=st.booleans(),
    images=st.booleans(),
    documents=st.booleans(),
    structured_output=st.booleans(),
    forced_tool_choice=st.booleans(),
    mid_conversation_system=st.booleans(),
    thinking=st.sampled_from(["none", "budget", "adaptive"]),
)


def texts_of(content: list[JsonObject]) -> list[str]:
    inner = [text for block in content if "toolResult" in block for text in texts_of(block["toolResult"]["content"])]
    return [block["text"] for block in content if "text" in block] + inner


@settings(max_examples=300, deadline=None)
@given(source=CONVERSATION, capabilities=CAPABILITIES)
def test_any_conversation_becomes_a_request_that_bedrock_accepts(
    service: Any, source: Conversation, capabilities: Capabilities
) -> None:
    body, _ = write(source, capabilities)
    for operation in ("Converse", "ConverseStream"):
        report = ParamValidator().validate({"modelId": MODEL, **body}, service.operation_model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
    messages = [message for message in body["messages"] if message["role"] != "system"]
    roles = [message["role"] for message in messages]
    assert roles[0] == "user" and all(a != b for a, b in zip(roles, roles[1:], strict=False))
    assert all(message["content"] for message in messages)
    assert all(text.strip() for message in messages for text in texts_of(message["content"]))
    uses = {block["toolUse"]["toolUseId"] for m in messages for block in m["content"] if "toolUse" in block}
    results = [b["toolResult"]["toolUseId"] for m in messages for b in m["content"] if "toolResult" in b]
    assert set(results) <= uses
    assert not uses or body["toolConfig"]["tools"]
    assert BEDROCK_CONVERSE.read_request(body, MODEL).format == "bedrock_converse"


# --- How each thing is carried ----------------------------------------------------------------------------------


def test_results_of_parallel_calls_stand_in_one_message_with_their_calls_ids() -> None:
    calls = [ToolCall(id=f"call:{i}", name="f", arguments=f'{{ "n": {i} }}') for i in range(2)]
    results = [user(ToolResult(call_id=f"call:{i}", blocks=(Text(text=str(i)),))) for i in range(2)]
    source = conversation(user("go"), assistant(*calls), *results, tools=(Tool(name="f"),))
    _, made, answered = write(source)[0]["messages"]
    ids = [block["toolUse"]["toolUseId"] for block in made["content"]]
    assert [block["toolResult"]["toolUseId"] for block in answered["content"]] == ids
    assert len(set(ids)) == 2 and all(":" not in call_id for call_id in ids)


def test_arguments_are_carried_byte_for_byte() -> None:
    call = ToolCall(id="a", name="f", arguments='{"a": 1.50, "b":  "é"}')
    body = BEDROCK_CONVERSE.write_request(conversation(user("go"), assistant(call)), MODEL, CLAUDE).body
    assert call.arguments.encode() in msgspec.json.encode(body)


def test_arguments_that_are_no_object_are_named() -> None:
    call = ToolCall(id="a", name="f", arguments='{"a": ')
    body, written = write(conversation(user("go"), assistant(call)))
    assert body["messages"][1]["content"][0]["toolUse"]["input"] == {"raw_arguments": '{"a": '}
    assert written.dropped == ("messages[1].content[0].arguments",)


def test_a_history_with_calls_and_no_tools_gets_the_least_definitions() -> None:
    call = ToolCall(id="a", name="f", arguments="{}")
    body, written = write(conversation(user("go"), assistant(call), tool_choice=ToolChoice(mode="none")))
    assert body["toolConfig"] == {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}}]}
    assert written.dropped == ("tool_choice",)


@pytest.mark.parametrize(
    ("choice", "wire", "dropped"),
    [
        (ToolChoice(mode="auto"), {"auto": {}}, ()),
        (ToolChoice(mode="any"), {"any": {}}, ()),
        (ToolChoice(mode="tool", names=("f",)), {"tool": {"name": "f"}}, ()),
        (ToolChoice(mode="allowed", names=("f",), required=True), {"tool": {"name": "f"}}, ()),
        (ToolChoice(mode="allowed", names=("f", "g"), required=True), {"any": {}}, ("tool_choice.names",)),
        (ToolChoice(mode="allowed", names=("f",)), {"auto": {}}, ("tool_choice.names",)),
        (ToolChoice(mode="none"), None, ("tool_choice",)),
        (ToolChoice(mode="tool", names=("missing",)), None, ("tool_choice",)),
    ],
)
def test_a_tool_choice(choice: ToolChoice, wire: JsonObject | None, dropped: tuple[str, ...]) -> None:
    body, written = write(conversation(user("go"), tools=(Tool(name="f"), Tool(name="g")), tool_choice=choice))
    assert body["toolConfig"].get("toolChoice") == wire
    assert written.dropped == dropped and len(body["toolConfig"]["tools"]) == 2


def test_cache_markers_become_blocks_behind_what_they_mark() -> None:
    marked = Text(text="long", cache=CacheMarker(ttl="1h"))
    source = conversation(
        user(marked, Text(text=" ", cache=CacheMarker(ttl="5m"))),
        system=(marked,),
        tools=(Tool(name="f", cache=CacheMarker()),),
        auto_cache=CacheMarker(),
    )
    body, written = write(source)
    assert body["system"] == [{"text": "long"}, {"cachePoint": {"type": "default", "ttl": "1h"}}]
    assert body["toolConfig"]["tools"][1] == {"cachePoint": {"type": "default"}}
    # The blank block goes, and its marker moves to what is before it; the automatic marker finds the place taken.
    assert body["messages"][0]["content"] == [{"text": "long"}, {"cachePoint": {"type": "default"}}]
    assert written.dropped == ()
    body, written = write(source, Capabilities())
    assert "cachePoint" not in msgspec.json.encode(body).decode()
    assert set(written.dropped) == {
        "cache_control",
        "tools[0].cache_control",
        "system[0].cache_control",
        "messages[0].content[0].cache_control",
        "messages[0].content[1].cache_control",
    }


def test_a_model_gets_no_cache_point_among_its_tools_nor_a_duration_that_it_refuses() -> None:
    marker = CacheMarker(ttl="1h")
    source = conversation(
        user("hi"), system=(Text(text="s", cache=marker),), tools=(Tool(name="f", cache=marker),), auto_cache=marker
    )
    nova = load_catalog().capabilities("bedrock", "us.amazon.nova-lite-v1:0")
    body, written = write(source, nova)
    assert [list(tool) for tool in body["toolConfig"]["tools"]] == [["toolSpec"]]
    point = {"cachePoint": {"type": "default"}}
    assert (body["system"][1], body["messages"][0]["content"][1]) == (point, point)
    assert set(written.dropped) == {"tools[0].cache_control", "system[0].cache_control.ttl", "cache_control.ttl"}


def test_a_marker_inside_a_tool_result_moves_behind_it() -> None:
    result = ToolResult(call_id="a", blocks=(Text(text="x", cache=CacheMarker()),))
    body, _ = write(conversation(user("go"), assistant(ToolCall(id="a", name="f", arguments="")), user(result)))
    inner, point = body["messages"][2]["content"]
    assert inner["toolResult"]["content"] == [{"text": "x"}] and point == {"cachePoint": {"type": "default"}}


def test_a_turn_left_without_content_disappears() -> None:
    body, written = write(conversation(user("a"), assistant(Thinking(text="hm"), " "), user("b")))
    assert body["messages"] == [{"role": "user", "content": [{"text": "a"}, {"text": "b"}]}]
    assert written.dropped == ("messages[1].content[0].thinking",)


def test_media_that_cannot_be_carried_are_named() -> None:
    url = Image(source=Source(kind="url", data="https://example.com/a.png"))
    odd = Document(source=Source(kind="base64", data="AAAA", media_type="application/x-odd"))
    body, written = write(conversation(user("see", url, odd)))
    assert body["messages"] == [{"role": "user", "content": [{"text": "see"}]}]
    assert written.dropped == ("messages[0].content[1].image", "messages[0].content[2].document")


def test_documents_get_legal_names_once_each() -> None:
    pdf = Source(kind="base64", data="AAAA", media_type="application/pdf")
    named = Document(source=pdf, name="the  report_v2.pdf")
    body, _ = write(conversation(user(named, named, Document(source=pdf))))
    *documents, text = body["messages"][0]["content"]
    names = [document["document"]["name"] for document in documents]
    assert names[:2] == ["the report-v2-pdf", "the report-v2-pdf (2)"] and names[2].startswith("document-")
    assert text["text"].strip()


def test_unsigned_reasoning_is_named_and_signed_reasoning_carried() -> None:
    signed, sealed = Thinking(text="a", signature="s"), Thinking(redacted="AAAA")
    body, written = write(conversation(user("go"), assistant(Thinking(text="b"), signed, sealed, "ok")))
    assert body["messages"][1]["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "a", "signature": "s"}}},
        {"reasoningContent": {"redactedContent": "AAAA"}},
        {"text": "ok"},
    ]
    assert written.dropped == ("messages[1].content[0].thinking",)


@pytest.mark.parametrize(
    ("thinking", "reasoning", "wire", "effort"),
    [
        ("budget", Reasoning(mode="on", budget_tokens=3000), {"type": "enabled", "budget_tokens": 3000}, None),
        ("budget", Reasoning(effort="low"), {"type": "enabled", "budget_tokens": 2048}, None),
        ("budget", Reasoning(mode="off"), None, None),
        ("adaptive", Reasoning(effort="minimal"), {"type": "adaptive"}, "low"),
        ("adaptive", Reasoning(mode="adaptive", effort="max"), {"type": "adaptive"}, "max"),
        ("adaptive", Reasoning(effort="none"), {"type": "disabled"}, None),
        ("none", Reasoning(effort="low"), None, None),
    ],
)
def test_reasoning(thinking: Any, reasoning: Reasoning, wire: JsonObject | None, effort: str | None) -> None:
    source = conversation(user("go"), reasoning=reasoning, max_tokens=9000, sampling={"temperature": 0.2, "top_k": 3})
    body, written = write(source, Capabilities(thinking=thinking))
    assert body.get("additionalModelRequestFields", {}).get("thinking") == wire
    assert body.get("outputConfig", {}).get("effort") == effort
    thinks = wire is not None and wire["type"] != "disabled"
    assert ("temperature" in written.dropped) == thinks
    assert body["inferenceConfig"].get("temperature") == (None if thinks else 0.2)


@pytest.mark.parametrize(
    ("top_p", "reasoning", "kept"),
    [
        (0.9, Reasoning(effort="low"), False),
        (0.95, Reasoning(effort="low"), True),
        (0.9, Reasoning(mode="off"), True),
    ],
)
def test_a_low_top_p_gives_way_to_thinking(top_p: float, reasoning: Reasoning, kept: bool) -> None:
    body, written = write(conversation(user("go"), reasoning=reasoning, max_tokens=9000, sampling={"top_p": top_p}))
    assert body["inferenceConfig"].get("topP") == (top_p if kept else None)
    assert written.dropped == (() if kept else ("top_p",))


def test_a_budget_leaves_room_for_the_answer() -> None:
    body, _ = write(conversation(user("go"), reasoning=Reasoning(effort="high"), max_tokens=4000))
    assert body["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 2000
    body, written = write(conversation(user("go"), reasoning=Reasoning(effort="high"), max_tokens=100))
    assert "additionalModelRequestFields" not in body and written.dropped == ("reasoning",)


def test_a_tool_loop_begun_without_thinking_is_finished_without() -> None:
    loop = (user("go"), assistant(ToolCall(id="a", name="f", arguments="{}")), user(ToolResult(call_id="a", blocks=())))
    body, written = write(conversation(*loop, reasoning=Reasoning(effort="low")))
    assert "additionalModelRequestFields" not in body and written.dropped == ("reasoning",)


def test_structured_output_carries_its_schema_as_text() -> None:
    output = OutputFormat(kind="schema", schema={"type": "object"}, name="n", strict=True)
    body, written = write(conversation(user("go"), output_format=output))
    structure = {"jsonSchema": {"schema": '{"type":"object"}', "name": "n"}}
    assert body["outputConfig"] == {"textFormat": {"type": "json_schema", "structure": structure}}
    assert written.dropped == ()
    assert write(conversation(user("go"), output_format=OutputFormat(kind="json")))[1].dropped == ("output_format",)


def test_what_converse_cannot_say_is_named() -> None:
    source = conversation(
        Message(role="user", blocks=(Text(text="go", extra={"odd": 1}),), extra={"name": "bob"}),
        sampling={"seed": 1, "temperature": 1.5, "top_k": 4},
        stop=("END", " "),
        parallel_tool_calls=False,
        user="u",
        service_tier="scale",
        extra={"metadata": {}},
    )
    body, written = write(source, model="amazon.nova-pro-v1:0")
    assert body["inferenceConfig"] == {"temperature": 1.0, "stopSequences": ["END"]}
    assert set(written.dropped) == {
        *("messages[0].content[0].odd", "messages[0].name", "seed", "temperature", "top_k", "stop"),
        *("parallel_tool_calls", "user", "service_tier", "metadata"),
    }


def test_tool_changes_are_applied_where_converse_cannot_make_them() -> None:
    change = Message(role="system", blocks=(ToolChange(action="add", name="g", tool=Tool(name="g")),))
    body, written = write(conversation(user("go"), change, tools=(Tool(name="f"),)))
    assert [tool["toolSpec"]["name"] for tool in body["toolConfig"]["tools"]] == ["f", "g"]
    assert written.dropped == ("messages.tool_addition",)
