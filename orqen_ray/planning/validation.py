"""What an edit must not do: a request that would be refused for what the gateway changed goes as it came."""

from __future__ import annotations

from orqen_ray.conversation import Conversation, FormatName, ToolChange
from orqen_ray.planning.applying import called_names
from orqen_ray.tools.limits import MAX_TOOLS, problems


def fault(asked: Conversation, edited: Conversation, dialect: FormatName, *, known: bool = False) -> str:
    """Why `edited` would be refused and `asked` would not, one word; "" when nothing speaks against it.

    Args:
        known: these tools were sent before, so only what the request says of them is looked at.
    """
    if edited is asked:
        return ""
    own = {tool.name for tool in asked.tools}
    available = {tool.name for tool in edited.tools} | _added(edited)
    choice = asked.tool_choice
    if choice is not None and any(name in own and name not in available for name in choice.names):
        return "tool_choice"
    told = choice is not None or asked.parallel_tool_calls is not None  # how to call what is not there
    if told and asked.tools and not edited.tools:
        return "tool_choice"
    # Bedrock refuses a history whose calls it has no definitions for, and the others' models are confused by it.
    if any(name in own and name not in available for name in called_names(asked)):
        return "called_tool"
    if known:
        return ""
    new = problems(edited, dialect)
    if new and not {*new} <= {*problems(asked, dialect)} and not _fewer_too_many(asked, edited, dialect):
        return "illegal"
    return ""


def _fewer_too_many(asked: Conversation, edited: Conversation, dialect: FormatName) -> bool:
    limit = MAX_TOOLS.get(dialect, 0)
    return limit < len(edited.tools) <= len(asked.tools)


def _added(conversation: Conversation) -> set[str]:
    return {
        block.name
        for message in conversation.messages
        for block in message.blocks
        if isinstance(block, ToolChange) and block.action == "add"
    }
