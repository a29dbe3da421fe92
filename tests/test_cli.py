"""The command line, from the outside: arguments in, output and exit code out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from orqen_ray.cli import app

API_KEY = "sk-live-abcdefghijklmnopqrstuvwxyz-1234"
AWS_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK")


class Upstream(ThreadingHTTPServer):
    """A provider on loopback that accepts one API key and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), UpstreamHandler)
        self.asked: list[tuple[str, str, Any]] = []
        self.schemes: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class UpstreamHandler(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: Any) -> None:
        self.server.asked.append((self.command, self.path, body))
        self.server.schemes.append(self.headers.get("authorization", "").partition(" ")[0])
        known = self.headers.get("authorization") == f"Bearer {API_KEY}"
        refusal = {"message": f"no such key: \x1b[31m{self.headers}", "type": "auth"}
        data = json.dumps({"data": []} if known else {"error": refusal}).encode()
        self.send_response(200 if known else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to work in, and no credentials in the environment."""
    for name in ("ORQEN_SECRET_KEY", "ORQEN_DATABASE_URL", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", *AWS_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORQEN_CONFIG", str(tmp_path / "orqen.yaml"))
    (tmp_path / "orqen.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def orqen(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert API_KEY not in result.output
    return result


def json_of(*arguments: str, stdin: str | None = None) -> Any:
    result = orqen(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def connect_row(home: Path, url: str, **row: object) -> None:
    lab = {"dialect": "openai", "base_url": f"{url}/v1", "allow_private_network": True, "api_key_env": "LAB_KEY"} | row
    (home / "orqen.yaml").write_text(json.dumps({"providers": {"lab": lab}}))


# --- Keys -------------------------------------------------------------------------------------------------------


def test_a_key_is_made_listed_and_revoked() -> None:
    made = json_of("keys", "create", "alice", "--admin", "--expires-in-days", "30", "--rate-limit-rpm", "60")
    assert made["secret"].startswith("sk-orq-") and made["is_admin"] is True and made["rate_limit_rpm"] == 60
    assert made["secret"] not in orqen("keys", "list").output + orqen("keys", "list", "--json").output
    assert "active until" in orqen("keys", "list").output
    assert orqen("keys", "revoke", made["id"]).exit_code == 0
    assert [key["revoked_at"] is not None for key in json_of("keys", "list")] == [True]


def test_a_key_gets_switches_of_its_own_and_loses_them() -> None:
    made = json_of("keys", "create", "alice")
    changed = json_of("keys", "optimize", made["id"], "--no-tools", "--schemas", "--k-target", "12")
    assert changed["optimization"] == {"tools": False, "schemas": True} and changed["k_target_override"] == 12
    assert "tools off, 12 tools in full" in orqen("keys", "optimize", made["id"]).output.replace("schemas on, ", "")
    assert json_of("keys", "list")[0]["optimization"] == {"tools": False, "schemas": True}
    reset = json_of("keys", "optimize", made["id"], "--reset", "--no-restore")
    assert reset["optimization"] == {"restore": False} and reset["k_target_override"] is None
    assert orqen("keys", "optimize", "key_nope", "--tools").exit_code == 1


def test_the_text_form_shows_the_new_secret_alone_on_the_first_line() -> None:
    first_line = orqen("keys", "create", "alice").stdout.splitlines()[0]
    assert len(first_line) == len("sk-orq-") + 64


def test_revoking_what_is_not_there_fails_and_says_where_to_look() -> None:
    result = orqen("keys", "revoke", "key_nope")
    assert result.exit_code == 1 and "orqen keys list" in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create"),
        ("keys", "create", "a", "--expires-in-days", "0"),
        ("keys", "create", "a", "--rate-limit-rpm", "many"),
        ("keys", "frobnicate"),
        ("providers", "connect", "openai", "--aws", "--api-key-env", "X"),
        ("providers", "connect", "openai", "--api-key", API_KEY),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_settings_that_cannot_be_used_are_told_line_by_line(home: Path) -> None:
    (home / "orqen.yaml").write_text("servr: {}\nserver: {port: x}\n")
    result = orqen("keys", "list")
    assert result.exit_code == 1
    assert [line[:14] for line in sorted(result.stderr.splitlines())] == ["error: server.", "error: servr: "]


# --- Providers --------------------------------------------------------------------------------------------------


def test_a_provider_is_connected_from_stdin_listed_and_disconnected(home: Path) -> None:
    stored = json_of("providers", "connect", "openai", stdin=f"{API_KEY}\n")
    assert (stored["provider"], stored["preview"]) == ("openai", "…1234")
    listed = {row["provider"]: row["source"] for row in json_of("providers", "list")}
    assert listed["openai"] == "store"
    assert API_KEY.encode() not in b"".join(file.read_bytes() for file in (home / "data").iterdir())
    assert orqen("providers", "disconnect", "openai").exit_code == 0
    assert orqen("providers", "disconnect", "openai").exit_code == 1


def test_the_key_can_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", API_KEY)
    assert json_of("providers", "connect", "openai", "--api-key-env", "MY_KEY")["preview"] == "…1234"
    missing = orqen("providers", "connect", "openai", "--api-key-env", "NOT_SET")
    assert missing.exit_code == 1 and "NOT_SET is not set" in missing.stderr


def test_aws_keys_come_from_their_variables_or_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json_of(
        "providers", "connect", "bedrock", "--aws", "--region", "eu-west-1", stdin="AKIA0123456789ABCDEF\ns\n\n"
    )
    assert (stored["preview"], stored["region"]) == ("…CDEF", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0123456789ABWXYZ")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", API_KEY)
    assert json_of("providers", "connect", "bedrock", "--aws")["preview"] == "…WXYZ"


def test_the_environments_providers_are_listed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    assert {"provider": "openai", "source": "environment"} in json_of("providers", "list")
    json_of("providers", "connect", "openai", stdin=API_KEY)
    assert "stays connected" in orqen("providers", "disconnect", "openai").stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (("opnai",), API_KEY, "did you mean openai?"),
        (("openai",), "\n", "nothing was given"),
        (("openai", "--base-url", "ftp://x"), API_KEY, "base_url must start with http"),
        (("azure",), API_KEY, "--base-url"),
        (("openai",), "two words", "visible ASCII"),
    ],
)
def test_what_cannot_be_connected_is_refused_with_the_cure(arguments: tuple[str, ...], stdin: str, says: str) -> None:
    result = orqen("providers", "connect", *arguments, stdin=stdin)
    assert result.exit_code == 1 and says in result.stderr


def test_a_key_that_the_provider_takes_passes_the_test(home: Path, upstream: Upstream) -> None:
    connect_row(home, upstream.url, families=["chat", "models"])
    json_of("providers", "connect", "lab", stdin=API_KEY)
    result = json_of("providers", "test", "lab")
    assert (result["ok"], result["status"]) == (True, 200)
    assert upstream.asked == [("GET", "/v1/models", None)]


def test_a_key_that_the_provider_refuses_fails_the_test_without_being_shown(home: Path, upstream: Upstream) -> None:
    connect_row(home, upstream.url, families=["chat", "models"])
    json_of("providers", "connect", "lab", stdin="sk-another-key-0123456789")
    result = orqen("providers", "test", "lab")
    assert result.exit_code == 1 and "HTTP 401: no such key" in result.stderr
    assert "orqen providers connect lab" in result.stderr
    assert "sk-another" not in result.output and "\x1b[31m" not in result.output


def test_a_provider_without_a_list_is_asked_for_a_few_tokens_of_its_cheapest_model(
    home: Path, upstream: Upstream
) -> None:
    models = [{"id": "dear", "input_usd_per_mtok": 5}, {"id": "cheap", "input_usd_per_mtok": 1}, {"id": "unknown"}]
    connect_row(home, upstream.url, families=["chat"], models=models)
    json_of("providers", "connect", "lab", stdin=API_KEY)
    assert json_of("providers", "test", "lab")["ok"] is True
    ((method, path, body),) = upstream.asked
    assert (method, path, body["model"]) == ("POST", "/v1/chat/completions", "cheap")
    assert body["max_tokens"] == 16


def test_bedrock_gets_a_signed_call(home: Path, upstream: Upstream) -> None:
    connect_row(home, upstream.url, dialect="bedrock", base_url=upstream.url, families=["chat"], api_key_env=None)
    json_of("providers", "connect", "lab", "--aws", stdin="AKIA0123456789ABCDEF\nsecretsecret\n\n")
    orqen("providers", "test", "lab", "--model", "amazon.nova-micro-v1:0")
    ((method, path, body),) = upstream.asked
    assert (method, path) == ("POST", "/model/amazon.nova-micro-v1%3A0/converse")
    assert body["inferenceConfig"]["maxTokens"] == 16
    assert upstream.schemes == ["AWS4-HMAC-SHA256"]


def test_testing_what_is_not_connected_fails_with_the_cure() -> None:
    result = orqen("providers", "test", "openai")
    assert result.exit_code == 1 and "orqen providers connect openai" in result.stderr


def test_the_sandbox_passes_without_a_key_or_a_network() -> None:
    assert json_of("providers", "test", "sandbox")["ok"] is True


# --- Several keys, limits, rotation -----------------------------------------------------------------------------


def test_a_key_is_made_with_limits_and_the_list_shows_them_and_todays_tokens() -> None:
    limits = ("--rate-limit-rpm", "60", "--daily-token-budget", "1000", "--weekly-token-budget", "5000")
    json_of("keys", "create", "alice", *limits)
    (key,) = json_of("keys", "list")
    assert (key["rate_limit_rpm"], key["daily_token_budget"], key["weekly_token_budget"]) == (60, 1000, 5000)
    assert key["tokens_today"] == 0
    assert "60 rpm, 1000 a day, 5000 a week" in orqen("keys", "list").stdout


def test_several_keys_of_a_provider_are_listed_tested_and_disconnected_one_by_one(
    home: Path, upstream: Upstream
) -> None:
    connect_row(home, upstream.url, families=["chat", "models"])
    json_of("providers", "connect", "lab", "--label", "good", stdin=API_KEY)
    json_of("providers", "connect", "lab", "--label", "bad", stdin="sk-another-key-0123456789")
    assert [row["label"] for row in json_of("providers", "list") if row["provider"] == "lab"] == ["bad", "good"]
    result = orqen("providers", "test", "lab")
    assert result.exit_code == 1
    assert "lab (key good) answers" in result.stdout and "lab (key bad)" in result.stderr
    tested = orqen("providers", "test", "lab", "--json")
    assert [(key["label"], key["ok"]) for key in json.loads(tested.stdout)["keys"]] == [("bad", False), ("good", True)]
    assert "keeps those labelled good" in orqen("providers", "disconnect", "lab", "--label", "bad").stdout
    assert orqen("providers", "disconnect", "lab", "--label", "bad").exit_code == 1
    assert orqen("providers", "test", "lab").exit_code == 0
    assert json_of("providers", "disconnect", "lab")["labels"] == []


def test_a_label_that_cannot_be_one_is_refused() -> None:
    result = orqen("providers", "connect", "openai", "--label", "two words", stdin=API_KEY)
    assert result.exit_code == 1 and "label: expected a name" in result.stderr


def test_the_key_file_is_rotated_without_being_shown(home: Path) -> None:
    json_of("providers", "connect", "openai", stdin=API_KEY)
    before = (home / "data" / "secret.key").read_text().strip()
    assert json_of("secrets", "rotate") == {"credentials": 1, "resealed": 1, "new_key": True}
    result = orqen("secrets", "rotate")
    after = (home / "data" / "secret.key").read_text().strip()
    assert result.exit_code == 0 and "1 of 1" in result.stdout and before != after
    assert before not in result.output and after not in result.output
    assert {row["provider"]: row["source"] for row in json_of("providers", "list")}["openai"] == "store"


def test_keys_of_the_environment_are_rotated_by_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "o" * 40, "n" * 40
    monkeypatch.setenv("ORQEN_SECRET_KEY", old)
    json_of("providers", "connect", "openai", stdin=API_KEY)
    monkeypatch.setenv("ORQEN_SECRET_KEY", f"{new},{old}")
    result = orqen("secrets", "rotate")
    assert "1 of 1" in result.stdout and "can now be taken out" in result.stdout
    monkeypatch.setenv("ORQEN_SECRET_KEY", new)
    assert json_of("secrets", "rotate") == {"credentials": 1, "resealed": 0, "new_key": False}
    assert new not in result.output


# --- The command itself -----------------------------------------------------------------------------------------


def commands(group: Any, path: str = "orqen") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_and_option_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    listed = dict(commands(typer.main.get_command(app)))
    assert len(listed) == 12
    for path, command in listed.items():
        heading, _, rest = page.partition(f"### `{path}")
        assert rest, f"docs/cli.md lacks the heading ### `{path} ...`"
        section = rest.partition("\n##")[0]
        for option in (name for parameter in command.params for name in parameter.opts if name.startswith("--")):
            assert option in ("--help", "--json") or option in section, f"docs/cli.md: {path} lacks {option}"


def test_the_command_starts_without_ray() -> None:
    program = "import sys, orqen_ray.cli; sys.exit('ray' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
