"""Claude Code, as its users run it, reads a file by a tool call through the gateway."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.lab import Lab
from tests.conformance.upstream import Received

CLAUDE = Path(__file__).parents[1] / "node" / "node_modules" / ".bin" / "claude"
SECRET = "the magic word is xyzzy-4711"

pytestmark = pytest.mark.skipif(not CLAUDE.exists(), reason="no Claude Code: `npm ci` in tests/node installs it")


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
@pytest.mark.parametrize("dialect", ["anthropic", "openai", "bedrock"])
def test_claude_code_completes_a_tool_call(lab: Lab, tmp_path: Path, dialect: str, variable: str) -> None:
    before = len(lab.upstream.requests)
    note = tmp_path / "note.txt"
    note.write_text(SECRET)
    said = run_claude(lab, tmp_path, f"lab-{dialect}/coding-agent", variable, f"Read {note} and tell me what it says.")
    received = [each for each in lab.upstream.requests[before:] if each.model == "coding-agent"]
    assert not [each.refused for each in received if each.refused]
    assert said["is_error"] is False and SECRET in said["result"], said
    first, second = _turns(received)
    assert "Read" in first.seen.tools and len(first.seen.tools) > 10
    assert [(name, given) for _, name, given in second.seen.parts("call")] == [("Read", {"file_path": str(note)})]
    assert SECRET in second.seen.parts("result")[0][1]
    if dialect == "anthropic":
        assert first.query == "beta=true" and "claude-code" in (first["anthropic-beta"] or "")
        assert first.json["metadata"] and first.json["context_management"]


def _turns(received: list[Received]) -> tuple[Received, Received]:
    """The two turns of the conversation itself; the agent may make side calls, without tools."""
    first, second = (each for each in received if each.seen.tools)
    return first, second


def run_claude(lab: Lab, home: Path, model: str, variable: str, prompt: str) -> dict[str, Any]:
    """What `claude -p` prints as JSON. It talks to nobody but the gateway."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": lab.url,
        variable: lab.key,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_SMALL_FAST_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    command = [str(CLAUDE), "-p", prompt, "--output-format", "json", "--allowedTools", "Read"]
    ended = subprocess.run(
        command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
    )
    assert ended.stdout, ended.stderr
    return dict(json.loads(ended.stdout))
