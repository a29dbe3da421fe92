"""Conversations of other formats written for a model behind the Messages API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
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
    Source,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from orqen_ray.formats.anthropic_messages.request_out import write_request
from orqen_ray.types import Capabilities
from tests.formats.anthropic_wire import PNG, check_with_sdk, foreign_messages, foreign_tools

CLAUDE = Capabilities(cache_markers=True, thinking="budget", default_max_tokens=8000)
ADAPTIVE = replace(CLAUDE, thinking="adaptive")
HELLO = (Message(role="user", blocks=(Text(text="hi"),)),)
F = Tool(name="f", parameters={"type": "object"})


def written(
    messages: Sequence[Message] = HELLO, *, capabilities: Capabilities = CLAUDE, **fields: Any
) -> tuple[JsonObject, tuple[str, ...]]:
    conversation = Conversation(format="openai_chat", model="gpt", messages=tuple(messages), **fields)
    out = write_request(conversation, "claude", capabilities)
    return msgspec.json.decode(msgspec.json.encode(out.body)), out.dropped


def content_of(*blocks: Block) -> tuple[list[JsonObject], tuple[str, ...]]:
    body, dropped = written([Message(role="user", blocks=blocks)])
    return body["messages"][0]["content"], dropped


@given(
    messages=foreign_messages(),
    tools=st.lists(foreign_tools, max_size=2, unique_by=lambda tool: tool.name),
    choice=st.sampled_from([None, ToolChoice(mode="any"), ToolChoice(mode="allowed", names=("a",), required=True)]),
    effort=st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "whatever"]),
    capabilities=st.sampled_from([Capabilities(), CLAUDE, ADAPTIVE]),
    max_tokens=st.none() | st.integers(1, 9000),
)
def test_whatever_comes_in_another_format_fits_the_sdks_types(
    messages: tuple[Message, ...],
    tools: list[Tool],
    choice: ToolChoice | None,
    effort: str,
    capabilities: Capabilities,
    max_tokens: int | None,
) -> None:
    body, _ = written(
        messages,
        capabilities=capabilities,
        tools=tuple(tools),
        tool_choice=choice,
        max_tokens=max_tokens,
        reasoning=Reasoning(effort=effort),
        sampling={"temperature": 1.7, "top_p": 0.9, "seed": 1},
        parallel_tool_calls=False,
    )
    check_with_sdk(body)
    if "budget_tokens" in body.get("thinking", {}):
        assert 1024 <= body["thinking"]["budget_tokens"] < body["max_tokens"]


def test_fields_of_another_format_are_named_and_left_out() -> None:
    content, dropped = content_of(
        Text(text="t", extra={"newer": 1, "empty": None}),
        Opaque(kind="input_audio", raw={"type": "input_audio"}),
        Image(source=Source(kind="base64", data=PNG, media_type="image/png"), detail="high"),
        Image(source=Source(kind="file_id", data="file-1")),
    )
    assert [block["type"] for block in content] == ["text", "image"]
    at = "messages[0].content"
    assert dropped == (f"{at}[0].newer", f"{at}[1]", f"{at}[2].detail", f"{at}[3]")


def test_text_documents_of_any_kind_become_plain_text() -> None:
    csv = Source(kind="base64", data="YSxi", media_type="text/csv")
    content, dropped = content_of(
        Document(source=csv, name="a.csv"),
        Document(source=Source(kind="base64", data=PNG, media_type="application/pdf")),
    )
    text = {"type": "text", "media_type": "text/plain", "data": "a,b"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": PNG}
    assert content == [
        {"type": "document", "source": text, "title": "a.csv"},
        {"type": "document", "source": pdf},
    ]
    assert dropped == ()


def test_empty_text_and_messages_left_empty_are_not_written() -> None:
    messages = [
        Message(role="user", blocks=(Text(text="a"), Text(text=" \n"))),
        Message(role="assistant", blocks=(Text(text=""),)),
        Message(role="user", blocks=(Text(text="b"),)),
    ]
    body, dropped = written(messages)
    assert [[block["text"] for block in message["content"]] for message in body["messages"]] == [["a"], ["b"]]
    assert dropped == ()


def test_the_user_speaks_first() -> None:
    body, _ = written([Message(role="assistant", blocks=(Text(text="welcome"),)), *HELLO])
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    body, _ = written([Message(role="system", blocks=(Text(text="just do it"),))])
    assert body["system"] == [{"type": "text", "text": "just do it"}]
    assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("arguments", "wire", "dropped"),
    [
        ('{"a": 1.50}', {"a": 1.5}, ()),
        ("", {}, ()),
        ("{oops", {"raw_arguments": "{oops"}, ("messages[1].content[0].arguments",)),
        ("[1]", {"raw_arguments": "[1]"}, ("messages[1].content[0].arguments",)),
    ],
)
def test_arguments_are_written_as_they_are_or_wrapped(arguments: str, wire: JsonObject, dropped: tuple[str]) -> None:
    call = ToolCall(id="call_1", name="f", arguments=arguments)
    body, names = written([*HELLO, Message(role="assistant", blocks=(call,))])
    assert body["messages"][1]["content"] == [{"type": "tool_use", "id": "call_1", "name": "f", "input": wire}]
    assert names == dropped


def test_calls_and_their_results_keep_one_legal_id() -> None:
    call = ToolCall(id="functions.f:0", name="f", arguments="{}")
    result = ToolResult(call_id="functions.f:0", blocks=(), is_error=True)
    body, _ = written([*HELLO, Message(role="assistant", blocks=(call,)), Message(role="user", blocks=(result,))])
    made, answer = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert made["id"] == answer["tool_use_id"] != call.id
    assert answer["content"] == [{"type": "text", "text": "error"}]


def test_free_text_tools_take_one_string() -> None:
    call = ToolCall(id="1", name="patch", arguments="*** begin", custom=True)
    body, dropped = written(
        [*HELLO, Message(role="assistant", blocks=(call,))], tools=(Tool(name="patch", custom=True),)
    )
    assert body["tools"][0]["input_schema"]["properties"] == {"input": {"type": "string"}}
    assert body["messages"][1]["content"][0]["input"] == {"input": "*** begin"}
    assert dropped == ("tools[0].custom",)


def test_builtin_tools_of_another_vendor_are_dropped_by_name() -> None:
    body, dropped = written(tools=(Tool(name="web", raw={"type": "web_search"}), F))
    assert [tool["name"] for tool in body["tools"]] == ["f"]
    assert dropped == ("tools[0]",)


def test_reasoning_without_a_signature_is_not_replayed() -> None:
    said = (Thinking(text="unsigned"), Thinking(text="signed", signature="s"), Refusal(text="no"))
    body, dropped = written([*HELLO, Message(role="assistant", blocks=said)])
    assert [block["type"] for block in body["messages"][1]["content"]] == ["thinking", "text"]
    assert dropped == ("messages[1].content[0]",)


def test_sampling_that_the_vendor_lacks_is_named_unless_it_asks_for_nothing() -> None:
    body, dropped = written(sampling={"temperature": 1.5, "top_k": 3, "seed": 7, "n": 1, "logprobs": False, "n2": None})
    assert (body["temperature"], body["top_k"]) == (1, 3)
    assert dropped == ("temperature", "seed")


def test_max_tokens_falls_back_to_the_models_own() -> None:
    assert written()[0]["max_tokens"] == 8000
    assert written(max_tokens=5)[0]["max_tokens"] == 5
    assert written(reasoning=Reasoning(mode="on", budget_tokens=9000))[0]["max_tokens"] == 17000


@pytest.mark.parametrize(
    ("capabilities", "reasoning", "thinking", "effort", "dropped"),
    [
        (Capabilities(), Reasoning(effort="high"), None, None, ("reasoning",)),
        (Capabilities(), Reasoning(effort="none"), None, None, ()),
        (CLAUDE, Reasoning(effort="low"), {"type": "enabled", "budget_tokens": 2048}, None, ()),
        (CLAUDE, Reasoning(effort="high"), {"type": "enabled", "budget_tokens": 6000}, None, ()),
        (CLAUDE, Reasoning(mode="off"), None, None, ()),
        (ADAPTIVE, Reasoning(mode="off"), {"type": "disabled"}, None, ()),
        (ADAPTIVE, Reasoning(effort="minimal"), {"type": "adaptive"}, "low", ()),
        (ADAPTIVE, Reasoning(effort="max", display="omitted"), {"type": "adaptive", "display": "omitted"}, "max", ()),
        (ADAPTIVE, Reasoning(effort="odd"), {"type": "adaptive"}, None, ("reasoning.effort",)),
        (ADAPTIVE, Reasoning(budget_tokens=4000), {"type": "adaptive"}, "medium", ("reasoning.budget_tokens",)),
    ],
)
def test_reasoning_is_asked_for_in_the_models_words(
    capabilities: Capabilities, reasoning: Reasoning, thinking: Any, effort: str | None, dropped: tuple[str, ...]
) -> None:
    body, names = written(capabilities=replace(capabilities, default_max_tokens=8000), reasoning=reasoning)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == effort
    assert names == dropped


@pytest.mark.parametrize(("max_tokens", "budget"), [(1000, None), (4000, 5000), (4000, 500)])
def test_a_budget_that_does_not_fit_is_dropped_by_name(max_tokens: int, budget: int | None) -> None:
    body, dropped = written(max_tokens=max_tokens, reasoning=Reasoning(mode="on", budget_tokens=budget))
    assert "thinking" not in body
    assert dropped == ("reasoning",)


def test_thinking_gives_way_to_what_the_vendor_refuses_beside_it() -> None:
    effort = Reasoning(effort="low")
    body, dropped = written(reasoning=effort, tools=(F,), tool_choice=ToolChoice(mode="any"))
    assert "thinking" not in body and body["tool_choice"] == {"type": "any"}
    assert dropped == ("reasoning",)
    loop = Message(role="assistant", blocks=(ToolCall(id="1", name="f", arguments=""),))
    assert "thinking" not in written([*HELLO, loop], reasoning=effort)[0]
    assert "thinking" in written([*HELLO, loop], reasoning=effort, capabilities=ADAPTIVE)[0]
    body, dropped = written(reasoning=effort, sampling={"temperature": 0.2, "top_p": 0.99})
    assert "temperature" not in body and body["top_p"] == 0.99
    assert dropped == ("temperature",)


@pytest.mark.parametrize(
    ("choice", "parallel", "wire", "tools"),
    [
        (None, None, None, ["f", "g"]),
        (None, True, None, ["f", "g"]),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}, ["f", "g"]),
        (ToolChoice(mode="none"), False, {"type": "none"}, ["f", "g"]),
        (ToolChoice(mode="tool", names=("g",)), None, {"type": "tool", "name": "g"}, ["f", "g"]),
        (ToolChoice(mode="allowed", names=("g",), required=True), None, {"type": "any"}, ["g"]),
        (ToolChoice(mode="allowed", names=("g",)), None, {"type": "auto"}, ["g"]),
    ],
)
def test_every_tool_choice_has_a_form(
    choice: ToolChoice | None, parallel: bool | None, wire: JsonObject | None, tools: list[str]
) -> None:
    body, dropped = written(tools=(F, replace(F, name="g")), tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == wire
    assert [tool["name"] for tool in body["tools"]] == tools
    assert dropped == ()


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        (ToolChoice(mode="tool", names=("missing",)), (F,)),
        (ToolChoice(mode="tool", names=("web",)), (F, Tool(name="web", raw={"type": "web_search"}))),
        (ToolChoice(mode="any"), ()),
        (ToolChoice(mode="allowed", names=("missing",), required=True), (F,)),
    ],
)
def test_a_choice_of_a_tool_that_is_not_there_is_dropped_by_name(choice: ToolChoice, tools: tuple[Tool, ...]) -> None:
    body, dropped = written(tool_choice=choice, tools=tools)
    assert "tool_choice" not in body
    assert "tool_choice" in dropped


@pytest.mark.parametrize("tools", [(), (Tool(name="web", raw={"type": "web_search"}),)])
@pytest.mark.parametrize("parallel", [None, False])
def test_a_history_with_calls_and_no_tools_gets_the_least_definitions(
    tools: tuple[Tool, ...], parallel: bool | None
) -> None:
    calls = tuple(ToolCall(id=str(i), name=name, arguments="{}") for i, name in enumerate("fgf"))
    answers = tuple(ToolResult(call_id=call.id, blocks=(Text(text="x"),)) for call in calls)
    history = [*HELLO, Message(role="assistant", blocks=calls), Message(role="user", blocks=answers)]
    body, dropped = written(history, tools=tools, parallel_tool_calls=parallel)
    assert body["tools"] == [{"name": name, "input_schema": {"type": "object"}} for name in "fg"]
    assert body["tool_choice"] == {"type": "none"}, "nothing was offered"
    assert dropped == tuple(f"tools[{i}]" for i in range(len(tools)))
    assert [tool["name"] for tool in written(history, tools=(replace(F, name="other"),))[0]["tools"]] == ["other"]


def test_blank_stop_sequences_are_dropped_by_name() -> None:
    body, dropped = written(stop=("\n", "END\n", ""))
    assert body["stop_sequences"] == ["END\n"]
    assert dropped == ("stop",)
    assert "stop_sequences" not in written(stop=(" ",))[0]


@pytest.mark.parametrize("after", [(), (Text(text=" \n"),), (Thinking(text="unsigned"),)])
def test_a_text_to_go_on_from_ends_without_white_space(after: tuple[Block, ...]) -> None:
    said = (Text(text="a "), Text(text="b: \n"), *after)
    body, _ = written([*HELLO, Message(role="assistant", blocks=said)])
    assert [block["text"] for block in body["messages"][1]["content"]] == ["a ", "b:"]
    body, _ = written([*HELLO, Message(role="assistant", blocks=said), *HELLO])
    assert body["messages"][1]["content"][1]["text"] == "b: \n", "an earlier turn stays as it is"


@pytest.mark.parametrize(
    ("top_p", "reasoning", "kept"),
    [
        (0.9, Reasoning(effort="low"), False),
        (0, Reasoning(effort="low"), False),
        (0.95, Reasoning(effort="low"), True),
        (0.9, Reasoning(mode="off"), True),
    ],
)
def test_a_low_top_p_gives_way_to_thinking(top_p: float, reasoning: Reasoning, kept: bool) -> None:
    body, dropped = written(reasoning=reasoning, sampling={"top_p": top_p})
    assert body.get("top_p") == (top_p if kept else None)
    assert dropped == (() if kept else ("top_p",))


def test_structured_output_is_a_schema_or_named_as_dropped() -> None:
    schema = OutputFormat(kind="schema", schema={"type": "object"}, name="n", strict=True)
    body, dropped = written(output_format=schema)
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert dropped == ()
    strict = replace(F, strict=True)
    body, dropped = written(
        output_format=schema, tools=(strict,), capabilities=replace(CLAUDE, structured_output=False)
    )
    assert "output_config" not in body and "strict" not in body["tools"][0]
    assert dropped == ("tools.strict", "output_format")
    assert written(output_format=OutputFormat(kind="json"))[1] == ("output_format",)


def test_the_rest_of_a_request_is_mapped_or_named() -> None:
    body, dropped = written(
        system=(Text(text="s", cache=CacheMarker(ttl="1h")), Opaque(kind="x", raw={})),
        user="u",
        stop=("END",),
        stream=True,
        service_tier="flex",
        extra={"store": True, "verbosity": None},
    )
    assert body["system"] == [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    assert (body["metadata"], body["stop_sequences"], body["stream"]) == ({"user_id": "u"}, ["END"], True)
    assert dropped == ("system[1]", "service_tier", "store")
    assert written(service_tier="default")[0]["service_tier"] == "standard_only"
    body, dropped = written(
        [Message(role="user", blocks=(Text(text="t", cache=CacheMarker()),))], capabilities=Capabilities()
    )
    assert dropped == ("messages[0].content[0].cache_control",)
