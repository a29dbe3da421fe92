"""`orqen keys optimize`: what the gateway may do to the requests of one key."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
import typer

from orqen_ray.config import SettingsError, load_settings
from orqen_ray.errors import GatewayError
from orqen_ray.service import open_database
from orqen_ray.store.keys import KeyRecord, Keys

_Switch = Annotated[bool | None, typer.Option(help="Default: as it was.", show_default=False)]


def optimize_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As shown by `orqen keys list`.")],
    tools: _Switch = None,
    schemas: _Switch = None,
    context: _Switch = None,
    restore: _Switch = None,
    k_target: Annotated[
        int | None, typer.Option(min=0, help="Send so many tools in full; 0: as many as pay.", show_default=False)
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="First forget all that was set: the settings decide.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Switch optimizations of one key on or off; running gateways follow within 5 seconds."""
    given = {"tools": tools, "schemas": schemas, "context": context, "restore": restore}
    switches = {name: on for name, on in given.items() if on is not None}
    try:
        record = asyncio.run(_changed(key_id, switches, k_target, reset))
    except (GatewayError, SettingsError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
        return
    said = [f"{name} {'on' if on else 'off'}" for name, on in sorted(record.optimization.items())]
    said += [f"{record.k_target_override} tools in full"] if record.k_target_override else []
    typer.echo(f"Key {record.id} of {record.name!r}: {', '.join(said) or 'as the settings say'}.")


async def _changed(key_id: str, switches: dict[str, bool], k_target: int | None, reset: bool) -> KeyRecord:
    database = await open_database(load_settings())
    try:
        return await Keys(database).switch(key_id, switches, k_target=k_target, reset=reset)
    finally:
        await database.aclose()
