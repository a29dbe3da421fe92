"""The log in S3: the same, through a real S3 API on loopback, also while that is away."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from orqen_ray.traces.archive import Archive, File
from orqen_ray.traces.compaction import FILES_TO_MERGE, MERGED, compact_day
from orqen_ray.traces.reader import read_from, read_traces
from orqen_ray.traces.shipper import IDLE_S, Shipper
from orqen_ray.traces.spool import open_spool, segments_in
from orqen_ray.traces.writer import TraceWriter
from tests.traces.rows import FULL, NOON, all_numbers, numbers, once_each, row, spool_segment, traces_of

KEYS = {"aws_access_key_id": "test-key", "aws_secret_access_key": "test-secret"}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AWS's own chain finds them, in this process and in shippers that it starts."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name.upper(), value)


@pytest.fixture
def server() -> Iterator[ThreadedMotoServer]:
    """An S3 of its own on a free port, with an empty bucket."""
    server = started()
    yield server
    server.stop()


def started(port: int = 0) -> ThreadedMotoServer:
    """What it holds is the process's: a server that is started again has it all, and one beside it, too."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    return server


def client(server: ThreadedMotoServer) -> Any:
    return boto3.client("s3", endpoint_url=endpoint(server), region_name="us-east-1", **KEYS)


@pytest.fixture
def bucket(server: ThreadedMotoServer) -> str:
    name = f"traces-{secrets.token_hex(6)}"
    client(server).create_bucket(Bucket=name)
    return name


def endpoint(server: ThreadedMotoServer) -> str:
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def uri_in(server: ThreadedMotoServer, bucket: str) -> str:
    address = endpoint(server).removeprefix("http://")
    return f"s3://{bucket}/logs/traces?region=us-east-1&scheme=http&endpoint_override={address}"


def objects(server: ThreadedMotoServer, bucket: str) -> list[str]:
    found = client(server).list_objects_v2(Bucket=bucket).get("Contents", [])
    return [each["Key"] for each in found if each["Key"].endswith(".parquet")]


def shipper(uri: str, spool: Path, retention_days: int | None = None) -> Shipper:
    return Shipper(spool, partial(Archive, uri, spool / "drafts"), retention_days)


def once(uri: str, spool: Path, count: int) -> bool:
    return Counter(all_numbers(uri, spool)) == once_each(count)


async def test_a_gateway_writes_to_a_bucket_and_a_reader_reads_from_it(
    server: ThreadedMotoServer, bucket: str, tmp_path: Path
) -> None:
    uri = uri_in(server, bucket)
    writer = TraceWriter(uri, str(tmp_path))
    await writer.start()
    writer.write(FULL)
    assert traces_of(read_traces(uri, spool=str(tmp_path))) == [FULL]
    await writer.aclose()
    (key,) = objects(server, bucket)
    assert key.startswith("logs/traces/day=2030-01-01/") and segments_in(tmp_path) == []
    assert traces_of(read_traces(uri, spool=str(tmp_path))) == [FULL]
    assert traces_of(read_traces(uri, spool=str(tmp_path / "of another machine"))) == [FULL]


def test_files_are_merged_and_old_days_dropped(server: ThreadedMotoServer, bucket: str, tmp_path: Path) -> None:
    uri, today = uri_in(server, bucket), datetime.now(UTC)
    for number in range(FILES_TO_MERGE):
        spool_segment(tmp_path, [row(number, today)])
    spool_segment(tmp_path, [row(FILES_TO_MERGE, today - timedelta(days=40))])
    assert once(uri, tmp_path, FILES_TO_MERGE + 1)
    shipper(uri, tmp_path, retention_days=30).run_once()
    (key,) = objects(server, bucket)
    assert MERGED in key and once(uri, tmp_path, FILES_TO_MERGE)


def test_two_machines_share_a_prefix_and_leave_each_other_alone(
    server: ThreadedMotoServer, bucket: str, tmp_path: Path
) -> None:
    uri = uri_in(server, bucket)
    for number in range(2 * FILES_TO_MERGE):
        spool_segment(tmp_path / str(number % 2), [row(number)])
    for name in ("0", "1"):
        shipper(uri, tmp_path / name).run_once()
    assert len(objects(server, bucket)) == 2 and once(uri, tmp_path / "0", 2 * FILES_TO_MERGE)


def test_a_reader_beside_a_working_shipper_sees_each_row_once(
    server: ThreadedMotoServer, bucket: str, tmp_path: Path
) -> None:
    uri, count = uri_in(server, bucket), 2 * FILES_TO_MERGE
    for number in range(count):
        spool_segment(tmp_path, [row(number, NOON + timedelta(seconds=number))])
    worker = threading.Thread(target=shipper(uri, tmp_path).run_once)
    worker.start()
    reads = 0
    while worker.is_alive() or reads < 2:
        assert once(uri, tmp_path, count)
        reads += 1
    worker.join()
    assert segments_in(tmp_path) == []


def test_a_file_that_is_merged_while_it_is_being_read_costs_no_row(
    server: ThreadedMotoServer, bucket: str, tmp_path: Path
) -> None:
    uri = uri_in(server, bucket)
    ships = shipper(uri, tmp_path)
    for number in range(3):
        spool_segment(tmp_path, [row(number, NOON + timedelta(seconds=number))])
    ships.run_once(housekeeping=False)

    class Racing(Archive):
        raced = False

        def path(self, file: File) -> str:
            """The first file that is wanted is merged between the request that finds it and the one that reads it."""
            path = super().path(file)
            if not self.raced:
                self.raced = True
                with self.files_system.open_input_file(path) as opened:
                    beside = Archive(uri, tmp_path / "drafts")
                    compact_day(beside, open_spool(tmp_path), file.day, whole=True, stopped=lambda: False)
                    opened.read()
            return path

    archive = Racing(uri, tmp_path / "drafts")
    assert Counter(numbers(read_from(archive, tmp_path))) == once_each(3)
    assert archive.raced and [MERGED in key for key in objects(server, bucket)] == [True]


def test_while_s3_is_away_rows_wait_and_are_said_to_wait_once(
    server: ThreadedMotoServer, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, port = server.get_host_and_port()
    uri = uri_in(server, bucket)
    server.stop()
    caplog.set_level(logging.WARNING)
    caplog.clear()
    ships = shipper(uri, tmp_path)
    spool_segment(tmp_path, [row(0)])
    waits_s = [ships.run_once(), ships.run_once()]
    assert IDLE_S < waits_s[0] < waits_s[1] and len(segments_in(tmp_path)) == 1
    assert len(caplog.messages) == 1 and "rows wait in" in caplog.messages[0] and "test-secret" not in caplog.text

    again = started(port)
    try:
        assert ships.run_once() == IDLE_S and segments_in(tmp_path) == []
        ours = [record.getMessage() for record in caplog.records if record.name.startswith("orqen_ray")]
        assert ours[1:] == ["traces: the log can be written to again"] and once(uri, tmp_path, 1)
    finally:
        again.stop()


def test_a_bucket_that_does_not_exist_keeps_rows_in_the_spool(
    server: ThreadedMotoServer, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool_segment(tmp_path, [row(0)])
    shipper(uri_in(server, "no-such-bucket"), tmp_path).run_once()
    assert len(segments_in(tmp_path)) == 1 and "bucket does not exist" in caplog.text
