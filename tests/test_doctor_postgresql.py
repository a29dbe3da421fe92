"""`orqen doctor` on an installation whose database is a server."""

# ruff: noqa: F811  # fixtures are parameters

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.servers import Postgres, postgres, postgres_server  # noqa: F401  # fixtures
from tests.test_cli import API_KEY, home, json_of  # noqa: F401  # fixtures
from tests.test_doctor import doctor, free_port  # noqa: F401  # fixtures


@pytest.fixture(autouse=True)
def secret_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORQEN_SECRET_KEY", "a-secret-key-of-at-least-32-characters")


def test_a_sound_installation_on_a_server_has_nothing_that_failed(
    home: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORQEN_DATABASE_URL", postgres.new_database())
    code, found = doctor("--no-providers")
    assert "at no revision" in found["database"]["message"], "nothing is made"
    json_of("keys", "create", "root", "--admin")
    json_of("providers", "connect", "openai", stdin=API_KEY)
    code, found = doctor("--no-providers")
    assert code == 0 and {found[name]["state"] for name in ("database", "clock", "credentials", "keys")} == {"ok"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("p%25w", "hunter2", "password authentication failed"),
        ("/test_", "/no_such_", "does not exist"),
        ("127.0.0.1:", "127.0.0.2:", "Connect call failed"),
    ],
)
def test_a_server_that_cannot_be_used_fails_with_the_reason_and_without_the_password(
    home: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str
) -> None:
    monkeypatch.setenv("ORQEN_DATABASE_URL", postgres.new_database().replace(old, new))
    code, found = doctor("--no-providers")
    assert code == 1 and says in found["database"]["message"]
    assert found["keys"]["state"] == "warning"
    shown = json.dumps(found)
    assert "hunter2" not in shown and "of%2Fthe" not in shown and "of/the" not in shown
