"""`orqen audit`: reads a file with tools, in any format, and says how well they are described."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from orqen_ray.config import SettingsError, load_settings
from orqen_ray.conversation import JsonObject, Tool
from orqen_ray.encoders.opening import open_embedder
from orqen_ray.encoders.protocol import EncoderUnavailable, Vectors
from orqen_ray.errors import BadRequest
from orqen_ray.formats.registry import FORMATS
from orqen_ray.tools.audit import Audit, audited, text_of

_MAX_FILE_BYTES = 64 * 1024 * 1024
_SHOWN_PAIRS = 20
_SHOWN_PARAMETERS = 6

app = typer.Typer(no_args_is_help=True, help="How well tools are described.")


@app.callback()
def _audit() -> None:
    """Keeps `tools` a command of its own, and not the only one."""


@app.command("tools")
def audit_tools(
    file: Annotated[Path, typer.Argument(help="JSON: a request body, a list of tools, or MCP's answer to tools/list.")],
    min_score: Annotated[int, typer.Option(min=0, max=100, help="Fail when a tool scores less.")] = 50,
    similar: Annotated[float | None, typer.Option(min=0, max=1, help="Cosine from which two tools collide.")] = None,
    encoder: Annotated[bool, typer.Option(help="Compare tools by the embedder of the settings, not by words.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Audit the tools of a file: descriptions, parameters, tools that look alike, tokens, what providers refuse."""
    tools = _read(file)
    name, vectors = asyncio.run(_embedded(tools)) if encoder else ("", None)
    audit = audited(tools, vectors, name, similar)
    failed = sum(tool.score < min_score for tool in audit.tools)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(audit), indent=2).decode())
    else:
        _print(audit, min_score)
    raise typer.Exit(1 if failed or len(audit.refused) == len(FORMATS) else 0)


# --- Reading ----------------------------------------------------------------------------------------------------


def _read(file: Path) -> tuple[Tool, ...]:
    """The tools of the file; ends the command with a message where there are none or they cannot be read."""
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            _fail(f"{file} has more than {_MAX_FILE_BYTES >> 20} MiB")
        whole = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        _fail(f"{file} cannot be read: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _fail(f"{file} is not JSON: {error}")
    items = whole
    for key in ("result", "toolConfig", "tools"):
        if isinstance(items, dict) and key in items:
            items = items[key]
    if not isinstance(items, list) or not items:
        _fail(f"{file} holds no tools: expected a list of tools, or an object with `tools` or `toolConfig.tools`")
    try:
        return _tools(items)
    except BadRequest as error:
        _fail(f"{file}: {error}")


def _tools(items: list[Any]) -> tuple[Tool, ...]:
    """The tools by the reader of their format, which the first of them shows.

    Raises:
        BadRequest: one cannot be read; the message starts with its place.
    """
    first = items[0] if isinstance(items[0], dict) else {}
    if "toolSpec" in first:
        messages: Any = [{"role": "user", "content": [{"text": "x"}]}]
        body: JsonObject = {"messages": messages, "toolConfig": {"tools": items}}
        return FORMATS["bedrock_converse"].read_request(body, "x").tools
    body = {"model": "x", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    if "function" in first or first.get("type") in ("function", "custom") and "input_schema" not in first:
        return FORMATS["openai_chat"].read_request({**body, "tools": list(map(_nested, items))}, None).tools
    return FORMATS["anthropic_messages"].read_request({**body, "tools": list(map(_renamed, items))}, None).tools


def _nested(item: Any) -> Any:
    """OpenAI's Responses API writes flat what its chat API nests."""
    flat = isinstance(item, dict) and item.get("type") == "function" and "function" not in item
    return {"type": "function", "function": {k: v for k, v in item.items() if k != "type"}} if flat else item


def _renamed(item: Any) -> Any:
    """MCP writes `inputSchema` where Anthropic writes `input_schema`."""
    if isinstance(item, dict) and "inputSchema" in item:
        return {"input_schema": item["inputSchema"], **{k: v for k, v in item.items() if k != "inputSchema"}}
    return item


async def _embedded(tools: Sequence[Tool]) -> tuple[str, Vectors | None]:
    """The embedder's name and the tools' vectors; None, and a word on standard error, when there is no embedder."""
    try:
        embedder = open_embedder(load_settings().encoders)
        await embedder.opened()
        return embedder.name, await embedder.embed([text_of(tool) for tool in tools if tool.raw is None])
    except (EncoderUnavailable, SettingsError, ValueError) as error:
        typer.echo(f"note: tools are compared by words, as the embedder is not there: {error}", err=True)
        return "", None


# --- Printing ---------------------------------------------------------------------------------------------------


def _print(audit: Audit, min_score: int) -> None:
    for tool in sorted(audit.tools, key=lambda tool: tool.score):
        said = [*tool.findings, *_listed("undocumented", tool.undocumented), *_listed("without a type", tool.untyped)]
        saved = f" ({tool.compressed_tokens} compressed)" if tool.compressed_tokens < tool.tokens else ""
        mark = "!" if tool.score < min_score else " "
        typer.echo(
            f"{mark} {tool.score:>3}  {tool.name}: {tool.tokens} tokens{saved}" + "".join(f"; {s}" for s in said)
        )
    if audit.collisions:
        typer.echo(f"\nHard to tell apart (by {audit.compared_by}):")
    for pair in audit.collisions[:_SHOWN_PAIRS]:
        typer.echo(f"  {pair.similarity:.3f}  {pair.first} | {pair.second}")
    if len(audit.collisions) > _SHOWN_PAIRS:
        typer.echo(f"  and {len(audit.collisions) - _SHOWN_PAIRS} more pairs; --json has them all")
    for dialect, why in audit.refused.items():
        typer.echo(f"\nRefused as {dialect}: " + "; ".join(why))
    tokens, shorter = (sum(getattr(tool, of) for tool in audit.tools) for of in ("tokens", "compressed_tokens"))
    typer.echo(f"\n{len(audit.tools)} tools, {tokens} tokens; compression saves {tokens - shorter}")


def _listed(what: str, paths: Sequence[str]) -> list[str]:
    if not paths:
        return []
    more = f" and {len(paths) - _SHOWN_PARAMETERS} more" if len(paths) > _SHOWN_PARAMETERS else ""
    return [f"{what}: {', '.join(paths[:_SHOWN_PARAMETERS])}{more}"]


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
