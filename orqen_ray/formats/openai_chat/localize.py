"""Makes a conversation of another format one that Chat Completions can say, and names what it cannot."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby

from orqen_ray.conversation import (
    Block,
    CacheMarker,
    Conversation,
    Document,
    FormatName,
    Image,
    Message,
    Opaque,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from orqen_ray.formats.adapt import Adapted, adapt
from orqen_ray.types import Capabilities

_FORMAT: FormatName = "openai_chat"
# OpenAI refuses longer ids: "string too long. Expected a string with maximum length 40".
_TOOL_ID = r".{1,40}"
# https://platform.openai.com/docs/guides/safety-best-practices (safety identifiers have the same limit)
_USER_LIMIT = 64
# Anthropic's budgets as OpenAI's words: up to so many tokens is this effort.
_EFFORTS = ((4096, "low"), (16384, "medium"))


def localize(conversation: Conversation, capabilities: Capabilities) -> Adapted:
    """A conversation of this format that means the same, as far as the format and the model can carry it."""
    adapted = adapt(
        conversation,
        capabilities,
        tool_id_pattern=_TOOL_ID,
        mid_system=capabilities.mid_conversation_system,
        mid_tools=False,
        alternate=False,
    )
    work = _Localizer(capabilities, dict.fromkeys(adapted.dropped))
    localized = work.conversation(adapted.conversation)
    return Adapted(conversation=localized, dropped=tuple(work.dropped))


@dataclass(frozen=True, slots=True)
class _Localizer:
    capabilities: Capabilities
    dropped: dict[str, None] = field(default_factory=dict)
    """An ordered set."""

    def drop(self, *paths: str) -> None:
        self.dropped.update(dict.fromkeys(paths))

    def conversation(self, source: Conversation) -> Conversation:
        self.drop(*source.extra)
        if source.service_tier is not None:  # another vendor's tiers are another vendor's prices
            self.drop("service_tier")
        tools = self._tools(source.tools)
        output_format = source.output_format
        if output_format and not self.capabilities.structured_output:
            self.drop("output_format")
            output_format = None
        return replace(
            source,
            format=_FORMAT,
            system=(),
            messages=(*self._head(source.system), *self._messages(source.messages)),
            tools=tools,
            # OpenAI refuses both fields in a request without tools.
            tool_choice=self._tool_choice(source.tool_choice, tools) if tools else None,
            parallel_tool_calls=source.parallel_tool_calls if tools else None,
            reasoning=self._reasoning(source.reasoning),
            output_format=output_format,
            include_usage=source.stream and self.capabilities.stream_usage,
            auto_cache=self._cache(source.auto_cache),
            user=_user(source.user),
            service_tier=None,
            extra={},
            wire=None,
        )

    def _reasoning(self, reasoning: Reasoning | None) -> Reasoning | None:
        if reasoning is None or (reasoning.mode is None and reasoning.effort is None):
            return None
        if self.capabilities.thinking == "none":
            self.drop("thinking")
            return None
        if reasoning.display is not None:
            self.drop("thinking.display")
        if reasoning.mode == "off":
            return Reasoning(mode="off")
        effort = reasoning.effort
        if effort is None and reasoning.mode == "on":
            budget = reasoning.budget_tokens
            words = (word for limit, word in _EFFORTS if budget is None or budget <= limit)
            effort = "medium" if budget is None else next(words, "high")
        return Reasoning(mode="on", effort=effort) if effort else None

    def _tools(self, tools: Iterable[Tool]) -> tuple[Tool, ...]:
        out: list[Tool] = []
        for i, tool in enumerate(tools):
            if tool.raw is not None:
                self.drop(f"tools[{i}]")
                continue
            self.drop(*(f"tools[{i}].{key}" for key in tool.extra))
            parameters = tool.parameters or {"type": "object", "properties": {}}
            cache = self._cache(tool.cache)
            out.append(replace(tool, parameters=parameters, cache=cache, extra={}, wire=None))
        return tuple(out)

    def _tool_choice(self, choice: ToolChoice | None, tools: tuple[Tool, ...]) -> ToolChoice | None:
        """The choice, unless it names a tool that could not come along."""
        if choice is None or {tool.name for tool in tools}.issuperset(choice.names):
            return choice
        self.drop("tool_choice")
        return None

    # --- Messages ---

    def _head(self, system: tuple[Block, ...]) -> tuple[Message, ...]:
        blocks = self._content(system, "system")
        return (Message(role="system", blocks=_joined(blocks, "\n\n")),) if blocks else ()

    def _messages(self, messages: tuple[Message, ...]) -> list[Message]:
        """Results come right after the calls they answer, whatever stands before them in the user's turn."""
        out: list[Message] = []
        numbered = enumerate(messages)
        for is_model, run in groupby(numbered, key=lambda item: item[1].role == "assistant"):
            turn = list(run)
            for i, message in turn:
                self.drop(*(f"messages[{i}].{key}" for key in message.extra))
            if is_model:
                out += [said for i, message in turn if (said := self._assistant(message, f"messages[{i}]"))]
                continue
            answers, below = self._results(turn)
            others = [(message.role, self._content(message.blocks, f"messages[{i}].content")) for i, message in turn]
            if below:
                at = next((n for n, (role, blocks) in enumerate(others) if role == "user" and blocks), None)
                if at is None:
                    others.insert(0, ("user", below))
                else:
                    others[at] = ("user", [*below, *others[at][1]])
            out += answers
            out += [Message(role=role, blocks=_joined(blocks, "\n\n")) for role, blocks in others if blocks]
        return out

    def _results(self, turn: list[tuple[int, Message]]) -> tuple[list[Message], list[Block]]:
        """The tool messages of a turn, and the media in them, which most servers take from the user only."""
        answers: list[Message] = []
        below: list[Block] = []
        for i, message in turn:
            for j, block in enumerate(message.blocks):
                if isinstance(block, ToolResult):
                    result, media = self._result(block, f"messages[{i}].content[{j}]")
                    answers.append(Message(role="user", wire_role="tool", blocks=(result,)))
                    below += media
        return answers, below

    def _result(self, result: ToolResult, path: str) -> tuple[ToolResult, list[Block]]:
        self.drop(*(f"{path}.{key}" for key in result.extra))
        texts: list[Block] = []
        media: list[Block] = []
        for block in self._content(result.blocks, f"{path}.content"):
            if isinstance(block, Text):
                texts.append(block)
            else:
                media.append(block)
                texts.append(Text(text="[image below]" if isinstance(block, Image) else "[document below]"))
        first = texts[0] if texts else Text(text="")
        if result.is_error and isinstance(first, Text) and not first.text.startswith("Error"):
            texts[:1] = [replace(first, text=f"Error: {first.text}")]
        cache = self._cache(result.cache)
        if cache and texts and isinstance(last := texts[-1], Text):
            texts[-1] = replace(last, cache=cache)
        return ToolResult(call_id=result.call_id, blocks=_joined(texts, "\n")), media

    def _assistant(self, message: Message, path: str) -> Message | None:
        spoken: list[Block] = []
        calls: list[Block] = []
        thinking: list[Block] = []
        for j, block in enumerate(message.blocks):
            if isinstance(block, ToolCall):
                calls.append(self._call(block, f"{path}.content[{j}]"))
            elif isinstance(block, Thinking):
                # A signature is its vendor's seal: others can neither check nor use the block.
                if block.signature or block.redacted or self.capabilities.thinking == "none":
                    self.drop("messages.redacted_thinking" if block.redacted else "messages.thinking")
                else:
                    thinking.append(Thinking(text=block.text))
            elif (kept := self._block(block, f"{path}.content[{j}]")) is not None:
                spoken.append(kept)
        blocks = (*thinking, *_joined(spoken, ""), *calls)
        return Message(role="assistant", blocks=blocks) if blocks else None

    def _call(self, call: ToolCall, path: str) -> ToolCall:
        self.drop(*(f"{path}.{key}" for key in call.extra))
        if call.cache:
            self.drop("cache_control")
        return replace(call, arguments=call.arguments or "{}", cache=None, extra={})

    # --- Content ---

    def _content(self, blocks: Iterable[Block], path: str) -> list[Block]:
        found = (self._block(block, f"{path}[{j}]") for j, block in enumerate(blocks))
        return [block for block in found if block is not None]

    def _block(self, block: Block, path: str) -> Block | None:
        """`block` as a part that this format has; None, and named, if there is none. Results have their own place."""
        if isinstance(block, ToolResult):
            return None
        if not isinstance(block, Opaque):
            self.drop(*(f"{path}.{key}" for key in block.extra))
        match block:
            case Text(text=text):
                return Text(text=text, cache=self._cache(block.cache)) if text else None
            case Refusal(text=text):
                return Refusal(text=text)
            case Image(source=source) if self.capabilities.images and source.kind in ("base64", "url"):
                return Image(source=source, detail=block.detail, cache=self._cache(block.cache))
            case Document():
                return self._document(block, path)
        self.drop(path)
        return None

    def _document(self, document: Document, path: str) -> Block | None:
        if document.citations:
            self.drop(f"{path}.citations")
        cache = self._cache(document.cache)
        text = _text_of(document)
        if text is not None:
            labels = (("name", document.name), ("context", document.context))
            head = "".join(f' {key}="{value}"' for key, value in labels if value)
            return Text(text=f"<document{head}>\n{text}\n</document>", cache=cache)
        if document.source.kind != "base64" or not self.capabilities.documents:
            self.drop(path)
            return None
        if document.context:
            self.drop(f"{path}.context")
        source = replace(document.source, media_type=document.source.media_type or "application/pdf")
        return Document(source=source, name=document.name or "document.pdf", cache=cache)

    def _cache(self, cache: CacheMarker | None) -> CacheMarker | None:
        if cache is not None and not self.capabilities.cache_markers:
            self.drop("cache_control")
            return None
        return cache


def _joined(blocks: Iterable[Block], separator: str) -> tuple[Block, ...]:
    """Plain texts as one, since not every server takes parts; a cache marker keeps its place."""
    found = tuple(blocks)
    texts = [block.text for block in found if isinstance(block, Text) and block.cache is None]
    if not texts or len(texts) != len(found):
        return found
    return (Text(text=separator.join(texts)),)


def _text_of(document: Document) -> str | None:
    """The words of a plain-text document."""
    source = document.source
    if source.kind == "text":
        return source.data
    if source.kind != "base64" or not (source.media_type or "").startswith("text/"):
        return None
    return base64.b64decode(source.data).decode("utf-8", "replace")


def _user(user: str | None) -> str | None:
    """An id that is too long becomes its hash, which tells users apart as well."""
    return hashlib.sha256(user.encode()).hexdigest() if user and len(user) > _USER_LIMIT else user
