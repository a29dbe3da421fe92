"""The catalog: providers and model families as rows of `catalog.toml`, and which provider a model string means."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import translate
from functools import lru_cache
from importlib.resources import files
from ipaddress import IPv6Address
from typing import Any, Literal, NoReturn
from urllib.parse import unquote, urlsplit

import msgspec

from orqen_ray.conversation import FormatName
from orqen_ray.errors import BadRequest, ProviderNotConnected, UnknownModel
from orqen_ray.types import Capabilities

SANDBOX_URL = "sandbox:"
ROUTING_STRINGS = ("orqen/auto", "orqen/cheap", "orqen/fast", "orqen/capable")
MAX_MODEL_CHARS = 512

Auth = Literal["bearer", "x-api-key", "api-key", "sigv4", "none"]
Family = Literal[
    "chat", "responses", "embeddings", "completions", "images", "audio", "moderations", "rerank", "models",
    "ocr", "videos", "count_tokens", "invoke",
]  # fmt: skip

_DIALECTS: Mapping[str, FormatName] = {
    "openai": "openai_chat",
    "anthropic": "anthropic_messages",
    "bedrock": "bedrock_converse",
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_MAX_HOST_CHARS = 253
_PLAIN = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::[0-9]{1,5})?")
_PATH_OF = re.compile(r"^.*/")
_BEDROCK_SCOPE = re.compile(r"^(?:(?:us|us-gov|eu|apac|au|jp|ca|global)\.)?[a-z0-9]+\.(?=[a-z])")
_VERSION = re.compile(r"(?:@.*|:.*|-latest|-v[12]|-20[0-9]{6})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that a row lists. Prices and context are the operator's, for models that no price list knows."""

    id: str
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    context_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One row, its dialect's and its operator's rows merged in.

    Attributes:
        base_url: as the vendor's own SDK takes it, without a trailing slash; may hold `{region}`. None: comes with the
            credentials.
        api_key_env: the variables that may hold its keys.
        capabilities: laid over those of the model's family.
        max_concurrent_requests: calls that one process may have open at a time.
        configured: the operator's YAML names it.
    """

    name: str
    dialect: FormatName
    base_url: str | None = None
    source: str = ""
    api_key_env: tuple[str, ...] = ()
    auth: Auth = "bearer"
    headers: Mapping[str, str] = field(default_factory=dict)
    model_patterns: tuple[str, ...] = ()
    families: frozenset[Family] = frozenset()
    models: tuple[Model, ...] = ()
    allow_private_network: bool = False
    region: str | None = None
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    max_concurrent_requests: int | None = None
    configured: bool = False

    @property
    def embedded(self) -> bool:
        return self.base_url == SANDBOX_URL

    def prices_usd_per_mtok(self, model_id: str) -> tuple[float, float] | None:
        """The operator's prices of a model, input and output; None where the row has none."""
        model = next((model for model in self.models if model.id == model_id), None)
        if model is None or model.input_usd_per_mtok is None or model.output_usd_per_mtok is None:
            return None
        return model.input_usd_per_mtok, model.output_usd_per_mtok

    def context_tokens(self, model_id: str) -> int | None:
        """The size of a model's window, where the operator's row says it."""
        return next((model.context_tokens for model in self.models if model.id == model_id), None)

    @property
    def needs_credentials(self) -> bool:
        return self.auth != "none" and (self.auth == "sigv4" or bool(self.api_key_env))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The provider of a model string, and the id by which that provider knows the model."""

    provider: Provider
    model_id: str


class Catalog:
    """All rows, immutable after loading. Order: the operator's rows as written, then the built-in ones."""

    def __init__(self, providers: Mapping[str, Provider], family_rows: Iterable[Mapping[str, Any]]) -> None:
        self.providers = providers
        self._patterns = {p.name: _any_of(p.model_patterns) for p in providers.values()}
        self._known = {p.name: frozenset(model.id for model in p.models) for p in providers.values()}
        self._family_rows = [(_any_of(_dashes(g) for g in row["match"]), row["capabilities"]) for row in family_rows]
        self.capabilities = lru_cache(maxsize=4096)(self._capabilities)
        self._owners = lru_cache(maxsize=4096)(self._find_owners)

    def _capabilities(self, provider_name: str, model_id: str) -> Capabilities:
        """What `model_id` can do at that provider: its family's row under the provider's."""
        base = base_model_id(model_id)
        of_family: Mapping[str, Any] = next((row for pattern, row in self._family_rows if pattern.match(base)), {})
        return msgspec.convert({**of_family, **self.providers[provider_name].capabilities}, Capabilities)

    def resolve(self, model: str, connected: Collection[str]) -> Resolved:
        """The provider that a model string means.

        `provider/id` is always taken at its word; a bare id goes to the first connected provider that lists it, else to
        the first connected one whose patterns match.

        Raises:
            BadRequest: not a model string, or a routing string.
            ProviderNotConnected: the owner has no credentials; the message says how to connect it.
            UnknownModel: nobody owns it; the message names the nearest ids.
        """
        _check_model_string(model)
        head, slash, rest = model.partition("/")
        if slash and rest and head in self.providers:
            owners: tuple[Provider, ...] = (self.providers[head],)
        else:
            rest, owners = model, self._owners(model)
        for provider in owners:
            if provider.name in connected:
                return Resolved(provider=provider, model_id=rest)
        if owners:
            raise ProviderNotConnected(_how_to_connect(model, owners[0]))
        self._raise_unknown(model, connected)

    def models(self, connected: Collection[str]) -> list[tuple[Provider, Model]]:
        """The listed models of the connected providers, in catalog order."""
        return [(p, model) for p in self.providers.values() if p.name in connected for model in p.models]

    def _find_owners(self, model: str) -> tuple[Provider, ...]:
        listed = [p for p in self.providers.values() if model in self._known[p.name] and not p.embedded]
        return (*listed, *(p for p in self.providers.values() if self._patterns[p.name].match(model)))

    def _raise_unknown(self, model: str, connected: Collection[str]) -> NoReturn:
        names = [f"{p.name}/{m.id}" if p.embedded else m.id for p, m in self.models(self.providers)]
        names += [f"{p.name}/{m.id}" for p, m in self.models(connected)]
        nearest = ", ".join(difflib.get_close_matches(model.lower(), names, n=3, cutoff=0.5))
        hint = f"; the nearest are: {nearest}" if nearest else ""
        raise UnknownModel(
            f"no provider owns the model {model!r}{hint}. GET /v1/models lists the models; "
            "`provider/id` names the provider too"
        )


def load_catalog(operator_rows: Mapping[str, Mapping[str, Any]] | None = None) -> Catalog:
    """The built-in rows with the operator's laid over them.

    Args:
        operator_rows: provider name -> row, as under `providers:` in the YAML. A new name needs `dialect` and
            `base_url` (Bedrock: neither but `dialect`); a built-in one overrides single fields.
    Raises:
        ValueError: a row that cannot be used; the message names the row, the key and the nearest known key.
    """
    operator_rows = operator_rows or {}
    document = tomllib.loads(files(__package__).joinpath("catalog.toml").read_text(encoding="utf-8"))
    built_in: dict[str, dict[str, Any]] = document["provider"]
    names = [*operator_rows, *(name for name in built_in if name not in operator_rows)]
    providers = {
        name: _read_provider(name, document["dialect"], built_in.get(name, {}), operator_rows.get(name), built_in)
        for name in names
    }
    return Catalog(providers, document["family"])


@lru_cache(maxsize=256)
def check_base_url(url: str) -> str:
    """`url` without a trailing slash.

    Raises:
        ValueError: not an absolute http(s) URL, or one that holds user info, a query or a fragment.
    """
    if url == SANDBOX_URL:
        return url
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("base_url may hold printable ASCII characters only, and no space or backslash")
    try:
        split = urlsplit(url)
        _ = split.port  # checked only when it is read
    except ValueError as exc:
        raise ValueError(f"base_url is no URL: {exc}") from None
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError("base_url must start with http:// or https:// and name a host")
    if "@" in split.netloc:
        raise ValueError("base_url must not hold a user name or password; put the key into api_key_env")
    if "?" in url or "#" in url:
        raise ValueError("base_url must not hold a query (?) or a fragment (#)")
    # Two readers of a URL may find two hosts in it, unless it is written in the one plain way.
    if not _PLAIN.fullmatch(split.netloc) or not _is_host(split.hostname):
        raise ValueError("base_url must name a host: letters, digits, '-' and '.', or an IP address without a zone")
    return url.rstrip("/")


def _is_host(name: str) -> bool:
    """Whether `name` is one that only DNS can give a meaning to: nothing in it is an escape, a zone or a separator."""
    if ":" in name:
        try:
            return IPv6Address(name).scope_id is None
        except ValueError:
            return False
    return len(name) <= _MAX_HOST_CHARS and _HOST.fullmatch(name.replace("{region}", "region")) is not None


def base_model_id(model_id: str) -> str:
    """The id without what a reseller adds: `us.anthropic.claude-opus-4-5-20251101-v1:0` -> `claude-opus-4-5`."""
    base = _PATH_OF.sub("", unquote(model_id).lower())
    base = _BEDROCK_SCOPE.sub("", base)
    while (shorter := _VERSION.sub("", base)) != base and not base.startswith("ft:"):
        base = shorter
    return _dashes(base)


def _read_provider(
    name: str,
    dialect_rows: Mapping[str, Mapping[str, Any]],
    built_in: Mapping[str, Any],
    operator: Mapping[str, Any] | None,
    known: Collection[str],
) -> Provider:
    if not _NAME.fullmatch(name) or name == "orqen":
        raise ValueError(f"providers.{name}: a name is lower-case letters, digits, '.', '_' and '-', and not 'orqen'")
    own = {key: value for key, value in (operator or {}).items() if value is not None}
    _check_keys(f"providers.{name}", own)
    dialect = str(own.get("dialect") or built_in.get("dialect"))
    if dialect not in _DIALECTS:
        raise ValueError(_no_dialect(name, own.get("dialect"), known))
    rows = (dialect_rows[dialect], built_in, own)
    try:
        row: dict[str, Any] = {key: value for layer in rows for key, value in layer.items()}
        row |= {
            "name": name,
            "dialect": _DIALECTS[dialect],
            "configured": operator is not None,
            "capabilities": {key: value for layer in rows for key, value in layer.get("capabilities", {}).items()},
            "headers": {key.lower(): value for layer in rows for key, value in layer.get("headers", {}).items()},
            "models": list(_merge_models(own.get("models", ()), built_in.get("models", ()))),
        }
        if isinstance(variable := row.get("api_key_env"), str):
            row["api_key_env"] = [variable]
        elif variable is None:
            row.pop("api_key_env", None)
        _check_known(f"capabilities of {name}", row["capabilities"], [f.name for f in fields(Capabilities)])
        msgspec.convert(row["capabilities"], Capabilities)
        if row.get("base_url") is not None:
            row["base_url"] = check_base_url(row["base_url"])
        elif not built_in:
            raise ValueError("base_url is required")
        return msgspec.convert(row, Provider)
    except (ValueError, TypeError, AttributeError) as exc:
        raise ValueError(f"providers.{name}: {exc}") from exc


def _no_dialect(name: str, given: object, known: Collection[str]) -> str:
    dialects = ", ".join(_DIALECTS)
    if given is not None:
        return f"providers.{name}.dialect: expected one of {dialects}, got {given!r}"
    nearest = "".join(f"did you mean {match!r}? " for match in difflib.get_close_matches(name, known, n=1))
    own = f"one of your own needs a dialect ({dialects}) and a base_url"
    return f"providers.{name}: the catalog has no such provider; {nearest}{own}"


def _merge_models(own: Iterable[Any], built_in: Iterable[Any]) -> Iterator[Any]:
    seen: set[Any] = set()
    for model in (*own, *built_in):
        row = {"id": model} if isinstance(model, str) else model
        if row.get("id") not in seen:
            seen.add(row.get("id"))
            _check_known(f"model {row.get('id')!r}", row, [f.name for f in fields(Model)])
            yield row


def _check_keys(where: str, row: Mapping[str, Any]) -> None:
    _check_known(where, row, [f.name for f in fields(Provider) if f.name not in ("name", "configured")])


def _check_known(where: str, row: Mapping[str, Any], known: Collection[str]) -> None:
    for key in row:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise ValueError(f"{where}: unknown key {key!r}; did you mean {nearest[0]!r}?")


def _check_model_string(model: str) -> None:
    if not model or len(model) > MAX_MODEL_CHARS or not model.isprintable():
        raise BadRequest(f"expected 1 to {MAX_MODEL_CHARS} printable characters", param="model")
    if model in ROUTING_STRINGS:
        raise BadRequest(
            f"{model!r} asks the gateway to select a model, which is not available yet; name a model such as "
            "'gpt-4o' or 'anthropic/claude-sonnet-4-6' (GET /v1/models lists them)",
            param="model",
        )


def _how_to_connect(model: str, provider: Provider) -> str:
    if provider.needs_credentials:
        variable = (
            " or ".join(provider.api_key_env)
            or "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_BEARER_TOKEN_BEDROCK)"
        )
        cure = f"run `orqen providers connect {provider.name}` or set {variable}"
    else:
        cure = f"add `{provider.name}: {{}}` under `providers:` in the configuration"
    return f"the model {model!r} belongs to the provider {provider.name!r}, which is not connected: {cure}"


def _dashes(text: str) -> str:
    return text.replace(".", "-")


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs) or r"(?!)")
