"""The Parquet side of the log: a local folder or an S3 prefix, with a folder for each UTC day."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from orqen_ray.traces.location import DAY_PREFIX, local_directory
from orqen_ray.traces.schema import TRACE_SCHEMA, parquet_options

SUFFIX = ".parquet"
REPLACES = b"orqen.replaces"
"""Key of a merged file's metadata: the names of the files whose rows it holds, one a line."""
ROW_GROUP_ROWS = 32_768
_GONE = ("AWS Error RESOURCE_NOT_FOUND", "AWS Error NO_SUCH_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    day: str
    name: str
    size_bytes: int


class Archive:
    """Files appear whole or not at all, under their final names. Days are names of folders, `day=2030-01-31`.

    Every method may raise OSError: the disk or S3 is away, or refuses.
    """

    def __init__(self, uri: str, drafts: Path) -> None:
        """Args: drafts: a folder on this machine, where a file is made before it is put in its place."""
        local = local_directory(uri)
        if local is not None:
            self.files_system, self._root = fs.LocalFileSystem(), str(local)
        else:
            # With a delayed open, what fits one request is one PUT and no multipart upload.
            option = "&" if "?" in uri else "?"
            self.files_system, self._root = fs.FileSystem.from_uri(f"{uri}{option}allow_delayed_open=true")
        self._local = local
        # A local draft is renamed into its place, so it must lie on the same disk.
        self._drafts = drafts if local is None else local / ".drafts"

    def days(self) -> list[str]:
        """All days that there are, oldest first."""
        found = self.files_system.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found if info.base_name.startswith(DAY_PREFIX))

    def files(self, day: str) -> list[File]:
        """The Parquet files of `day`, by name; none where there is no such day."""
        found = self.files_system.get_file_info(fs.FileSelector(f"{self._root}/{day}", allow_not_found=True))
        names = (info for info in found if info.base_name.endswith(SUFFIX) and not info.base_name.startswith("."))
        return sorted(
            (File(day=day, name=info.base_name, size_bytes=info.size) for info in names), key=lambda file: file.name
        )

    def path(self, file: File) -> str:
        return f"{self._root}/{file.day}/{file.name}"

    def open(self, file: File) -> pq.ParquetFile:
        """Raises what `is_gone` knows when it was replaced or dropped."""
        return pq.ParquetFile(self.path(file), filesystem=self.files_system)

    def replaced_by(self, file: File) -> frozenset[str]:
        """Names of the files whose rows `file` holds."""
        with self.open(file) as parquet:
            names = (parquet.schema_arrow.metadata or {}).get(REPLACES, b"")
        return frozenset(names.decode().split())

    @contextmanager
    def writing(self, day: str, name: str, schema: pa.Schema = TRACE_SCHEMA) -> Iterator[pq.ParquetWriter]:
        """A writer whose file takes its place when the block ends well, instead of any that has its name."""
        self._drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._drafts / f"{name}.{os.getpid()}"
        draft.unlink(missing_ok=True)  # whatever is there: never written through, should it be a link
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                with pq.ParquetWriter(file, schema, **parquet_options(schema)) as writer:
                    yield writer
                file.flush()
                os.fsync(file.fileno())
            self._put(draft, day, name)
        finally:
            draft.unlink(missing_ok=True)

    def delete(self, file: File) -> None:
        """Idempotent."""
        try:
            self.files_system.delete_file(self.path(file))
        except FileNotFoundError:
            return

    def delete_day(self, day: str) -> None:
        """Idempotent."""
        try:
            self.files_system.delete_dir(f"{self._root}/{day}")
        except FileNotFoundError:
            return

    def remove_drafts(self, spool_id: str) -> None:
        """Remove what a shipper of this spool left that was killed while it made a file; only its one shipper may."""
        for draft in self._drafts.glob(f"{spool_id}-*"):
            draft.unlink(missing_ok=True)

    def _put(self, draft: Path, day: str, name: str) -> None:
        if self._local is not None:
            folder = self._local / day
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.rename(folder / name)
            sync_directory(folder)
            return
        # One write of the whole file: a stream that is closed early would leave a file that is cut short.
        with pa.memory_map(str(draft)) as content:
            stream = self.files_system.open_output_stream(f"{self._root}/{day}/{name}")
            stream.write(content.read_buffer())
            stream.close()


def is_gone(error: OSError) -> bool:
    """Whether an error of reading says that the file was replaced or dropped.

    In S3 that may happen between two requests for one object: the first that finds none is a FileNotFoundError, a later
    one is an OSError of Arrow's that has only S3's word for it.
    """
    return isinstance(error, FileNotFoundError) or any(word in str(error) for word in _GONE)


def day_name(day: date) -> str:
    return f"{DAY_PREFIX}{day.isoformat()}"


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed or removed in it outlive a power cut."""
    file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
