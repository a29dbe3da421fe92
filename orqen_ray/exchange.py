"""What is known of one request while it runs: the source of its response headers and of its trace row."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from orqen_ray.conversation import Conversation, Facts, Usage
from orqen_ray.errors import GatewayError
from orqen_ray.planning.plan import Plan
from orqen_ray.providers.catalog import Resolved
from orqen_ray.tokens import TOKENS_PER_IMAGE, inline_pictures
from orqen_ray.traces.row import Trace
from orqen_ray.types import Attempt, Call, ToolScore

OWN_PREFIX = "x-orqen-"
"""How the names of the gateway's own headers begin."""

_CHARS_PER_TOKEN = 4
_MAX_HEADER_CHARS = 1024
_ATTACHMENT = re.compile(rb"[A-Za-z0-9+/=]{1000,}")
# What others wrote (a caller, a model) takes no more room in a trace row than this.
_MAX_NAME_CHARS = 256
_MAX_NAMES = 256
_MAX_NAMES_CHARS = 16_384
_MAX_SCORED = 128
_MAX_COUNT = 2**31 - 1


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
    plan: Plan | None = field(default=None, repr=False)
    tools_missed: tuple[str, ...] = ()
    """Tools that this turn needed and that were left out, or would have been but for the holdout."""
    request_bytes: int = 0
    response_bytes: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    overhead_ms: float | None = None
    first_byte_ms: float | None = None
    conversation: Conversation | None = field(default=None, repr=False)
    unread_body: bytes = field(default=b"", repr=False)
    """The JSON of a call that is passed through, for an estimate should its caller leave before the usage comes."""
    facts: Facts = field(default_factory=Facts)
    restored: tuple[str, ...] = ()
    """Tools that were left out at first and brought back within this turn."""
    hidden: Usage = Usage()
    """Tokens of the calls whose answers the caller did not get whole, because the turn was sent again."""
    client_disconnected: bool = False
    prices_usd_per_mtok: tuple[float, float] | None = None
    estimate_usage: bool = True
    billed: bool = True
    """Whether its usage is new: a stored answer that is read again tells that of the call which made it."""

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started_s) * 1000

    def of_caller(self, name: str) -> str:
        """`name`, which a caller may have chosen, told from the same name of another caller."""
        return f"{self.key_id}/{name}"

    def note_stage(self, name: str) -> None:
        """Note that stage `name` ends now; it began where the one before it ended."""
        self.stages_ms[name] = self.elapsed_ms() - sum(self.stages_ms.values())

    def note_plan(self, plan: Plan) -> None:
        """Note what is sent; again, when it is sent again in another way."""
        self.plan, self.conversation = plan, plan.conversation
        self.requested_model, self.stream = plan.asked.model, plan.asked.stream
        self.tools_input, self.tools_output = len(plan.asked.tools), plan.tools_output

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
        if self.conversation is None:
            text_bytes = len(_ATTACHMENT.sub(b"", self.unread_body))
            output_tokens = self.facts.output_chars // _CHARS_PER_TOKEN
            return Usage(input_tokens=text_bytes // _CHARS_PER_TOKEN, output_tokens=output_tokens)
        pictures = inline_pictures(self.conversation)
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
        if self.plan is not None and self.plan.routed:
            headers["x-orqen-routing"] = self.plan.method
        if self.restored:
            headers["x-orqen-restored"] = _header_list(self.restored)
        if self.dropped:
            headers["x-orqen-dropped"] = _header_list(self.dropped)
        if self.overhead_ms is not None:
            headers["x-orqen-overhead-ms"] = f"{self.overhead_ms:.2f}"
        return headers

    def trace(self) -> Trace:
        """The row as it is known now; its cost is left to whoever converts it, off the request path."""
        usage, source = self._usage()
        error_code = self.error_code or ("upstream_stream_failed" if self.facts.failure else None)
        return Trace(
            request_id=self.request_id,
            started_at=self.started_at,
            key_id=self.key_id,
            session_id=self.session_id,
            inbound_format=self.inbound_format,
            dialect=self.dialect,
            provider=self.provider,
            requested_model=_name(self.requested_model),
            sent_model=_name(self.sent_model),
            served_model=_name(self.facts.served_model or self.sent_model),
            stream=self.stream,
            status=self.status,
            error_code=error_code,
            error_class=_error_class(error_code, self.status),
            attempts=len(self.attempts),
            attempt_log=tuple(_rounded(attempt) for attempt in self.attempts[:_MAX_NAMES]),
            tools_input=self.tools_input,
            tools_output=self.tools_output,
            **_plan_columns(self.plan),
            tools_restored=_names(self.restored),
            tools_missed=_names(self.tools_missed),
            input_tokens=_count(usage.input_tokens),
            cache_read_tokens=_count(usage.cache_read_tokens),
            cache_write_tokens=_count(usage.cache_write_tokens),
            cache_write_1h_tokens=_count(usage.cache_write_1h_tokens),
            output_tokens=_count(usage.output_tokens),
            reasoning_tokens=_count(usage.reasoning_tokens),
            usage_source=source,
            request_bytes=_count(self.request_bytes),
            response_bytes=_count(self.response_bytes),
            read_ms=_ms(self.stages_ms.get("read")),
            select_ms=_ms(self.stages_ms.get("select")),
            plan_ms=_ms(self.stages_ms.get("plan")),
            build_ms=_ms(self.stages_ms.get("build")),
            overhead_ms=_ms(self.overhead_ms),
            first_byte_ms=_ms(self.first_byte_ms),
            total_ms=round(self.elapsed_ms(), 3),
            stop_reason=self.facts.stop_reason,
            tools_called=_names(self.facts.tool_names),
            dropped=_names(self.dropped),
            client_disconnected=self.client_disconnected,
            prices_usd_per_mtok=self.prices_usd_per_mtok,
        )

    def billed_tokens(self) -> int:
        """Tokens that count against the key's budgets: as the provider counts them, else as estimated."""
        usage, _ = self._usage() if self.billed else (Usage(), None)
        return usage.prompt_tokens + usage.output_tokens

    def _usage(self) -> tuple[Usage, str | None]:
        """The tokens of all calls, and who counted them: the provider, an estimate, or nobody."""
        usage, source = self._last_usage()
        return usage + self.hidden, source or ("estimated" if self.hidden != Usage() else None)

    def _last_usage(self) -> tuple[Usage, str | None]:
        """Those of the call whose answer the caller got."""
        usage, seen_tokens = self.facts.usage, self.facts.output_chars // _CHARS_PER_TOKEN
        cut = self.facts.stop_reason is None and (self.stream or self.client_disconnected)
        if usage is not None and cut and usage.output_tokens < seen_tokens:
            # A stream that was cut off: Anthropic's first event counts the input, and next to nothing of the output.
            return replace(usage, output_tokens=seen_tokens), "estimated"
        if usage is not None:
            return usage, "provider"
        if (self.estimate_usage or self.client_disconnected) and 200 <= self.status < 300:
            # Other families tell their usage at the end only: a caller who leaves before it is not served for nothing.
            return self.estimated_usage(), "estimated"
        return Usage(), None


def _plan_columns(plan: Plan | None) -> dict[str, Any]:
    """The columns of a trace row that say what was decided about the tools."""
    if plan is None or not plan.asked.tools:
        return {}
    columns: dict[str, Any] = {
        "tools_reason": plan.undone or plan.reason or None,
        "tool_tokens_input": plan.tool_tokens_in,
        "tool_tokens_output": plan.tool_tokens_out,
        "prefix_break": plan.prefix_break or None,
    }
    if plan.routing is not None:
        verdicts = sorted(plan.routing.verdicts, key=lambda each: (not each.kept, -(each.score or 0.0)))[:_MAX_SCORED]
        columns["tools_p_miss"] = round(plan.routing.p_miss, 4)
        columns["tools_scored"] = tuple(
            ToolScore(
                name=verdict.name[:_MAX_NAME_CHARS],
                kept=verdict.kept,
                reason=verdict.reason,
                score=None if verdict.score is None else round(verdict.score, 4),
            )
            for verdict in verdicts
        )
    if plan.pin is not None:
        columns |= {
            "tool_set": plan.pin.tool_set or None,
            "tools_arm": plan.pin.arm,
            "tools_propensity": plan.pin.propensity,
            "tools_method": plan.pin.method or None,
            "policy": plan.pin.snapshot,
            "pin": plan.pin_state,
        }
    return columns


def _error_class(code: str | None, status: int) -> str | None:
    if code is None:
        return None
    if code.startswith("upstream"):
        return "provider"
    if status == 429:
        return "limit"
    return "caller" if status < 500 else "gateway"


def _name(text: str | None) -> str | None:
    return text if text is None else text[:_MAX_NAME_CHARS]


def _names(texts: tuple[str, ...]) -> tuple[str, ...]:
    kept: list[str] = []
    left = _MAX_NAMES_CHARS
    for text in texts[:_MAX_NAMES]:
        kept.append(text[: min(left, _MAX_NAME_CHARS)])
        left -= len(kept[-1])
        if left == 0:
            break
    return tuple(kept)


def _count(number: int) -> int:
    """A provider may claim anything; a column holds 32 bits."""
    return min(max(number, 0), _MAX_COUNT)


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _rounded(attempt: Attempt) -> Attempt:
    return replace(attempt, started_ms=round(attempt.started_ms, 3), took_ms=round(attempt.took_ms, 3))


def without_indexes(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Each path once, without positions: a long conversation must not make a long header.

    >>> without_indexes(("messages[1].content[0].citations", "messages[2].content[5].citations", "seed"))
    ('messages.content.citations', 'seed')
    """
    return tuple(dict.fromkeys(re.sub(r"\[\d+\]", "", path) for path in paths))


def _header_list(items: tuple[str, ...]) -> str:
    """As many of `items` as there is room for, whole, and the number of the others: `a, b, +7`."""
    shown: list[str] = []
    left = _MAX_HEADER_CHARS - len(f", +{len(items)}")
    for item in items:
        left -= len(item) + 2
        if left < 0 and shown:
            return _header_value(", ".join([*shown, f"+{len(items) - len(shown)}"]))
        shown.append(item)
    return _header_value(", ".join(shown))


def _header_value(text: str) -> str:
    """`text` as a legal header value: visible ASCII, bounded."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:_MAX_HEADER_CHARS]
