"""What is sent when a turn is sent again: legal behind every provider, and at its place ever after."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.conversation import (
    CacheMarker,
    Conversation,
    FormatName,
    Message,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChange,
    ToolResult,
)
from orqen_ray.formats.registry import FORMATS
from orqen_ray.pins import Restore
from orqen_ray.restore.additions import added, anchors
from orqen_ray.restore.continuing import continued
from orqen_ray.tools.index import MORE_TOOLS, index_tool
from orqen_ray.types import Capabilities
from tests.turns import ask, conversation

MAIL = Tool(name="send_mail", description="Send a mail.", parameters={"type": "object"})
HOTEL = Tool(name="find_hotel", description="Find a hotel.", parameters={"type": "object"})
TOOLS = {"send_mail": MAIL, "find_hotel": HOTEL}


def said(role: str, text: str) -> Message:
    return Message(role=role, blocks=(Text(text=text),))  # type: ignore[arg-type]


def history(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(said(roles[i % 2], text) for i, text in enumerate(texts))
    return replace(conversation("anthropic_messages", stream=False), messages=messages)


def restored(of: Conversation, *names: str) -> Restore:
    return Restore(anchor=[*anchors(of.messages)][-1], after=len(of.messages), names=names, appended=True)


@pytest.mark.parametrize("dialect", FORMATS)
@pytest.mark.parametrize("caller", FORMATS)
def test_a_continued_answer_is_legal_everywhere(caller: FormatName, dialect: FormatName) -> None:
    begun = replace(conversation(caller, stream=True), tools=(MAIL, index_tool([HOTEL])), max_tokens=1000)
    blocks = (Thinking(text="hm", signature="c2ln"), Text(text="I look."), ask("find_hotel"))
    whole = continued(begun, blocks, ("find_hotel",))
    body = FORMATS[dialect].write_request(whole, "m", Capabilities(thinking="budget")).body
    read = FORMATS[dialect].read_request(msgspec.json.decode(msgspec.json.encode(body)), "m")
    last, result = read.messages[-2:]
    assert last.role == "assistant" and result.role == "user"
    (call,) = (block for block in last.blocks if isinstance(block, ToolCall))
    (answer,) = (block for block in result.blocks if isinstance(block, ToolResult))
    assert call.name == MORE_TOOLS and answer.call_id == call.id and Text(text="I look.") in last.blocks
    assert MORE_TOOLS in {tool.name for tool in read.tools}
    assert whole.max_tokens is not None and 980 < whole.max_tokens < 1000


@pytest.mark.parametrize(
    ("limit", "budget", "left"), [(1000, None, 667), (None, None, None), (5, None, 1), (90, 80, 81)]
)
def test_no_answer_in_two_calls_is_longer_than_its_caller_allows(
    limit: int | None, budget: int | None, left: int | None
) -> None:
    begun = replace(history("hello"), max_tokens=limit, reasoning=Reasoning(mode="on", budget_tokens=budget))
    assert continued(begun, (Text(text="x" * 999), ask("send_mail")), None).max_tokens == left


def test_an_addition_stays_where_it_was_first_put() -> None:
    first = history("mail him")
    pin = [restored(first, "send_mail")]
    now = added(first, pin, TOOLS)
    assert now.messages[1] == Message(role="system", blocks=(ToolChange(action="add", name="send_mail", tool=MAIL),))
    later = added(history("mail him", "sent", "and a room"), pin, TOOLS)
    assert later.messages[:2] == now.messages and len(later.messages) == 4
    second = history("mail him", "sent", "and a room")
    pin.append(restored(second, "find_hotel"))
    both = added(history("mail him", "sent", "and a room", "found", "thanks"), pin, TOOLS)
    assert [message.role for message in both.messages] == [
        "user", "system", "assistant", "user", "system", "assistant", "user",
    ]  # fmt: skip
    assert both.messages[:5] == added(second, pin, TOOLS).messages


def test_two_additions_at_one_place_are_one_message() -> None:
    turn = history("hello")
    (_, addition) = added(
        turn, [restored(turn, "send_mail"), restored(turn, "find_hotel", "send_mail")], TOOLS
    ).messages
    assert [block.name for block in addition.blocks if isinstance(block, ToolChange)] == ["send_mail", "find_hotel"]
    noted = replace(turn, messages=(*turn.messages, said("system", "it is late")))
    (_, note) = added(noted, [restored(noted, "send_mail")], TOOLS).messages
    assert [type(block) for block in note.blocks] == [Text, ToolChange]


def test_what_belongs_elsewhere_is_not_added() -> None:
    turn = history("hello", "hi", "mail him")
    elsewhere = restored(history("hello", "hi", "book a room"), "send_mail")
    shorter = restored(history("hello", "hi", "mail him", "done", "thanks"), "send_mail")
    joined = replace_appended(restored(turn, "send_mail"))
    for pin in (elsewhere, shorter, joined, restored(turn, "gone")):
        assert added(turn, [pin], TOOLS) is turn
    assert added(turn, [], TOOLS) is turn


def replace_appended(restore: Restore) -> Restore:
    return Restore(anchor=restore.anchor, after=restore.after, names=restore.names, appended=False)


@given(st.lists(st.text(max_size=9), min_size=1, max_size=6), st.data())
def test_an_anchor_knows_its_messages_and_not_their_markers(texts: list[str], data: st.DataObject) -> None:
    messages = history(*texts).messages
    chain = list(anchors(messages))
    assert len(set(chain)) == len(chain) == len(messages)
    assert chain[: len(texts) - 1] == list(anchors(messages[:-1]))
    marked = tuple(
        Message(role=message.role, blocks=(Text(text=text, cache=CacheMarker()),), wire={})
        for message, text in zip(messages, texts, strict=True)
    )
    assert list(anchors(marked)) == chain
    place = data.draw(st.integers(0, len(texts) - 1))
    changed = (*messages[:place], said(messages[place].role, texts[place] + "x"), *messages[place + 1 :])
    assert list(anchors(changed))[:place] == chain[:place]
    assert not set(list(anchors(changed))[place:]) & set(chain)
