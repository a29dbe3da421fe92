"""Views of a conversation: the short texts that tools are scored against, newest words first in importance."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orqen_ray.conversation import Block, Conversation, Message, Text, ToolCall, ToolResult, lasting
from orqen_ray.tools.cards import READ_VERBS, WRITE_VERBS
from orqen_ray.tools.words import split_name

VIEW_NAMES = ("last", "first", "recent", "call", "assistant", "system", "clause")
"""Every kind of view; a conversation has one text of each at most, and several of the last."""

_VIEW_CHARS, _NEWEST_CHARS, _TURN_CHARS, _SYSTEM_CHARS, _RESULT_CHARS, _ARGUMENTS_CHARS = 500, 240, 120, 300, 240, 160
_READ_CHARS = 20_000
_RECENT_MESSAGES = 6
_CLAUSED_CHARS, _SENTENCED_CHARS = 225, 800
"""A longer request is a story: its clauses match tools that it does not ask for, unless they begin with a verb."""
_CLAUSES_MAX, _CLAUSE_WORDS = 8, 2
_CLAUSE = re.compile(r"[.;!?\n,]+(?=\s|$)|\b(?:and|then|also|after that)\b", re.IGNORECASE)
_VERBS = "|".join(sorted(READ_VERBS | WRITE_VERBS | {"make", "generate", "give", "let", "tell", "determine"}))
_TASK = re.compile(
    rf"[.;!?\n]+(?=\s|$)|(?:,|\band\b|\bthen\b)\s+(?=(?:(?:and|then|also|finally|please|lastly)\s+)*(?:{_VERBS})\b)",
    re.IGNORECASE,
)
_REMINDER, _REMINDER_END = "<system-reminder>", "</system-reminder>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What a conversation is about, as texts of at most some 500 characters; "" where there is none.

    Attributes:
        last: the user's newest words. `first`: the first request, if that is another. `recent`: the last three turns
            or so, if there are several messages.
        call: the last tool call with its result. `assistant`: the model's newest words. `system`: its domain.
        clauses: the parts of `last`, when it seems to ask for several things.
        called: names of the tools called so far, in order. `failed`: the last result was an error.
    """

    last: str = ""
    first: str = ""
    recent: str = ""
    call: str = ""
    assistant: str = ""
    system: str = ""
    clauses: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    failed: bool = False

    def texts(self) -> tuple[tuple[str, str], ...]:
        """(kind, text) for every view that says something; a text that repeats an earlier one is still named."""
        found = [(name, getattr(self, name)) for name in VIEW_NAMES[:-1]]
        found += [("clause", part) for part in self.clauses]
        return tuple((name, text.encode(errors="replace").decode()) for name, text in found if text)


def views_of(conversation: Conversation) -> Views:
    """The views of a conversation up to now. Bounded in time by the number of messages and some 20,000 characters."""
    messages = conversation.messages
    said = [(message, _text(message.blocks)) for message in messages if message.role != "system"]
    asked = [text for message, text in said if message.role == "user" and text]
    answered = [text for message, text in said if message.role == "assistant" and text]
    last = asked[-1] if asked else ""
    recent = [_as_said(message, text) for message, text in said[-_RECENT_MESSAGES:]]
    recent = [_cut(text, _TURN_CHARS) for text in recent[:-1]] + [_cut(text, _NEWEST_CHARS) for text in recent[-1:]]
    systems = [_text(message.blocks) for message in messages[:4] if message.role == "system"]
    system = " ".join(filter(None, [_text(lasting(conversation.system)), *systems]))
    calls = [block for message in messages for block in message.blocks if isinstance(block, ToolCall)]
    result = _last_result(messages)
    return Views(
        last=_cut(last, _VIEW_CHARS),
        first=_cut(asked[0], _VIEW_CHARS) if len(asked) > 1 else "",
        recent=" | ".join(filter(None, recent))[-_VIEW_CHARS:] if len(said) > 1 else "",
        call=_call(calls[-1], result) if calls else "",
        assistant=_cut(answered[-1], _VIEW_CHARS) if answered else "",
        system=system[:_SYSTEM_CHARS],
        clauses=clauses_of(last),
        called=tuple(dict.fromkeys(call.name for call in calls)),
        failed=result is not None and result.is_error,
    )


def clauses_of(request: str) -> tuple[str, ...]:
    """The parts of a request that asks for several things; () when it has one part or is too long to be taken apart."""
    if len(request) > _SENTENCED_CHARS:
        return ()
    between = _CLAUSE if len(request) <= _CLAUSED_CHARS else _TASK
    parts = [" ".join(part.split()) for part in between.split(request)]
    parts = [part for part in parts if len(part.split()) >= _CLAUSE_WORDS]
    return tuple(dict.fromkeys(parts))[:_CLAUSES_MAX] if len(parts) > 1 else ()


def user_text(conversation: Conversation) -> str:
    """All that the user wrote, for names of tools in it."""
    texts = [_text(message.blocks) for message in conversation.messages if message.role == "user"]
    return "\n".join(texts)[-_READ_CHARS:]


def _text(blocks: Iterable[Block]) -> str:
    text = "\n".join(block.text[:_READ_CHARS] for block in blocks if isinstance(block, Text))
    return _without_reminders(text).strip()


def _without_reminders(text: str) -> str:
    """What an agent's harness puts among the user's words is not what the user asks for."""
    kept, at = [], 0
    while (start := text.find(_REMINDER, at)) >= 0 and (end := text.find(_REMINDER_END, start)) >= 0:
        kept.append(text[at:start])
        at = end + len(_REMINDER_END)
    return "".join((*kept, text[at:]))


def _as_said(message: Message, text: str) -> str:
    calls = [split_name(block.name) for block in message.blocks if isinstance(block, ToolCall)]
    return " ".join(filter(None, [text, *calls]))


def _last_result(messages: tuple[Message, ...]) -> ToolResult | None:
    for message in reversed(messages[-3:]):
        for block in reversed(message.blocks):
            if isinstance(block, ToolResult):
                return block
    return None


def _call(call: ToolCall, result: ToolResult | None) -> str:
    given = _text(result.blocks)[:_RESULT_CHARS] if result is not None else ""
    text = f"{split_name(call.name)} {call.arguments[:_ARGUMENTS_CHARS]} {given}"
    return " ".join(text.split())[:_VIEW_CHARS]


def _cut(text: str, chars: int) -> str:
    """Beginning and end: a long request says at either what it wants."""
    text = " ".join(text.split())
    return text if len(text) <= chars else f"{text[: chars * 3 // 5]} {text[-chars * 2 // 5 :]}"
