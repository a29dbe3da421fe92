"""What the scorer makes of a conversation and its tools."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from orqen_ray.conversation import Conversation, Message, Tool, ToolChoice
from orqen_ray.encoders.cache import VectorCache
from orqen_ray.encoders.onnx import OnnxEmbedder
from orqen_ray.encoders.protocol import EncoderUnavailable, Scores, Vectors
from orqen_ray.policy import ToolPolicy, ToolUse, default_snapshot
from orqen_ray.tools.routing import Scored
from orqen_ray.tools.scoring import Scorer, ToolVectors
from orqen_ray.tools.tool_set import tool_set_of
from tests.tools.scoring import Gone, HashedWords, called, conversation, many, tool, user

POLICY = default_snapshot().tools


async def score(
    one: Conversation, vectors: ToolVectors | None = None, policy: ToolPolicy = POLICY, use: ToolUse | None = None
) -> Scored:
    return await Scorer(vectors).score(one, tool_set_of(one.tools), policy, use, 5.0)


def best(scored: Scored, count: int = 3) -> list[str]:
    return [scored.names[at] for at in np.argsort(-scored.p_needed, kind="stable")[:count]]


async def test_the_tool_that_is_asked_for_comes_first() -> None:
    scored = await score(conversation(user("what will the tide tables say tomorrow?"), tools=many()), HashedWords())
    assert all("tide_tables" in name for name in best(scored))
    assert scored.unsure == "" and not scored.always


async def test_the_shipped_encoder_knows_what_is_meant_without_the_words() -> None:
    asks = conversation(user("Will I need an umbrella in Oslo on Sunday?"), tools=many())
    scored = await score(asks, VectorCache(OnnxEmbedder()))
    assert scored.method == "semantic"
    assert any("weather" in name for name in best(scored))


async def test_probabilities_are_one_for_each_tool_and_between_0_and_1() -> None:
    asks = conversation(user("book a flight and then a hotel"), tools=many(130))
    scored = await score(asks, HashedWords())
    assert scored.names == tuple(each.name for each in asks.tools) and scored.p_needed.shape == (130,)
    assert ((scored.p_needed > 0) & (scored.p_needed < 1)).all()


async def test_the_same_request_gets_the_same_numbers_and_order_does_not_matter() -> None:
    tools = many()
    asks = conversation(user("is there a bus to the museum, and when does it open?"), tools=tools)
    first, again = await score(asks, HashedWords()), await score(asks, HashedWords())
    assert first.p_needed.tobytes() == again.p_needed.tobytes()
    random.Random(3).shuffle(tools)
    shuffled = await score(replace(asks, tools=tuple(tools)), HashedWords())
    by_name = dict(zip(shuffled.names, shuffled.p_needed, strict=True))
    assert np.allclose([by_name[name] for name in first.names], first.p_needed)


async def test_each_part_of_a_request_finds_its_tool() -> None:
    asks = conversation(user("get the currency rates, search museum hours and update tax forms"), tools=many())
    found = best(await score(asks, HashedWords()), 9)
    for topic in ("currency_rates", "museum_hours", "tax_forms"):
        assert any(topic in name for name in found), topic


# --- What is kept whatever its score ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "changed", "name"),
    [
        (
            "chosen",
            {"tool_choice": ToolChoice(mode="tool", names=("get_weather_forecast_0",))},
            "get_weather_forecast_0",
        ),
        ("chosen", {"tool_choice": ToolChoice(mode="allowed", names=("get_stock_prices_3",))}, "get_stock_prices_3"),
        ("builtin", {"tools": [*many(), Tool(name="web_search", raw={"type": "web_search"})]}, "web_search"),
        ("keep", {"tools": [*many(), tool("audit", "Writes a record.", keep=True)]}, "audit"),
        ("rule", {"tools": [*many(), tool("think", "Think about it.", "thought")]}, "think"),
        ("rule", {"tools": [*many(), tool("mcp__bank__login", "Sign in.", "user")]}, "mcp__bank__login"),
    ],
)
async def test_some_tools_are_always_kept(why: str, changed: dict[str, object], name: str) -> None:
    asks = conversation(user("any chess games today?"), **{"tools": many(), **changed})  # type: ignore[arg-type]
    assert (await score(asks)).always == {name: why}


async def test_tools_that_were_called_or_named_are_kept() -> None:
    asks = conversation(
        user("Run `update_hotel_rooms_2`, please."), *called("get_stock_prices_3"), user("and now?"), tools=many()
    )
    assert (await score(asks)).always == {"get_stock_prices_3": "called", "update_hotel_rooms_2": "named"}


async def test_a_part_of_a_word_names_no_tool() -> None:
    asks = conversation(user("what a catalogue"), tools=[*many(), tool("cat", "Shows a file.")])
    assert not (await score(asks)).always


async def test_a_small_server_in_use_stays_whole() -> None:
    server = [tool(f"mcp__notes__{verb}", f"{verb} notes") for verb in ("list", "create", "erase")]
    asks = conversation(user("note it"), *called("mcp__notes__create"), tools=[*many(), *server])
    why = (await score(asks)).always
    assert why == {"mcp__notes__create": "called", "mcp__notes__list": "rule", "mcp__notes__erase": "rule"}


async def test_who_gives_the_id_that_a_likely_tool_needs_is_kept() -> None:
    server = [
        tool("cancel_reservation", "Cancel a reservation.", "reservation_id"),
        tool("find_reservation", "Look up."),
    ]
    sure = replace(POLICY, weights={"words:": -3.0, "words:last_covered": 12.0})
    scored = await score(conversation(user("cancel reservation"), tools=[*many(), *server]), policy=sure)
    assert best(scored, 1) == ["cancel_reservation"] and scored.always == {"find_reservation": "rule"}


# --- In doubt -----------------------------------------------------------------------------------------------------


async def test_nothing_asked_is_told() -> None:
    assert (await score(conversation(tools=many()), HashedWords())).unsure == "no_text"


async def test_a_failed_call_is_told_until_another_succeeds() -> None:
    failed = (user("get chess games"), *called("get_chess_games_9", result="boom", is_error=True))
    assert (await score(conversation(*failed, tools=many()))).unsure == "failed_call"
    mended = (*failed, *called("get_chess_games_9"))
    assert (await score(conversation(*mended, tools=many()))).unsure == ""


async def test_a_missing_encoder_is_told_where_words_do_not_decide() -> None:
    with pytest.raises(EncoderUnavailable):
        await score(conversation(user("would something be fun to do?"), tools=many()), Gone())


async def test_a_late_encoder_is_unavailable() -> None:
    class Late(Gone):
        async def vectors(self, texts: Sequence[str], timeout_s: float | None) -> Vectors:
            await asyncio.Event().wait()
            raise AssertionError

        async def query(self, texts: Sequence[str]) -> Vectors:
            return await HashedWords().query(texts)

    asks = conversation(user("would something be fun to do?"), tools=many())
    with pytest.raises(EncoderUnavailable):
        await Scorer(Late()).score(asks, tool_set_of(asks.tools), POLICY, None, 0.01)


async def test_words_that_decide_need_no_encoder() -> None:
    decisive = replace(POLICY, weights={"words:": -12.0, "words:last_covered": 30.0})
    scored = await score(conversation(user("tide tables"), tools=many()), Gone(), decisive)
    assert scored.method == "keyword" and "tide_tables" in best(scored, 1)[0]


async def test_without_an_encoder_words_score() -> None:
    scored = await score(conversation(user("show me the land registry"), tools=many()))
    assert scored.method == "keyword" and "land_registry" in best(scored, 1)[0]


# --- What else is known -------------------------------------------------------------------------------------------


async def test_use_counts_when_the_policy_weighs_it() -> None:
    weighed = replace(POLICY, weights={**POLICY.weights, "use": 3.0})
    asks = conversation(user("do the usual thing"), tools=many())
    use = ToolUse(conversations=40, called={"get_gym_classes_51": 38.0})
    assert best(await score(asks, HashedWords(), weighed, use), 1) == ["get_gym_classes_51"]


async def test_a_reranker_raises_and_never_lowers() -> None:
    class Likes:
        name = "likes"

        async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
            return np.array([0.99 if "chess" in text else 0.001 for _, text in pairs], np.float32)

    weighed = replace(POLICY, weights={**POLICY.weights, "rerank": 1.0})
    asks = conversation(user("something with a board for two players"), tools=many())
    before = await score(asks, HashedWords(), weighed)
    scored = await Scorer(HashedWords(), Likes()).score(asks, tool_set_of(asks.tools), weighed, None, None)
    raised = scored.p_needed > before.p_needed
    assert (scored.p_needed >= before.p_needed).all()
    assert all("chess" in name for name, up in zip(scored.names, raised, strict=True) if up)


async def test_only_new_texts_of_a_conversation_are_embedded_once() -> None:
    vectors = HashedWords()
    asks = conversation(Message(role="system", blocks=()), user("would something be fun to do?"), tools=many())
    await score(asks, vectors)
    said = [text for text in vectors.asked if "fun" in text]
    assert len(said) == len(set(said)) == 1
