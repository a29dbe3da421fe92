"""A planner over pins in memory and a scorer that wants what the last user message names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from orqen_ray.conversation import CacheMarker, Conversation, FormatName, Message, Text, Tool, ToolCall, ToolResult
from orqen_ray.metrics import Metrics
from orqen_ray.pins import Pin
from orqen_ray.planning.applying import Destination
from orqen_ray.planning.plan import Plan
from orqen_ray.planning.planner import Limits, Planner
from orqen_ray.planning.routing import Router
from orqen_ray.planning.switches import Switches
from orqen_ray.policy import Snapshot, Snapshots, ToolPolicy
from orqen_ray.tools.routing import Scored
from orqen_ray.types import Capabilities

PROPERTIES = {f"p{i}": {"type": "string", "title": f"P {i}", "description": f"The value number {i}."} for i in range(9)}
TOOLS = tuple(
    Tool(name=f"tool_{i}", description=f"Does the thing number {i}, whatever it may be.", parameters={
        "type": "object", "properties": PROPERTIES})
    for i in range(40)
)  # fmt: skip
# To lack a tool costs nothing, so what is sent depends on the scores alone.
POLICY = ToolPolicy(bias=0, weights={}, expected_calls=40, ask_rate=0, lost_answer_tokens=0)
# Without additions, tools are left out where nothing is cached.
PLAIN = Destination(dialect="bedrock_converse", capabilities=Capabilities())
ADDS = Destination(dialect="anthropic_messages", capabilities=Capabilities(mid_conversation_tools=True))


class Memory:
    """Implements `Pins` for one process, over what all share."""

    def __init__(self, shared: dict[str, Pin] | None = None) -> None:
        self.shared = {} if shared is None else shared
        self.own: dict[str, Pin] = {}

    async def get(self, conversation: str, *, fresh: bool = False) -> Pin | None:
        if conversation not in self.own or fresh:
            found = self.shared.get(conversation)
            if found is not None:
                self.own[conversation] = found
        return self.own.get(conversation)

    async def put(self, conversation: str, pin: Pin) -> None:
        self.own[conversation] = self.shared[conversation] = pin


@dataclass
class NamingScorer:
    """Scores what the last user message names; counts how often it was asked, and fails if it shall."""

    asked: int = 0
    error: Exception | None = None
    seen: list[Conversation] = field(default_factory=list)

    async def score(self, conversation: Conversation, tools: Any, *rest: Any) -> Scored:
        self.asked += 1
        self.seen.append(conversation)
        if self.error is not None:
            raise self.error
        words = {w for m in conversation.messages for b in m.blocks if isinstance(b, Text) for w in b.text.split()}
        needed = np.array([0.9 if name in words else 0.0001 for name in tools.names])
        return Scored(names=tools.names, p_needed=needed, method="semantic")


@dataclass
class Lab:
    scorer: NamingScorer = field(default_factory=NamingScorer)
    pins: Memory = field(default_factory=Memory)
    metrics: Metrics = field(default_factory=Metrics)
    snapshots: Snapshots = field(
        default_factory=lambda: Snapshots(
            Snapshot(version="1", tools=ToolPolicy(bias=0, weights={}, expected_calls=40))
        )
    )
    holdout_ratio: float = 0.0

    def __post_init__(self) -> None:
        self.planner = self.process()

    def process(self, pins: Memory | None = None) -> Planner:
        """A planner of another process; `pins` that share with this one's."""
        return Planner(
            Router(self.scorer),  # type: ignore[arg-type]
            self.snapshots,
            pins or self.pins,
            self.metrics,
            holdout_ratio=self.holdout_ratio,
            limits=Limits(warm_s=5, cold_s=5),
        )

    async def plan(
        self, asked: Conversation, to: Destination = PLAIN, *, planner: Planner | None = None, **switches: Any
    ) -> Plan:
        planner = planner or self.planner
        return await planner.plan(asked, to, Switches(**switches), key_id="key", session="")


def talk(*texts: str, tools: Sequence[Tool] = TOOLS, format_: FormatName = "openai_chat", **more: Any) -> Conversation:
    """User and model in turn. A text `call NAME` of the model is a call, and what follows it the result."""
    messages = []
    for at, text in enumerate(texts):
        role = "assistant" if at % 2 else "user"
        block: Any = Text(text=text)
        if role == "assistant" and text.startswith("call "):
            block = ToolCall(id=f"c{at}", name=text.removeprefix("call "), arguments="{}")
        elif at and texts[at - 1].startswith("call "):
            block = ToolResult(call_id=f"c{at - 1}", blocks=(Text(text=text),))
        messages.append(Message(role=role, blocks=(block,)))  # type: ignore[arg-type]
    return Conversation(format=format_, model="m", messages=tuple(messages), tools=tuple(tools), **more)


def marked(conversation: Conversation, at: int) -> Conversation:
    """With a cache marker on the last block of message `at`, and on none before."""
    message = conversation.messages[at]
    last = replace(message.blocks[-1], cache=CacheMarker())  # type: ignore[arg-type]
    messages = [*conversation.messages]
    messages[at] = replace(message, blocks=(*message.blocks[:-1], last))
    return replace(conversation, messages=tuple(messages))


def names(plan: Plan) -> list[str]:
    return [tool.name for tool in plan.conversation.tools]
