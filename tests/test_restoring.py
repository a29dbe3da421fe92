"""A model asks for a tool of the index: what its caller gets, in every format, whole and as a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orqen_ray.conversation import FormatName, StreamFailure, Text, Thinking, ToolCall
from orqen_ray.errors import BadRequest, UpstreamRejected, UpstreamUnavailable
from orqen_ray.formats.registry import FORMATS
from orqen_ray.restore.offer import Offer
from tests.turns import NAMES, OFFER, Turns, ask, call, conversation, on_the_wire, reply, told

FORMAT_NAMES: tuple[FormatName, ...] = ("openai_chat", "anthropic_messages", "bedrock_converse")
CALLERS = pytest.mark.parametrize("caller", FORMAT_NAMES)
PROVIDERS = pytest.mark.parametrize("provider", FORMAT_NAMES)
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def every(test: Any) -> Any:
    return CALLERS(PROVIDERS(STREAM(test)))


@every
async def test_asked_first_gives_one_clean_answer(caller: FormatName, provider: FormatName, stream: bool) -> None:
    thought = Thinking(text="which tool?", signature="c2ln")
    first = reply(thought, Text(text="\n\n"), ask("send_mail"), out=5)
    second = reply(Text(text="sending"), call("send_mail"), out=9, prompt=120, id="msg_two")
    turns = Turns(caller, provider, [first, second], stream)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "sending"), ("call", 'send_mail {"key":"a"}')]
    assert turns.asked == [(("send_mail",), ())] and not turns.owed
    assert seen.end.stop_reason == "tool_call"
    assert (seen.usage.input_tokens, seen.usage.output_tokens) == (120, 14)
    assert seen.headers["x-orqen-restored"] == "send_mail" and seen.headers["x-call"] == "2"
    assert turns.exchange.restored == ("send_mail",) and turns.exchange.facts.tool_names == ("send_mail",)
    trace = turns.exchange.trace()
    assert (trace.input_tokens, trace.output_tokens, trace.stop_reason) == (220, 14, "tool_call")


@every
async def test_after_visible_text_the_answer_goes_on(caller: FormatName, provider: FormatName, stream: bool) -> None:
    first = reply(Text(text="I look. "), ask("find_hotel"), out=5)
    second = reply(Text(text="Found."), call("find_hotel"), out=9, prompt=130, id="msg_two")
    turns = Turns(caller, provider, [first, second], stream)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "I look. Found."), ("call", 'find_hotel {"key":"a"}')]
    ((names, said),) = turns.asked
    assert names == ("find_hotel",) and said[0] == Text(text="I look. ") and isinstance(said[-1], ToolCall)
    assert (seen.usage.input_tokens, seen.usage.output_tokens) == (130, 14)
    assert turns.exchange.trace().input_tokens == 230 and turns.exchange.restored == ("find_hotel",)


@every
async def test_where_it_may_not_go_on_it_ends_and_the_tool_comes_next_turn(
    caller: FormatName, provider: FormatName, stream: bool
) -> None:
    offer = Offer(names=NAMES, may_continue=False)
    turns = Turns(caller, provider, [reply(Text(text="I look."), ask("find_hotel"))], stream, offer)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "I look.")] and seen.end.stop_reason == "end"
    assert not turns.asked and turns.owed == [("find_hotel",)] and not turns.exchange.restored
    assert "x-orqen-restored" not in seen.headers and turns.exchange.facts.stop_reason == "end"


@every
@pytest.mark.parametrize("order", ["before", "after", "after text"])
async def test_beside_a_real_call_that_call_is_delivered(
    caller: FormatName, provider: FormatName, stream: bool, order: str
) -> None:
    blocks = {
        "before": (call("open_door", "toolu_real0"), ask("send_mail"), call("shut_door", "toolu_real1")),
        "after": (Text(text="wait"), ask("send_mail"), call("open_door"), call("shut_door", "toolu_real1")),
        "after text": (Text(text="wait"), call("open_door"), call("shut_door", "toolu_real1"), ask("send_mail")),
    }[order]
    turns = Turns(caller, provider, [reply(*blocks)], stream)
    seen = await turns.see()
    calls = [text for kind, text in told(seen.blocks) if kind == "call"]
    assert calls == ['open_door {"key":"a"}', 'shut_door {"key":"a"}'] and seen.end.stop_reason == "tool_call"
    assert not turns.asked and turns.owed == [("send_mail",)]


@every
@pytest.mark.parametrize("wrong", [ask("no_such_tool"), ask(), ask("send_mail", "no_such_tool")])
async def test_a_name_that_does_not_exist_brings_all(
    caller: FormatName, provider: FormatName, stream: bool, wrong: ToolCall
) -> None:
    turns = Turns(caller, provider, [reply(wrong), reply(Text(text="done"))], stream)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "done")] and turns.asked == [(None, ())]
    assert seen.headers["x-orqen-restored"] == ", ".join(NAMES) and turns.exchange.restored == NAMES


@every
async def test_asked_twice_brings_all_and_there_is_no_third_time(
    caller: FormatName, provider: FormatName, stream: bool
) -> None:
    replies = [reply(ask("send_mail")), reply(Text(text="Hm. "), ask("read_mail")), reply(Text(text="No."), ask("x"))]
    turns = Turns(caller, provider, replies, stream)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "Hm. No.")] and seen.end.stop_reason == "end"
    assert [names for names, _ in turns.asked] == [("send_mail",), None]
    assert seen.usage.output_tokens == 21 and turns.exchange.trace().input_tokens == 300
    assert turns.owed == [NAMES]


@every
async def test_several_asks_in_one_reply_are_one(caller: FormatName, provider: FormatName, stream: bool) -> None:
    asks = reply(ask("find_hotel"), ask("read_mail", id="toolu_ask01"))
    turns = Turns(caller, provider, [asks, reply(Text(text="done"))], stream)
    assert told((await turns.see()).blocks) == [("text", "done")]
    assert turns.asked == [(("read_mail", "find_hotel"), ())]


@CALLERS
@STREAM
async def test_untouched_where_nothing_is_asked_for(caller: FormatName, stream: bool) -> None:
    blocks = (Thinking(text="hm", signature="c2ln"), Text(text=""), Text(text="orqen more tools"), call(), call("b"))
    turns = Turns(caller, caller, [reply(*blocks)], stream)
    seen = await turns.see()
    assert [seen.raw] == turns.sent
    assert "x-orqen-restored" not in seen.headers


@CALLERS
async def test_an_error_that_the_provider_tells_in_its_stream_is_untouched(caller: FormatName) -> None:
    writer = FORMATS[caller].stream_writer(conversation(caller, stream=True), "m", "r")
    failure = writer.write(StreamFailure(message="busy", status=529))
    parts = on_the_wire(reply(Thinking(text="hm", signature="c2ln"), Text(text="x")), caller, stream=True)
    for said in ([failure], [*parts[:3], failure], [*parts[:-2], failure]):
        turns = Turns(caller, caller, [list[bytes | Exception](said)], stream=True)
        seen = await turns.see()
        assert [seen.raw] == turns.sent and turns.exchange.trace().error_code == "upstream_stream_failed"


@CALLERS
@STREAM
async def test_an_error_before_the_first_byte_has_its_status(caller: FormatName, stream: bool) -> None:
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'
    turns = Turns(caller, "anthropic_messages", [reply(ask("send_mail")), (529, body)], stream)
    with pytest.raises(UpstreamRejected, match="busy") as raised:
        await turns.see()
    assert raised.value.status == 529 and not any(wire.open for wire in turns.wires)
    assert turns.exchange.hidden.input_tokens == 100


@CALLERS
@PROVIDERS
@pytest.mark.parametrize("error", [UpstreamUnavailable("gone"), (529, b"{}")], ids=["gone", "status"])
async def test_an_error_after_the_first_byte_is_one_event(caller: FormatName, provider: FormatName, error: Any) -> None:
    turns = Turns(caller, provider, [reply(Text(text="I look."), ask("send_mail")), error], stream=True)
    seen = await turns.see()
    assert [type(event) for event in seen.events].count(StreamFailure) == 1
    assert isinstance(seen.events[-1], StreamFailure) and told(seen.blocks) == [("text", "I look.")]
    assert turns.exchange.trace().error_code == "upstream_stream_failed"


@every
async def test_what_the_gateway_cannot_build_is_all_tools_or_the_answer_as_it_stands(
    caller: FormatName, provider: FormatName, stream: bool
) -> None:
    bad = BadRequest("no")
    turns = Turns(caller, provider, [reply(ask("send_mail")), bad, reply(Text(text="done"))], stream)
    assert told((await turns.see()).blocks) == [("text", "done")] and len(turns.asked) == 2
    assert turns.exchange.restored == NAMES
    begun = reply(Text(text="I look."), ask("send_mail"))
    turns = Turns(caller, provider, [begun, bad, ValueError("worse")], stream)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "I look.")] and seen.end.stop_reason == "end"
    assert turns.owed == [("send_mail",)] and turns.exchange.trace().output_tokens == 7
    turns = Turns(caller, provider, [reply(ask("send_mail")), bad, bad], stream)
    with pytest.raises(BadRequest):
        await turns.see()
    assert not any(wire.open for wire in turns.wires)


@CALLERS
@PROVIDERS
async def test_a_reply_that_breaks_off_while_it_is_held_back_is_an_error(
    caller: FormatName, provider: FormatName
) -> None:
    chunks = on_the_wire(reply(Thinking(text="hm", signature="c2ln"), Text(text="x")), provider, stream=True)
    broken: list[bytes | Exception] = [*chunks[:2], UpstreamUnavailable("gone")]
    turns = Turns(caller, provider, [broken], stream=True)
    with pytest.raises(UpstreamUnavailable):
        await turns.see()
    turns = Turns(caller, provider, [reply(ask("send_mail")), broken], stream=True)
    with pytest.raises(UpstreamUnavailable):
        await turns.see()


@CALLERS
@pytest.mark.parametrize("asks", [True, False])
async def test_a_ping_of_the_provider_does_not_begin_an_answer(caller: FormatName, asks: bool) -> None:
    """Anthropic sends one with its first block; the headers must still be able to tell of a restore."""
    blocks = (ask("send_mail"),) if asks else (Text(text="done"),)
    start, block, *rest = on_the_wire(reply(*blocks), "anthropic_messages", stream=True)
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'
    turns = Turns(caller, "anthropic_messages", [[start, block, ping, *rest], reply(Text(text="done"))], stream=True)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "done")] and ("x-orqen-restored" in seen.headers) is asks
    assert asks or caller != "anthropic_messages" or [seen.raw] == turns.sent
    assert not asks or b"ping" not in seen.raw


@CALLERS
@PROVIDERS
async def test_who_waits_hears_pings(caller: FormatName, provider: FormatName) -> None:
    first = reply(Thinking(text="hm", signature="c2ln"), ask("send_mail"))
    turns = Turns(caller, provider, [first, reply(Text(text="done"))], stream=True, ping_after_s=0.0)
    seen = await turns.see()
    assert told(seen.blocks) == [("text", "done")]
    assert (b"ping" in seen.raw) is (caller != "bedrock_converse")
    assert turns.exchange.restored == ("send_mail",)


@CALLERS
@PROVIDERS
@pytest.mark.parametrize("blocks", [(), (Text(text="I look."),)], ids=["first", "after text"])
async def test_who_leaves_at_any_chunk_leaves_nothing_open(
    caller: FormatName, provider: FormatName, blocks: tuple[Text, ...]
) -> None:
    replies = [reply(*blocks, ask("send_mail")), reply(Text(text="one"), Text(text="two"), call())]
    for left_after in range(20):
        turns = Turns(caller, provider, replies, stream=True)
        answer = await turns.answer()
        assert not isinstance(answer.body, bytes)
        got = 0
        async for _ in answer.body:
            got += 1
            if got > left_after:
                break
        await answer.aclose(client_disconnected=True)
        assert not any(wire.open for wire in turns.wires) and turns.recorded == 1
        if got <= left_after:
            break
    assert got > 1


def test_the_offer_and_all_formats_are_covered() -> None:
    assert set(FORMAT_NAMES) == set(FORMATS) and OFFER.max_replays == 2


@CALLERS
@STREAM
@pytest.mark.parametrize("blocks", [(), (Text(text="I look."),)], ids=["first", "after text"])
async def test_who_is_cut_off_at_any_step_leaves_nothing_open(
    caller: FormatName, stream: bool, blocks: tuple[Text, ...]
) -> None:
    """Also while a reply is held back, and between two calls."""
    replies = [reply(*blocks, ask("send_mail")), reply(Text(text="one"), call())]
    for steps in range(60):
        turns = Turns(caller, "anthropic_messages", replies, stream)
        task = asyncio.ensure_future(turns.see())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not any(wire.open for wire in turns.wires), f"cut off at step {steps}"
        if not task.cancelled():
            break
    assert not task.cancelled() and steps > 4
