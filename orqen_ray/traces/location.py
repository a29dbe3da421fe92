"""Where trace files lie: `<traces_uri>/day=YYYY-MM-DD/*.parquet`."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from urllib.parse import unquote, urlsplit

DAY_PREFIX = "day="


def local_directory(uri: str) -> Path:
    """The folder that `uri` names.

    Raises:
        ValueError: it is not on this machine.
    """
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError("storage.traces_uri: only a folder or a file:// URL can be written to, as data/traces")
    return Path(unquote(parts.path))


def day_directory(directory: Path, day: date) -> Path:
    return directory / f"{DAY_PREFIX}{day.isoformat()}"
