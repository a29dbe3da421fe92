"""The planner: from a conversation to its plan, by its pin or at first sight, inside a time budget, failing open."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from msgspec import structs

from orqen_ray.conversation import Conversation
from orqen_ray.encoders.protocol import EncoderUnavailable
from orqen_ray.metrics import Metrics
from orqen_ray.pins import Pin, Pins
from orqen_ray.planning.applying import Applied, Destination, apply, changes_tools
from orqen_ray.planning.carrying import brought_back, carried, noted, with_restore
from orqen_ray.planning.learning import learn
from orqen_ray.planning.plan import Plan, Seen, untouched
from orqen_ray.planning.prefix import conversation_key, digests, draw, is_later_turn, tools_digest
from orqen_ray.planning.prepared import Prepared, Shelf
from orqen_ray.planning.routing import Router
from orqen_ray.planning.switches import Switches
from orqen_ray.planning.validation import fault
from orqen_ray.policy import Snapshots
from orqen_ray.tools.index import MORE_TOOLS
from orqen_ray.tools.routing import Routing
from orqen_ray.tools.use import UseLearner

_MAX_HEADS = 20_000
_INLINE_BYTES = 2 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long planning may take.

    Attributes:
        warm_s: for a tool set that this process has routed before.
        cold_s: for one that it has not, encoders included.
    """

    warm_s: float = 0.05
    cold_s: float = 0.3


class Planner:
    """Makes plans. One per process, on one event loop."""

    def __init__(
        self,
        router: Router,
        snapshots: Snapshots,
        pins: Pins,
        metrics: Metrics | None = None,
        *,
        learner: UseLearner | None = None,
        holdout_ratio: float = 0.02,
        limits: Limits = Limits(),
    ) -> None:
        """Args: holdout_ratio: share of conversations that keep tools which would be left out, to measure against."""
        self._router = router
        self._snapshots = snapshots
        self._pins = pins
        self._metrics = metrics or Metrics()
        self._learner = learner
        self._holdout_ratio = holdout_ratio
        self._limits = limits
        self._shelf = Shelf()
        self._heads: OrderedDict[str, str] = OrderedDict()
        self._deciding: dict[str, asyncio.Future[None]] = {}

    async def plan(
        self,
        conversation: Conversation,
        destination: Destination,
        switches: Switches,
        *,
        key_id: str,
        session: str,
        keep: bool = True,
        size_bytes: int = 0,
    ) -> Plan:
        """What to send for `conversation`. Never raises: what cannot be decided is sent whole, and the plan says why.

        Args:
            key_id, session: of the caller and of its conversation, see `sessions.session_id`.
            keep: remember what is decided; else nothing changes (a preview, a count).
            size_bytes: of the request; a large one is read in a thread.
        """
        why = self._at_once(conversation, destination, switches)
        if why:
            return untouched(conversation, why)
        try:
            return await self._planned(
                conversation, destination, switches, (key_id, session), keep=keep, size_bytes=size_bytes
            )
        except RecursionError:
            return untouched(conversation, "too_deep")
        except Exception:  # noqa: BLE001  # no fault of planning may cost a caller its answer
            _log.exception("a request could not be planned; it is sent as it came")
            self._metrics.count_late("failed")
            return untouched(conversation, "failed")

    def for_destination(self, plan: Plan, destination: Destination) -> Plan:
        """The same decision for another model, which may take additions or may not."""
        if plan.pin is None or plan.seen is None:
            return plan
        return self._apply(replace(plan, undone=""), plan.pin, plan.seen, destination)

    async def restored(self, plan: Plan, names: tuple[str, ...] | None, destination: Destination) -> Plan:
        """The plan for the turn again, with these tools brought back, and pinned so; None: all that was left out."""
        assert plan.pin is not None and plan.seen is not None
        seen = plan.seen
        pin = await self._pins.get(seen.key) or plan.pin  # another turn with this head may have changed it
        pin = structs.replace(pin, owed=())
        meanwhile = brought_back(pin, seen) - {*plan.restored}
        if names is None or not meanwhile.issuperset(names):
            pin = with_restore(pin, seen, names, destination)
        pin = noted(pin, seen, plan.asked)
        await self._pins.put(seen.key, pin)
        self._metrics.restores.inc()
        again = self._apply(replace(plan, undone=""), pin, seen, destination)
        if not destination.takes_additions:
            self._metrics.count_prefix_break("restore")
            again = replace(again, prefix_break="restore")
        return again

    async def owe(self, plan: Plan, names: tuple[str, ...]) -> None:
        """Have the next turn of this conversation bring these tools."""
        if plan.seen is None or plan.pin is None:
            return
        pin = await self._pins.get(plan.seen.key) or plan.pin
        await self._pins.put(plan.seen.key, structs.replace(pin, owed=tuple(dict.fromkeys((*pin.owed, *names)))))

    def learn(self, plan: Plan, called: Collection[str], restored: tuple[str, ...]) -> tuple[str, ...]:
        """See `learning.learn`. Never raises."""
        try:
            return learn(self._learner, plan, called, restored) if self._learner is not None else restored
        except Exception:  # noqa: BLE001  # the caller has its answer
            _log.exception("nothing was learned from an answer")
            return restored

    def _at_once(self, conversation: Conversation, destination: Destination, switches: Switches) -> str:
        """Why nothing is to be done, whatever the conversation says; "" where it must be looked at."""
        if not conversation.tools:
            return "no_tools"
        count, policy = len(conversation.tools), self._snapshots.current.tools
        if count <= policy.small_tools and count <= (switches.k_target or count):
            return "small"
        if switches.off:
            return "off"
        if not destination.capabilities.tools:
            return "no_tools_there"
        names = {tool.name for tool in conversation.tools}
        if MORE_TOOLS in names:
            return "name_taken"
        if len(names) < len(conversation.tools) or "" in names:
            return "duplicate_names"
        if any(tool.defer_loading for tool in conversation.tools) or changes_tools(conversation):
            return "deferred"
        return ""

    async def _planned(
        self,
        conversation: Conversation,
        destination: Destination,
        switches: Switches,
        caller: tuple[str, str],
        *,
        keep: bool,
        size_bytes: int,
    ) -> Plan:
        large = size_bytes >= _INLINE_BYTES
        found, tools = await asyncio.to_thread(_read, conversation) if large else _read(conversation)
        head, key = conversation_key(*caller, found, tools, conversation)
        seen = Seen(key=key, digests=found, switches=switches, prepared=self._shelf.known(tools))
        if seen.prepared is not None and self._is_small(seen.prepared, switches):
            return untouched(conversation, "small")
        pin = await self._pin(conversation, seen)
        if pin is None and keep:
            async with self._first(key) as waited:
                pin = await self._pins.get(key) if waited else None
                return await self._decided(conversation, destination, seen, pin, (head, tools), keep=keep)
        return await self._decided(conversation, destination, seen, pin, (head, tools), keep=keep)

    @asynccontextmanager
    async def _first(self, key: str) -> AsyncIterator[bool]:
        """One first sight of a conversation at a time, so that requests that come together share a pin. Whether there
        was another before."""
        waited = False
        while (other := self._deciding.get(key)) is not None:
            waited = True
            await asyncio.wait({other})
        done = self._deciding[key] = asyncio.get_running_loop().create_future()
        try:
            yield waited
        finally:
            del self._deciding[key]
            done.set_result(None)

    async def _decided(
        self,
        conversation: Conversation,
        destination: Destination,
        seen: Seen,
        pin: Pin | None,
        offered: tuple[str, str],
        *,
        keep: bool,
    ) -> Plan:
        """Args: offered: the conversation's head, and the digest of its tools."""
        head, tools = offered
        changed_tools = self._heads.get(head, tools) != tools
        if keep:
            self._remember(head, tools)
        plan = untouched(conversation)
        if pin is None:
            lost = is_later_turn(conversation) and not changed_tools
            pin, routing, seen = await self._first_sight(conversation, destination, seen, tools)
            if pin is None:
                return untouched(conversation, "small")
            plan = replace(plan, pin_state="lost" if lost else "new", routing=routing)
            broken = "pin_lost" if lost else "client_tools" if changed_tools else ""
        else:
            if seen.prepared is None and (pin.arm == "routed" or pin.schemas):
                seen = replace(seen, prepared=await self._shelf.of(tools, conversation.tools))
            plan = replace(plan, pin_state="found")
            pin, broken = carried(pin, conversation, seen, destination)
            if pin.arm == "routed" and _answers_twice(conversation):  # one of the answers would ask
                self._metrics.count_prefix_break("many_answers")
                return replace(untouched(conversation, "many_answers"), prefix_break="many_answers")
        plan = self._apply(plan, pin, seen, destination, known=plan.pin_state == "found")
        if plan.undone and plan.pin_state != "found":
            pin = structs.replace(pin, arm="whole", kept=(), indexed=(), schemas=False, reason=f"undone_{plan.undone}")
        elif plan.undone:
            broken = f"undone_{plan.undone}"
        plan = replace(plan, pin=noted(pin, seen, conversation), reason=pin.reason, prefix_break=broken)
        if keep:
            await self._keep(plan, seen)
        return plan

    async def _pin(self, conversation: Conversation, seen: Seen) -> Pin | None:
        """The pin; looked for among all processes where this one has not seen the last turn of the conversation."""
        pin = await self._pins.get(seen.key)
        if pin is not None:
            unseen = conversation.messages[pin.sent_messages :]
            if sum(message.role == "assistant" for message in unseen) > 1:
                pin = await self._pins.get(seen.key, fresh=True) or pin
        return pin

    async def _first_sight(
        self, conversation: Conversation, destination: Destination, seen: Seen, tools: str
    ) -> tuple[Pin | None, Routing | None, Seen]:
        """A new pin; none where the tools are so small that nothing is ever done about them."""
        snapshot = self._snapshots.current
        pin = Pin(snapshot=snapshot.version, arm="whole", tool_set="")
        warm = seen.prepared is not None and self._router.knows(seen.prepared.tool_set)
        deadline_s = asyncio.get_running_loop().time() + (self._limits.warm_s if warm else self._limits.cold_s)
        try:
            async with asyncio.timeout_at(deadline_s):
                prepared = seen.prepared or await self._shelf.of(tools, conversation.tools)
                seen = replace(seen, prepared=prepared)
                if self._is_small(prepared, seen.switches):
                    return None, None, seen
                pin = structs.replace(pin, tool_set=prepared.tool_set.fingerprint, schemas=seen.switches.schemas)
                why = _whole(conversation, seen.switches, destination)
                if why:
                    return structs.replace(pin, reason=why), None, seen
                routing = await self._router.route(
                    conversation, prepared, snapshot, seen.switches, destination, deadline_s
                )
        except (TimeoutError, EncoderUnavailable):
            self._metrics.count_late("late")
            return structs.replace(pin, reason="late"), None, seen
        except Exception:  # noqa: BLE001  # as above, and the conversation stays as it is sent now
            _log.exception("tools could not be routed; all are sent")
            self._metrics.count_late("failed")
            return structs.replace(pin, reason="failed"), None, seen
        return self._pinned(pin, routing, seen), routing, seen

    def _is_small(self, prepared: Prepared, switches: Switches) -> bool:
        policy = self._snapshots.current.tools
        return prepared.tokens <= policy.small_tokens and len(prepared.plain) <= (
            switches.k_target or len(prepared.plain)
        )

    def _pinned(self, pin: Pin, routing: Routing, seen: Seen) -> Pin:
        """The pin of a conversation that was routed: most are sent what was chosen, a few everything."""
        pin = structs.replace(pin, reason=routing.reason, method=routing.method or "")
        if not routing.left_out:
            return pin
        held_out = draw(seen.key, "holdout") < self._holdout_ratio
        ratio = self._holdout_ratio
        return structs.replace(
            pin,
            arm="holdout" if held_out else "routed",
            propensity=ratio if held_out else 1 - ratio,
            kept=routing.kept,
            indexed=routing.left_out,
            index=seen.switches.restore,
        )

    def _apply(self, plan: Plan, pin: Pin, seen: Seen, destination: Destination, *, known: bool = False) -> Plan:
        asked, prepared = plan.asked, seen.prepared
        if prepared is None:
            applied = Applied(conversation=asked, tools_output=len(asked.tools))
        else:
            applied = apply(asked, pin, prepared, destination, seen.digests)
        plan = replace(
            plan,
            conversation=applied.conversation,
            seen=seen,
            pin=pin,
            restorable=applied.restorable,
            restored=applied.restored,
            tools_output=applied.tools_output,
        )
        undone = fault(asked, applied.conversation, destination.dialect, known=known)
        if undone:
            plan = replace(
                plan,
                conversation=asked,
                restorable={},
                restored=(),
                tools_output=len(asked.tools),
                undone=undone,
            )
        if prepared is None:
            return plan
        return replace(plan, tool_tokens_in=prepared.tokens, tool_tokens_out=_tokens_out(plan, pin, prepared))

    async def _keep(self, plan: Plan, seen: Seen) -> None:
        assert plan.pin is not None
        if plan.pin_state == "lost":
            self._metrics.pins_lost.inc()
        if plan.prefix_break:
            self._metrics.count_prefix_break(plan.prefix_break)
        await self._pins.put(seen.key, plan.pin)

    def _remember(self, head: str, tools: str) -> None:
        self._heads[head] = tools
        self._heads.move_to_end(head)
        if len(self._heads) > _MAX_HEADS:
            self._heads.popitem(last=False)


def _read(conversation: Conversation) -> tuple[tuple[str, ...], str]:
    return digests(conversation), tools_digest(conversation.tools)


def _whole(conversation: Conversation, switches: Switches, destination: Destination) -> str:
    """Why all tools are sent although there is something to choose from."""
    choice = conversation.tool_choice
    if destination.capabilities.prefix_bound and not destination.takes_additions and switches.restore:
        return "prefix_bound"  # no tool could come back without breaking the reasoning that was done meanwhile
    if not switches.tools:
        return "tools_off"
    if _answers_twice(conversation):
        return "many_answers"
    if choice is not None and (choice.mode == "any" or (choice.mode == "allowed" and choice.required)):
        return "forced"
    if choice is not None and choice.mode == "allowed":
        return "restricted"
    return ""


def _answers_twice(conversation: Conversation) -> bool:
    return (conversation.sampling.get("n") or 1) != 1


def _tokens_out(plan: Plan, pin: Pin, prepared: Prepared) -> int:
    if not plan.edited:
        return prepared.tokens
    sizes = prepared.full_short if pin.schemas else prepared.full_plain
    if pin.arm != "routed":
        return int(sizes.full.sum())
    at = prepared.tool_set.positions
    sent = {at[name][0] for name in (*pin.kept, *plan.restored)}
    listed = [at[name][0] for name in plan.restorable]
    return int(sizes.full[list(sent)].sum() + sizes.line[listed].sum())
