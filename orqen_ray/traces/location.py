"""Where the trace log lies: `<traces_uri>/day=YYYY-MM-DD/*.parquet`, and the spool on this machine's own disk."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

DAY_PREFIX = "day="
_S3_OPTIONS = frozenset({"region", "scheme", "endpoint_override", "force_virtual_addressing"})
_S3_SPOOL = "data/spool"


def local_directory(uri: str) -> Path | None:
    """The folder that `uri` names, or None where it names an S3 bucket.

    Raises:
        ValueError: it can never be written to; the message says what to write instead.
    """
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        _check_s3(parts.netloc, parts.query)
        return None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError(
            "storage.traces_uri: only a folder (data/traces), a file:// URL or an s3://bucket/prefix can be written to"
        )
    return Path(unquote(parts.path))


def _check_s3(bucket: str, query: str) -> None:
    if "@" in bucket:
        raise ValueError(
            "storage.traces_uri: credentials have no place in it; AWS's own chain brings them "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role)"
        )
    if not bucket:
        raise ValueError("storage.traces_uri: no bucket is named; write s3://bucket/prefix")
    for option in parse_qs(query, keep_blank_values=True):
        if option not in _S3_OPTIONS:
            known = ", ".join(sorted(_S3_OPTIONS))
            raise ValueError(f"storage.traces_uri: unknown option {option[:40]!r}; known ones are {known}")


def spool_directory(uri: str, given: str | None = None) -> Path:
    """The spool of the log at `uri`: the folder `given`, else one below a local log, else `data/spool`."""
    if given is not None:
        return Path(given)
    local = local_directory(uri)
    return Path(_S3_SPOOL).absolute() if local is None else local / ".spool"
