"""Settings: what is read, what wins, and what the messages say."""

from __future__ import annotations

import pickle
import string
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from orqen_ray.config import Settings, SettingsError, load_secrets, load_settings, read_environment
from orqen_ray.providers.catalog import load_catalog
from orqen_ray.store.rate_limits import RateLimits

EXAMPLE = """
providers:
  openai:  {api_key_env: OPENAI_API_KEY}
  bedrock: {region: us-east-1}
  groq:
  lab:     {dialect: openai, base_url: "http://10.0.0.5:8000/v1", allow_private_network: true,
            models: [{id: qwen3-32b, input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.3, context_tokens: 131072}, plain]}
storage: {database_url: "sqlite+aiosqlite:///data/orqen.db", traces_uri: data/traces}
optimization: {tools: true, schemas: true, context: true, restore: true, holdout_ratio: 0.02}
timeouts:
"""


def sections(kind: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], type[BaseModel]]]:
    """Every section of the settings with a path to it, through mappings (key `x`) and lists (index 0)."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is dict:
        yield from sections(get_args(kind)[1], (*path, "x"))
    elif get_origin(kind) is tuple:
        yield from sections(get_args(kind)[0], (*path, 0))
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield path, kind
        for name, field in kind.model_fields.items():
            yield from sections(field.annotation, (*path, name))


SECTIONS = list(sections(Settings))
SCALARS = st.none() | st.booleans() | st.floats() | st.text()


def written_at(path: tuple[str | int, ...], key: str, value: object) -> Any:
    """Settings that hold nothing but `value` under `key` in the section at `path`."""
    values: Any = {key: value}
    for part in reversed(path):
        values = [values] if part == 0 else {part: values}
    return values


def shown(path: tuple[str | int, ...], key: str) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*path, key)]
    return "".join(parts).removeprefix(".")


def message_of(values: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.model_validate(values)
    return str(caught.value)


def config_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "orqen.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- Reading ----------------------------------------------------------------------------------------------------


def test_the_documented_example_loads_and_the_catalog_takes_its_rows(tmp_path: Path) -> None:
    settings = load_settings(config_file(tmp_path, EXAMPLE), {})
    rows = settings.operator_rows()
    assert rows["openai"] == {"api_key_env": ["OPENAI_API_KEY"]} and rows["groq"] == {}
    assert rows["lab"]["models"][0]["context_tokens"] == 131072 and rows["lab"]["models"][1] == {"id": "plain"}
    lab = load_catalog(rows).providers["lab"]
    assert (lab.allow_private_network, lab.models[0].output_usd_per_mtok) == (True, 0.3)
    assert settings.timeouts == Settings().timeouts


def test_without_a_file_the_defaults_hold_and_are_on_loopback() -> None:
    settings = load_settings(environment={})
    assert settings == Settings()
    assert (settings.server.host, settings.server.port, settings.limits.max_body_bytes) == ("127.0.0.1", 8000, 2**25)


def test_the_environment_names_the_file_and_wins_over_it(tmp_path: Path) -> None:
    path = config_file(tmp_path, "server: {host: 0.0.0.0, port: 1}")
    environment = {"ORQEN_CONFIG": path, "ORQEN_PORT": "9000", "ORQEN_TRACES_URI": "/t", "ORQEN_HOST": ""}
    settings = load_settings(environment=environment)
    assert (settings.server.host, settings.server.port, settings.storage.traces_uri) == ("0.0.0.0", 9000, "/t")
    assert settings.with_environment({"ORQEN_DATABASE_URL": "postgresql+asyncpg://h/d"}).server.port == 9000


def test_relative_paths_keep_their_meaning_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environment={})
    monkeypatch.chdir("/")
    settings = pickle.loads(pickle.dumps(settings)).with_environment({})
    assert settings.storage.traces_uri == str(tmp_path / "data/traces")
    assert settings.storage.database_url == f"sqlite+aiosqlite:///{tmp_path}/data/orqen.db"
    assert Settings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:////abs/x.db", "postgresql+asyncpg://u@h/d", "s3://bucket/x", "file:///x"]
)
def test_absolute_places_stay_as_they_are(url: str) -> None:
    assert Settings.model_validate({"storage": {"traces_uri": url}}).storage.traces_uri == url


def test_settings_travel_to_another_process_and_do_not_change() -> None:
    settings = Settings.model_validate({"providers": {"lab": {"headers": {"x-team": "a"}}}, "server": {"port": 1}})
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings and copy.operator_rows() == settings.operator_rows()
    with pytest.raises(ValidationError, match="frozen"):
        settings.server.port = 2


def test_secrets_come_from_the_environment_only_and_are_never_shown() -> None:
    secrets = load_secrets({"ORQEN_SECRET_KEY": "s" * 40, "ORQEN_BOOTSTRAP_KEY": ""})
    assert secrets.secret_key is not None and secrets.secret_key.get_secret_value() == "s" * 40
    assert secrets.bootstrap_key is None and "sss" not in f"{secrets!r} {secrets}"
    message = message_of({"secret_key": "hunter2hunter2"})
    assert "ORQEN_SECRET_KEY" in message and "hunter2" not in message


def test_the_environment_is_read_as_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORQEN_TEST_VARIABLE", "1")
    environment = read_environment()
    monkeypatch.delenv("ORQEN_TEST_VARIABLE")
    assert environment["ORQEN_TEST_VARIABLE"] == "1"


# --- Refusing ---------------------------------------------------------------------------------------------------


@given(st.sampled_from(SECTIONS), st.text(string.ascii_lowercase + "_", min_size=1, max_size=12))
def test_an_unknown_key_is_refused_with_its_path_and_known_ones(
    section: tuple[tuple[str | int, ...], type[BaseModel]], key: str
) -> None:
    path, model = section
    if key in model.model_fields or key in ("secret_key", "bootstrap_key"):
        return
    lines = message_of(written_at(path, key, "hunter2hunter2")).splitlines()
    line = next(line for line in lines if "unknown key" in line)
    assert line.startswith(f"{shown(path, key)}: unknown key; ")
    assert any(name in line.partition("; ")[2] for name in model.model_fields)
    assert "hunter2" not in line and "pydantic" not in line


@given(st.sampled_from(SECTIONS), st.data())
def test_a_misspelt_key_gets_the_nearest_one_named(
    section: tuple[tuple[str | int, ...], type[BaseModel]], data: st.DataObject
) -> None:
    path, model = section
    name = data.draw(st.sampled_from([n for n in sorted(model.model_fields) if len(n) > 3]))
    at = data.draw(st.integers(0, len(name) - 1))
    typo = data.draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + "q" + name[at:], name[:at] + "q" + name[at + 1 :]])
    )
    if typo in model.model_fields:
        return
    lines = message_of(written_at(path, typo, 1)).splitlines()
    line = next(line for line in lines if "unknown key" in line)
    suggested = line.partition("did you mean ")[2].removesuffix("?")
    assert suggested in model.model_fields

    def likeness(other: str) -> float:
        return SequenceMatcher(None, other, typo).ratio()

    assert likeness(suggested) >= max(map(likeness, model.model_fields)) - 0.1


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_whatever_the_file_holds_is_taken_or_refused_in_words(values: object) -> None:
    try:
        Settings.model_validate(values)
    except SettingsError as error:
        assert str(error).strip() and "pydantic" not in str(error)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"providers": {"openai": {"base_ur": "x"}}}, "providers.openai.base_ur: unknown key; did you mean base_url?"),
        ({"providers": {"lab": {"models": [{}]}}}, "providers.lab.models[0].id: field required"),
        ({"storage": [1]}, "storage: expected keys and values, as `key: value`"),
        ({"providers": {"lab": {"models": "x"}}}, "providers.lab.models: expected a list, as `[a, b]`"),
        ({"ingress": {"min_replicas": 4}}, "ingress: max_replicas must not be below min_replicas"),
        ([], "settings: expected keys and values, as `key: value`"),
    ],
)
def test_messages_are_one_line_each_with_the_path_first(values: object, message: str) -> None:
    assert message_of(values) == message


@pytest.mark.parametrize(
    "section",
    [
        {"server": {"port": 70000}},
        {"timeouts": {"idle_s": 0}},
        {"timeouts": {"total_s": float("inf")}},
        {"retries": {"max_retries": -1}},
        {"limits": {"max_body_mib": float("nan")}},
        {"optimization": {"holdout_ratio": 1.5}},
        {"forwarder": {"placement": "moon"}},
    ],
)
def test_a_value_out_of_range_is_refused_by_its_path(section: dict[str, dict[str, object]]) -> None:
    ((name, (key,)),) = ((name, tuple(values)) for name, values in section.items())
    assert message_of(section).startswith(f"{name}.{key}: ")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@h:6379/0",
        "redis://:hunter2#x@h:6379/0",
        "redis://:hunter2?x@h:6379/0",
        "redis://:hunter2@h/0",
        "redis://:hunter2@h:99999/0",
        "redis://:hunter2@h:6379/zero",
        "redis://",
        "unix://",
        "hunter2",
        "redis://:hunter2@h:6379/0?max_connections=hunter2",
    ],
)
def test_a_redis_url_that_no_client_takes_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environment={"ORQEN_REDIS_URL": url})
    assert str(caught.value).startswith("ORQEN_REDIS_URL: ") and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:6379",
        "redis://:p%2Fw@[::1]:6379/3",
        "rediss://user:pw@h:1/0?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_the_redis_urls_of_the_documentation_are_taken_by_the_client_too(url: str) -> None:
    redis_url = load_settings(environment={"ORQEN_REDIS_URL": url}).storage.redis_url
    assert redis_url == url
    RateLimits(redis_url)


def test_a_bad_variable_is_refused_by_its_own_name() -> None:
    with pytest.raises(SettingsError, match=r"^ORQEN_PORT: input should be a valid integer"):
        load_settings(environment={"ORQEN_PORT": "hunter2"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("server: {port: 1}\nserver: {port: 2}\n", "line 2: not valid YAML: the key 'server' is there twice"),
        ("server:\n  port: 1\n  port: 2\n", "line 3: not valid YAML: the key 'port' is there twice"),
        ("- a\n- b\n", "expected keys such as `providers:` at the top, found a list"),
        ("just text", "found a str"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("? [a]\n: b\n", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(config_file(tmp_path, text), {})
    assert says in str(caught.value)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_settings(config_file(tmp_path, "# nothing\n"), {}) == Settings()


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read: No such file"):
        load_settings(str(tmp_path / "none.yaml"), {})
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(str(tmp_path / "bin.yaml"), {})
