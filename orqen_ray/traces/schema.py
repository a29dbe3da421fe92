"""The columns of the trace log as Arrow and Parquet know them, made from the row."""

from __future__ import annotations

from dataclasses import is_dataclass
from datetime import datetime
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from orqen_ray.traces.row import Trace

_SCALARS: dict[object, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int32(),
    float: pa.float64(),
    datetime: pa.timestamp("us", tz="UTC"),
}
# Text that is different in each row: a dictionary of it would only take room.
_UNIQUE = frozenset({"request_id"})


def _type_of(kind: Any) -> tuple[pa.DataType, bool]:
    """The Arrow type of an annotation, and whether it may be null."""
    if NoneType in get_args(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
        return _type_of(kind)[0], True
    if get_origin(kind) is tuple:
        return pa.list_(_type_of(get_args(kind)[0])[0]), False
    if is_dataclass(kind):
        return pa.struct([pa.field(name, _type_of(hint)[0]) for name, hint in get_type_hints(kind).items()]), False
    return _SCALARS[kind], False


def _columns() -> list[pa.Field]:
    columns = []
    for name, annotation in get_type_hints(Trace, include_extras=True).items():
        if get_origin(annotation) is Annotated:
            kind, description = get_args(annotation)
            arrow_type, nullable = _type_of(kind)
            columns.append(pa.field(name, arrow_type, nullable=nullable, metadata={"description": description}))
    return columns


TRACE_SCHEMA: pa.Schema = pa.schema(_columns())


def parquet_options(schema: pa.Schema = TRACE_SCHEMA) -> dict[str, Any]:
    """Options for `pq.ParquetWriter`: zstd, and for each column the encoding that suits it."""
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    own = {"started_at": "DELTA_BINARY_PACKED", **dict.fromkeys(floats, "BYTE_STREAM_SPLIT")}
    lists = {f"{field.name}.list.element" for field in schema if pa.types.is_list(field.type)}
    structs = {
        f"{field.name}.list.element.{inner.name}"
        for field in schema
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)
        for inner in field.type.value_type
    }
    lists -= {path.rpartition(".")[0] for path in structs}
    plain = {field.name for field in schema if not pa.types.is_nested(field.type)} - own.keys() - _UNIQUE
    return {
        "compression": "zstd",
        "use_dictionary": sorted(plain | lists | structs),
        "column_encoding": own,
        "sorting_columns": pq.SortingColumn.from_ordering(schema, [("started_at", "ascending")]),
    }
