"""Whatever a model says, and however it is cut: the gateway's call is never seen, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.conversation import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    Opaque,
    Ping,
    Refusal,
    Reply,
    ReplyEnd,
    ReplyStart,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from orqen_ray.formats.events import events_of
from orqen_ray.restore.offer import Ask, Offer
from orqen_ray.restore.said import Said
from orqen_ray.restore.turn import Turn
from orqen_ray.tools.index import MORE_TOOLS
from tests.turns import NAMES, OFFER, ask, call, reply

TEXTS = st.sampled_from(["", " ", "\n\n", "one", "two words", "drei"])
BLOCKS: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, text=TEXTS),
    st.builds(Thinking, text=TEXTS, signature=st.sampled_from([None, "c2ln"])),
    st.builds(Refusal, text=TEXTS),
    st.just(Thinking(redacted="eA==")),
    st.just(Opaque(kind="server_tool_use", raw={"type": "server_tool_use"})),
    st.just(call()),
    st.builds(ask, st.sampled_from([*NAMES, "none_such"])),
    st.just(ToolCall(id="toolu_bad00", name=MORE_TOOLS, arguments='{"names": ["send_m')),
)
REPLIES = st.builds(lambda blocks, out: reply(*blocks, out=out), st.lists(BLOCKS, max_size=5), st.integers(0, 50))
TURNS = st.lists(REPLIES, min_size=3, max_size=3)


def is_ask(block: Block) -> bool:
    return isinstance(block, ToolCall) and block.name == MORE_TOOLS


def run(replies: Sequence[Reply], offer: Offer) -> tuple[Turn, list[Event], list[Ask]]:
    """What the caller gets of a turn, and what was asked again for."""
    turn, shown, asks = Turn(offer), [], []
    for each in replies:
        for event in events_of(each):
            shown += turn.feed(event)
        if turn.ask is None:
            break
        asks.append(turn.ask)
        assert each.usage is not None
        turn.resume(each.usage)
    return turn, shown, asks


@given(TURNS, st.booleans())
def test_the_gateways_call_is_never_seen_and_the_rest_is_whole(replies: list[Reply], may_continue: bool) -> None:
    offer = Offer(names=NAMES, may_continue=may_continue)
    turn, shown, asks = run(replies, offer)
    starts = [event for event in shown if isinstance(event, BlockStart)]
    assert [event.index for event in starts] == list(range(len(starts)))
    assert not any(is_ask(event.block) for event in starts)
    assert sum(isinstance(event, ReplyStart) for event in shown) == 1 == sum(isinstance(e, ReplyEnd) for e in shown)
    assert isinstance(shown[0], ReplyStart) and isinstance(shown[-1], ReplyEnd)
    open_blocks: set[int] = set()
    for event in shown:
        match event:
            case BlockStart(index=index):
                open_blocks.add(index)
            case BlockDelta(index=index):
                assert index in open_blocks
            case BlockStop(index=index):
                open_blocks.remove(index)
    assert not open_blocks and turn.over and len(asks) <= offer.max_replays
    last = [block for block in replies[len(asks)].blocks if not is_ask(block)]
    said = Said()
    for event in shown:
        if isinstance(event, BlockStart):
            said.start(event)
        elif isinstance(event, BlockDelta):
            said.more(event)
    assert said.blocks == turn.blocks
    assert list(said.blocks)[len(said.blocks) - len(last) :] == last  # nothing of the last reply is lost
    end = shown[-1]
    assert end.usage is not None
    assert end.usage.output_tokens == sum(each.usage.output_tokens for each in replies[: len(asks) + 1] if each.usage)
    called = any(isinstance(block, ToolCall) for block in turn.blocks)
    assert (end.stop_reason == "tool_call") is called


@given(TURNS, st.booleans())
def test_each_replay_says_what_was_seen_and_the_rest_is_owed(replies: list[Reply], may_continue: bool) -> None:
    turn, _, asks = run(replies, Offer(names=NAMES, may_continue=may_continue))
    for number, each in enumerate(asks):
        assert number == 0 or each.names is None
        assert each.names is None or set(each.names) <= set(NAMES)
        if each.said:
            assert may_continue and isinstance(each.said[-1], ToolCall) and is_ask(each.said[-1])
            assert not any(isinstance(block, ToolCall) for block in each.said[:-1])
            assert not any(isinstance(block, Text) and not block.text.strip() for block in each.said)
    last = replies[len(asks)]
    assert bool(turn.owed) is any(map(is_ask, last.blocks))


@given(REPLIES)
def test_without_the_gateways_call_all_events_pass(said: Reply) -> None:
    said = reply(*(block for block in said.blocks if not is_ask(block)))
    turn = Turn(OFFER)
    events = events_of(said)
    assert [out for event in events for out in turn.feed(event)] == events
    assert turn.ask is None and not turn.asked and not turn.owed


def test_nothing_is_seen_before_there_is_something_to_see() -> None:
    turn = Turn(OFFER)
    assert turn.feed(ReplyStart(id="a", model="m")) == []
    assert turn.feed(BlockStart(index=0, block=Thinking())) == []
    assert turn.feed(BlockDelta(index=0, kind="thinking", text="hm")) == []
    assert turn.feed(Ping()) == [Ping()]
    assert turn.feed(BlockStop(index=0)) == [] and turn.feed(BlockStart(index=1, block=Text(text=""))) == []
    assert turn.feed(BlockDelta(index=1, kind="text", text=" \n")) == [] and turn.holding
    assert len(turn.feed(BlockDelta(index=1, kind="text", text="x"))) == 7 and not turn.holding


def test_a_failure_shows_nothing_of_what_was_held_back() -> None:
    turn, failure = Turn(OFFER), StreamFailure(message="gone")
    turn.feed(ReplyStart(id="a", model="m"))
    turn.feed(BlockStart(index=0, block=Thinking(text="hm")))
    assert turn.feed(failure) == [failure] and turn.over and turn.feed(Ping()) == []


def test_a_whole_call_before_a_failure_counts_and_half_a_one_does_not() -> None:
    for whole in (True, False):
        turn, failure = Turn(OFFER), StreamFailure(message="gone")
        turn.feed(ReplyStart(id="a", model="m"))
        turn.feed(BlockStart(index=0, block=ask("send_mail")))
        if whole:
            turn.feed(BlockStop(index=0))
        assert turn.feed(failure) == ([] if whole else [failure])
        assert (turn.ask is not None) is whole


def test_an_answer_that_cannot_be_continued_ends_as_it_stands() -> None:
    turn = Turn(OFFER)
    for event in events_of(reply(Text(text="I look."), ask("send_mail"))):
        turn.feed(event)
    spent = Usage(input_tokens=5, output_tokens=3)
    assert turn.give_up(spent) == [ReplyEnd(stop_reason="end", usage=spent)]
    assert turn.owed == ("send_mail",) and turn.over
