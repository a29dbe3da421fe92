"""What is known of one request while it runs: the source of its response headers and of its trace row."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from orqen_ray.conversation import Conversation, Facts, Usage
from orqen_ray.errors import GatewayError
from orqen_ray.providers.catalog import Resolved
from orqen_ray.tokens import TOKENS_PER_IMAGE, inline_pictures
from orqen_ray.traces.cost import cost_usd
from orqen_ray.traces.schema import Trace
from orqen_ray.types import Attempt, Call

_CHARS_PER_TOKEN = 4
_MAX_HEADER_CHARS = 1024


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request from its first byte to its trace; mutable, owned by the gateway."""

    request_id: str
    key_id: str
    session_id: str
    inbound_format: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_s: float = field(default_factory=time.perf_counter)
    provider: str | None = None
    dialect: str | None = None
    requested_model: str | None = None
    sent_model: str | None = None
    stream: bool = False
    status: int = 0
    error_code: str | None = None
    attempts: list[Attempt] = field(default_factory=list)
    excluded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Fallback models that were passed over, and why."""
    tools_input: int = 0
    tools_output: int = 0
    request_bytes: int = 0
    dropped: tuple[str, ...] = ()
    overhead_ms: float | None = None
    first_byte_ms: float | None = None
    conversation: Conversation | None = field(default=None, repr=False)
    facts: Facts = field(default_factory=Facts)
    client_disconnected: bool = False
    prices_usd_per_mtok: tuple[float, float] | None = None
    estimate_usage: bool = True

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started_s) * 1000

    def note_request(self, conversation: Conversation, edited: Conversation) -> None:
        self.conversation = edited
        self.requested_model, self.stream = conversation.model, conversation.stream
        self.tools_input, self.tools_output = len(conversation.tools), len(edited.tools)

    def note_target(self, target: Resolved) -> None:
        self.provider, self.dialect, self.sent_model = target.provider.name, target.provider.dialect, target.model_id
        self.prices_usd_per_mtok = target.provider.prices_usd_per_mtok(target.model_id)

    def note_attempt(
        self, call: Call, started_ms: float, *, key: str | None, status: int | None, error_code: str | None
    ) -> None:
        """Keep what became of one call to a provider."""
        attempt = Attempt(
            provider=call.provider,
            model=call.model,
            key=key,
            status=status,
            error_code=error_code,
            started_ms=started_ms,
            took_ms=self.elapsed_ms() - started_ms,
        )
        self.attempts.append(attempt)

    def fail(self, error: BaseException) -> None:
        """Note why there is no answer. A cancelled request is one whose caller went away."""
        if isinstance(error, GatewayError):
            self.status, self.error_code = error.status, error.code
        elif isinstance(error, Exception):
            self.status, self.error_code = 500, "internal"
        else:
            self.status, self.client_disconnected = 499, True

    def estimated_usage(self) -> Usage:
        """A usage by characters, for a provider that gives none. The size of a picture says nothing of its tokens."""
        pictures = [] if self.conversation is None else inline_pictures(self.conversation)
        text_bytes = max(self.request_bytes - sum(map(len, pictures)), 0)
        return Usage(
            input_tokens=text_bytes // _CHARS_PER_TOKEN + TOKENS_PER_IMAGE * len(pictures),
            output_tokens=self.facts.output_chars // _CHARS_PER_TOKEN,
        )

    def headers(self) -> dict[str, str]:
        """The gateway's own response headers, as far as they are known."""
        headers = {}
        if self.sent_model is not None and self.provider is not None:
            headers["x-orqen-model"] = _header_value(self.sent_model)
            headers["x-orqen-provider"] = self.provider
        if self.tools_input:
            headers["x-orqen-tools-input"] = str(self.tools_input)
            headers["x-orqen-tools-output"] = str(self.tools_output)
            headers["x-orqen-prune-ratio"] = f"{self.tools_output}/{self.tools_input}"
        if self.dropped:
            headers["x-orqen-dropped"] = _header_value(", ".join(self.dropped))
        if self.overhead_ms is not None:
            headers["x-orqen-overhead-ms"] = f"{self.overhead_ms:.2f}"
        return headers

    def trace(self) -> Trace:
        usage, source = self._usage()
        served_model = self.facts.served_model or self.sent_model
        return Trace(
            request_id=self.request_id,
            started_at=self.started_at,
            key_id=self.key_id,
            session_id=self.session_id,
            inbound_format=self.inbound_format,
            dialect=self.dialect,
            provider=self.provider,
            requested_model=self.requested_model,
            sent_model=self.sent_model,
            served_model=served_model,
            stream=self.stream,
            status=self.status,
            error_code=self.error_code or ("upstream_stream_failed" if self.facts.failure else None),
            attempts=len(self.attempts),
            tools_input=self.tools_input,
            tools_output=self.tools_output,
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            usage_source=source,
            cost_usd=self._cost_usd(usage) if source else None,
            overhead_ms=self.overhead_ms,
            first_byte_ms=self.first_byte_ms,
            total_ms=self.elapsed_ms(),
            stop_reason=self.facts.stop_reason,
            tools_called=self.facts.tool_names,
            dropped=self.dropped,
            client_disconnected=self.client_disconnected,
        )

    def _usage(self) -> tuple[Usage, str | None]:
        """The tokens of the call, and who counted them: the provider, an estimate, or nobody."""
        usage, seen_tokens = self.facts.usage, self.facts.output_chars // _CHARS_PER_TOKEN
        if usage is not None and self.stream and self.facts.stop_reason is None and usage.output_tokens < seen_tokens:
            # A stream that was cut off: Anthropic's first event counts the input, and next to nothing of the output.
            return replace(usage, output_tokens=seen_tokens), "estimated"
        if usage is not None:
            return usage, "provider"
        if self.estimate_usage and 200 <= self.status < 300:
            return self.estimated_usage(), "estimated"
        return Usage(), None

    def _cost_usd(self, usage: Usage) -> float | None:
        if self.provider is None or self.sent_model is None:
            return None
        return cost_usd(self.provider, self.sent_model, usage, self.prices_usd_per_mtok)


def without_indexes(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Each path once, without positions: a long conversation must not make a long header.

    >>> without_indexes(("messages[1].content[0].citations", "messages[2].content[5].citations", "seed"))
    ('messages.content.citations', 'seed')
    """
    return tuple(dict.fromkeys(re.sub(r"\[\d+\]", "", path) for path in paths))


def _header_value(text: str) -> str:
    """`text` as a legal header value: visible ASCII, bounded."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:_MAX_HEADER_CHARS]
