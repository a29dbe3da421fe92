"""A provider that others wrote: @copilotkit/aimock, which speaks all three dialects."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conformance.credentials import REGION
from tests.conformance.scenarios import TEXT

PROGRAM = Path(__file__).parents[1] / "node" / "node_modules" / ".bin" / "llmock"
CITY = {"city": "Zürich 🏔", "days": 3}
_CALL = {"name": "get_weather", "arguments": json.dumps(CITY, ensure_ascii=False)}
_USAGE = {"usage": {"prompt_tokens": 11, "completion_tokens": 7, "input_tokens": 11, "output_tokens": 7}}
# What docs/sdks.md has Codex ask of its own model: read a file by a shell command, then say what is in it.
_CAT = {"name": "exec_command", "arguments": json.dumps({"cmd": "cat WEATHER"})}
_CODEX = [
    {"match": {"model": "gpt-5.5", "hasToolResult": False}, "response": {"toolCalls": [_CAT], **_USAGE}},
    {
        "match": {"model": "gpt-5.5", "toolResultContains": "sunny in London"},
        "response": {"content": "It is sunny in London.", **_USAGE},
    },
]
FIXTURES = {
    "fixtures": [
        *_CODEX,
        {"match": {"model": "tools"}, "response": {"toolCalls": [_CALL], **_USAGE}},
        {"match": {"model": "plain"}, "response": {"content": TEXT, **_USAGE}},
    ]
}
START_WITHIN_S = 30.0


@contextmanager
def aimock(folder: Path) -> Iterator[str | None]:
    """Its root URL, or None where it is not installed."""
    if not PROGRAM.exists():
        yield None
        return
    fixtures = folder / "aimock.json"
    fixtures.write_text(json.dumps(FIXTURES, ensure_ascii=False))
    command = [str(PROGRAM), "-p", "0", "--strict", "--chunk-size", "5", "-f", str(fixtures)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    late = threading.Timer(START_WITHIN_S, process.kill)
    late.start()
    printed: list[str] = []
    assert process.stdout is not None
    rest = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
    try:
        for line in process.stdout:
            printed.append(line)
            if found := re.search(r"listening on (\S+)", line):
                late.cancel()
                rest.start()
                yield found[1]
                break
        else:
            raise AssertionError(f"aimock did not start:\n{''.join(printed)}")
    finally:
        late.cancel()
        process.terminate()
        process.wait(10)
        if rest.is_alive():
            rest.join(10)
        process.stdout.close()


def aimock_rows(url: str) -> dict[str, dict[str, Any]]:
    """The `providers:` that lead to it."""
    row = {"api_key_env": "LAB_API_KEY", "allow_private_network": True}
    openai = {**row, "dialect": "openai", "base_url": f"{url}/v1"}
    return {
        "openai": openai,  # so that the page's model needs no other name
        "mock-openai": openai,
        "mock-anthropic": {**row, "dialect": "anthropic", "base_url": url},
        "mock-bedrock": {"dialect": "bedrock", "base_url": url, "region": REGION, "allow_private_network": True},
    }
