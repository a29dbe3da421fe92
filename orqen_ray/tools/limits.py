"""What the vendors refuse in a request's tools, so that an edit never makes a request illegal and an audit can say so.

Sources: https://platform.openai.com/docs/api-reference/chat/create (128 functions, names), https://docs.claude.com/en/
docs/agents-and-tools/tool-use (names; `input_schema` is an object and has no union at the top),
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolSpecification.html (names, a description has at
least one character, calls in the history need their definitions). Nobody documents a limit for descriptions: OpenAI
refused more than 1,024 characters until May 2025, Azure and some who copy the API still do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar

from orqen_ray.conversation import Conversation, FormatName, Tool, ToolCall, ToolChange

Kind = TypeVar("Kind", ToolCall, ToolChange)

MAX_TOOLS: Mapping[FormatName, int] = {"openai_chat": 128}
MAX_NAME_CHARS: Mapping[FormatName, int] = {"openai_chat": 64, "anthropic_messages": 128, "bedrock_converse": 64}
_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_ANTHROPIC_PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_UNIONS = ("anyOf", "oneOf", "allOf")
_SHOWN_CHARS = 80


def problems(conversation: Conversation, dialect: FormatName) -> tuple[str, ...]:
    """Why a provider of `dialect` would refuse the tools, one sentence each; () where nothing speaks against them.

    Linear in the tools and the history, and never raises. A caller's own mistakes are named too: who checks an edit
    compares with what the request said before it.
    """
    names = Counter(tool.name for tool in conversation.tools)
    found = [f"{_shown(name)}: {count} tools have this name" for name, count in names.items() if count > 1]
    limit = MAX_TOOLS.get(dialect)
    if limit is not None and len(conversation.tools) > limit:
        found.append(f"{len(conversation.tools)} tools, over the limit of {limit}")
    for tool in conversation.tools:
        if tool.raw is None:
            found += (f"{_shown(tool.name)}: {why}" for why in _of_tool(tool, dialect))
    added = {block.name for block in _blocks(conversation, ToolChange) if block.action == "add"}
    offered = names.keys() | added
    for name in conversation.tool_choice.names if conversation.tool_choice else ():
        if name not in offered:
            found.append(f"{_shown(name)}: the tool choice names it, and it is not offered")
    if dialect == "bedrock_converse" and not offered and any(True for _ in _blocks(conversation, ToolCall)):
        found.append("the history holds tool calls, and no tool is offered")
    return tuple(found)


def _of_tool(tool: Tool, dialect: FormatName) -> Iterator[str]:
    longest = MAX_NAME_CHARS[dialect]
    if not _NAME.fullmatch(tool.name):
        yield "the name may hold letters, digits, _ and - only"
    if len(tool.name) > longest:
        yield f"the name has {len(tool.name)} characters, over the limit of {longest}"
    if dialect == "bedrock_converse" and tool.description is not None and not tool.description:
        yield "the description is empty; leave it out"
    schema = tool.parameters or {}
    if schema.get("type", "object") != "object":
        yield "the parameters are not an object"
    if dialect == "anthropic_messages":
        if any(union in schema for union in _UNIONS):
            yield "the parameters have anyOf, oneOf or allOf at the top"
        properties = schema.get("properties")
        for name in properties if isinstance(properties, dict) else ():
            if not _ANTHROPIC_PROPERTY.fullmatch(name):
                yield f"the parameter {_shown(name)} may hold letters, digits, _, . and - only, 64 at most"


def _blocks(conversation: Conversation, kind: type[Kind]) -> Iterator[Kind]:
    return (block for message in conversation.messages for block in message.blocks if isinstance(block, kind))


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}...")
