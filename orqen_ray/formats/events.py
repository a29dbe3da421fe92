"""Whole replies as streams of events, and the facts of a stream: one treatment for both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orqen_ray.conversation import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    Facts,
    Refusal,
    Reply,
    ReplyEnd,
    ReplyStart,
    StopReason,
    StreamFailure,
    Text,
    Thinking,
    ToolCall,
    Usage,
)


def events_of(reply: Reply) -> list[Event]:
    """The stream that would have carried `reply`, for a provider that answers a stream request in one piece."""
    events: list[Event] = [ReplyStart(id=reply.id, model=reply.model, usage=reply.usage)]
    for index, block in enumerate(reply.blocks):
        match block:
            case Text(text=text):
                events += [BlockStart(index=index, block=replace(block, text="")), _delta(index, "text", text)]
            case Refusal(text=text):
                events += [BlockStart(index=index, block=replace(block, text="")), _delta(index, "refusal", text)]
            case ToolCall(arguments=arguments):
                start = BlockStart(index=index, block=replace(block, arguments=""))
                events += [start, _delta(index, "arguments", arguments)]
            case Thinking(redacted=None, text=text, signature=signature):
                events += [BlockStart(index=index, block=Thinking()), _delta(index, "thinking", text)]
                if signature:
                    events.append(_delta(index, "signature", signature))
            case _:
                events.append(BlockStart(index=index, block=block))
        events.append(BlockStop(index=index))
    end = ReplyEnd(stop_reason=reply.stop_reason, stop_sequence=reply.stop_sequence, usage=reply.usage)
    return [*events, end]


def _delta(index: int, kind: str, text: str) -> BlockDelta:
    return BlockDelta(index=index, kind=kind, text=text)  # type: ignore[arg-type]  # the callers above name real kinds


def facts_of(reply: Reply) -> Facts:
    watch = Watch()
    for event in events_of(reply):
        watch.observe(event)
    return watch.facts


@dataclass(slots=True)
class Watch:
    """Collects `Facts` from events as they pass."""

    served_model: str | None = None
    usage: Usage | None = None
    stop_reason: StopReason | None = None
    tool_names: list[str] = field(default_factory=list)
    output_chars: int = 0
    failure: str | None = None

    def observe(self, event: Event) -> None:
        match event:
            case BlockDelta(text=text):
                self.output_chars += len(text)
            case BlockStart(block=ToolCall(name=name)):
                self.tool_names.append(name)
            case ReplyStart(model=model, usage=usage):
                self.served_model, self.usage = model or None, usage
            case ReplyEnd(stop_reason=stop_reason, usage=usage):
                self.stop_reason, self.usage = stop_reason, usage or self.usage
            case StreamFailure(message=message):
                self.failure = message
            case _:
                pass

    @property
    def facts(self) -> Facts:
        return Facts(
            served_model=self.served_model,
            usage=self.usage,
            stop_reason=self.stop_reason,
            tool_names=tuple(self.tool_names),
            output_chars=self.output_chars,
            failure=self.failure,
        )
