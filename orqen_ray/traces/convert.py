"""Lines of the spool as Arrow tables, priced: what the shipper writes and what the reader reads of the newest rows."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from datetime import date
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from orqen_ray.conversation import Usage
from orqen_ray.traces.cost import cost_usd
from orqen_ray.traces.row import Trace
from orqen_ray.traces.schema import TRACE_SCHEMA

_PRICES = pa.field("prices_usd_per_mtok", pa.list_(pa.float64()))
_LINE_SCHEMA = pa.schema([field.with_nullable(True) for field in TRACE_SCHEMA]).append(_PRICES)
_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Trace)}
_TOKENS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)

_log = logging.getLogger(__name__)


def table_of(lines: bytes, *, priced: bool = True) -> pa.Table:
    """The rows of whole lines, oldest first, in `TRACE_SCHEMA`. A line that is no row is left out and logged.

    Args:
        priced: fill in `cost_usd`, which takes longer than all the rest.
    """
    tables = list(_parsed(lines))
    if not tables:
        return TRACE_SCHEMA.empty_table()
    table = pa.concat_tables(tables)
    table = table.filter(pc.is_valid(table["started_at"])).combine_chunks()
    whole = complete(table)
    if priced:
        whole = whole.set_column(
            TRACE_SCHEMA.get_field_index("cost_usd"), TRACE_SCHEMA.field("cost_usd"), _costs(table)
        )
    return whole.sort_by("started_at")


def complete(table: pa.Table, schema: pa.Schema = TRACE_SCHEMA) -> pa.Table:
    """`table` in `schema`, some columns of `TRACE_SCHEMA`: what it lacks is null, or the row's own default."""
    columns = [
        _filled(table[field.name].cast(field.type), field)
        if field.name in table.column_names
        else _filled(pa.chunked_array([pa.nulls(len(table), field.type)]), field)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def by_day(table: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """The rows of each UTC day on which some started."""
    days = pc.cast(table["started_at"], pa.date32())
    for day in sorted(pc.unique(days).to_pylist()):
        yield day, table.filter(pc.equal(days, pa.scalar(day, pa.date32())))


def _parsed(lines: bytes) -> Iterator[pa.Table]:
    """Tables of the lines that can be read: all at once, and halved where that fails, down to the line at fault."""
    if not lines.strip():
        return
    try:
        yield pj.read_json(
            io.BytesIO(lines),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=pj.ParseOptions(explicit_schema=_LINE_SCHEMA, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid as error:
        middle = lines.find(b"\n", len(lines) // 2) + 1
        if not 0 < middle < len(lines):
            middle = lines.rfind(b"\n", 0, len(lines) - 1) + 1
        if middle == 0:
            _log.error("traces: a line of the spool is no row and is left out: %s", str(error)[:200])
            return
        yield from _parsed(lines[:middle])
        yield from _parsed(lines[middle:])


def _filled(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """`column` with the row's defaults in the place of what its line left out."""
    if field.nullable or column.null_count == 0:
        return column
    if pa.types.is_list(field.type):
        parts = [pa.ListArray.from_arrays(part.offsets, part.values, field.type) for part in column.chunks]
        return pa.chunked_array(parts, field.type)
    default = _DEFAULTS[field.name]
    return column.fill_null(pa.scalar("" if default is msgspec.NODEFAULT else default, field.type))


def _costs(table: pa.Table) -> pa.Array:
    names = ("provider", "sent_model", "started_at", "usage_source", "cost_usd", _PRICES.name)
    known: dict[str, list[Any]] = {name: table[name].to_pylist() for name in names}
    counts = [[count or 0 for count in table[name].to_pylist()] for name in _TOKENS]
    costs: list[float | None] = []
    for provider, model, started_at, source, cost, prices, *tokens in zip(*known.values(), *counts, strict=True):
        if cost is None and source is not None and provider is not None and model is not None:
            usage = Usage(**dict(zip(_TOKENS, tokens, strict=True)))
            cost = cost_usd(provider, model, usage, tuple(prices) if prices else None, at=started_at)
        costs.append(cost)
    return pa.array(costs, pa.float64())
