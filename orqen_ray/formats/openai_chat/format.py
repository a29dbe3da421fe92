"""OpenAI Chat Completions as a wire format."""

from __future__ import annotations

from orqen_ray.formats.format import Format
from orqen_ray.formats.openai_chat.errors import read_error, write_error
from orqen_ray.formats.openai_chat.reply import read_reply, scan_reply, write_reply
from orqen_ray.formats.openai_chat.request_in import read_request
from orqen_ray.formats.openai_chat.request_out import write_request
from orqen_ray.formats.openai_chat.scan import ChatScanner
from orqen_ray.formats.openai_chat.stream_in import ChatStreamReader
from orqen_ray.formats.openai_chat.stream_out import ChatStreamWriter

OPENAI_CHAT: Format = Format(
    name="openai_chat",
    read_request=read_request,
    write_request=write_request,
    read_reply=read_reply,
    write_reply=write_reply,
    read_error=read_error,
    write_error=write_error,
    stream_reader=ChatStreamReader,
    stream_writer=ChatStreamWriter,
    scan_reply=scan_reply,
    stream_scanner=ChatScanner,
)
