"""The sections of the settings: their keys, defaults and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_REDIS = "expected redis://HOST:PORT/NUMBER, rediss:// (TLS) or unix:///PATH"
_REDIS_OPTIONS = frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fallbacks = Annotated[tuple[str, ...], Field(min_length=1)]


def _absolute(location: str) -> str:
    """Relative paths mean the folder of the process that read them, wherever they are used afterwards."""
    scheme, separator, path = location.partition("://")
    if not separator:
        return str(Path(location).absolute())
    if scheme.startswith("sqlite") and path.startswith("/") and not path.startswith("//") and path != "/:memory:":
        return f"{scheme}:///{Path(path[1:]).absolute()}"
    return location


def _redis(url: str | None) -> str | None:
    """Refuse what the client would fail over later, with the whole URL in its words."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        there = parts.path if parts.scheme == "unix" else parts.hostname and parts.port
    except ValueError:  # a port that is no number: a slash or the like in the password
        raise ValueError(f"{_REDIS}; percent-encode special characters of the password") from None
    number = "" if parts.scheme == "unix" else parts.path.removeprefix("/")
    if parts.scheme not in ("redis", "rediss", "unix") or not there or (number and not number.isdecimal()):
        raise ValueError(_REDIS)
    if unknown := sorted(parse_qs(parts.query, keep_blank_values=True).keys() - _REDIS_OPTIONS):
        known = ", ".join(sorted(_REDIS_OPTIONS))
        raise ValueError(f"unknown parameter {unknown[0][:40]!r}; known are {known}")
    return url


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return {} if value is None else value  # a YAML key with nothing behind it


class ModelSettings(Section):
    """A model that the operator's provider serves."""

    id: str = Field(min_length=1)
    input_usd_per_mtok: Usd | None = None
    output_usd_per_mtok: Usd | None = None
    context_tokens: int | None = Field(default=None, gt=0)


class ProviderSettings(Section):
    """A row laid over the catalog's; providers/catalog.py checks that what is left is complete."""

    dialect: Literal["openai", "anthropic", "bedrock"] | None = None
    base_url: str | None = None
    api_key_env: Annotated[tuple[str, ...] | None, BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = None
    auth: Literal["bearer", "x-api-key", "api-key", "sigv4", "none"] | None = None
    region: str | None = None
    allow_private_network: bool | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    families: tuple[str, ...] | None = None
    model_patterns: tuple[str, ...] | None = None
    models: tuple[Annotated[ModelSettings, BeforeValidator(lambda m: {"id": m} if isinstance(m, str) else m)], ...] = ()
    capabilities: dict[str, Any] = Field(default_factory=dict)
    max_concurrent_requests: int | None = Field(default=None, gt=0)


class ServerSettings(Section):
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65_535)
    open_metrics: bool = False


class StorageSettings(Section):
    database_url: Annotated[str, AfterValidator(_absolute)] = Field(
        default="sqlite+aiosqlite:///data/orqen.db", min_length=1, repr=False
    )
    traces_uri: Annotated[str, AfterValidator(_absolute)] = Field(default="data/traces", min_length=1)
    redis_url: Annotated[str | None, AfterValidator(_redis)] = Field(default=None, repr=False)
    outage_grace_s: float = Field(default=3600, ge=0, le=604_800, allow_inf_nan=False)
    traces_spool_dir: Annotated[str, AfterValidator(_absolute)] | None = Field(default=None, min_length=1)
    traces_spool_max_mib: float = Field(default=1024, ge=1, le=1_048_576)
    traces_retention_days: int | None = Field(default=None, ge=1, le=36_500)

    @model_validator(mode="before")
    @classmethod
    def _spool_of_a_log_elsewhere(cls, value: Any) -> Any:
        """A log that is not on this machine is spooled in the folder of the process that read the settings."""
        if isinstance(value, dict) and value.get("traces_spool_dir") is None:
            if str(value.get("traces_uri") or "").startswith("s3:"):
                return {**value, "traces_spool_dir": "data/spool"}
        return value


class OptimizationSettings(Section):
    """What may be done to a request, where neither its key nor its caller says otherwise."""

    tools: bool = True
    schemas: bool = True
    context: bool = True
    restore: bool = True
    holdout_ratio: float = Field(default=0.02, ge=0, le=1)
    budget_ms: float = Field(default=50, gt=0, le=10_000, allow_inf_nan=False)
    pin_ttl_s: Seconds = 86_400


class TimeoutSettings(Section):
    connect_s: Seconds = 10
    first_byte_s: Seconds = 600
    idle_s: Seconds = 300
    total_s: Seconds = 3600
    queue_s: Seconds = 10


class RetrySettings(Section):
    max_retries: int = Field(default=2, ge=0, le=10)
    backoff_s: Seconds = 0.2
    backoff_max_s: Seconds = 5
    budget_ratio: float = Field(default=0.2, ge=0, le=10, allow_inf_nan=False)
    hedge_after_s: Seconds | None = None


class CircuitBreakerSettings(Section):
    failures: int = Field(default=10, ge=1, le=1000)
    failure_ratio: float = Field(default=0.5, gt=0, le=1)
    window_s: Seconds = 30
    cooldown_s: Seconds = 5
    cooldown_max_s: Seconds = 120

    @model_validator(mode="after")
    def _ordered(self) -> CircuitBreakerSettings:
        if self.cooldown_max_s < self.cooldown_s:
            raise ValueError("cooldown_max_s must not be below cooldown_s")
        return self


class LimitSettings(Section):
    max_body_mib: float = Field(default=32, gt=0, le=1024)

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * 2**20)


class LogSettings(Section):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: bool = False


class ReplicaSettings(Section):
    """How many of a deployment; `max_replicas` above `min_replicas` lets it scale with its load."""

    min_replicas: int = Field(default=1, ge=1, le=1000)
    max_replicas: int = Field(default=1, ge=1, le=1000)

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        return self


class IngressSettings(ReplicaSettings):
    pass


class ForwarderSettings(ReplicaSettings):
    placement: Literal["ingress", "pool"] = "ingress"


class EncoderSettings(ReplicaSettings):
    """What turns texts into vectors, and pairs of texts into scores; `docs/encoders.md` says how to choose."""

    embedder: str = Field(default="default", min_length=1)
    reranker: str | None = Field(default=None, min_length=1)
    device: Literal["cpu", "cuda"] = "cpu"
    placement: Literal["ingress", "pool"] = "pool"
    threads: int | None = Field(default=None, ge=1, le=256)
    timeout_ms: float = Field(default=250, gt=0, le=60_000, allow_inf_nan=False)
