"""Every row of the catalog is usable, and a model string finds its provider."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import BadRequest, GatewayError, ProviderNotConnected, UnknownModel
from orqen_ray.providers.catalog import (
    ROUTING_STRINGS,
    Catalog,
    Provider,
    base_model_id,
    check_base_url,
    load_catalog,
)
from orqen_ray.types import Capabilities

CATALOG = load_catalog()
ALL = frozenset(CATALOG.providers)
ROWS = list(CATALOG.providers.values())
FAMILIES = tomllib.loads(files("orqen_ray.providers").joinpath("catalog.toml").read_text())["family"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_names_its_source_and_where_to_send(row: Provider) -> None:
    assert row.source.startswith("https://") or row.embedded
    assert row.base_url is not None or row.name == "azure"
    assert row.embedded or row.allow_private_network or (row.base_url or "https://").startswith("https://")
    assert "chat" in row.families
    assert len({model.id for model in row.models}) == len(row.models)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_listed_model_resolves_by_its_full_name(row: Provider) -> None:
    for model in row.models:
        found = CATALOG.resolve(f"{row.name}/{model.id}", ALL)
        assert (found.provider.name, found.model_id) == (row.name, model.id)
        assert CATALOG.capabilities(row.name, model.id)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.embedded], ids=lambda row: row.name)
def test_each_listed_model_resolves_bare_when_its_provider_alone_is_connected(row: Provider) -> None:
    for model in row.models:
        if model.id.partition("/")[0] not in CATALOG.providers:
            assert CATALOG.resolve(model.id, frozenset({row.name})).provider.name == row.name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family["match"][0])
def test_each_family_names_its_source_and_known_capabilities(family: dict[str, Any]) -> None:
    assert family["source"].startswith("https://") or family["match"] == ["echo"]
    assert family["capabilities"].keys() <= {field.name for field in fields(Capabilities)}


@pytest.mark.parametrize(
    ("model", "connected", "provider", "model_id"),
    [
        ("gpt-4o", {"openai"}, "openai", "gpt-4o"),
        ("gpt-9-tomorrow", {"openai"}, "openai", "gpt-9-tomorrow"),
        ("o7-mini", {"openai"}, "openai", "o7-mini"),
        ("claude-sonnet-4-6", {"anthropic", "bedrock"}, "anthropic", "claude-sonnet-4-6"),
        ("claude-epic-7", {"anthropic"}, "anthropic", "claude-epic-7"),
        ("us.anthropic.claude-opus-5-v1:0", {"bedrock"}, "bedrock", "us.anthropic.claude-opus-5-v1:0"),
        ("amazon.nova-lite-v1:0", {"bedrock", "openai"}, "bedrock", "amazon.nova-lite-v1:0"),
        ("arn:aws-us-gov:bedrock:us-gov-west-1:1:inference-profile/x", {"bedrock"}, "bedrock", None),
        ("groq/llama-3.3-70b-versatile", {"groq"}, "groq", "llama-3.3-70b-versatile"),
        ("groq/no/such/model", {"groq"}, "groq", "no/such/model"),
        ("meta-llama/Llama-5", {"together"}, "together", "meta-llama/Llama-5"),
        ("meta-llama/llama-4-maverick-17b-128e-instruct", {"groq", "together"}, "groq", None),
        ("accounts/fireworks/models/new", {"fireworks"}, "fireworks", "accounts/fireworks/models/new"),
        ("gpt-oss-120b", {"openai", "cerebras"}, "cerebras", "gpt-oss-120b"),
        ("sandbox/echo", {"sandbox"}, "sandbox", "echo"),
        ("codestral-latest", {"mistral"}, "mistral", "codestral-latest"),
        ("sonar", {"perplexity"}, "perplexity", "sonar"),
        ("bedrock/arn:aws:bedrock:us-east-1:1:application-inference-profile/a1", {"bedrock"}, "bedrock", None),
    ],
)
def test_a_model_string_picks_its_provider(
    model: str, connected: set[str], provider: str, model_id: str | None
) -> None:
    found = CATALOG.resolve(model, connected)
    assert (found.provider.name, found.model_id) == (provider, model_id or model.removeprefix(f"{provider}/"))


def test_the_operators_row_owns_a_model_before_a_built_in_one() -> None:
    catalog = load_catalog(
        {"proxy": {"dialect": "openai", "base_url": "https://p.example/v1", "models": [{"id": "gpt-4o"}]}}
    )
    assert catalog.resolve("gpt-4o", {"openai", "proxy"}).provider.name == "proxy"
    assert catalog.resolve("gpt-4o", {"openai"}).provider.name == "openai"


def test_an_owner_that_is_not_connected_is_named_with_the_way_to_connect_it() -> None:
    with pytest.raises(ProviderNotConnected, match=r"orqen providers connect openai.*OPENAI_API_KEY"):
        CATALOG.resolve("gpt-4o", {"anthropic"})
    with pytest.raises(ProviderNotConnected, match="AWS_ACCESS_KEY_ID"):
        CATALOG.resolve("bedrock/x", frozenset())
    with pytest.raises(ProviderNotConnected, match=r"ollama: \{\}"):
        CATALOG.resolve("ollama/llama3", frozenset())


def test_an_unknown_model_is_a_404_that_names_the_nearest() -> None:
    with pytest.raises(UnknownModel, match="llama-3.3-70b-versatile"):
        CATALOG.resolve("lama-3.3-70b-versatil", {"groq"})
    with pytest.raises(UnknownModel, match="sandbox/echo"):
        CATALOG.resolve("sandbx/echo", {"sandbox"})
    with pytest.raises(UnknownModel):
        CATALOG.resolve("echo", {"sandbox"})


@pytest.mark.parametrize("model", ROUTING_STRINGS)
def test_a_routing_string_is_refused_with_what_to_do(model: str) -> None:
    with pytest.raises(BadRequest, match="name a model"):
        CATALOG.resolve(model, ALL)


def test_another_orqen_string_is_an_unknown_model() -> None:
    with pytest.raises(UnknownModel, match="orqen/auto"):
        CATALOG.resolve("orqen/autos", ALL)


@pytest.mark.parametrize("model", ["", "a\x00b", "a\nb", "x" * 513])
def test_a_string_that_cannot_be_a_model_is_refused(model: str) -> None:
    with pytest.raises(BadRequest, match="model"):
        CATALOG.resolve(model, ALL)


@given(st.text(max_size=600))
def test_any_string_resolves_or_raises_an_error_for_the_caller(model: str) -> None:
    try:
        assert CATALOG.resolve(model, ALL).model_id in model
    except GatewayError as error:
        assert 400 <= error.status < 500


def test_models_lists_connected_providers_only_in_order() -> None:
    listed = CATALOG.models({"groq", "anthropic"})
    assert {provider.name for provider, _ in listed} == {"anthropic", "groq"}
    assert listed[0][1].id == "claude-fable-5-2"


@pytest.mark.parametrize(
    ("model_id", "base"),
    [
        ("us.anthropic.claude-opus-4-5-20251101-v1:0", "claude-opus-4-5"),
        ("anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        ("arn:aws:bedrock:us-east-1:1:inference-profile/global.anthropic.claude-fable-5-1-v1:0", "claude-fable-5-1"),
        ("arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.anthropic.claude-opus-5", "claude-opus-5"),
        ("anthropic/claude-opus-4.5", "claude-opus-4-5"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("deepseek-v4-pro", "deepseek-v4-pro"),
        ("deepseek-v4", "deepseek-v4"),
        ("llama3.1-8b", "llama3-1-8b"),
        ("gpt-5.4-mini", "gpt-5-4-mini"),
    ],
)
def test_a_resellers_additions_are_taken_off_a_model_id(model_id: str, base: str) -> None:
    assert base_model_id(model_id) == base


def test_a_family_is_known_by_its_bare_and_its_bedrock_id() -> None:
    for model in ("claude-opus-5-5", "global.anthropic.claude-opus-5-5", "eu.anthropic.claude-sonnet-5-5-v1:0"):
        capabilities = CATALOG.capabilities("anthropic", model)
        assert capabilities.prefix_bound and not capabilities.forced_tool_choice
    assert not CATALOG.capabilities("anthropic", "claude-opus-5").prefix_bound
    assert CATALOG.capabilities("anthropic", "claude-haiku-4-5-20251001").cache_min_tokens == 4096
    assert "temperature" not in CATALOG.capabilities("anthropic", "claude-opus-4-6").sampling_refused
    assert "temperature" in CATALOG.capabilities("openai", "o3").sampling_refused


def test_a_claude_newer_than_the_catalog_is_taken_to_be_as_strict_as_the_newest() -> None:
    assert CATALOG.capabilities("anthropic", "claude-opus-9").prefix_bound


def test_a_providers_own_row_is_laid_over_the_family() -> None:
    assert CATALOG.capabilities("mistral", "mistral-large-4").tool_id_pattern == "^[a-zA-Z0-9]{9}$"
    assert not CATALOG.capabilities("mistral", "mistral-large-4").stream_usage
    assert CATALOG.capabilities("anthropic", "claude-opus-5").mid_conversation_tools
    assert not CATALOG.capabilities("bedrock", "anthropic.claude-opus-5").mid_conversation_tools
    assert CATALOG.capabilities("openai", "gpt-4o").max_tokens_field == "max_completion_tokens"
    assert CATALOG.capabilities("together", "x").max_tokens_field == "max_tokens"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"dialect": "openai", "base_ur": "https://x"}, "did you mean 'base_url'"),
        ({"dialect": "openai"}, "base_url is required"),
        ({"dialect": "grpc", "base_url": "https://x"}, "expected one of openai, anthropic, bedrock"),
        ({"base_url": "https://x"}, "dialect"),
        ({"dialect": "openai", "base_url": 5}, "lab"),
        ({"dialect": "openai", "base_url": "https://x", "allow_private_network": "yes"}, "allow_private_network"),
        ({"dialect": "openai", "base_url": "https://x", "families": ["chatt"]}, "chatt"),
        ({"dialect": "openai", "base_url": "https://x", "models": [{"id": "a", "price": 1}]}, "unknown key 'price'"),
        ({"dialect": "openai", "base_url": "https://x", "models": [{"context_tokens": 1}]}, "id"),
        ({"dialect": "openai", "base_url": "https://x", "models": [5]}, "lab"),
        ({"dialect": "openai", "base_url": "https://x", "headers": ["a"]}, "lab"),
        ({"dialect": "openai", "base_url": "https://x", "capabilities": {"image": True}}, "did you mean 'images'"),
        ({"dialect": "openai", "base_url": "https://x", "capabilities": {"images": "no"}}, "images"),
        ({"dialect": "openai", "base_url": "https://u:p@x"}, "user name"),
        ({"dialect": "openai", "base_url": "https://x?a=1"}, "query"),
        ({"dialect": "openai", "base_url": "https://x/#a"}, "fragment"),
        ({"dialect": "openai", "base_url": "ftp://x"}, "http://"),
        ({"dialect": "openai", "base_url": "https://x:99999"}, "[Pp]ort"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_at_load_and_says_why(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_catalog({"lab": row})
    assert "lab" in str(caught.value)


@pytest.mark.parametrize("name", ["orqen", "a/b", "", "A", "a b"])
def test_a_name_that_a_model_string_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is"):
        load_catalog({name: {"dialect": "openai", "base_url": "https://x"}})


def test_an_operators_row_overrides_single_fields_of_a_built_in_one() -> None:
    row = load_catalog(
        {
            "openai": {
                "base_url": "http://127.0.0.1:1/v1/",
                "models": [{"id": "mine", "context_tokens": 8}],
                "region": None,
            }
        }
    ).providers["openai"]
    assert (row.base_url, row.api_key_env, row.configured) == ("http://127.0.0.1:1/v1", ("OPENAI_API_KEY",), True)
    assert (row.models[0].id, row.models[0].context_tokens, row.models[1].id) == ("mine", 8, "gpt-6.1-sol")


def test_a_second_bedrock_row_needs_a_dialect_and_a_region_only() -> None:
    catalog: Catalog = load_catalog({"bedrock-eu": {"dialect": "bedrock", "region": "eu-west-1"}})
    row = catalog.providers["bedrock-eu"]
    assert (row.region, row.auth, row.needs_credentials) == ("eu-west-1", "sigv4", True)


@given(st.text())
def test_an_accepted_base_url_has_no_trailing_slash_and_is_stable(text: str) -> None:
    try:
        checked = check_base_url("https://" + text)
    except ValueError:
        return
    assert not checked.endswith("/") and check_base_url(checked) == checked


@pytest.mark.parametrize(
    ("model", "one"),
    [("claude-opus-4-1", True), ("claude-sonnet-4-6", True), ("claude-haiku-4-5", True), ("claude-opus-4", False)],
)
def test_which_models_take_one_sampler(model: str, one: bool) -> None:
    assert CATALOG.capabilities("anthropic", model).one_sampler is one
