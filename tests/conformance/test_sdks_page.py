"""docs/sdks.md, run: each snippet as it stands on the page, by its client, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.lab import Lab

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "sdks.md").read_text()
NODE_MODULES = TESTS / "node" / "node_modules"
CLIENTS_PYTHON = TESTS / "clients" / ".venv" / "bin" / "python"
PROJECTS_OWN = {"openai", "anthropic", "boto3"}  # installed with the project itself, at its versions
NEEDS_NODE = {
    "openai-js": "openai",
    "ai-sdk": "ai",
    "claude-code": "@anthropic-ai/claude-code",
    "codex": "@openai/codex",
}
ENDS_WITHIN_S = 60.0

_SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_TESTED = re.compile(r"<!-- not tested: .{10,} -->")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A program of the page, the file that it needs, and what it prints."""

    client: str
    language: str
    code: str
    config: str
    prints: str


def snippets(section: str) -> list[Snippet]:
    """The programs of a section. The fence's second word names the client; a `text` block holds what it prints."""
    found: list[Snippet] = []
    config, program = "", ("", "", "")
    for language, client, code in _FENCE.findall(section):
        if language == "toml":
            config = code
        elif client:
            program = (client, language, code)
        elif language == "text":
            found.append(Snippet(*program, config=config, prints=code))
            program = ("", "", "")
    assert program == ("", "", ""), f"{program[0]}: the page does not say what it prints"
    return found


SECTIONS = {title: body for title, body in _SECTION.findall(PAGE)}
ALL = [snippet for body in SECTIONS.values() for snippet in snippets(body)]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_client_has_a_snippet_that_is_run(title: str) -> None:
    assert snippets(SECTIONS[title]) or _NOT_TESTED.search(SECTIONS[title])


@pytest.mark.parametrize("snippet", ALL, ids=lambda snippet: snippet.client)
def test_a_snippet_prints_what_the_page_says(lab: Lab, tmp_path: Path, snippet: Snippet) -> None:
    require_installed(snippet.client)
    (tmp_path / "home" / ".codex").mkdir(parents=True)
    config = snippet.config.replace("http://127.0.0.1:8000", lab.url)
    (tmp_path / "home" / ".codex" / "config.toml").write_text(config)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    environment = {
        "PATH": f"{NODE_MODULES / '.bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "ORQEN_URL": lab.url,
        "ORQEN_KEY": lab.key,
    }
    command, name = {
        "python": (sys.executable if snippet.client in PROJECTS_OWN else str(CLIENTS_PYTHON), "snippet.py"),
        "js": ("node", "snippet.mjs"),
        "sh": ("sh", "snippet.sh"),
    }[snippet.language]
    (tmp_path / name).write_text(snippet.code)
    ended = subprocess.run(
        [command, name],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
    )
    assert lines(ended.stdout) == lines(snippet.prints), ended.stderr
    assert ended.returncode == 0, ended.stderr


def require_installed(client: str) -> None:
    """Skip where the client is not installed; fail instead when the environment says CI=true."""
    if client in PROJECTS_OWN:
        return
    needed = NODE_MODULES / NEEDS_NODE[client] if client in NEEDS_NODE else CLIENTS_PYTHON
    if not needed.exists():
        message = f"{client} is not installed: `make clients` does it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


def lines(printed: str) -> list[str]:
    return [line.rstrip() for line in printed.rstrip().splitlines()]
