"""What an answer teaches: which tools its conversation called, and which it missed."""

from __future__ import annotations

from collections.abc import Collection

from orqen_ray.planning.applying import called_names, restored_before
from orqen_ray.planning.plan import Plan
from orqen_ray.tools.use import UseLearner


def learn(learner: UseLearner, plan: Plan, called: Collection[str], restored: tuple[str, ...]) -> tuple[str, ...]:
    """Note an answer that called these tools, after `restored` were brought back within its turn.

    Returns:
        The tools that it missed: those the model asked for, or called though it saw them in the index only; in the
        holdout, those that it called and would not have had.
    """
    pin, seen = plan.pin, plan.seen
    if pin is None or seen is None or not pin.tool_set:
        return ()
    before, indexed = called_names(plan.asked), frozenset(pin.indexed)
    now = len(seen.digests) - 1
    there = {name for each in restored_before(pin, seen.digests) if each.after < now for name in each.names}
    missed = dict.fromkeys(restored)
    if pin.arm != "whole":
        missed |= dict.fromkeys(name for name in called if name in indexed and name not in there)
    first = not there if pin.arm == "routed" else before.isdisjoint(indexed)
    learner.note(
        pin.tool_set,
        pin.arm,
        begins=plan.pin_state == "new",
        called=called,
        before=before,
        missed=bool(missed) and first,
        routing=plan.routing,
    )
    return tuple(missed)
