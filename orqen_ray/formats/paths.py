"""Where each format's calls live below a provider's base URL."""

from __future__ import annotations

from urllib.parse import quote

from orqen_ray.conversation import FormatName


def chat_path(format_name: FormatName, model_id: str, *, stream: bool) -> str:
    """The URL-encoded path of a chat call. Bedrock's names the model, with every reserved character encoded."""
    match format_name:
        case "openai_chat":
            return "/chat/completions"
        case "anthropic_messages":
            return "/v1/messages"
        case "bedrock_converse":
            return bedrock_path(model_id, "converse-stream" if stream else "converse")


def bedrock_path(model_id: str, operation: str) -> str:
    return f"/model/{quote(model_id, safe='')}/{operation}"
