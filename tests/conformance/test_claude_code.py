"""Claude Code, as its users run it: its own tools and sixty of an MCP server, through routing and restoring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orqen_ray.tokens import count_text
from tests.conformance import cells
from tests.conformance.asking import MORE_TOOLS
from tests.conformance.binding import breaks
from tests.conformance.lab import Lab
from tests.conformance.toolset import LEFT_OUT
from tests.conformance.upstream import Received
from tests.conftest import ROOT

CLAUDE = Path(__file__).parents[1] / "node" / "node_modules" / ".bin" / "claude"
SECRET = "the magic word is xyzzy-4711"
MCP_TOOL = f"mcp__office__{LEFT_OUT}"

pytestmark = pytest.mark.skipif(not CLAUDE.exists(), reason="no Claude Code: `npm ci` in tests/node installs it")


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
@pytest.mark.parametrize("dialect", ["anthropic", "openai", "bedrock"])
def test_claude_code_completes_a_tool_call(lab: Lab, tmp_path: Path, dialect: str, variable: str) -> None:
    before = len(lab.upstream.requests)
    note = tmp_path / "note.txt"
    note.write_text(SECRET)
    said = run_claude(lab, tmp_path, f"lab-{dialect}/coding-agent", variable, prompt=f"Read {note}, please.")
    received = [each for each in lab.upstream.requests[before:] if each.model == "coding-agent"]
    assert not [each.refused for each in received if each.refused]
    assert said["is_error"] is False and SECRET in said["result"], said
    first, *_, last = _turns(received)
    assert {"Read", MORE_TOOLS} & first.seen.tools.keys() and "Read" in last.seen.tools
    assert [(name, given) for _, name, given in last.seen.parts("call")] == [("Read", {"file_path": str(note)})]
    assert SECRET in last.seen.parts("result")[0][1]
    if variable == "ANTHROPIC_API_KEY":
        cells.FIGURES.append(
            f"Claude Code, 24 tools, lab-{dialect}, a key like any: {_tool_tokens(first)} tokens of tools"
        )
    if dialect == "anthropic":
        assert first.query == "beta=true" and "claude-code" in (first["anthropic-beta"] or "")
        assert first.json["metadata"] and first.json["context_management"]


@pytest.mark.parametrize(
    ("model", "mcp"),
    [("native-anthropic/coding-agent", False), ("bound-anthropic/bound-coding-agent", True)],
    ids=["own", "mcp"],
)
def test_claude_code_gets_back_what_was_left_out(lab: Lab, tmp_path: Path, model: str, mcp: bool) -> None:
    """It has nothing but what the key's few tools leave it, and asks for the rest: no refusal, no broken prefix."""
    note = tmp_path / "note.txt"
    note.write_text(SECRET)
    key = lab.few_tools_key(1)
    runs: list[list[Received]] = []
    for headers in ("x-orqen-optimize: off", ""):
        before = len(lab.upstream.requests)
        prompt = f"Look at CronList, then into {note}."
        said = run_claude(lab, tmp_path, model, prompt=prompt, key=key, headers=headers, mcp=mcp)
        runs.append(_turns(lab.upstream.requests[before:]))
        assert said["is_error"] is False and SECRET in said["result"], said
        assert not mcp or f"{LEFT_OUT} is done" in said["result"]
    whole, routed = runs
    assert not [each.refused for run in runs for each in run if each.refused]
    assert breaks(routed) == breaks(whole) == []
    assert MORE_TOOLS in routed[0].seen.tools and "Read" not in routed[0].seen.tools and "Read" in routed[-1].seen.tools
    cells.FIGURES.append(_figures(f"Claude Code, {len(whole[0].seen.tools)} tools, {model}", whole, routed))


def _figures(title: str, whole: list[Received], routed: list[Received]) -> str:
    given, sent = (sum(map(_tool_tokens, run)) for run in (whole, routed))
    saved = f"{_tool_tokens(routed[-1])} instead of {_tool_tokens(whole[-1])} tokens of tools in the last request"
    cost = f"{len(routed) - len(whole)} requests more; {sent} instead of {given} tokens of tools in all"
    return f"{title}: {saved}; {cost}"


def _tool_tokens(received: Received) -> int:
    """In `tools`, and added in messages."""
    body = received.json
    said = [message["content"] for message in body["messages"] if message["role"] == "system"]
    added = [block["tool"] for blocks in said if isinstance(blocks, list) for block in blocks if "tool" in block]
    tools = body["tools"] if "tools" in body else body["toolConfig"]["tools"]
    return count_text(json.dumps([*tools, *added]))


def _turns(received: list[Received]) -> list[Received]:
    """The requests of the conversation itself; the agent may make side calls, without tools."""
    return [each for each in received if each.seen.tools]


def run_claude(
    lab: Lab,
    home: Path,
    model: str,
    variable: str = "ANTHROPIC_API_KEY",
    *,
    prompt: str,
    key: str = "",
    headers: str = "",
    mcp: bool = False,
) -> dict[str, Any]:
    """What `claude -p` prints as JSON. It talks to nobody but the gateway. `mcp`: it has sixty tools more."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": lab.url,
        variable: key or lab.key,
        "ANTHROPIC_CUSTOM_HEADERS": headers,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_SMALL_FAST_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    command = [str(CLAUDE), "-p", prompt, "--output-format", "json", "--allowedTools", f"Read,{MCP_TOOL}"]
    if mcp:
        module = "tests.conformance.mcp_server"
        server = {"command": sys.executable, "args": ["-m", module], "env": {"PYTHONPATH": str(ROOT)}}
        command += ["--strict-mcp-config", "--mcp-config", json.dumps({"mcpServers": {"office": server}})]
    ended = subprocess.run(
        command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
    )
    assert ended.stdout, ended.stderr
    return dict(json.loads(ended.stdout))
