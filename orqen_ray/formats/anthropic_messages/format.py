"""The Anthropic Messages format: `/v1/messages`."""

from __future__ import annotations

from orqen_ray.conversation import Conversation
from orqen_ray.formats.anthropic_messages.errors import read_error, write_error
from orqen_ray.formats.anthropic_messages.reply import read_reply, write_reply
from orqen_ray.formats.anthropic_messages.request_in import read_request
from orqen_ray.formats.anthropic_messages.request_out import write_request
from orqen_ray.formats.anthropic_messages.scan import MessagesScanner, scan_reply
from orqen_ray.formats.anthropic_messages.stream_in import MessagesStreamReader
from orqen_ray.formats.anthropic_messages.stream_out import MessagesStreamWriter
from orqen_ray.formats.format import Format, Scanner, StreamWriter


def _stream_writer(_conversation: Conversation, requested_model: str, response_id: str) -> StreamWriter:
    return MessagesStreamWriter(requested_model, response_id)


def _stream_scanner(_asked_usage: bool) -> Scanner:
    """This vendor always sends usage, so nothing was asked for that must be taken out."""
    return MessagesScanner()


ANTHROPIC_MESSAGES = Format(
    name="anthropic_messages",
    read_request=read_request,
    write_request=write_request,
    read_reply=read_reply,
    write_reply=write_reply,
    read_error=read_error,
    write_error=write_error,
    stream_reader=MessagesStreamReader,
    stream_writer=_stream_writer,
    scan_reply=scan_reply,
    stream_scanner=_stream_scanner,
)
