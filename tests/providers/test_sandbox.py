"""The sandbox answers as an OpenAI-compatible provider does, says that it is no model, and says the same each time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from orqen_ray.conversation import Tool
from orqen_ray.formats.openai_chat.request_out import write_tool
from orqen_ray.providers.sandbox import LABEL, answer
from orqen_ray.tools.index import MORE_TOOLS, index_tool
from orqen_ray.types import Call
from tests.providers.scripted import call, forwarder, read

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 3},
                "note": {"type": "string"},
            },
            "required": ["city", "unit", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
FORCED = {"type": "function", "function": {"name": "get_weather"}}


def _call(**request: Any) -> Call:
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}], **request}
    return Call(provider="sandbox", path="/chat/completions", body=msgspec.json.encode(body))


async def _ask(**request: Any) -> Any:
    got = await read(answer(_call(**request)))
    return ChatCompletion.model_validate(msgspec.json.decode(got), strict=True).choices[0]


async def _stream(**request: Any) -> list[ChatCompletionChunk]:
    frames = (await read(answer(_call(stream=True, **request)))).split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    return [ChatCompletionChunk.model_validate_json(frame.removeprefix(b"data: ")) for frame in frames[:-2]]


def _user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def test_a_system_message_behind_the_last_turn_is_no_turn() -> None:
    asked = [{"role": "user", "content": "Weather in Paris"}, {"role": "system", "content": "You have tools."}]
    call = (await _ask(messages=asked, tools=[CLOCK])).message.tool_calls[0]
    assert call.function.name == "clock"
    made = {"role": "assistant", "tool_calls": [call.model_dump()]}
    told = [made, {"role": "tool", "tool_call_id": call.id, "content": "noon"}, asked[1]]
    assert (await _ask(messages=[*asked, *told], tools=[CLOCK])).message.content == f"{LABEL}The tool returned: noon"


async def test_it_says_what_was_said_and_that_it_is_no_model() -> None:
    choice = await _ask()
    assert (choice.message.content, choice.finish_reason) == (f"{LABEL}You said: Hello there", "stop")
    assert LABEL == "[sandbox, not a model] "


async def test_the_same_call_gets_the_same_bytes() -> None:
    assert await read(answer(_call(tools=[WEATHER]))) == await read(answer(_call(tools=[WEATHER])))


async def test_a_stream_says_the_same_in_several_pieces() -> None:
    chunks = await _stream()
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == (await _ask()).message.content and len([piece for piece in pieces if piece]) > 2
    assert chunks[-1].choices[0].finish_reason == "stop" and all(chunk.usage is None for chunk in chunks)


async def test_usage_ends_a_stream_only_when_it_was_asked_for() -> None:
    chunks = await _stream(stream_options={"include_usage": True})
    assert chunks[-1].choices == [] and chunks[-1].usage
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens


async def test_it_calls_the_tool_that_is_named_with_arguments_that_fit() -> None:
    choice = await _ask(tools=[CLOCK, WEATHER], **_user("Please get weather for Paris now"))
    called = choice.message.tool_calls[0].function
    assert (choice.finish_reason, choice.message.content, called.name) == ("tool_calls", None, "get_weather")
    assert msgspec.json.decode(called.arguments) == {"city": "Paris", "unit": "celsius", "days": 3}


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        ({"tools": [CLOCK, WEATHER]}, ["clock"]),
        ({"tools": [CLOCK, WEATHER], "tool_choice": "none"}, []),
        ({"tools": [CLOCK, WEATHER], "tool_choice": "required"}, ["clock"]),
        (
            {"tools": [CLOCK, WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            ["get_weather"],
        ),
        ({"tools": [CLOCK, WEATHER], **_user("use both")}, ["clock", "get_weather"]),
        ({"tools": [CLOCK, WEATHER], **_user("in parallel")}, ["clock", "get_weather"]),
        ({"tools": [CLOCK, WEATHER], "parallel_tool_calls": False, **_user("use both")}, ["clock"]),
        ({"tools": [CLOCK], **_user("use both")}, ["clock"]),
        ({"tools": []}, []),
    ],
)
async def test_which_tools_it_calls(request_: dict[str, Any], names: list[str]) -> None:
    calls = (await _ask(**request_)).message.tool_calls or []
    assert [tool_call.function.name for tool_call in calls] == names
    assert len({tool_call.id for tool_call in calls}) == len(names)


async def test_streamed_tool_calls_add_up_to_the_plain_ones() -> None:
    plain = (await _ask(tools=[CLOCK, WEATHER], **_user("both, in Oslo"))).message.tool_calls
    arguments, ids = ["", ""], ["", ""]
    for chunk in await _stream(tools=[CLOCK, WEATHER], **_user("both, in Oslo")):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function
            arguments[delta.index] += delta.function.arguments or ""
            ids[delta.index] += delta.id or ""
    assert (ids, arguments) == ([c.id for c in plain], [c.function.arguments for c in plain])


async def test_it_says_what_the_tools_returned() -> None:
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]},
        {"role": "tool", "tool_call_id": "a", "content": "18 degrees"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
    ]
    choice = await _ask(messages=messages, tools=[CLOCK, WEATHER])
    assert choice.message.content == f"{LABEL}The tool returned: 18 degrees; noon"


async def test_stop_and_token_limit_cut_the_answer() -> None:
    assert (await _ask(stop=["there"])).message.content == f"{LABEL}You said: Hello "
    short = await _ask(max_tokens=3)
    assert (short.message.content, short.finish_reason) == (LABEL[:12], "length")


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (Call(provider="sandbox", path="/embeddings", body=b"{}"), 404),
        (Call(provider="sandbox", path="/chat/completions", method="GET", body=b""), 404),
        (_call(model="gpt-4o"), 404),
        (_call(messages=[]), 400),
        (_call(messages=[5]), 400),
        (_call(messages=[{}]), 400),
        (_call(tools=[{"type": "function"}]), 400),
        (Call(provider="sandbox", path="/chat/completions", body=b"{"), 400),
        (Call(provider="sandbox", path="/chat/completions", body=b'{"a":"\xff"}'), 400),
        (Call(provider="sandbox", path="/chat/completions", body=b"[]"), 400),
    ],
)
async def test_what_it_cannot_serve_gets_an_error_in_openais_shape(broken: Call, status: int) -> None:
    got = answer(broken)
    error = msgspec.json.decode(await read(got))["error"]
    assert got.status == status and error["message"].startswith(LABEL) and error["code"]


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "format": "date"},
            {"type": "string", "minLength": 30, "maxLength": 40},
            {"type": ["null", "integer"]},
            {"type": "number"},
            {"type": "boolean"},
            {"const": 7},
            {"enum": ["a", "b"]},
            {"$ref": "#/$defs/loop"},
            {"anyOf": [{"type": "null"}, {"type": "string"}]},
            {},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda s: {"type": "array", "items": s, "minItems": 2}, inner),
        st.builds(lambda s: {"type": "object", "properties": {"p": s}, "required": ["p"]}, inner),
    ),
    max_leaves=4,
)


@given(SCHEMAS)
async def test_any_schema_gets_arguments_and_a_recursive_one_ends(schema: dict[str, Any]) -> None:
    loop = {"type": "object", "properties": {"next": {"$ref": "#/$defs/loop"}}, "required": ["next"]}
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": {"loop": loop}}
    tool = {"type": "function", "function": {"name": "t", "parameters": parameters}}
    calls = (await _ask(tools=[tool])).message.tool_calls
    assert msgspec.json.decode(calls[0].function.arguments).keys() == {"x"}


async def test_the_forwarder_serves_it_without_credentials_or_network() -> None:
    async with forwarder({}) as upstream:
        assert await upstream.connected() == {"sandbox"}
        got = await upstream.send(call(provider="sandbox", body=_call().body))
        assert got.status == 200 and LABEL.encode() in await read(got)


LEFT_OUT = [
    Tool(name="send_invoice", description="Sends an invoice."),
    Tool(name="book_room", description="Books one."),
]
LISTED = write_tool(index_tool(LEFT_OUT))


async def test_a_tool_that_only_the_index_names_is_asked_for_there() -> None:
    for tools in ([CLOCK, LISTED], [LISTED]):
        message = (await _ask(**_user("Please send invoice 7 and book_room it"), tools=tools)).message
        [call] = message.tool_calls
        assert call.function.name == MORE_TOOLS
        assert msgspec.json.decode(call.function.arguments) == {"names": ["send_invoice", "book_room"]}


@pytest.mark.parametrize(
    ("text", "more", "called"),
    [
        ("Hello", {}, "clock"),
        ("Look at the clock, then send_invoice", {}, "clock"),
        ("send_invoice", {"tool_choice": {"type": "function", "function": {"name": "clock"}}}, "clock"),
    ],
)
async def test_the_index_is_left_alone_when_it_is_not_needed(text: str, more: dict[str, Any], called: str) -> None:
    [call] = (await _ask(**_user(text), tools=[LISTED, CLOCK], **more)).message.tool_calls
    assert call.function.name == called


async def test_an_index_alone_calls_nothing_unasked() -> None:
    assert (await _ask(**_user("Hello"), tools=[LISTED])).message.content.startswith(LABEL)
