"""`orqen doctor` on installations that are broken in the ways that installations break."""

# ruff: noqa: F811  # fixtures are parameters

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.servers import Redis
from tests.test_cli import API_KEY, Upstream, connect_row, home, json_of, orqen, upstream  # noqa: F401  # fixtures

Findings = dict[str, dict[str, Any]]


def doctor(*options: str) -> tuple[int, Findings]:
    """The exit code, and the worst finding of each check."""
    result = orqen("doctor", "--json", *options)
    order = ["ok", "warning", "failed"]
    found = sorted(json.loads(result.stdout), key=lambda finding: order.index(finding["state"]))
    assert all(finding["advice"] for finding in found if finding["state"] != "ok")
    return result.exit_code, {finding["check"]: finding for finding in found}


@pytest.fixture(autouse=True)
def free_port(monkeypatch: pytest.MonkeyPatch) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    monkeypatch.setenv("ORQEN_PORT", str(port))
    return port


@pytest.fixture
def installed(home: Path, upstream: Upstream) -> Path:
    """A sound installation with one provider; the folder of its data."""
    connect_row(home, upstream.url, families=["chat", "models"])
    json_of("keys", "create", "root", "--admin")
    json_of("providers", "connect", "lab", stdin=API_KEY)
    return home / "data"


def test_a_sound_installation_has_nothing_that_failed(installed: Path, upstream: Upstream) -> None:
    code, found = doctor()
    assert code == 0
    for check in ("settings", "database", "credentials", "keys", "provider lab", "clock", "traces", "port", "versions"):
        assert found[check]["state"] == "ok", found[check]
    assert ("GET", "/v1/models", None) in upstream.asked
    assert all(method in ("GET", "HEAD") for method, _, _ in upstream.asked), "a call that may cost money"
    text = orqen("doctor").stdout
    assert "ok       database: " in text


def test_before_the_first_start_nothing_is_made_and_nothing_failed(home: Path) -> None:
    code, found = doctor("--no-providers")
    assert code == 0 and found["database"]["state"] == "warning" and found["keys"]["state"] == "warning"
    assert sorted(path.name for path in home.iterdir()) == ["orqen.yaml"]


def test_settings_that_cannot_be_used_fail_and_the_machine_is_checked_all_the_same(home: Path) -> None:
    (home / "orqen.yaml").write_text("servr: {}\n")
    code, found = doctor()
    assert code == 1 and "did you mean server?" in found["settings"]["message"]
    assert found["versions"]["state"] == "ok" and "database" not in found


def test_a_database_that_another_process_writes_is_read_but_not_written(installed: Path) -> None:
    with closing(sqlite3.connect(installed / "orqen.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        code, found = doctor("--no-providers")
    assert code == 1 and "database is locked" in found["database"]["message"]
    assert time.monotonic() - started < 9


def test_a_file_that_is_no_database_fails(installed: Path) -> None:
    for path in installed.glob("orqen.db*"):
        path.unlink()
    (installed / "orqen.db").write_text("no database " * 100)
    code, found = doctor("--no-providers")
    assert code == 1 and "file is not a database" in found["database"]["message"]
    assert found["keys"]["state"] == "warning"


def test_a_database_of_an_older_version_is_a_warning(installed: Path) -> None:
    with closing(sqlite3.connect(installed / "orqen.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    code, found = doctor("--no-providers")
    assert code == 0 and "at 0000" in found["database"]["message"]


def test_another_secret_key_opens_no_credentials(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORQEN_SECRET_KEY", "another-secret-key-of-32-characters")
    code, found = doctor()
    assert code == 1 and "does not open those of lab" in found["credentials"]["message"]
    assert found["provider lab"]["state"] == "failed"


def test_a_lost_secret_key_is_told_and_no_new_one_is_made(installed: Path) -> None:
    (installed / "secret.key").unlink()
    code, found = doctor("--no-providers")
    assert code == 1 and "lost" in found["secret key"]["message"]
    assert not (installed / "secret.key").exists()


def test_a_secret_key_that_others_can_read_fails(installed: Path) -> None:
    (installed / "secret.key").chmod(0o644)
    code, found = doctor("--no-providers")
    assert code == 1 and "chmod 600" in found["secret key"]["message"]


def test_without_an_active_key_every_call_would_be_refused(installed: Path) -> None:
    for key in json_of("keys", "list"):
        json_of("keys", "revoke", key["id"])
    code, found = doctor("--no-providers")
    assert code == 1 and "no key is active" in found["keys"]["message"]
    json_of("keys", "create", "app")
    assert doctor("--no-providers")[1]["keys"]["state"] == "warning"


def test_credentials_that_the_provider_refuses_fail_and_are_not_shown(installed: Path) -> None:
    json_of("providers", "connect", "lab", stdin="sk-another-key-0123456789")
    result = orqen("doctor")
    assert result.exit_code == 1 and "refuses the credentials (HTTP 401)" in result.stdout
    assert "\n         -> store other credentials: orqen providers connect lab" in result.stdout
    assert "sk-another" not in result.output and "no such key" not in result.output


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:{closed}", "cannot be connected to"),
        ("http://no-such-host.invalid", "cannot be resolved"),
        ("https://127.0.0.1:{plain}", "TLS failed"),
    ],
)
def test_a_provider_that_cannot_be_reached_fails(
    home: Path,
    installed: Path,
    upstream: Upstream,
    free_port: int,
    address: str,
    says: str,
) -> None:
    connect_row(home, address.format(closed=free_port, plain=upstream.server_port), families=["chat", "models"])
    code, found = doctor()
    assert code == 1 and says in found["provider lab"]["message"]


def test_a_private_address_that_the_row_does_not_allow_fails(
    home: Path,
    installed: Path,
    upstream: Upstream,
) -> None:
    connect_row(home, upstream.url, families=["chat", "models"], allow_private_network=False)
    code, found = doctor()
    assert code == 1 and "its address is private" in found["provider lab"]["message"]


class _WrongClock(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response_only(200)
        self.send_header("date", formatdate(time.time() + 3600, usegmt=True))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hour_ahead() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _WrongClock)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_clock_that_is_an_hour_behind_fails(home: Path, installed: Path, hour_ahead: str) -> None:
    connect_row(home, hour_ahead, families=["chat"])
    code, found = doctor()
    assert code == 1 and "s behind 127.0.0.1's" in found["clock"]["message"]
    assert "has no free call" in found["provider lab"]["message"]


def test_a_port_that_something_else_holds_fails(
    installed: Path,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORQEN_PORT", str(upstream.server_port))
    code, found = doctor("--no-providers")
    assert code == 1 and "taken by another program" in found["port"]["message"]


def test_a_traces_folder_that_cannot_be_made_fails(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORQEN_TRACES_URI", "/proc/nowhere")
    code, found = doctor("--no-providers")
    assert code == 1 and "/proc/nowhere cannot be written" in found["traces"]["message"]


def test_a_listener_on_all_interfaces_is_named_with_its_port(installed: Path) -> None:
    program = (
        "import socket; 'orqen_ray'; server = socket.create_server(('0.0.0.0', 0)); "
        "print(server.getsockname()[1], flush=True); input()"
    )
    listener = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with listener:
        assert listener.stdout is not None
        port = listener.stdout.readline().strip()
        _, found = doctor("--no-providers")
        listener.communicate("")
    assert found["listeners"]["state"] == "warning" and port in found["listeners"]["message"]


def test_no_secret_is_shown_whatever_is_broken(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a-secret-key-that-nobody-must-see-1"
    monkeypatch.setenv("ORQEN_SECRET_KEY", secret)
    monkeypatch.setenv("ORQEN_DATABASE_URL", "sqlite+aiosqlite:////proc/hunter2-password/orqen.db")
    shown = orqen("doctor").output + orqen("doctor", "--json").output
    assert secret not in shown and API_KEY not in shown
    assert os.environ["ORQEN_DATABASE_URL"] not in shown


def test_a_redis_is_tried_where_one_is_configured(
    installed: Path, monkeypatch: pytest.MonkeyPatch, redis_server: Redis
) -> None:
    assert "redis" not in doctor("--no-providers")[1]
    monkeypatch.setenv("ORQEN_REDIS_URL", redis_server.url)
    code, found = doctor("--no-providers")
    assert (code, found["redis"]["state"]) == (0, "ok")
    redis_server.stop()
    code, found = doctor("--no-providers")
    assert (code, found["redis"]["state"]) == (1, "failed")
    assert "of%2Fthe" not in json.dumps(found)
