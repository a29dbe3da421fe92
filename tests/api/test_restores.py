"""Tools that the model asks for come back through the whole application, and stay where they were put."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from orqen_ray.tools.index import MORE_TOOLS
from orqen_ray.types import Call
from tests.api.conftest import ROWS
from tests.api.test_routing import ASKED, PATHS, Routed, body_of, fresh, names_in, routed_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED_FOR = "archive_playlist"
ADDING = {**ROWS["lab-anthropic"], "capabilities": {"mid_conversation_tools": True}}
CALLS: dict[str, Any] = {
    "openai_chat": {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "", "arguments": ""}}]}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
    },
    "anthropic_messages": {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use",
        "content": [{"type": "tool_use", "id": "toolu_1", "name": "", "input": {}}],
        "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 5},
    },
    "bedrock_converse": {
        "output": {"message": {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t1", "name": "",
            "input": {}}}]}},
        "stopReason": "tool_use", "usage": {"inputTokens": 9, "outputTokens": 5, "totalTokens": 14},
        "metrics": {"latencyMs": 1},
    },
}  # fmt: skip


def calling(format_: str, name: str, arguments: dict[str, Any]) -> bytes:
    reply = msgspec.json.decode(msgspec.json.encode(CALLS[format_]))
    if format_ == "openai_chat":
        function = reply["choices"][0]["message"]["tool_calls"][0]["function"]
        function |= {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
    elif format_ == "anthropic_messages":
        reply["content"][0] |= {"name": name, "input": arguments}
    else:
        reply["output"]["message"]["content"][0]["toolUse"] |= {"name": name, "input": arguments}
    return msgspec.json.encode(reply)


def script(routed: Routed, *replies: bytes) -> None:
    """The provider gives these, one after another."""
    rest = iter(replies)

    def answer(call: Call) -> tuple[int, dict[str, str], list[bytes]]:
        return 200, {"content-type": "application/json"}, [next(rest)]

    routed.upstream.script = answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Routed]:
    async with routed_gateway(
        tmp_path_factory.mktemp("restores"), providers={**ROWS, "lab-anthropic": ADDING}
    ) as routed:
        yield routed


@pytest.fixture
def routed(shared: Routed) -> Routed:
    fresh_one = fresh(shared)
    fresh_one.headers["authorization"] = f"Bearer {shared.targeted}"
    return fresh_one


@pytest.mark.parametrize("format_", PATHS)
async def test_the_caller_gets_one_answer_and_later_turns_the_same_tools(routed: Routed, format_: str) -> None:
    asking = calling(format_, MORE_TOOLS, {"names": [ASKED_FOR]})
    script(routed, asking, calling(format_, ASKED_FOR, {"id": "7"}))
    answer = await routed.post(PATHS[format_], body_of(format_, ASKED))
    assert answer.status_code == 200 and ASKED_FOR in answer.text and MORE_TOOLS not in answer.text
    assert answer.headers["x-orqen-restored"] == ASKED_FOR
    first, again = (call.body for call in routed.upstream.calls)
    if format_ == "anthropic_messages":
        assert names_in(first) == names_in(again)
        added = msgspec.json.decode(again)["messages"][-1]
        assert added["role"] == "system" and added["content"][0]["tool"]["definition"]["name"] == ASKED_FOR
        assert "inline-tools" in dict(routed.upstream.calls[1].headers)["anthropic-beta"]
    else:
        assert {*names_in(again)} - {*names_in(first)} == {ASKED_FOR}
    row = await routed.last_row()
    assert (row["tools_restored"], row["tools_missed"], row["attempts"]) == ([ASKED_FOR], [ASKED_FOR], 2)
    assert row["prefix_break"] == (None if format_ == "anthropic_messages" else "restore")
    await routed.ask(format_, body_of(format_, ASKED, "Done.", "Thank you, and the others?"))
    later, before = msgspec.json.decode(routed.sent[-1]), msgspec.json.decode(again)
    assert later["messages"][: len(before["messages"])] == before["messages"]
    assert names_in(routed.sent[-1]) == names_in(again)
    row = await routed.last_row()
    assert (row["pin"], row["prefix_break"], row["tools_restored"]) == ("found", None, [])


async def test_a_tool_that_is_called_without_asking_counts_as_missed(routed: Routed) -> None:
    script(routed, calling("anthropic_messages", ASKED_FOR, {"id": "7"}))
    answer = await routed.post(PATHS["anthropic_messages"], body_of("anthropic_messages", ASKED))
    assert ASKED_FOR in answer.text and len(routed.upstream.calls) == 1
    assert (await routed.last_row())["tools_missed"] == [ASKED_FOR]


async def test_what_was_learned_is_shared_through_the_database(tmp_path: Path) -> None:
    async with routed_gateway(tmp_path) as routed:
        for number in range(3):
            script(routed, calling("anthropic_messages", "create_invoice", {"id": "7"}))
            await routed.post(PATHS["anthropic_messages"], body_of("anthropic_messages", f"{ASKED} {number}"))
        snapshots = routed.service._optimizer._snapshots
        await snapshots.refresh()
        (use,) = snapshots.current.use.values()
        assert use.conversations == pytest.approx(3, rel=0.01) and use.called.keys() == {"create_invoice"}
