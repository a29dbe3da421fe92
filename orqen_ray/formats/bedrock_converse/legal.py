"""Conversations of other formats, made such that Converse takes them; what it cannot take is named."""

from __future__ import annotations

from dataclasses import replace

from orqen_ray.conversation import (
    Conversation,
    Document,
    Message,
    OutputFormat,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
)
from orqen_ray.formats.adapt import MIN_TOP_P_THINKING, Adapted, adapt, tools_called
from orqen_ray.formats.bedrock_converse.legal_blocks import (
    PLACEHOLDER,
    TOOL_ID,
    LegalBlocks,
)
from orqen_ray.types import Capabilities

_TIERS = frozenset({"default", "priority", "flex", "reserved"})
_DEFAULT_TIERS = frozenset({"auto", "standard_only"})
_MIN_BUDGET = 1024
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576, "max": 32768}
_EFFORTS = {"minimal": "low"}


def legal_conversation(conversation: Conversation, model: str, capabilities: Capabilities) -> Adapted:
    """`conversation` as one of this format, ready to be written for `model`."""
    adapted = adapt(
        conversation,
        capabilities,
        tool_id_pattern=TOOL_ID,
        mid_system=capabilities.mid_conversation_system,
        mid_tools=False,  # in the service model, but refused: https://github.com/stdapi-ai/stdapi.ai/issues/104
        alternate=True,
    )
    source = adapted.conversation
    legal = LegalBlocks(
        images=capabilities.images,
        documents=capabilities.documents,
        thinking=capabilities.thinking != "none",
        markers=capabilities.cache_markers,
        ttl=capabilities.cache_ttl,
        dropped=list(adapted.dropped),
    )
    dropped = legal.dropped
    # In the order of the prompt, so that the names of documents never depend on what comes later.
    tools = _legal_tools(source, capabilities, legal)
    system = tuple(block for block in legal.blocks(source.system, "system") if isinstance(block, Text))
    messages = _legal_messages(source, legal)
    tools = tools or tools_called(messages)
    choice = _legal_choice(source.tool_choice, tools, dropped)
    reasoning, max_tokens = _legal_reasoning(
        replace(source, messages=messages, tool_choice=choice), capabilities, dropped
    )
    dropped.extend(source.extra)
    dropped.extend(name for name, lost in _cannot_say(source) if lost)
    return Adapted(
        conversation=Conversation(
            format="bedrock_converse",
            model=model,
            messages=messages,
            system=system,
            tools=tools,
            tool_choice=choice,
            max_tokens=max_tokens,
            stop=_legal_stop(source.stop, dropped),
            sampling=_legal_sampling(source, model, reasoning, dropped),
            reasoning=reasoning,
            output_format=_legal_output(source.output_format, capabilities, dropped),
            include_usage=True,
            auto_cache=source.auto_cache and legal.marker(source.auto_cache, ""),
            service_tier=source.service_tier if source.service_tier in _TIERS else None,
        ),
        dropped=tuple(dict.fromkeys(dropped)),
    )


def _cannot_say(source: Conversation) -> tuple[tuple[str, bool], ...]:
    return (
        ("user", source.user is not None),
        ("parallel_tool_calls", source.parallel_tool_calls is False),
        ("service_tier", source.service_tier is not None and source.service_tier not in _TIERS | _DEFAULT_TIERS),
    )


# --- Messages ---------------------------------------------------------------------------------------------------


def _legal_messages(source: Conversation, legal: LegalBlocks) -> tuple[Message, ...]:
    """The user speaks first, roles alternate, and no message is without content."""
    messages: list[Message] = []
    for i, message in enumerate(source.messages):
        path = f"messages[{i}]"
        legal.dropped.extend(f"{path}.{name}" for name in message.extra)
        blocks = legal.blocks(message.blocks, f"{path}.content")
        if not blocks:
            continue
        if messages and messages[-1].role == message.role != "system":
            blocks = (*messages.pop().blocks, *blocks)
        messages.append(Message(role=message.role, blocks=blocks))
    if not messages or messages[0].role != "user":
        messages.insert(0, Message(role="user", blocks=(Text(text=PLACEHOLDER),)))
    return tuple(map(_with_text, messages))


def _with_text(message: Message) -> Message:
    """A message with a document must have text too.

    Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Message.html
    """
    kinds = {type(block) for block in message.blocks}
    if Document not in kinds or Text in kinds:
        return message
    return replace(message, blocks=(*message.blocks, Text(text=PLACEHOLDER)))


# --- Tools ------------------------------------------------------------------------------------------------------


def _legal_tools(source: Conversation, capabilities: Capabilities, legal: LegalBlocks) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for i, tool in enumerate(source.tools):
        path = f"tools[{i}]"
        if tool.raw is not None or tool.custom:
            legal.dropped.append(path)
        else:
            legal.extra(tool, path)
            if tool.defer_loading:
                legal.dropped.append(f"{path}.defer_loading")
            if tool.strict and not capabilities.structured_output:
                legal.dropped.append(f"{path}.strict")
            tools.append(
                Tool(
                    name=tool.name,
                    description=tool.description if tool.description and tool.description.strip() else None,
                    parameters={"type": "object", **(tool.parameters or {})},
                    strict=(tool.strict and capabilities.structured_output) or None,
                )
            )
        legal.mark(tools if capabilities.cache_markers_on_tools else [], tool.cache, path)
    return tuple(tools)


def _legal_choice(choice: ToolChoice | None, tools: tuple[Tool, ...], dropped: list[str]) -> ToolChoice | None:
    """Converse knows auto, any and one tool: it cannot forbid tools, nor allow only some of them."""
    if choice is None or not tools:
        return None
    dropped.extend(f"tool_choice.{name}" for name in choice.extra)
    known = {tool.name for tool in tools}
    if choice.mode in ("tool", "allowed") and len(choice.names) == 1 and (choice.required or choice.mode == "tool"):
        if choice.names[0] in known:
            return ToolChoice(mode="tool", names=choice.names)
    elif choice.mode == "allowed":
        dropped.append("tool_choice.names")
        return ToolChoice(mode="any" if choice.required else "auto")
    elif choice.mode in ("auto", "any"):
        return ToolChoice(mode=choice.mode)
    dropped.append("tool_choice")
    return None


# --- How to answer ----------------------------------------------------------------------------------------------


def _legal_stop(stop: tuple[str, ...], dropped: list[str]) -> tuple[str, ...]:
    legal = tuple(text for text in stop if text.strip())
    if len(legal) < len(stop):
        dropped.append("stop")
    return legal


def _legal_output(output: OutputFormat | None, capabilities: Capabilities, dropped: list[str]) -> OutputFormat | None:
    if output is None or output.kind == "text":
        return None
    if output.kind != "schema" or output.schema is None or not capabilities.structured_output:
        dropped.append("output_format")
        return None
    return replace(output, strict=None, schema_text=None)


def _legal_sampling(
    source: Conversation, model: str, reasoning: Reasoning | None, dropped: list[str]
) -> dict[str, float | int]:
    """Temperature is at most 1 here. Claude takes `top_k` as a field of its own; neither, and no low `top_p`, thinking.

    Source: docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html
    """
    legal = {name: value for name, value in source.sampling.items() if name in ("temperature", "top_p", "top_k")}
    dropped.extend(name for name in source.sampling if name not in legal)
    thinks = reasoning is not None and reasoning.mode in ("on", "adaptive")
    if "top_k" in legal and (thinks or "claude" not in model):
        dropped.append("top_k")
        del legal["top_k"]
    top_p = legal.get("top_p")
    if top_p is not None and thinks and top_p < MIN_TOP_P_THINKING:
        dropped.append("top_p")
        del legal["top_p"]
    temperature = legal.get("temperature")
    if temperature is not None and thinks and temperature != 1:
        dropped.append("temperature")
        del legal["temperature"]
    elif temperature is not None and temperature > 1:
        dropped.append("temperature")
        legal["temperature"] = 1.0
    return legal


def _legal_reasoning(
    source: Conversation, capabilities: Capabilities, dropped: list[str]
) -> tuple[Reasoning | None, int | None]:
    """What to ask of reasoning, and the token limit that leaves room for it."""
    wanted = source.reasoning
    if wanted is None or (wanted.mode is None and wanted.effort is None):
        return None, source.max_tokens
    off = wanted.mode == "off" or (wanted.mode is None and wanted.effort == "none")
    forced = source.tool_choice is not None and source.tool_choice.mode in ("any", "tool")
    if off:
        return (Reasoning(mode="off") if capabilities.thinking == "adaptive" else None), source.max_tokens
    if capabilities.thinking == "none" or forced:  # Claude does not think when a tool is forced upon it
        dropped.append("reasoning")
        return None, source.max_tokens
    if capabilities.thinking == "adaptive":
        if wanted.budget_tokens is not None:
            dropped.append("reasoning.budget_tokens")
        effort = _EFFORTS.get(wanted.effort or "", wanted.effort)
        return Reasoning(mode="adaptive", effort=effort, display=wanted.display), source.max_tokens
    budget = max(wanted.budget_tokens or _BUDGETS.get(wanted.effort or "medium", 8192), _MIN_BUDGET)
    limit = source.max_tokens or capabilities.default_max_tokens + budget
    if budget >= limit:
        budget = max(limit // 2, _MIN_BUDGET)
    if budget >= limit or _in_unsigned_loop(source.messages):
        dropped.append("reasoning")
        return None, source.max_tokens
    return Reasoning(mode="on", budget_tokens=budget, display=wanted.display), limit


def _in_unsigned_loop(messages: tuple[Message, ...]) -> bool:
    """The model waits for results of calls that it made without thinking; with a budget, Claude then refuses to think.

    Source: docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html
    """
    if not messages or not any(isinstance(block, ToolResult) for block in messages[-1].blocks):
        return False
    turn = next((message for message in reversed(messages) if message.role == "assistant"), None)
    return turn is not None and not isinstance(turn.blocks[0], Thinking)
