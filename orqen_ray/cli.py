"""The `orqen` command: keys of callers and credentials of providers, worked on in the store; the check-up."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer

from orqen_ray.config import Settings, SettingsError, load_secrets, load_settings, read_environment
from orqen_ray.doctor.checks import examine
from orqen_ray.errors import BadRequest, GatewayError, NotFound
from orqen_ray.probe import probe
from orqen_ray.providers.catalog import Catalog, Provider, check_base_url, load_catalog
from orqen_ray.providers.credentials import EnvironmentCredentials, LayeredCredentials
from orqen_ray.service import open_database
from orqen_ray.store.database import Database
from orqen_ray.store.keys import KeyRecord, Keys
from orqen_ray.store.secrets import ProviderSecrets, load_cipher
from orqen_ray.types import AwsCredentials, Credentials

T = TypeVar("T")

_EXPIRES_DAYS_MAX = 36_500

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
keys_app = typer.Typer(no_args_is_help=True, help="The keys that callers of the gateway hold.")
providers_app = typer.Typer(no_args_is_help=True, help="The credentials with which the gateway calls providers.")
app.add_typer(keys_app, name="keys")
app.add_typer(providers_app, name="providers")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ProviderName = Annotated[str, typer.Argument(help="The provider's name, as in the catalog or the configuration.")]


@dataclass(frozen=True, slots=True)
class _Store:
    settings: Settings
    database: Database

    @property
    def keys(self) -> Keys:
        return Keys(self.database)

    async def secrets(self) -> ProviderSecrets:
        secret_key = load_secrets().secret_key
        given = secret_key.get_secret_value() if secret_key else None
        return ProviderSecrets(self.database, await asyncio.to_thread(load_cipher, self.database.url, given))

    def catalog(self) -> Catalog:
        try:
            return load_catalog(self.settings.operator_rows())
        except ValueError as error:
            raise SettingsError(str(error)) from None


# --- orqen keys -------------------------------------------------------------------------------------------------


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in lists.")],
    admin: Annotated[bool, typer.Option("--admin", help="Kept with the key, for the account API to come.")] = False,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=_EXPIRES_DAYS_MAX, help="Default: never.")] = None,
    rate_limit_rpm: Annotated[int, typer.Option(min=0, help="Kept with the key; not enforced yet.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a key and print its secret, this once."""
    expires_at = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    record, secret = _run(
        lambda store: store.keys.create(name, admin=admin, expires_at=expires_at, rate_limit_rpm=rate_limit_rpm)
    )
    if as_json:
        _print_json(msgspec.to_builtins(record) | {"secret": secret})
    else:
        typer.echo(f"{secret}\n\nKey {record.id} for {record.name!r}. The secret cannot be shown again: copy it now.")


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, revoked ones too; never their secrets."""
    records = _run(lambda store: store.keys.list())
    if as_json:
        _print_json(records)
        return
    rows = [
        (key.id, key.name, key.preview, "admin" if key.is_admin else "", _state(key), _day(key.created_at))
        for key in records
    ]
    _print_table(("ID", "NAME", "SECRET", "ROLE", "STATE", "CREATED"), rows)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As shown by `orqen keys list`.")],
    as_json: AsJson = False,
) -> None:
    """Make a key useless; running gateways follow within 5 seconds."""
    record = _run(lambda store: store.keys.revoke(key_id))
    if as_json:
        _print_json(record)
    else:
        typer.echo(f"Key {record.id} of {record.name!r} is revoked.")


# --- orqen providers --------------------------------------------------------------------------------------------


@providers_app.command("connect")
def connect_provider(
    name: ProviderName,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Read the API key from this environment variable.")
    ] = None,
    aws: Annotated[bool, typer.Option("--aws", help="AWS keys instead of an API key (Bedrock).")] = False,
    region: Annotated[str | None, typer.Option(help="AWS region (Bedrock).")] = None,
    base_url: Annotated[str | None, typer.Option(help="Call this address instead of the catalog's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store a provider's credentials, sealed, in place of any that it has.

    The secret comes from --api-key-env, else from standard input or a hidden prompt; never from the command line.
    With --aws: from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN when set, else one a line.
    """
    if aws and api_key_env:
        raise typer.BadParameter("--aws and --api-key-env exclude each other")

    async def connect(store: _Store) -> Any:
        provider = _provider(store.catalog(), name)
        address = _checked_base_url(provider, base_url)
        secrets = await store.secrets()
        credentials = Credentials(
            api_key=None if aws else _read_api_key(name, api_key_env),
            aws=_read_aws_keys() if aws else None,
            region=region,
            base_url=address,
        )
        return await secrets.put(name, credentials)

    stored = _run(connect)
    if as_json:
        _print_json(stored)
    else:
        typer.echo(f"{name} is connected ({stored.preview}). Try it: orqen providers test {name}")


@providers_app.command("list")
def list_providers(as_json: AsJson = False) -> None:
    """List the connected providers, and where their credentials come from."""

    async def connected(store: _Store) -> list[dict[str, Any]]:
        catalog = store.catalog()
        stored = {row.provider: msgspec.to_builtins(row) for row in await (await store.secrets()).list()}
        in_environment = await EnvironmentCredentials(catalog, read_environment()).names()
        rows = [row | {"source": "store"} for row in stored.values()]
        rows += [{"provider": name, "source": "environment"} for name in sorted(in_environment - stored.keys())]
        known = stored.keys() | in_environment
        for provider in catalog.providers.values():
            if provider.name not in known and (provider.embedded or provider.configured):
                source = "missing" if provider.needs_credentials else "none needed"
                rows.append({"provider": provider.name, "source": source})
        return rows

    rows = _run(connected)
    if as_json:
        _print_json(rows)
        return
    columns = ("provider", "source", "preview", "region", "base_url")
    _print_table([c.upper() for c in columns], [[row.get(c) or "" for c in columns] for row in rows])


@providers_app.command("test")
def test_provider(
    name: ProviderName,
    model: Annotated[str | None, typer.Option(help="Ask this model for a few tokens instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make one cheap call to a provider.

    It asks for the list of models, which costs nothing, or else the cheapest model of its row for a few tokens.
    """
    result = _run(lambda store: _test(store, name, model))
    if as_json:
        _print_json(result)
    elif result["ok"]:
        typer.echo(f"{name} answers: {result['call']}, HTTP {result['status']}, {result['took_ms']:.0f} ms")
    else:
        typer.echo(f"error: {name}: {result['call']}: {result['message']}", err=True)
    raise typer.Exit(0 if result["ok"] else 1)


@providers_app.command("disconnect")
def disconnect_provider(name: ProviderName, as_json: AsJson = False) -> None:
    """Forget a provider's stored credentials; running gateways follow within 5 seconds."""

    async def disconnect(store: _Store) -> bool:
        if not await (await store.secrets()).delete(name):
            raise NotFound(f"{name!r} has no stored credentials; `orqen providers list` shows where they come from")
        return name in await EnvironmentCredentials(store.catalog(), read_environment()).names()

    in_environment = _run(disconnect)
    if as_json:
        _print_json({"provider": name, "disconnected": True, "in_environment": in_environment})
        return
    hint = ", but it stays connected by the environment's" if in_environment else ""
    typer.echo(f"The stored credentials of {name} are forgotten{hint}.")


# --- orqen doctor -----------------------------------------------------------------------------------------------


@app.command("doctor")
def doctor(
    providers: Annotated[bool, typer.Option(help="Ask the providers too: their hosts, and free calls only.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check the installation: settings, store, keys, providers, clock, disk, ports. Changes nothing."""
    logging.disable()  # what a check finds it says itself
    try:
        findings = asyncio.run(examine(ask_providers=providers))
    finally:
        logging.disable(logging.NOTSET)
    if as_json:
        _print_json(findings)
    else:
        for finding in findings:
            typer.echo(f"{finding.state:<8} {finding.check}: {finding.message}")
            if finding.advice:
                typer.echo(f"{'':<8} -> {finding.advice}")
    raise typer.Exit(1 if any(finding.state == "failed" for finding in findings) else 0)


# --- The test call ----------------------------------------------------------------------------------------------


async def _test(store: _Store, name: str, model: str | None) -> dict[str, Any]:
    catalog = store.catalog()
    provider = _provider(catalog, name)
    credentials = LayeredCredentials(await store.secrets(), EnvironmentCredentials(catalog, read_environment()))
    return await probe(catalog, provider, await credentials.get(name), model)


# --- Reading what is given --------------------------------------------------------------------------------------


def _provider(catalog: Catalog, name: str) -> Provider:
    provider = catalog.providers.get(name)
    if provider is None:
        nearest = get_close_matches(name, catalog.providers, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(catalog.providers))};"
        raise NotFound(f"no provider is named {name!r}; {hint} One of your own is a row under `providers:` in the YAML")
    return provider


def _checked_base_url(provider: Provider, base_url: str | None) -> str | None:
    if base_url is not None:
        try:
            return check_base_url(base_url)
        except ValueError as error:
            raise BadRequest(str(error), param="--base-url") from None
    if provider.base_url is None:
        raise BadRequest(f"{provider.name} has no address of its own: give yours with --base-url")
    return None


def _read_api_key(name: str, variable: str | None) -> str:
    if variable is None:
        return _read_secret(f"API key of {name}", required=True)
    value = read_environment().get(variable, "").strip()
    if not value:
        raise BadRequest(f"the environment variable {variable} is not set", param="--api-key-env")
    return value


def _read_aws_keys() -> AwsCredentials:
    environment: Mapping[str, str] = read_environment()
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        key_id, secret = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        token = environment.get("AWS_SESSION_TOKEN", "")
    else:
        key_id = _read_secret("AWS access key id", required=True)
        secret = _read_secret("AWS secret access key", required=True)
        token = _read_secret("AWS session token (empty for none)", required=False)
    return AwsCredentials(access_key_id=key_id, secret_access_key=secret, session_token=token.strip() or None)


def _read_secret(what: str, *, required: bool) -> str:
    """A line that nobody sees: from a hidden prompt, or from standard input when that is no terminal."""
    if sys.stdin.isatty():
        secret = str(typer.prompt(what, hide_input=True, default="" if not required else None, show_default=False))
    else:
        secret = sys.stdin.readline()
    if required and not secret.strip():
        raise BadRequest(f"{what}: nothing was given; pipe it in, or name its variable with --api-key-env")
    return secret.strip()


# --- Running and printing ---------------------------------------------------------------------------------------


def _run(work: Callable[[_Store], Awaitable[T]]) -> T:
    """The result of `work` on the store; an error ends the command with its message and exit code 1."""

    async def run() -> T:
        settings = load_settings()
        database = await open_database(settings)
        try:
            return await work(_Store(settings, database))
        finally:
            await database.aclose()

    try:
        return asyncio.run(run())
    except (GatewayError, SettingsError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo("\n".join(f"error: {line}" for line in message.splitlines()), err=True)
    raise typer.Exit(1)


def _print_json(value: object) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _state(key: KeyRecord) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "active"
    return f"{'expired' if key.expires_at <= datetime.now(UTC) else 'active until'} {_day(key.expires_at)}"


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"
