"""The spool: rows on this machine's disk, a JSON line each, until they are in the Parquet files.

A segment is one process's file. Its owner holds a lock on it for as long as it appends; a segment whose lock is free is
sealed, whether its owner closed it or died. A line counts when its newline is there: what follows the last newline is
the torn end of a write that a kill or a full disk cut off, and was never acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

SUFFIX = ".jsonl"
_DRAFT_SUFFIX = ".new"
_DRAFT_MAX_AGE_S = 3600.0


def open_spool(directory: Path) -> str:
    """Make the folder if need be.

    Returns:
        The spool's id: the first part of the name of everything that comes out of it.

    Raises:
        OSError: it names the folder.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "id"
    if not path.exists():
        draft = directory / f"id.{secrets.token_hex(4)}"
        draft.write_text(secrets.token_hex(5))
        try:
            os.link(draft, path)  # fails where another process was first: all use that one
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()


class Segment:
    """A segment that this process appends to. Not for several threads at once."""

    def __init__(self, directory: Path, spool_id: str) -> None:
        """Raises OSError."""
        name = f"{spool_id}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self.path = directory / f"{name}{SUFFIX}"
        self.size_bytes = 0
        self.opened_s = time.monotonic()
        draft = directory / f"{name}{_DRAFT_SUFFIX}"
        self._file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(self.path)  # only now can anybody take it for one without an owner
        except BaseException:
            os.close(self._file)
            draft.unlink(missing_ok=True)
            raise

    def append(self, line: bytes) -> None:
        """Append in one system call: when it returns, the line outlives this process, though not a power cut.

        Raises:
            OSError: the line was not written, or only in part: append nothing more to this segment.
        """
        if os.write(self._file, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size_bytes += len(line)

    def close(self) -> None:
        """Seal it; an empty one leaves no file."""
        try:
            if self.size_bytes == 0:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self._file)


def segments_in(directory: Path) -> list[Path]:
    """All segments, oldest first; none where there is no spool."""
    return sorted(directory.glob(f"*{SUFFIX}"), key=lambda path: path.name.split("-")[1:])


def spooled_bytes(directory: Path) -> int:
    """How much the spool holds now."""
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                total += entry.stat().st_size
            except FileNotFoundError:  # shipped meanwhile
                continue
    return total


def has_rows(directory: Path) -> bool:
    """Whether any segment holds anything."""
    for path in segments_in(directory):
        try:
            if path.stat().st_size:
                return True
        except FileNotFoundError:
            continue
    return False


def whole_lines(content: bytes) -> bytes:
    """`content` without a torn last line."""
    return content[: content.rfind(b"\n") + 1]


@contextmanager
def sealed(path: Path) -> Iterator[bool]:
    """Whether the segment has no owner; while it is held here, nobody else takes it for that either."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owned = False
    except BlockingIOError:
        owned = True
    try:
        yield not owned
    finally:
        os.close(file)


def remove_drafts(directory: Path) -> None:
    """Remove what processes left that died while they made a segment; such files are empty."""
    for path in directory.glob(f"*{_DRAFT_SUFFIX}"):
        if time.time() - path.stat().st_mtime > _DRAFT_MAX_AGE_S:
            path.unlink(missing_ok=True)


def lock_leadership(directory: Path) -> int | None:
    """A file descriptor that makes its holder the one who may start the spool's shipper, or None where one exists.

    The lock lasts until every copy of the descriptor is closed, in this process and in the shipper.
    """
    file = os.open(directory / "shipper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
