"""Every inbound format with every dialect: what is said, called and answered survives, and no turn rewrites another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import Block, Conversation, FormatName, Text, ToolCall, ToolResult
from orqen_ray.formats.registry import FORMATS
from orqen_ray.types import Capabilities
from tests.formats.conversations import conversations

PAIRS = list(itertools.product(FORMATS, FORMATS))
# Shrinking a whole conversation takes minutes, so a failure shows the first one found.
FAST = settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
SEES_ALL = Capabilities(cache_markers=True, thinking="budget")


def written(conversation: Conversation, target: FormatName, capabilities: Capabilities = SEES_ALL) -> bytes:
    return msgspec.json.encode(FORMATS[target].write_request(conversation, "m", capabilities).body)


def rewritten(conversation: Conversation, target: FormatName) -> Conversation:
    body = msgspec.json.decode(written(conversation, target))
    return FORMATS[target].read_request(body, "m" if target == "bedrock_converse" else None)


def flat(conversation: Conversation) -> Iterator[Block]:
    yield from conversation.system
    for message in conversation.messages:
        for block in message.blocks:
            yield block
            if isinstance(block, ToolResult):
                yield from block.blocks


def words(conversation: Conversation) -> str:
    return "\n".join(block.text for block in flat(conversation) if isinstance(block, Text))


def rounds(conversation: Conversation) -> list[tuple[str, object, list[str]]]:
    """Each call with its arguments and the texts of its answer, in the order of the calls."""
    answers = {
        block.call_id: [inner.text for inner in block.blocks if isinstance(inner, Text)]
        for block in flat(conversation)
        if isinstance(block, ToolResult)
    }
    calls = [block for block in flat(conversation) if isinstance(block, ToolCall)]
    return [(call.name, msgspec.json.decode(call.arguments), answers.get(call.id, [])) for call in calls]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=[f"{a}-to-{b}" for a, b in PAIRS])
@given(data=st.data())
@FAST
def test_texts_tools_calls_and_answers_survive(source: FormatName, target: FormatName, data: st.DataObject) -> None:
    conversation = data.draw(conversations(source))
    back = rewritten(conversation, target)
    assert written(conversation, target) == written(conversation, target), "not deterministic"
    for block in flat(conversation):
        if isinstance(block, Text):
            assert block.text in words(back)
    assert [tool.name for tool in back.tools][: len(conversation.tools)] == [t.name for t in conversation.tools]
    for (name, arguments, answer), (new_name, new_arguments, new_answer) in zip(
        rounds(conversation), rounds(back), strict=True
    ):
        assert (new_name, new_arguments) == (name, arguments)
        assert all(text in "\n".join(new_answer) for text in answer)
    assert (back.max_tokens, back.stop) == (conversation.max_tokens, conversation.stop)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=[f"{a}-to-{b}" for a, b in PAIRS])
@given(data=st.data())
@FAST
def test_what_was_sent_at_one_turn_is_a_prefix_of_what_is_sent_at_the_next(
    source: FormatName, target: FormatName, data: st.DataObject
) -> None:
    conversation = data.draw(conversations(source))
    turns = [i for i, message in enumerate(conversation.messages) if i and message.role == "assistant"]
    cut = data.draw(st.sampled_from(turns))
    earlier = replace(conversation, messages=conversation.messages[:cut])
    before = msgspec.json.decode(written(earlier, target))["messages"]
    after = msgspec.json.decode(written(conversation, target))["messages"]
    assert after[: len(before)] == before
