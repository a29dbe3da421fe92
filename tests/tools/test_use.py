"""What is learned from traffic, and the snapshots that are made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from orqen_ray.errors import StoreUnavailable
from orqen_ray.policy import Snapshot, Snapshots, ToolPolicy, ToolUse, add_use, differs, learned_ask_rate
from orqen_ray.tools.routing import Method, Routing, Verdict
from orqen_ray.tools.use import UseLearner

BASE = Snapshot(version="base", tools=ToolPolicy(bias=0.0, weights={}))


class Shared:
    """A store in memory: adds up, and publishes at once."""

    def __init__(self) -> None:
        self.use: dict[str, ToolUse] = {}
        self.down = False

    async def add(self, new: Mapping[str, ToolUse]) -> None:
        if self.down:
            raise StoreUnavailable("down")
        for tool_set, use in new.items():
            self.use[tool_set] = add_use(self.use.get(tool_set, ToolUse()), use)

    async def published(self) -> Mapping[str, ToolUse]:
        if self.down:
            raise StoreUnavailable("down")
        return dict(self.use)


def test_a_conversation_counts_once_whoever_serves_its_turns() -> None:
    one, other = UseLearner(), UseLearner()
    one.note("set", "whole", begins=True, called=["read", "read"])
    other.note("set", "whole", begins=False, called=["read", "edit"], before=["read"])
    one.note("set", "whole", begins=False, called=[], before=["read", "edit"])
    both = add_use(one.drain()["set"], other.drain()["set"])
    assert both == ToolUse(conversations=1, called={"read": 1, "edit": 1}, calls=3)


def test_arms_are_counted_apart() -> None:
    learner = UseLearner()
    for missed in (True, False):
        learner.note("set", "routed", begins=True, called=["a"], missed=missed)
        learner.note("set", "holdout", begins=True, called=["a"])
    use = learner.drain()["set"]
    assert (use.routed, use.asked, use.holdout, use.missed) == (2, 1, 2, 0)


def test_scores_at_first_sight_are_summed() -> None:
    learner = UseLearner()
    methods: tuple[Method | None, ...] = ("semantic", None)
    for method in methods:
        kept, left_out = (
            Verdict(name="a", kept=True, reason="score", score=0.5),
            Verdict(name="b", kept=False, reason=""),
        )
        routing = Routing(verdicts=(kept, left_out), method=method, p_miss=0.0, reason="conversation")
        learner.note("set", "routed", begins=True, called=[], routing=routing)
    assert learner.drain()["set"].expected == {"a": 0.5}


def test_draining_empties_and_putting_back_adds() -> None:
    learner = UseLearner()
    learner.note("set", "whole", begins=True, called=["a"])
    first = learner.drain()
    assert learner.drain() == {}
    learner.note("set", "whole", begins=True, called=["a", "b"])
    learner.put_back(first)
    assert learner.drain()["set"] == ToolUse(conversations=2, called={"a": 2, "b": 1}, calls=2)


def test_what_is_remembered_is_bounded() -> None:
    learner = UseLearner(max_tool_sets=3)
    for number in range(10):
        learner.note(f"set{number}", "whole", begins=True, called=[])
    learner.note("set9", "whole", begins=False, called=[f"tool{at}" for at in range(5000)] + ["x" * 10_000])
    use = learner.drain()
    assert set(use) == {"set7", "set8", "set9"}
    assert len(use["set9"].called) == 1000
    assert max(map(len, use["set9"].called)) < 100


async def test_what_one_process_learns_is_in_the_snapshots_of_all() -> None:
    shared, learner = Shared(), UseLearner()
    here, there = Snapshots(BASE, shared, learner), Snapshots(BASE, shared)
    learner.note("set", "whole", begins=True, called=["a"])
    await here.refresh()
    await there.refresh()
    assert here.current == there.current
    assert here.current.use["set"].called == {"a": 1}
    assert here.current.version != BASE.version


async def test_a_version_names_a_content() -> None:
    shared = Shared()
    snapshots = Snapshots(BASE, shared, learner := UseLearner())
    await snapshots.refresh()
    assert snapshots.current is BASE
    learner.note("set", "whole", begins=True, called=["a"])
    await snapshots.refresh()
    first = snapshots.current
    await snapshots.refresh()
    assert snapshots.current is first
    learner.note("set", "whole", begins=True, called=["b"])
    await snapshots.refresh()
    assert snapshots.current.version != first.version


async def test_nothing_is_lost_while_the_store_is_away() -> None:
    shared = Shared()
    snapshots = Snapshots(BASE, shared, learner := UseLearner())
    learner.note("set", "whole", begins=True, called=["a"])
    shared.down = True
    await snapshots.refresh()
    assert snapshots.current is BASE
    shared.down = False
    learner.note("set", "whole", begins=True, called=["a"])
    await snapshots.refresh()
    assert snapshots.current.use["set"].called == {"a": 2}


async def test_snapshots_keep_fresh_until_cancelled() -> None:
    shared = Shared()
    shared.use["set"] = ToolUse(conversations=1)
    snapshots = Snapshots(BASE, shared)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(snapshots.keep_fresh(3600), 0.1)
    assert snapshots.current.use == shared.use


def seen(conversations: float, per_minute: float = 1.0, **share: float) -> ToolUse:
    called = {name: part * conversations for name, part in share.items()}
    return ToolUse(conversations=conversations, called=called, per_minute=per_minute)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (seen(100, a=0.5), seen(100, a=0.5), False),
        (seen(110, a=0.5, b=0.01), seen(100, a=0.52), False),
        (seen(1), ToolUse(), True),
        (seen(130, a=0.5), seen(100, a=0.5), True),
        (seen(40, a=0.5), seen(100, a=0.5), True),
        (seen(100, a=0.5, b=0.2), seen(100, a=0.5), True),
        (seen(100, per_minute=10), seen(100, per_minute=1), True),
    ],
)
def test_only_what_differs_notably_makes_a_new_snapshot(new: ToolUse, old: ToolUse, expected: bool) -> None:
    assert differs(new, old) is expected


def test_the_ask_rate_is_learned_from_the_holdout_and_the_routed() -> None:
    assert learned_ask_rate(0.7, []) == 0.7
    assert learned_ask_rate(0.7, [ToolUse(routed=1000, asked=40)]) == 0.7
    # One in ten needs a tool that was left out, and one in twenty asks.
    many = [ToolUse(routed=10_000, asked=500, holdout=1000, missed=100)]
    assert learned_ask_rate(0.7, many) == pytest.approx(0.5, abs=0.02)
    few = [ToolUse(routed=100, asked=5, holdout=10, missed=1)]
    assert 0.5 < learned_ask_rate(0.7, few) < 0.7
