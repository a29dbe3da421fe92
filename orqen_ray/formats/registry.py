"""The wire formats by name."""

from __future__ import annotations

from collections.abc import Mapping

from orqen_ray.conversation import FormatName
from orqen_ray.formats.anthropic_messages.format import ANTHROPIC_MESSAGES
from orqen_ray.formats.bedrock_converse.format import BEDROCK_CONVERSE
from orqen_ray.formats.format import Format
from orqen_ray.formats.openai_chat.format import OPENAI_CHAT

FORMATS: Mapping[FormatName, Format] = {fmt.name: fmt for fmt in (OPENAI_CHAT, ANTHROPIC_MESSAGES, BEDROCK_CONVERSE)}
