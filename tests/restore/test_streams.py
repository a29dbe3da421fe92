"""However a provider's bytes are cut into chunks, and whatever they say, the caller gets the same answer."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import Block, FormatName, Text, Thinking, ToolCall
from tests.turns import Seen, Turns, ask, call, on_the_wire, reply, told

FORMAT_NAMES: tuple[FormatName, ...] = ("openai_chat", "anthropic_messages", "bedrock_converse")
TEXTS = st.sampled_from(["  ", "one", "two words", "drei é 你好"])
CALLS = st.sampled_from([call(id="toolu_call1"), call("shut_door", id="toolu_call2"), call("a", id="toolu_call3")])
ASKS = st.builds(ask, st.sampled_from(["send_mail", "find_hotel", "none_such"]))
# As models speak: they think, then they write, then they call.
SAID: st.SearchStrategy[list[Block]] = st.tuples(
    st.lists(st.builds(Thinking, text=TEXTS, signature=st.just("c2ln")), max_size=1),
    st.lists(st.builds(Text, text=TEXTS), max_size=1),
    st.lists(st.one_of(CALLS, ASKS), max_size=3, unique_by=lambda block: block.id),
).map(lambda parts: [block for part in parts for block in part])


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in zip(ends, ends[1:], strict=False)]


@settings(max_examples=60)
@given(
    st.sampled_from(FORMAT_NAMES),
    st.sampled_from(FORMAT_NAMES),
    st.lists(SAID, min_size=3, max_size=3),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_the_cut_makes_no_difference(
    caller: FormatName, provider: FormatName, said: list[list[Block]], places: list[int]
) -> None:
    replies = [reply(*blocks, id=f"msg_{n}") for n, blocks in enumerate(said)]

    async def see(stream: bool, by_event: bool) -> tuple[Turns, Seen]:
        cut = list if by_event else lambda chunks: cuts(b"".join(chunks), places)
        turns = Turns(caller, provider, replies, stream, cut=cut)
        return turns, await turns.see()

    async def all_ways() -> None:
        turns, seen = await see(stream=True, by_event=False)
        other_turns, other = await see(stream=True, by_event=True)
        assert turns.asked == other_turns.asked and turns.owed == other_turns.owed
        assert told(seen.blocks) == told(other.blocks) and seen.end == other.end
        assert turns.exchange.hidden == other_turns.exchange.hidden
        if not turns.asked and not turns.owed and caller == provider:
            assert [seen.raw] == turns.sent and [other.raw] == other_turns.sent
        whole_turns, whole = await see(stream=False, by_event=True)
        assert [names for names, _ in whole_turns.asked] == [names for names, _ in turns.asked]
        assert whole.end.stop_reason == seen.end.stop_reason
        if whole_turns.exchange.hidden == turns.exchange.hidden:  # a stream is left before its end when it is no use
            assert whole.usage == seen.usage

    asyncio.run(all_ways())


def chunk(*calls: dict[str, object], finish: str | None = None, content: str | None = None) -> bytes:
    delta = {**({"tool_calls": calls} if calls else {}), **({"content": content} if content else {})}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-2026", "choices": [choice]}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def begin(index: int, name: str) -> dict[str, object]:
    return {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}


def more(index: int, text: str) -> dict[str, object]:
    return {"index": index, "function": {"arguments": text}}


@pytest.mark.parametrize("last", ["open_window", "orqen_more_tools"])
@pytest.mark.parametrize("content", [None, "I do it."])
async def test_calls_that_come_interleaved(last: str, content: str | None) -> None:
    """A reader tells them one after another, so bytes must not run ahead of it."""
    parts: list[bytes | Exception] = [chunk(content=content)] if content else []
    parts += [chunk(begin(0, "open_door")), chunk(begin(1, "shut_door")), chunk(begin(2, last))]
    for text in ('{"names":', '["send_mail"]}'):
        parts += [chunk(more(index, text)) for index in (2, 0, 1)]
    parts += [chunk(finish="tool_calls"), b"data: [DONE]\n\n"]
    turns = Turns("openai_chat", "openai_chat", [parts], stream=True)
    seen = await turns.see()
    calls = [block.name for block in seen.blocks if isinstance(block, ToolCall)]
    assert {block.arguments for block in seen.blocks if isinstance(block, ToolCall)} == {'{"names":["send_mail"]}'}
    if last == "orqen_more_tools":
        assert calls == ["open_door", "shut_door"] and turns.owed == [("send_mail",)]
        assert {event["id"] for event in map(body_of, frames(seen.raw)) if event} == {"chatcmpl-1"}
    else:
        assert calls == ["open_door", "shut_door", "open_window"] and [seen.raw] == turns.sent


def frames(raw: bytes) -> list[bytes]:
    return [frame.removeprefix(b"data: ") for frame in raw.split(b"\n\n") if frame]


def body_of(frame: bytes) -> dict[str, object] | None:
    return None if frame == b"[DONE]" else msgspec.json.decode(frame, type=dict[str, object])


async def test_text_goes_out_as_it_comes() -> None:
    """Once there is something to see, each chunk is passed on before the next is awaited."""
    parts = on_the_wire(reply(*(Text(text=f"{n} ") for n in range(5))), "openai_chat", stream=True)
    turns = Turns("openai_chat", "openai_chat", [list[bytes | Exception](parts)], stream=True)
    answer = await turns.answer()
    left = []
    assert not isinstance(answer.body, bytes)
    async for _ in answer.body:
        left.append(len(turns.wires[0].chunks))
    assert left == list(range(len(parts) - 2, -1, -1))
    await answer.aclose()
