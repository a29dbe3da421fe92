"""`orqen eval`: measures an optimization on labelled conversations, by the code that serves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from orqen_ray.errors import BadRequest

app = typer.Typer(no_args_is_help=True, help="How well an optimization does, on labelled conversations.")
_SHOWN = ("recall", "all_needed", "kept", "tokens", "p_miss_expected", "p_miss_observed")


@app.callback()
def _eval() -> None:
    """Keeps `tools` a command of its own, and not the only one."""


@app.command("tools")
def eval_tools(
    data: Annotated[Path, typer.Option(help="Folder with *.tools.jsonl.gz and *.queries.jsonl.gz.")],
    only: Annotated[list[str] | None, typer.Option(help="A set; may be repeated. Default: all.")] = None,
    size: Annotated[list[int] | None, typer.Option(min=1, help="Number of tools offered; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Conversations of each set at first sight; 0: leave out.")] = 100,
    conversations: Annotated[int, typer.Option(min=0, help="Of each set, from their head; 0: leave out.")] = 20,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="SETS=FOLDER: an encoder not trained on these sets; peers=FOLDER: that of the peers' rules."),
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where vectors are kept for the next run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Evaluate tool routing: at first sight beside two peers' rules, from the head, and with learned use."""
    # Not imported before it is needed: encoders and vocabularies take a second that no other command should wait.
    from orqen_ray.offline.eval_tools import Asked, evaluate

    asked = Asked(
        data=data,
        only=only or (),
        limit=limit,
        conversations=conversations,
        encoders=encoder or (),
        cache_dir=cache_dir,
        **({"sizes": size} if size else {}),
    )
    try:
        report = asyncio.run(evaluate(asked))
    except BadRequest as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    """The means; all else is in the JSON."""
    typer.echo(f"snapshot {report['snapshot']}, sets {', '.join(report['sets'])}")
    for size, rules in report.get("first_sight", {}).get("sizes", {}).items():
        for rule, found in rules.items():
            shown = "  ".join(f"{name} {found['mean'][name]:.3f}" for name in _SHOWN)
            typer.echo(f"first sight  {size:>4} tools  {rule:<20}  {shown}")
    for part in ("from_head", "use"):
        for name, found in report.get(part, {}).items():
            typer.echo(f"{part}  {name}  {len(found['rows'])} rows {found.get('summary', '')}")
