"""Where a secret is found, in which order, and that it is not shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.providers.catalog import load_catalog
from orqen_ray.providers.credentials import EnvironmentCredentials, LayeredCredentials, redact
from orqen_ray.types import AwsCredentials, Credentials
from tests.providers.scripted import FixedCredentials

CATALOG = load_catalog()


@pytest.mark.parametrize(
    "row", [row for row in CATALOG.providers.values() if row.api_key_env], ids=lambda row: row.name
)
async def test_each_row_finds_its_key_under_its_own_variable(row: object) -> None:
    name, (variable,) = row.name, row.api_key_env  # type: ignore[attr-defined]
    found = EnvironmentCredentials(CATALOG, {variable: " sk-1\n", "OTHER": "x"})
    assert await found.get(name) == (Credentials(label=variable, api_key="sk-1"),)
    assert name in await found.names()


async def test_an_empty_environment_connects_nothing() -> None:
    found = EnvironmentCredentials(CATALOG, {"OPENAI_API_KEY": " "})
    assert (await found.names(), await found.get("openai"), await found.get("nowhere")) == (frozenset(), (), ())


async def test_bedrock_takes_a_bearer_key_before_aws_keys_and_the_rows_region_before_the_variables() -> None:
    aws = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "S", "AWS_SESSION_TOKEN": "T", "AWS_REGION": "eu-west-1"}
    aws_keys = AwsCredentials(access_key_id="AK", secret_access_key="S", session_token="T")
    (found,) = await EnvironmentCredentials(CATALOG, aws).get("bedrock")
    assert found == Credentials(label="AWS_ACCESS_KEY_ID", aws=aws_keys, region="eu-west-1")
    bearer = {**aws, "AWS_BEARER_TOKEN_BEDROCK": "B"}
    (found,) = await EnvironmentCredentials(load_catalog({"bedrock": {"region": "us-west-2"}}), bearer).get("bedrock")
    assert found == Credentials(label="AWS_BEARER_TOKEN_BEDROCK", api_key="B", region="us-west-2")


async def test_several_variables_are_several_keys_in_their_order() -> None:
    row = {"openai": {"api_key_env": ["FIRST", "ABSENT", "SECOND"]}}
    found = await EnvironmentCredentials(load_catalog(row), {"SECOND": "2", "FIRST": "1"}).get("openai")
    assert found == (Credentials(label="FIRST", api_key="1"), Credentials(label="SECOND", api_key="2"))


async def test_a_configured_bedrock_without_variables_asks_awss_own_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "credentials"
    shared.write_text("[default]\naws_access_key_id = AKFILE\naws_secret_access_key = SFILE\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    found = EnvironmentCredentials(load_catalog({"bedrock": {"region": "eu-west-1"}}), {})
    assert await found.names() == {"bedrock"}
    (secret,) = await found.get("bedrock")
    assert secret.aws and secret.aws.access_key_id == "AKFILE"
    assert await EnvironmentCredentials(CATALOG, {}).get("bedrock") == (), "not configured, so not searched for"


async def test_an_aws_chain_that_finds_nothing_connects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = EnvironmentCredentials(load_catalog({"bedrock": {}}), {})
    assert await found.names() == frozenset() and await found.get("bedrock") == ()


async def test_the_first_source_that_knows_a_provider_wins() -> None:
    first, second = Credentials(api_key="1"), Credentials(api_key="2")
    layered = LayeredCredentials(FixedCredentials(a=first), FixedCredentials(a=second, b=second))
    assert [await layered.get(name) for name in "abc"] == [(first,), (second,), ()]
    assert await layered.names() == {"a", "b"}


@given(st.binary(), st.binary(), st.text("abc/+=XYZ", min_size=8))
def test_no_secret_is_left_in_a_redacted_body(before: bytes, after: bytes, secret: str) -> None:
    credentials = Credentials(
        api_key=secret, aws=AwsCredentials(access_key_id="AKIDEXAMPLE", secret_access_key=secret, session_token=None)
    )
    body = before + secret.encode() + b"AKIDEXAMPLE" + secret.replace("/", "\\/").encode() + after
    assert secret.encode() not in redact(body, credentials) and b"AKIDEXAMPLE" not in redact(body, credentials)


def test_a_body_without_a_secret_is_left_alone() -> None:
    assert redact(b"an a", Credentials(api_key="a")) == b"an a", "too short to be a key"
    assert redact(b"x", None) == b"x"


def test_a_secret_is_not_in_the_text_of_its_credentials() -> None:
    aws = AwsCredentials(access_key_id="AKID", secret_access_key="hidden", session_token="hidden")
    assert "hidden" not in repr(Credentials(api_key="hidden", aws=aws)) and "AKID" not in repr(aws)
