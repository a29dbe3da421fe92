"""Settings: the YAML file and the environment, read here and nowhere else, checked, and frozen."""

from __future__ import annotations

import difflib
import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)

_SECRET_VARIABLES = {"bootstrap_key": "ORQEN_BOOTSTRAP_KEY", "secret_key": "ORQEN_SECRET_KEY"}
_OVERRIDES = {
    "ORQEN_HOST": ("server", "host"),
    "ORQEN_PORT": ("server", "port"),
    "ORQEN_DATABASE_URL": ("storage", "database_url"),
    "ORQEN_TRACES_URI": ("storage", "traces_uri"),
    "ORQEN_REDIS_URL": ("storage", "redis_url"),
}
VARIABLES = ("ORQEN_CONFIG", *_OVERRIDES, *_SECRET_VARIABLES.values())
"""Every environment variable that the gateway itself reads; those of providers are named by their rows."""

_MESSAGES = {
    "model_type": "expected keys and values, as `key: value`",
    "dict_type": "expected keys and values, as `key: value`",
    "tuple_type": "expected a list, as `[a, b]`",
    "too_short": "expected at least one entry",
}

_REDIS = "expected redis://HOST:PORT/NUMBER, rediss:// (TLS) or unix:///PATH"
_REDIS_OPTIONS = frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fallbacks = Annotated[tuple[str, ...], Field(min_length=1)]


class SettingsError(Exception):
    """The settings cannot be used; one line for each problem: the path of the key, and what to write instead."""


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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return {} if value is None else value  # a YAML key with nothing behind it


class ModelSettings(_Section):
    """A model that the operator's provider serves."""

    id: str = Field(min_length=1)
    input_usd_per_mtok: Usd | None = None
    output_usd_per_mtok: Usd | None = None
    context_tokens: int | None = Field(default=None, gt=0)


class ProviderSettings(_Section):
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


class ServerSettings(_Section):
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65_535)
    open_metrics: bool = False


class StorageSettings(_Section):
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


class OptimizationSettings(_Section):
    """Checked and kept; nothing reads them until optimization exists."""

    tools: bool = True
    schemas: bool = True
    context: bool = True
    restore: bool = True
    holdout_ratio: float = Field(default=0.02, ge=0, le=1)


class TimeoutSettings(_Section):
    connect_s: Seconds = 10
    first_byte_s: Seconds = 600
    idle_s: Seconds = 300
    total_s: Seconds = 3600
    queue_s: Seconds = 10


class RetrySettings(_Section):
    max_retries: int = Field(default=2, ge=0, le=10)
    backoff_s: Seconds = 0.2
    backoff_max_s: Seconds = 5
    budget_ratio: float = Field(default=0.2, ge=0, le=10, allow_inf_nan=False)
    hedge_after_s: Seconds | None = None


class CircuitBreakerSettings(_Section):
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


class LimitSettings(_Section):
    max_body_mib: float = Field(default=32, gt=0, le=1024)

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * 2**20)


class LogSettings(_Section):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: bool = False


class ReplicaSettings(_Section):
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


class Settings(_Section):
    """All settings but secrets: safe to print, to pickle, and to pass as Ray Serve's `args:`."""

    server: ServerSettings = ServerSettings()
    providers: Annotated[dict[str, ProviderSettings], BeforeValidator(lambda rows: rows or {})] = Field(
        default_factory=dict
    )
    storage: StorageSettings = Field(default_factory=StorageSettings)
    optimization: OptimizationSettings = OptimizationSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()
    limits: LimitSettings = LimitSettings()
    logs: LogSettings = LogSettings()
    ingress: IngressSettings = IngressSettings()
    forwarder: ForwarderSettings = ForwarderSettings()
    circuit_breaker: CircuitBreakerSettings = CircuitBreakerSettings()
    fallbacks: Annotated[dict[str, Fallbacks], BeforeValidator(lambda chains: chains or {})] = Field(
        default_factory=dict
    )

    @model_validator(mode="wrap")
    @classmethod
    def _readable(cls, value: Any, validate: ModelWrapValidatorHandler[Settings]) -> Settings:
        try:
            return validate(value)
        except ValidationError as error:
            raise SettingsError("\n".join(_problems(error))) from None

    def operator_rows(self) -> dict[str, dict[str, Any]]:
        """The providers as plain rows for `providers.catalog.load_catalog`, only with the keys that were set."""
        return {
            name: row.model_dump(mode="json", exclude_unset=True, exclude_none=True)
            for name, row in self.providers.items()
        }

    def with_environment(self, environment: Mapping[str, str] | None = None) -> Settings:
        """These settings with the `ORQEN_*` variables laid over them.

        Raises:
            SettingsError: a variable's value cannot be used; the message names the variable.
        """
        environment = read_environment() if environment is None else environment
        # The places stay as they were read: another process may run in another folder.
        values = self.model_dump(exclude_unset=True) | {"storage": self.storage.model_dump()}
        given = {name: path for name, path in _OVERRIDES.items() if environment.get(name)}
        for name, (section, key) in given.items():
            values.setdefault(section, {})[key] = environment[name]
        try:
            return Settings.model_validate(values)
        except SettingsError as error:
            message = str(error)
            for name, path in given.items():
                message = message.replace(f"{'.'.join(path)}: ", f"{name}: ")
            raise SettingsError(message) from None


class Secrets(BaseModel):
    """The secrets of the installation: read from the environment of the process that needs them, and kept there."""

    model_config = ConfigDict(frozen=True)

    bootstrap_key: SecretStr | None = None
    secret_key: SecretStr | None = None


def load_settings(path: str | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of the YAML file at `path`, else at `ORQEN_CONFIG`, else the defaults; the environment wins.

    Raises:
        SettingsError: the file cannot be read, or holds what cannot be used.
    """
    environment = read_environment() if environment is None else environment
    path = path or environment.get("ORQEN_CONFIG") or None
    values = _read_yaml(Path(path)) if path else {}
    return Settings.model_validate(values).with_environment(environment)


def load_secrets(environment: Mapping[str, str] | None = None) -> Secrets:
    """`ORQEN_BOOTSTRAP_KEY` and `ORQEN_SECRET_KEY`; an empty one is none."""
    environment = read_environment() if environment is None else environment
    return Secrets.model_validate({key: environment.get(name) or None for key, name in _SECRET_VARIABLES.items()})


def read_environment() -> Mapping[str, str]:
    """A copy of the environment, for those who look for variables that a provider's row names."""
    return MappingProxyType(dict(os.environ))


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is written twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else key_node
            if key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is there twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; ORQEN_CONFIG names this file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(
            f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected keys such as `providers:` at the top, found a {type(values).__name__}")
    return values


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        path = tuple(part for part in problem["loc"] if part != "[key]")
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        where = where.removeprefix(".").replace("\n", " ") or "settings"
        if problem["type"] == "extra_forbidden":
            yield f"{where}: unknown key; {_advice(path)}"
        else:
            message = _MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
            yield f"{where}: {message[0].lower()}{message[1:]}"


def _advice(path: tuple[int | str, ...]) -> str:
    key = str(path[-1])
    if len(path) == 1 and key in _SECRET_VARIABLES:
        return f"a secret has no place in this file; set {_SECRET_VARIABLES[key]} in the environment"
    known = sorted(_model_at(path[:-1]).model_fields)
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"known keys are {', '.join(known)}"


def _model_at(path: tuple[int | str, ...]) -> type[BaseModel]:
    """The section that `path` leads to, through the mappings and lists in between."""
    kind: Any = Settings
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = get_args(kind)[1 if get_origin(kind) is dict else 0]
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else Settings
