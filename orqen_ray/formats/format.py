"""What a wire format is: pure functions both ways between bytes on the wire and the neutral conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from orqen_ray.conversation import Conversation, Event, Facts, FormatName, JsonObject, Reply, StreamFailure
from orqen_ray.errors import GatewayError, UpstreamRejected
from orqen_ray.types import Capabilities, Written


@dataclass(frozen=True, slots=True, kw_only=True)
class WireError:
    """An error as the caller's SDK expects it."""

    status: int
    headers: Mapping[str, str]
    body: JsonObject


class StreamReader(Protocol):
    """Upstream bytes to events. Any cut of the same bytes into chunks gives the same events."""

    def feed(self, chunk: bytes) -> list[Event]:
        """Events completed by `chunk`. Never raises: bytes that cannot be read give one `StreamFailure`."""
        ...

    def end(self) -> list[Event]:
        """Events owed when the connection closes: a `StreamFailure` if the stream was not complete."""
        ...


class StreamWriter(Protocol):
    """Events to bytes in the caller's format. `b""` when an event has no form of its own there."""

    content_type: str

    def write(self, event: Event) -> bytes: ...


class Scanner(Protocol):
    """Reads `Facts` from upstream bytes that are forwarded untouched, parsing as little as it can.

    `broken` says why the bytes have stopped being a stream of this format; from there on none are given out.
    """

    broken: str | None

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to forward for `chunk`: its complete frames, less those that the gateway itself asked for."""
        ...

    def end(self) -> bytes:
        """What is left over when the connection closes."""
        ...

    @property
    def facts(self) -> Facts: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One wire format.

    Attributes:
        read_request: (body, model from the URL or None) -> Conversation; raises BadRequest with the field's path.
        write_request: (conversation, model id for the wire, capabilities) -> Written.
        read_reply: (body of a 2xx answer) -> Reply; raises UpstreamError when it is not one.
        write_reply: (reply, requested model, response id) -> Written.
        read_error: (status, headers, body bytes) -> UpstreamRejected; never raises.
        write_error: (error, request id) -> WireError.
        stream_reader: () -> StreamReader.
        stream_writer: (conversation as the caller sent it, requested model, response id) -> StreamWriter.
        scan_reply: (body of a 2xx answer) -> Facts; never raises.
        stream_scanner: (the gateway itself asked for usage and must take it out again) -> Scanner.
    """

    name: FormatName
    read_request: Callable[[JsonObject, str | None], Conversation]
    write_request: Callable[[Conversation, str, Capabilities], Written]
    read_reply: Callable[[JsonObject], Reply]
    write_reply: Callable[[Reply, str, str], Written]
    read_error: Callable[[int, Mapping[str, str], bytes], UpstreamRejected]
    write_error: Callable[[GatewayError, str], WireError]
    stream_reader: Callable[[], StreamReader]
    stream_writer: Callable[[Conversation, str, str], StreamWriter]
    scan_reply: Callable[[bytes], Facts]
    stream_scanner: Callable[[bool], Scanner]


def failure_of(error: GatewayError) -> StreamFailure:
    """The event that tells a caller, in mid-stream, of `error`."""
    return StreamFailure(message=error.message, status=error.status, kind=getattr(error, "kind", None))
