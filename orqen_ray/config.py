"""Settings: the YAML file and the environment, read here and nowhere else, checked, and frozen."""

from __future__ import annotations

import difflib
import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)

from orqen_ray.sections import (
    CircuitBreakerSettings,
    EncoderSettings,
    Fallbacks,
    ForwarderSettings,
    IngressSettings,
    LimitSettings,
    LogSettings,
    OptimizationSettings,
    ProviderSettings,
    RetrySettings,
    Section,
    ServerSettings,
    StorageSettings,
    TimeoutSettings,
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


class SettingsError(Exception):
    """The settings cannot be used; one line for each problem: the path of the key, and what to write instead."""


class Settings(Section):
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
    encoders: EncoderSettings = EncoderSettings()
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
