"""The `orqen` command: keys of callers and credentials of providers, worked on in the store; the check-up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer

from orqen_ray.audit_cli import app as audit_app
from orqen_ray.config import Settings, SettingsError, load_secrets, load_settings, read_environment
from orqen_ray.doctor.checks import examine
from orqen_ray.errors import BadRequest, GatewayError, NotFound
from orqen_ray.eval_cli import app as eval_app
from orqen_ray.probe import probe
from orqen_ray.prompts import read_api_key, read_aws_keys
from orqen_ray.providers.catalog import Catalog, Provider, check_base_url, load_catalog
from orqen_ray.providers.credentials import EnvironmentCredentials, LayeredCredentials
from orqen_ray.service import open_database
from orqen_ray.store.cipher import Cipher, load_cipher
from orqen_ray.store.database import Database
from orqen_ray.store.keys import KeyRecord, Keys
from orqen_ray.store.rotation import rotate
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.store.token_counts import TokenCounts
from orqen_ray.switches_cli import optimize_key
from orqen_ray.types import Credentials

T = TypeVar("T")

_EXPIRES_DAYS_MAX = 36_500

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
keys_app = typer.Typer(no_args_is_help=True, help="The keys that callers of the gateway hold.")
providers_app = typer.Typer(no_args_is_help=True, help="The credentials with which the gateway calls providers.")
app.add_typer(keys_app, name="keys")
keys_app.command("optimize")(optimize_key)
secrets_app = typer.Typer(no_args_is_help=True, help="The key that seals the credentials of providers.")
app.add_typer(providers_app, name="providers")
app.add_typer(secrets_app, name="secrets")
app.add_typer(audit_app, name="audit")
app.add_typer(eval_app, name="eval")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ProviderName = Annotated[str, typer.Argument(help="The provider's name, as in the catalog or the configuration.")]


@dataclass(frozen=True, slots=True)
class _Store:
    settings: Settings
    database: Database

    @property
    def keys(self) -> Keys:
        return Keys(self.database)

    async def cipher(self) -> Cipher:
        secret_key = load_secrets().secret_key
        given = secret_key.get_secret_value() if secret_key else None
        return await asyncio.to_thread(load_cipher, self.database.url, given)

    async def secrets(self) -> ProviderSecrets:
        return ProviderSecrets(self.database, await self.cipher())

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
    rate_limit_rpm: Annotated[int, typer.Option(min=0, help="Requests a minute; 0: no limit.")] = 0,
    daily_token_budget: Annotated[int, typer.Option(min=0, help="Billed tokens a UTC day; 0: no limit.")] = 0,
    weekly_token_budget: Annotated[int, typer.Option(min=0, help="Billed tokens a week from Monday; 0: no limit.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a key and print its secret, this once."""
    expires_at = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    record, secret = _run(
        lambda store: store.keys.create(
            name,
            admin=admin,
            expires_at=expires_at,
            rate_limit_rpm=rate_limit_rpm,
            daily_token_budget=daily_token_budget,
            weekly_token_budget=weekly_token_budget,
        )
    )
    if as_json:
        _print_json(msgspec.to_builtins(record) | {"secret": secret})
    else:
        typer.echo(f"{secret}\n\nKey {record.id} for {record.name!r}. The secret cannot be shown again: copy it now.")


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, revoked ones too, with their limits and the tokens of this UTC day; never their secrets."""

    async def listed(store: _Store) -> list[tuple[KeyRecord, int]]:
        keys, today = await store.keys.list(), datetime.now(UTC).date()
        used = await TokenCounts(store.database).since(today, [key.id for key in keys])
        return [(key, used[key.id].get(today, 0)) for key in keys]

    found = _run(listed)
    if as_json:
        _print_json([msgspec.to_builtins(key) | {"tokens_today": tokens} for key, tokens in found])
        return
    rows = [
        (key.id, key.name, key.preview, "admin" if key.is_admin else "", _state(key), _limits(key), str(tokens))
        for key, tokens in found
    ]
    _print_table(("ID", "NAME", "SECRET", "ROLE", "STATE", "LIMITS", "TOKENS TODAY"), rows)


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
    label: Annotated[str, typer.Option(help="Tells several keys of one provider apart.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Store a provider's credentials, sealed, in place of those with the same label.

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
            api_key=None if aws else read_api_key(name, api_key_env),
            aws=read_aws_keys() if aws else None,
            region=region,
            base_url=address,
            label=label,
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
        stored = await (await store.secrets()).list()
        in_environment = await EnvironmentCredentials(catalog, read_environment()).names()
        rows = [msgspec.to_builtins(row) | {"source": "store"} for row in stored]
        names = {row.provider for row in stored}
        rows += [{"provider": name, "source": "environment"} for name in sorted(in_environment - names)]
        known = names | in_environment
        for provider in catalog.providers.values():
            if provider.name not in known and (provider.embedded or provider.configured):
                source = "missing" if provider.needs_credentials else "none needed"
                rows.append({"provider": provider.name, "source": source})
        return rows

    rows = _run(connected)
    if as_json:
        _print_json(rows)
        return
    columns = ("provider", "source", "label", "preview", "region", "base_url")
    _print_table([c.upper() for c in columns], [[row.get(c) or "" for c in columns] for row in rows])


@providers_app.command("test")
def test_provider(
    name: ProviderName,
    model: Annotated[str | None, typer.Option(help="Ask this model for a few tokens instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make one cheap call to a provider with each of its keys.

    It asks for the list of models, which costs nothing, or else the cheapest model of its row for a few tokens.
    """

    async def test(store: _Store) -> list[dict[str, Any]]:
        catalog = store.catalog()
        provider = _provider(catalog, name)
        environment = EnvironmentCredentials(catalog, read_environment())
        credentials = await LayeredCredentials(await store.secrets(), environment).get(name)
        return [await probe(catalog, provider, each, model) for each in credentials or (None,)]

    results = _run(test)
    if as_json:
        worst = next((result for result in results if not result["ok"]), results[0])
        _print_json(worst | {"keys": results})
    for result in () if as_json else results:
        key = f" (key {result['label']})" if len(results) > 1 else ""
        if result["ok"]:
            typer.echo(f"{name}{key} answers: {result['call']}, HTTP {result['status']}, {result['took_ms']:.0f} ms")
        else:
            typer.echo(f"error: {name}{key}: {result['call']}: {result['message']}", err=True)
    raise typer.Exit(0 if all(result["ok"] for result in results) else 1)


@providers_app.command("disconnect")
def disconnect_provider(
    name: ProviderName,
    label: Annotated[str | None, typer.Option(help="Only the credentials with this label; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forget a provider's stored credentials; running gateways follow within 5 seconds."""

    async def disconnect(store: _Store) -> tuple[list[str], bool]:
        secrets = await store.secrets()
        if not await secrets.delete(name, label):
            which = f"with the label {label!r}" if label else "of its own"
            raise NotFound(f"{name!r} has no stored credentials {which}; `orqen providers list` shows what there is")
        left = [row.label for row in await secrets.list() if row.provider == name]
        return left, name in await EnvironmentCredentials(store.catalog(), read_environment()).names()

    left, in_environment = _run(disconnect)
    if as_json:
        _print_json({"provider": name, "disconnected": True, "labels": left, "in_environment": in_environment})
        return
    hint = ", but it stays connected by the environment's" if in_environment else ""
    hint = f"; it keeps those labelled {', '.join(left)}" if left else hint
    typer.echo(f"The stored credentials {label + ' ' if label else ''}of {name} are forgotten{hint}.")


# --- orqen secrets ----------------------------------------------------------------------------------------------


@secrets_app.command("rotate")
def rotate_secrets(as_json: AsJson = False) -> None:
    """Seal all stored credentials with the newest key; running gateways go on meanwhile.

    The newest key is the first of ORQEN_SECRET_KEY, or a new one that is put into the file secret.key.
    """

    async def work(store: _Store) -> Any:
        return await rotate(store.database, await store.cipher())

    done = _run(work)
    if as_json:
        _print_json(done)
        return
    typer.echo(f"{done.resealed} of {done.credentials} stored credentials were sealed anew with the newest key.")
    if done.new_key:
        typer.echo("secret.key holds the new key alone: back it up.")
    else:
        typer.echo("Every other key can now be taken out of ORQEN_SECRET_KEY.")


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


def _limits(key: KeyRecord) -> str:
    limits = ((key.rate_limit_rpm, "rpm"), (key.daily_token_budget, "a day"), (key.weekly_token_budget, "a week"))
    return ", ".join(f"{limit} {unit}" for limit, unit in limits if limit)


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"
