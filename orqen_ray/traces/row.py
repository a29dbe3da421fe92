"""One row of the trace log: what became of a request, in figures and names, never its content."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from orqen_ray.types import Attempt, ToolScore


class Trace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Metadata of one request. Each annotation's text becomes the column's description in the Parquet files.

    A struct and not a dataclass: a row that leaves out its defaults is half as long in the spool.
    """

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
    error_class: Annotated[str | None, "Whose error it was: `caller`, `limit`, `provider` or `gateway`."] = None
    attempts: Annotated[int, "Calls made to providers, the first one included."] = 0
    attempt_log: Annotated[
        tuple[Attempt, ...], "Each of those calls, in order; `started_ms` counts as `total_ms`."
    ] = ()
    tools_input: Annotated[int, "Tools in the caller's request."] = 0
    tools_output: Annotated[int, "Tools forwarded in full."] = 0
    tool_tokens_input: Annotated[int | None, "Tokens of the caller's tools; null where nobody counted."] = None
    tool_tokens_output: Annotated[int | None, "Tokens of the tools that were sent, the index included."] = None
    tool_set: Annotated[str | None, "Fingerprint of the caller's tools; null where nothing was to be decided."] = None
    tools_arm: Annotated[str | None, "`routed`, `holdout` (all sent, to measure) or `whole`; null: no decision."] = None
    tools_reason: Annotated[str | None, "Why this many tools were sent, one word; docs/tools.md lists them."] = None
    tools_propensity: Annotated[float | None, "Probability with which the conversation got its arm."] = None
    tools_method: Annotated[str | None, "`keyword` or `semantic`: how tools were scored at first sight."] = None
    tools_p_miss: Annotated[float | None, "Probability, at first sight, that a tool left out is needed."] = None
    tools_scored: Annotated[
        tuple[ToolScore, ...], "Verdicts of this turn, the most needed tools first; empty when an earlier turn decided."
    ] = ()
    tools_restored: Annotated[tuple[str, ...], "Tools brought back within this turn."] = ()
    tools_missed: Annotated[tuple[str, ...], "Tools needed in this turn that were, or would have been, left out."] = ()
    policy: Annotated[str | None, "Version of the snapshot that decided."] = None
    pin: Annotated[str | None, "`new`, `found`, `lost` (a later turn, decided anew); null: nothing was pinned."] = None
    prefix_break: Annotated[str | None, "Why the request did not begin with what was sent before; null: it did."] = None
    input_tokens: Annotated[int, "Prompt tokens neither read from nor written to the provider's cache."] = 0
    cache_read_tokens: Annotated[int, "Prompt tokens read from the provider's cache."] = 0
    cache_write_tokens: Annotated[int, "Prompt tokens written to the provider's cache."] = 0
    cache_write_1h_tokens: Annotated[int, "The part of `cache_write_tokens` that is kept for an hour."] = 0
    output_tokens: Annotated[int, "Tokens of the answer, reasoning included."] = 0
    reasoning_tokens: Annotated[int, "The part of `output_tokens` that was reasoning."] = 0
    usage_source: Annotated[str | None, "`provider`: its own figures; `estimated`: by the gateway; null: none."] = None
    cost_usd: Annotated[float | None, "Price of the call in US dollars; null where no price is known."] = None
    request_bytes: Annotated[int, "Size of the body that was sent to the provider."] = 0
    response_bytes: Annotated[int, "Size of the body that the caller was sent; 0 for an error of the gateway."] = 0
    read_ms: Annotated[float | None, "Milliseconds to read the caller's body."] = None
    select_ms: Annotated[float | None, "Milliseconds to find the provider and the model."] = None
    plan_ms: Annotated[float | None, "Milliseconds to decide what is sent."] = None
    build_ms: Annotated[float | None, "Milliseconds to write the provider's body."] = None
    overhead_ms: Annotated[float | None, "Milliseconds in the gateway before the first call to a provider."] = None
    first_byte_ms: Annotated[float | None, "Milliseconds from the start to the provider's response head."] = None
    total_ms: Annotated[float, "Milliseconds from the start to the end of the answer."] = 0.0
    stop_reason: Annotated[str | None, "Why the model stopped, in the gateway's own words."] = None
    tools_called: Annotated[tuple[str, ...], "Names of the tools the model called, in order."] = ()
    dropped: Annotated[tuple[str, ...], "Paths of the fields that a conversion could not carry."] = ()
    client_disconnected: Annotated[bool, "The caller left before the answer was complete."] = False
    prices_usd_per_mtok: tuple[float, float] | None = None
    """The operator's prices of a million input and output tokens: what `cost_usd` is made of, and not a column."""
