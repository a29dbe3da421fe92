"""The blocks of an answer, put together from its events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orqen_ray.conversation import Block, BlockDelta, BlockStart, Refusal, Text, Thinking, ToolCall


@dataclass(slots=True)
class _Part:
    block: Block
    text: list[str] = field(default_factory=list)
    signature: list[str] = field(default_factory=list)

    def whole(self) -> Block:
        text, block = "".join(self.text), self.block
        match block:
            case Text() | Refusal() if text:
                return replace(block, text=block.text + text)
            case Thinking() if text or self.signature:
                signature = "".join((block.signature or "", *self.signature)) or None
                return replace(block, text=block.text + text, signature=signature)
            case ToolCall() if text:
                return replace(block, arguments=block.arguments + text)
        return block


class Said:
    """Collects blocks; one that came whole is given back as the same object."""

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}

    def start(self, event: BlockStart) -> None:
        self._parts[event.index] = _Part(event.block)

    def more(self, event: BlockDelta) -> None:
        part = self._parts[event.index]
        if event.kind != "other":
            (part.signature if event.kind == "signature" else part.text).append(event.text)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """In the order in which they began."""
        return tuple(part.whole() for part in self._parts.values())
