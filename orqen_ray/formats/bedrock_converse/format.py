"""The Amazon Bedrock Converse format, all of it."""

from __future__ import annotations

from orqen_ray.formats.bedrock_converse.errors import read_error, write_error
from orqen_ray.formats.bedrock_converse.reply import read_reply, write_reply
from orqen_ray.formats.bedrock_converse.request_in import read_request
from orqen_ray.formats.bedrock_converse.request_out import write_request
from orqen_ray.formats.bedrock_converse.scan import scan_reply, stream_scanner
from orqen_ray.formats.bedrock_converse.stream_in import ConverseStreamReader
from orqen_ray.formats.bedrock_converse.stream_out import stream_writer
from orqen_ray.formats.format import Format

BEDROCK_CONVERSE: Format = Format(
    name="bedrock_converse",
    read_request=read_request,
    write_request=write_request,
    read_reply=read_reply,
    write_reply=write_reply,
    read_error=read_error,
    write_error=write_error,
    stream_reader=ConverseStreamReader,
    stream_writer=stream_writer,
    scan_reply=scan_reply,
    stream_scanner=stream_scanner,
)
