"""What is kept of a request that has ended: its trace row, its counts, and a log line where that is asked for."""

from __future__ import annotations

import logging

from orqen_ray.exchange import Exchange
from orqen_ray.logs import CURRENT, log_request
from orqen_ray.metrics import Metrics
from orqen_ray.traces.row import Trace
from orqen_ray.traces.writer import TraceWriter

_log = logging.getLogger(__name__)


def record(exchange: Exchange, traces: TraceWriter, metrics: Metrics) -> None:
    """Keep all of it; never raises."""
    if (current := CURRENT.get()) is not None:
        current.recorded = True
    try:
        trace = exchange.trace()
        traces.write(trace)
        _count(trace, metrics)
        log_request(
            status=trace.status,
            format=trace.inbound_format,
            provider=trace.provider,
            model=trace.sent_model,
            key_id=trace.key_id,
            session_id=trace.session_id,
            total_ms=round(trace.total_ms, 1),
            first_byte_ms=None if trace.first_byte_ms is None else round(trace.first_byte_ms, 1),
            input_tokens=trace.input_tokens + trace.cache_read_tokens + trace.cache_write_tokens,
            output_tokens=trace.output_tokens,
            error_code=trace.error_code,
        )
    except Exception:  # noqa: BLE001  # whatever it is, the caller has its answer already
        _log.exception("a request was not recorded")


def record_unforwarded(format_: str, status: int, metrics: Metrics) -> None:
    """Keep that a request ended which went to no provider: no key, no such path, or a list of models."""
    metrics.count_request(format_, None, status)
    log_request(status=status, format=format_)


def _count(trace: Trace, metrics: Metrics) -> None:
    metrics.count_request(trace.inbound_format, trace.provider, trace.status)
    metrics.observe_request(
        trace.inbound_format,
        trace.provider,
        total_s=trace.total_ms / 1000,
        first_byte_s=None if trace.first_byte_ms is None else trace.first_byte_ms / 1000,
        overhead_s=None if trace.overhead_ms is None else trace.overhead_ms / 1000,
    )
    if trace.usage_source is not None:
        metrics.count_tokens(
            trace.provider,
            input=trace.input_tokens,
            cache_read=trace.cache_read_tokens,
            cache_write=trace.cache_write_tokens,
            output=trace.output_tokens,
        )
