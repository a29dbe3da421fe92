"""Tools that were left out come back when a model asks for them, through the official SDKs, and no prefix breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.asking import ARGUMENTS, CANNOT, DONE, MORE_TOOLS, VARIANTS
from tests.conformance.asks import Body
from tests.conformance.binding import breaks
from tests.conformance.credentials import API_KEY, OTHER_KEY, account
from tests.conformance.families import COUNTED
from tests.conformance.lab import Lab
from tests.conformance.scenarios import THOUGHT
from tests.conformance.sdks import Sdk, all_sdks
from tests.conformance.talks import Talk, opening, talk
from tests.conformance.toolset import KEPT, LEFT_OUT, sixty_tools

NATIVE = ("native-anthropic", "bound-anthropic")
OWN = [
    ("openai", "lab-openai"),
    ("anthropic", "native-anthropic"),
    ("boto3", "lab-bedrock"),
]
OTHERS = [("anthropic", "lab-anthropic"), ("anthropic", "lab-openai"), ("openai", "native-anthropic")]
MAIN = ("first", "text", "beside", "late")

ONCE, CALLED, ASKED = (440, 14), (440, 9), (400, 5)
"""Tokens (prompt, output) of an answer that took two calls, and of one with a call, and one with an ask, alone. Agents
read the prompt as the size of their context, so it is the last call's; output is summed."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What its caller sees called in a conversation, with which usage, and how often tools join a prefix."""

    calls: tuple[str, ...] = (LEFT_OUT, LEFT_OUT)
    usage: tuple[tuple[int, int], ...] = (ONCE, CALLED, CALLED)
    restores: int = 1


EXPECTED = {
    "first": Expected(),
    "text": Expected(),
    "beside": Expected(calls=(KEPT, LEFT_OUT, LEFT_OUT), usage=(ASKED, CALLED, CALLED, CALLED)),
    "twice": Expected(usage=((440, 19), CALLED, CALLED), restores=2),
    "both": Expected(),
    "unknown": Expected(),
    "never": Expected(calls=(), usage=(CALLED,), restores=0),
    "late": Expected(calls=(KEPT, LEFT_OUT, LEFT_OUT), usage=(CALLED, ONCE, CALLED, CALLED)),
    "late-text": Expected(calls=(KEPT, LEFT_OUT, LEFT_OUT), usage=(CALLED, ONCE, CALLED, CALLED)),
    "straight": Expected(usage=(ASKED, CALLED, CALLED)),
}
NOT_CONTINUED = {
    "text": Expected(usage=(ASKED, CALLED, CALLED, CALLED)),
    "late-text": Expected(calls=(KEPT, LEFT_OUT, LEFT_OUT), usage=(CALLED, ASKED, CALLED, CALLED, CALLED)),
}
"""Where reasoning is bound, an answer whose text is out ends there, and the tool comes next turn."""

CASES = [
    *((sdk, row, variant, False) for sdk, row in OWN for variant in VARIANTS),
    *((sdk, row, variant, False) for sdk, row in OTHERS for variant in MAIN),
    *(("anthropic", "bound-anthropic", variant, True) for variant in VARIANTS),
]


@pytest.fixture(scope="module")
def routed(lab: Lab) -> Iterator[dict[str, Sdk]]:
    """The SDKs with a key whose requests get so few tools that much is left out."""
    sdks = {sdk.name: sdk for sdk in all_sdks(lab.url, lab.few_tools_key(1))}
    yield sdks
    for sdk in sdks.values():
        sdk.client.close()


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("sdk_name", "provider", "variant", "thinks"), CASES, ids=lambda v: {True: "thinking", False: "plain"}.get(v, v)
)
def test_a_tool_that_was_left_out_comes_back(
    lab: Lab, routed: dict[str, Sdk], sdk_name: str, provider: str, variant: str, thinks: bool, streams: bool
) -> None:
    bound = "bound-" if provider.startswith("bound") else ""
    body = opening(sdk_name, f"{provider}/{bound}asks-{variant}", thinks=thinks)
    if sdk_name == "openai" and streams:
        body["stream_options"] = {"include_usage": True}
    done = talk(lab, routed[sdk_name], body, streams=streams)

    expected = (NOT_CONTINUED if bound else EXPECTED).get(variant, EXPECTED[variant])
    assert [each.refused for each in done.received if each.refused] == []
    assert MORE_TOOLS not in repr(done.turns), "the caller never sees the gateway's tool"
    assert tuple(done.called) == expected.calls
    assert all(given == ARGUMENTS for got in done.turns for _, name, given in got.calls if name == LEFT_OUT)
    assert done.turns[-1].text == (CANNOT if variant == "never" else DONE)
    offered = done.received[0].seen.tools
    assert LEFT_OUT not in offered and len(offered) < 30 and {KEPT, MORE_TOOLS} <= offered.keys()
    assert tuple((got.prompt, got.out) for got in done.turns) == expected.usage
    check_prefix(done, provider, variant, expected.restores)
    restored = [got.headers.get("x-orqen-restored", "") for got in done.turns]
    assert all(LEFT_OUT not in names for names in restored[2:])
    if variant in ("first", "both"):
        assert LEFT_OUT in restored[0]
    if variant in ("twice", "unknown"):
        *named, more = restored[0].split(", ")
        assert sixty_tools().keys() >= set(named) and int(more) > 1, "all came, more than a header holds"
    assert {got.thought for got in done.turns} == {THOUGHT if thinks else ""}, "of no answer that was discarded"


def test_a_conversation_keeps_to_one_of_its_providers_keys(lab: Lab, routed: dict[str, Sdk]) -> None:
    """Reasoning is bound to the account, too. Conversations are spread over both."""
    used: set[str] = set()
    for _ in range(30):
        done = talk(
            lab,
            routed["anthropic"],
            opening("anthropic", "bound-anthropic/bound-asks-first", thinks=True),
            streams=False,
        )
        [key] = {account(each) for each in done.received}
        assert len(done.received) == 4 and not [each.refused for each in done.received if each.refused]
        used.add(key)
        if len(used) == 2:
            break
    assert used == {API_KEY, OTHER_KEY}


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("sdk_name", ["boto3", "anthropic"])
def test_nothing_is_left_out_where_it_could_not_come_back(
    lab: Lab, routed: dict[str, Sdk], sdk_name: str, streams: bool
) -> None:
    """Converse takes no tools behind messages, and reasoning that is bound would not survive other `tools`."""
    body = opening(sdk_name, "bound-bedrock/bound-asks-late", thinks=True)
    done = talk(lab, routed[sdk_name], body, streams=streams)
    assert done.called == [KEPT, LEFT_OUT, LEFT_OUT] and done.turns[-1].text == DONE
    assert [each.refused for each in done.received if each.refused] == breaks(done.received) == []
    assert done.received[0].seen.tools.keys() == sixty_tools().keys()


def test_a_count_is_of_what_would_be_sent_and_changes_nothing(lab: Lab, routed: dict[str, Sdk]) -> None:
    body = opening("anthropic", "native-anthropic/asks-first")
    counted = {name: body[name] for name in ("model", "system", "messages", "tools")}
    assert routed["anthropic"].client.messages.count_tokens(**counted).input_tokens == COUNTED
    routed["anthropic"].ask(body)
    count, asked, _ = lab.upstream.requests[-3:]
    assert count.path.endswith("count_tokens") and count.json["tools"] == asked.json["tools"]
    assert MORE_TOOLS in asked.seen.tools and count.json["messages"] == asked.json["messages"]


@pytest.mark.parametrize("sdk_name", ["anthropic", "boto3"])
def test_a_cache_marker_on_a_tool_that_is_left_out_moves_to_the_last_one(
    lab: Lab, routed: dict[str, Sdk], sdk_name: str
) -> None:
    """The vendor caches up to the marker: without one, nothing of the tools."""
    body = opening(sdk_name, "native-anthropic/asks-first" if sdk_name == "anthropic" else "lab-bedrock/asks-first")
    if sdk_name == "anthropic":
        body["tools"][-1]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    else:
        body["toolConfig"]["tools"].append({"cachePoint": {"type": "default", "ttl": "1h"}})
    done = talk(lab, routed[sdk_name], body, streams=False)
    assert [each.seen.marked for each in done.received] == [["tools:1h"]] * 4
    sent = [each.json for each in done.received]
    last = [body["tools"][-1] if "tools" in body else body["toolConfig"]["tools"][-1] for body in sent]
    assert all("cache_control" in tool or "cachePoint" in tool for tool in last)


@pytest.mark.parametrize(
    ("sdk_name", "model", "more"),
    [
        ("openai", "lab-openai/asks-first", {"n": 2}),
        ("openai", "lab-openai/asks-first", {"tool_choice": "required"}),
        ("anthropic", "native-anthropic/asks-first", {"tool_choice": {"type": "any"}}),
        ("boto3", "lab-bedrock/asks-first", {"toolChoice": {"any": {}}}),
    ],
    ids=["n", "openai", "anthropic", "boto3"],
)
def test_nothing_is_left_out_where_asking_would_be_an_answer(
    lab: Lab, routed: dict[str, Sdk], sdk_name: str, model: str, more: Body
) -> None:
    body = opening(sdk_name, model)
    body = {**body, "toolConfig": {**body["toolConfig"], **more}} if sdk_name == "boto3" else body | more
    got = routed[sdk_name].ask(body)
    assert [name for _, name, _ in got.calls] == [LEFT_OUT]
    assert lab.upstream.last.seen.tools.keys() == sixty_tools().keys() and not lab.upstream.last.refused


def check_prefix(done: Talk, provider: str, variant: str, restores: int) -> None:
    """What was sent before is sent again. Where a model takes no additions elsewhere, `tools` grow by each restore.

    An answer that was continued is one message to its caller, but two to its provider, in that turn alone.
    """
    found = breaks(done.received)
    if variant.endswith("text") and not provider.startswith("bound"):
        *found, last = found
        asked = done.received[0 if variant == "text" else 1]
        assert int(last.removeprefix("messages.")) >= len(asked.json["messages"])
    assert found == ([] if provider in NATIVE else ["tools"] * restores)
