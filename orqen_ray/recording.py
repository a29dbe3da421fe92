"""What is kept of a request that has ended: its trace row, its counts, and a log line where that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orqen_ray.exchange import Exchange
from orqen_ray.logs import CURRENT, log_request
from orqen_ray.metrics import Metrics
from orqen_ray.traces.row import Trace
from orqen_ray.traces.writer import TraceWriter

_log = logging.getLogger(__name__)


def record(exchange: Exchange, traces: TraceWriter, metrics: Metrics, spend: Callable[[str, int], None]) -> None:
    """Keep all of it, each part whatever became of the others; never raises.

    Args:
        spend: told which key has used how many billed tokens.
    """
    if (current := CURRENT.get()) is not None:
        current.recorded = True
    with _kept("its budget"):
        spend(exchange.key_id, exchange.billed_tokens())
    with _kept("its trace"):
        trace = exchange.trace()
        with _kept("its row"):
            traces.write(trace)
        with _kept("its counts"):
            _count(trace, metrics)
        _log_trace(trace)


@contextmanager
def _kept(what: str) -> Iterator[None]:
    """Whatever it is that fails, the caller has its answer already."""
    try:
        yield
    except Exception:  # noqa: BLE001
        _log.exception("of a request, %s was not recorded", what)


def _log_trace(trace: Trace) -> None:
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
