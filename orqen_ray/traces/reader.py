"""Reads the trace log back as one Arrow table."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from orqen_ray.traces.location import DAY_PREFIX, local_directory
from orqen_ray.traces.schema import TRACE_SCHEMA


def read_traces(uri: str, since: datetime | None = None) -> pa.Table:
    """All rows, or those started at or after `since`, oldest first; no rows where there is no log.

    Columns that older files lack are null. Blocking: a gateway calls it in a thread.

    Args:
        since: with a time zone.
    """
    first_day = DAY_PREFIX if since is None else f"{DAY_PREFIX}{since.astimezone(UTC).date().isoformat()}"
    days = sorted(day for day in local_directory(uri).glob(f"{DAY_PREFIX}*") if day.name >= first_day)
    files = [str(file) for day in days for file in sorted(day.glob("[!.]*.parquet"))]
    started_at = pc.field("started_at")
    wanted = None if since is None else started_at >= pa.scalar(since, TRACE_SCHEMA.field("started_at").type)
    dataset = ds.dataset(files, schema=TRACE_SCHEMA, format="parquet") if files else None
    table = dataset.to_table(filter=wanted) if dataset else TRACE_SCHEMA.empty_table()
    return table.sort_by("started_at")
