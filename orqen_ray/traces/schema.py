"""One row of the trace log: what became of a request, in figures and names, never its content."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import NoneType
from typing import Annotated, get_args, get_type_hints

import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Metadata of one request. Each annotation's text becomes the column's description in the Parquet files."""

    request_id: Annotated[str, "The gateway's id of the request, as in the `x-request-id` response header."]
    started_at: Annotated[datetime, "When the request's head was read, UTC, in microseconds."]
    key_id: Annotated[str, "Id of the caller's key, as `orqen keys list` shows it."]
    session_id: Annotated[str, "The caller's `x-orqen-session-id`, else one derived from the conversation's head."]
    inbound_format: Annotated[str, "Wire format the caller used: `openai_chat`, `anthropic_messages`, ..."]
    dialect: Annotated[str | None, "Wire format the provider was sent."] = None
    provider: Annotated[str | None, "Provider that was called."] = None
    requested_model: Annotated[str | None, "Model string as the caller wrote it."] = None
    sent_model: Annotated[str | None, "Model id that was sent to the provider."] = None
    served_model: Annotated[str | None, "Model id that the provider named in its answer, else `sent_model`."] = None
    stream: Annotated[bool, "The caller asked for a stream."] = False
    status: Annotated[int, "HTTP status the caller got; 499 when it left before one."] = 0
    error_code: Annotated[str | None, "The gateway's word for what went wrong; null when nothing did."] = None
    attempts: Annotated[int, "Calls made to providers, the first one included."] = 0
    tools_input: Annotated[int, "Tools in the caller's request."] = 0
    tools_output: Annotated[int, "Tools forwarded in full."] = 0
    input_tokens: Annotated[int, "Prompt tokens neither read from nor written to the provider's cache."] = 0
    cache_read_tokens: Annotated[int, "Prompt tokens read from the provider's cache."] = 0
    cache_write_tokens: Annotated[int, "Prompt tokens written to the provider's cache."] = 0
    output_tokens: Annotated[int, "Tokens of the answer, reasoning included."] = 0
    reasoning_tokens: Annotated[int, "The part of `output_tokens` that was reasoning."] = 0
    usage_source: Annotated[str | None, "`provider`: its own figures; `estimated`: by the gateway; null: none."] = None
    cost_usd: Annotated[float | None, "Price of the call in US dollars; null where no price is known."] = None
    overhead_ms: Annotated[float | None, "Milliseconds in the gateway before the first call to a provider."] = None
    first_byte_ms: Annotated[float | None, "Milliseconds from the start to the provider's response head."] = None
    total_ms: Annotated[float, "Milliseconds from the start to the end of the answer."] = 0.0
    stop_reason: Annotated[str | None, "Why the model stopped, in the gateway's own words."] = None
    tools_called: Annotated[tuple[str, ...], "Names of the tools the model called, in order."] = ()
    dropped: Annotated[tuple[str, ...], "Paths of the fields that a conversion could not carry."] = ()
    client_disconnected: Annotated[bool, "The caller left before the answer was complete."] = False


_ARROW_TYPES: dict[object, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    datetime: pa.timestamp("us", tz="UTC"),
    tuple[str, ...]: pa.list_(pa.string()),
}


def _column(name: str, annotation: object) -> pa.Field:
    kind, description = get_args(annotation)
    nullable = NoneType in get_args(kind)
    if nullable:
        (kind,) = set(get_args(kind)) - {NoneType}
    return pa.field(name, _ARROW_TYPES[kind], nullable=nullable, metadata={"description": description})


TRACE_SCHEMA: pa.Schema = pa.schema(
    [_column(name, annotation) for name, annotation in get_type_hints(Trace, include_extras=True).items()]
)
