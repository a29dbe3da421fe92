"""What the gateway counts about itself, for Prometheus; every label has few values."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEAD_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


class Metrics:
    """One per process. `provider` labels are rows of the catalog; no label holds a model, a key or a session."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        seconds = partial(Histogram, registry=self.registry)
        by_call = ("format", "provider")

        self.requests = counter("orqen_requests", "Requests that have ended.", (*by_call, "status"))
        self.open_requests = gauge("orqen_open_requests", "Requests now in work.", multiprocess_mode="livesum")
        self.request_seconds = seconds(
            "orqen_request_duration_seconds", "From a request to the end of its answer.", by_call, buckets=_SECONDS
        )
        self.first_byte_seconds = seconds(
            "orqen_first_byte_seconds", "From a request to the provider's head.", ("provider",), buckets=_SECONDS
        )
        self.overhead_seconds = seconds(
            "orqen_overhead_seconds", "In the gateway before the first call.", ("format",), buckets=_OVERHEAD_SECONDS
        )
        self.tokens = counter(
            "orqen_tokens", "Billed by providers: input, cache_read, cache_write, output.", ("provider", "kind")
        )
        self.attempts = counter("orqen_upstream_attempts", "Calls to providers.", ("provider", "outcome"))
        self.retries = counter("orqen_retries", "Attempts after the first.", ("provider",))
        self.retries_refused = counter("orqen_retries_refused", "Not made: the budget was spent.", ("provider",))
        self.fallbacks = counter("orqen_fallbacks", "Requests handed to another model.", ("provider",))
        self.open_circuits = gauge(
            "orqen_open_circuits", "Keys not called because they fail.", ("provider",), multiprocess_mode="livemax"
        )
        self.limited = counter("orqen_limited_requests", "Answered 429 by the gateway itself.", ("reason",))
        self.store_failures = counter("orqen_store_failures", "Failed calls to database or redis.", ("store",))
        self.trace_rows = counter("orqen_trace_rows", "Rows written or dropped.", ("outcome",))
