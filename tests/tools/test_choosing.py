"""How many tools are kept: what must hold for any scores, sizes and situation, and the cases that decide otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orqen_ray.economics import RestoreMode, Situation
from orqen_ray.policy import ToolPolicy, ToolUse
from orqen_ray.tools.choosing import choose, core, expected_cost, situation_of
from orqen_ray.tools.routing import Routing, Scored
from orqen_ray.tools.sizes import Sizes

POLICY = ToolPolicy(bias=0.0, weights={})
UNCACHED = Situation(caching=False)
BUSY = Situation(conversations_per_minute=10)


def sizes(count: int, full: int = 200, line: int = 15, prompt: int = 1000) -> Sizes:
    return Sizes(full=np.full(count, full), line=np.full(count, line), prompt=prompt)


def scored(*p: float, always: dict[str, str] | None = None, unsure: str = "") -> Scored:
    return Scored(names=names(len(p)), p_needed=np.array(p), always=always or {}, method="semantic", unsure=unsure)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"t{at}" for at in range(count))


def clear(count: int, unsure: str = "", always: dict[str, str] | None = None) -> Scored:
    """The first two are needed almost surely, and hardly any other."""
    return scored(0.9, 0.8, *[1e-4] * (count - 2), unsure=unsure, always=always)


situations = st.builds(
    Situation,
    caching=st.booleans(),
    conversations_per_minute=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    calls=st.floats(1, 30),
    restore=st.sampled_from(["append", "rewrite", "off"]),
    ask_rate=st.floats(0, 1),
    system_tokens=st.integers(0, 1000),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Scored, Sizes]:
    count = draw(st.integers(1, 40))
    p = draw(
        st.lists(st.sampled_from([0.0, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.99, 1.0]), min_size=count, max_size=count)
    )
    always = draw(st.sets(st.sampled_from(names(count)), max_size=3))
    full = draw(st.lists(st.integers(20, 2000), min_size=count, max_size=count))
    unsure = draw(st.sampled_from(["", "", "failed_call", "no_text"]))
    one = Sizes(full=np.array(full), line=np.full(count, 15), prompt=draw(st.integers(0, 20_000)))
    return scored(*p, always=dict.fromkeys(always, "named"), unsure=unsure), one


@given(cases(), situations)
def test_every_tool_gets_one_verdict_and_those_always_kept_are_kept(
    case: tuple[Scored, Sizes], situation: Situation
) -> None:
    routing = choose(*case, POLICY, situation)
    assert tuple(verdict.name for verdict in routing.verdicts) == case[0].names
    assert set(routing.kept) >= set(case[0].always)
    assert routing.p_miss <= POLICY.max_miss


@given(cases(), situations)
def test_by_its_own_estimate_it_never_costs_more_than_sending_all(
    case: tuple[Scored, Sizes], situation: Situation
) -> None:
    of, size = case
    routing = choose(of, size, POLICY, situation)
    kept = np.array([verdict.kept for verdict in routing.verdicts])
    order = np.argsort(~kept, kind="stable")
    p_miss = np.full(len(kept) + 1, routing.p_miss)
    cost = expected_cost(order, size, p_miss, situation, shared=False)
    assert cost[kept.sum()] <= cost[-1]


@given(cases(), situations, st.data())
def test_a_tool_that_is_more_probable_is_not_dropped_for_it(
    case: tuple[Scored, Sizes], situation: Situation, data: st.DataObject
) -> None:
    of, size = case
    before = choose(of, size, POLICY, situation)
    at = data.draw(st.integers(0, len(of.names) - 1))
    assume(before.verdicts[at].kept)
    p = of.p_needed.copy()
    p[at] = data.draw(st.floats(float(p[at]), 1))
    assert choose(replace(of, p_needed=p), size, POLICY, situation).verdicts[at].kept


@given(cases(), st.integers(0, 50))
def test_a_target_keeps_the_best_so_many(case: tuple[Scored, Sizes], target: int) -> None:
    of, size = case
    routing = choose(of, size, POLICY, BUSY, target)
    assert routing.reason == "override"
    assert len(routing.kept) == min(max(target, len(of.always)), len(of.names))
    rest = [v for v in routing.verdicts if v.name not in of.always]
    kept = [v.score or 0 for v in rest if v.kept]
    left = [v.score or 0 for v in rest if not v.kept]
    assert not kept or not left or min(kept) >= max(left)


def test_without_a_cache_only_what_is_needed_is_sent() -> None:
    routing = choose(clear(100), sizes(100), POLICY, UNCACHED)
    assert routing.kept == ("t0", "t1")
    assert routing.reason == "conversation"
    assert {verdict.reason for verdict in routing.verdicts} == {"score", "left_out"}


def test_a_prompt_too_short_for_the_cache_is_routed() -> None:
    short = Situation(conversations_per_minute=10, cache_min_tokens=50_000)
    assert choose(clear(100), sizes(100), POLICY, short).kept == ("t0", "t1")


def test_a_warm_head_is_left_alone_when_the_conversation_is_short() -> None:
    routing = choose(clear(100), sizes(100, prompt=8000), POLICY, replace(BUSY, calls=2, system_tokens=7000))
    assert len(routing.kept) == 100
    assert routing.reason == "costs_more"


def test_small_tools_are_not_worth_an_index() -> None:
    assert choose(clear(30), sizes(30, full=20), POLICY, UNCACHED).reason == "costs_more"


def test_doubt_widens_and_no_text_keeps_all() -> None:
    of = scored(0.9, *[0.004] * 5, *[1e-5] * 60)
    sure = choose(of, sizes(66), POLICY, UNCACHED)
    doubtful = choose(replace(of, unsure="failed_call"), sizes(66), POLICY, UNCACHED)
    assert len(sure.kept) < len(doubtful.kept) < 66
    assert doubtful.p_miss <= POLICY.max_miss_unsure
    assert choose(replace(of, unsure="no_text"), sizes(66), POLICY, UNCACHED).left_out == ()


def test_what_cannot_be_asked_for_is_hardly_ever_left_out() -> None:
    of = scored(0.9, *[0.004] * 5, *[1e-5] * 60)
    final = choose(of, sizes(66), POLICY, replace(UNCACHED, restore="off"))
    assert len(final.kept) > len(choose(of, sizes(66), POLICY, UNCACHED).kept)
    assert final.p_miss <= POLICY.max_miss_final


def test_those_always_kept_say_why() -> None:
    routing = choose(clear(50, always={"t40": "called"}), sizes(50), POLICY, UNCACHED)
    assert routing.kept == ("t0", "t1", "t40")
    assert routing.verdicts[40].reason == "called"


def test_where_a_restore_writes_a_warm_prefix_anew_all_are_sent() -> None:
    large = sizes(500, full=500)
    assert choose(clear(500), large, POLICY, replace(BUSY, restore="append")).reason == "conversation"
    assert choose(clear(500), large, POLICY, replace(BUSY, restore="rewrite")).reason == "costs_more"
    assert choose(clear(500), large, POLICY, replace(UNCACHED, restore="rewrite")).reason == "conversation"


def use(conversations: float, calls: float = 6.0, **called: float) -> ToolUse:
    return ToolUse(conversations=conversations, called=called, calls=calls * conversations, per_minute=10)


def core_of(seen: ToolUse, situation: Situation = BUSY, always: tuple[str, ...] = ()) -> Routing | None:
    return core(names(80), seen, sizes(80), POLICY, situation_of(situation, POLICY, seen), always)


def test_a_core_set_is_what_conversations_call() -> None:
    routing = core_of(use(100, t3=90, t7=40, t60=10))
    assert routing is not None
    assert routing.kept == ("t3", "t7", "t60")
    assert (routing.reason, routing.method) == ("core", None)
    assert {verdict.reason for verdict in routing.verdicts} == {"used", "left_out"}


def test_too_few_conversations_make_no_core_set() -> None:
    assert core_of(use(5, t3=5, t7=5)) is None


def test_a_core_set_is_large_while_tools_keep_turning_up_for_the_first_time() -> None:
    often, once = ({f"t{at}": times for at in range(10, 20)} for times in (5.0, 1.0))
    small, large = core_of(use(20, t3=18, **often)), core_of(use(20, t3=18, **once))
    assert small is not None
    assert len(small.kept) == 11
    assert large is None or len(large.kept) > 60


def test_scores_tell_which_tools_may_be_called_next() -> None:
    once = {f"t{at}": 1.0 for at in range(4, 10)}
    seen = use(40, t3=36, **once)
    blind = core_of(seen)
    assert blind is None or len(blind.kept) > 30
    routing = core_of(replace(seen, expected={"t20": 4.0, "t21": 4.0, "t22": 4.0}))
    assert routing is not None
    assert {"t3", *once, "t20", "t21", "t22"} <= set(routing.kept)
    assert len(routing.kept) < 20


@given(st.floats(20, 1000), st.dictionaries(st.sampled_from(names(80)), st.floats(0, 1)), situations)
def test_a_core_set_seldom_lacks_a_tool(conversations: float, shares: dict[str, float], situation: Situation) -> None:
    seen = use(conversations, **{name: share * conversations for name, share in shares.items()})
    routing = core_of(seen, situation)
    if routing is not None:
        assert routing.p_miss <= POLICY.core_max_miss
        left = [shares.get(name, 0.0) for name in routing.left_out]
        assert max(left, default=0.0) <= POLICY.core_max_miss * (1 + 1 / conversations)


def test_a_conversation_that_must_have_more_gets_a_set_of_its_own() -> None:
    assert core_of(use(100, t3=90, t7=40), always=("t3",)) is not None
    assert core_of(use(100, t3=90, t7=40), always=("t3", "t50")) is None


def test_a_core_set_holds_what_no_conversation_may_lack() -> None:
    seen = use(500, t1=400, t2=100)
    routing = core(names(80), seen, sizes(80), POLICY, situation_of(BUSY, POLICY, seen), fixed={"t70": "builtin"})
    assert routing is not None and {"t1", "t2", "t70"} <= {*routing.kept} and "t3" not in routing.kept
    assert {verdict.name: verdict.reason for verdict in routing.verdicts}["t70"] == "builtin"


@pytest.mark.parametrize("restore", ["append", "rewrite"])
def test_a_core_set_never_costs_more_than_all(restore: RestoreMode) -> None:
    everything = {name: 50.0 for name in names(80)}
    assert core_of(use(100, **everything), Situation(restore=restore)) is None


def test_the_situation_knows_what_was_seen() -> None:
    known = situation_of(Situation(), POLICY, use(100, calls=12.0))
    assert (known.calls, known.conversations_per_minute, known.ask_rate) == (12.0, 10, 0.7)
    new = situation_of(Situation(conversations_per_minute=5), POLICY, None)
    assert (new.calls, new.conversations_per_minute) == (POLICY.expected_calls, POLICY.expected_per_minute)
