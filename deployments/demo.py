"""`make demo`: start the gateway with its embedded provider, drive it with the three SDKs, show what each got."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import boto3
import openai
import psutil
from botocore.config import Config

from deployments.demo_tools import WEATHER, many_tools

MODEL = "sandbox/echo"
QUESTION = "What is the weather in London?"
CITIES = ("London", "Paris", "Rome", "Oslo", "Bern", "Vienna", "Prague", "Lisbon", "Dublin", "Athens")
READING_S = 2
LATER_QUESTION = "Then the fair is off: cancel_meeting, please."
START_WITHIN_S = 120
STOP_WITHIN_S = 60
PARAMETERS: dict[str, Any] = WEATHER["parameters"]
TOOL = {"name": WEATHER["name"], "description": WEATHER["description"]}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report: what a client did, what it got, and the gateway's headers."""

    client: str
    call: str
    got: str
    headers: dict[str, str]


def main() -> int:
    """Returns 0 when every call was answered and nothing was left running."""
    with tempfile.TemporaryDirectory(prefix="orqen-demo-") as folder, gateway(Path(folder)) as (url, key, process):
        say(f"The gateway serves on {url}. Its provider here is `{MODEL}`: embedded, deterministic, not a model.\n")
        rows = [*openai_rows(url, key), *anthropic_rows(url, key), *boto3_rows(url, key), *many_tools_rows(url, key)]
        for row in rows:
            say(f"{row.client:<14} {row.call:<7} {row.got}")
            say("\n".join(" " * 23 + line for line in _header_lines(row.headers)) + "\n")
        started = [process, *process.children(recursive=True)]
    left = [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    say(f"{len(rows)} calls answered. The gateway's {len(started)} processes have stopped" + ("." if not left else ":"))
    for each in left:
        say(f"  still running: {each.pid} {each.name()}")
    say("\nTo keep one running: make serve")
    return 1 if left else 0


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """A gateway of its own on a free port, with its data in `folder`; gone at the end."""
    key = f"sk-orq-{secrets.token_hex(32)}"
    config = folder / "orqen.yaml"
    storage = {"database_url": f"sqlite+aiosqlite:///{folder}/orqen.db", "traces_uri": f"{folder}/traces"}
    config.write_text(json.dumps({"storage": storage}))
    environment = {**os.environ, "ORQEN_CONFIG": str(config), "ORQEN_PORT": "0", "ORQEN_BOOTSTRAP_KEY": key}
    say("Starting Ray Serve ...")
    command = [sys.executable, "-m", "deployments.serve"]
    serving = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield wait_for_url(serving), key, psutil.Process(serving.pid)
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(timeout=STOP_WITHIN_S)


def wait_for_url(serving: subprocess.Popen[str]) -> str:
    """The address that the gateway prints when it is ready."""
    assert serving.stdout is not None
    signal.alarm(START_WITHIN_S)
    printed = []
    for line in serving.stdout:
        printed.append(line)
        if match := re.search(r"serves on (http://\S+)", line):
            signal.alarm(0)
            return match[1]
    raise SystemExit(f"{''.join(printed)}The gateway did not start; it ended with code {serving.wait()}.")


def openai_rows(url: str, key: str) -> Iterator[Row]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    messages: Any = [{"role": "user", "content": QUESTION}]
    tools: Any = [{"type": "function", "function": {**TOOL, "parameters": PARAMETERS}}]
    create = client.chat.completions.with_raw_response.create
    row = _rows("OpenAI SDK")

    plain = create(model=MODEL, messages=messages)
    yield row("plain", plain.parse().choices[0].message.content, plain.headers)
    stream = create(model=MODEL, messages=messages, stream=True)
    deltas = [chunk.choices[0].delta.content or "" for chunk in stream.parse() if chunk.choices]
    yield row("stream", _joined(deltas), stream.headers)
    called = create(model=MODEL, messages=messages, tools=tools)
    calls = [call for call in called.parse().choices[0].message.tool_calls or [] if call.type == "function"]
    yield row("tools", [(call.function.name, call.function.arguments) for call in calls], called.headers)


def anthropic_rows(url: str, key: str) -> Iterator[Row]:
    client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
    request: Any = {"model": MODEL, "max_tokens": 256, "messages": [{"role": "user", "content": QUESTION}]}
    tools: Any = [{**TOOL, "input_schema": PARAMETERS}]
    create = client.messages.with_raw_response.create
    row = _rows("Anthropic SDK")

    plain = create(**request)
    yield row("plain", plain.parse().content[0].text, plain.headers)
    with client.messages.stream(**request) as stream:
        yield row("stream", _joined(list(stream.text_stream)), stream.response.headers)
    called = create(**request, tools=tools)
    blocks = [block for block in called.parse().content if block.type == "tool_use"]
    yield row("tools", [(block.name, json.dumps(block.input)) for block in blocks], called.headers)


def boto3_rows(url: str, key: str) -> Iterator[Row]:
    client: Any = boto3.client(
        "bedrock-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key="unused",
        config=Config(retries={"total_max_attempts": 1}),
    )
    request: Any = {"modelId": MODEL, "messages": [{"role": "user", "content": [{"text": QUESTION}]}]}
    tools = {"tools": [{"toolSpec": {**TOOL, "inputSchema": {"json": PARAMETERS}}}]}
    row = _rows("boto3")

    plain = client.converse(**request)
    yield row("plain", plain["output"]["message"]["content"][0]["text"], _boto_headers(plain))
    stream = client.converse_stream(**request)
    deltas = [e["contentBlockDelta"]["delta"].get("text", "") for e in stream["stream"] if "contentBlockDelta" in e]
    yield row("stream", _joined(deltas), _boto_headers(stream))
    called = client.converse(**request, toolConfig=tools)
    blocks = [block["toolUse"] for block in called["output"]["message"]["content"] if "toolUse" in block]
    yield row("tools", [(use["name"], json.dumps(use["input"])) for use in blocks], _boto_headers(called))


def many_tools_rows(url: str, key: str) -> Iterator[Row]:
    """61 tools: all of them, those that the gateway finds needed, and one that it left out and the model asks for."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    tools: Any = many_tools()
    row = _rows("OpenAI SDK")

    def ask(messages: list[Any], **headers: str) -> Any:
        create = client.chat.completions.with_raw_response.create
        return create(model=MODEL, messages=messages, tools=tools, extra_headers=headers)

    def called(call: str, answer: Any) -> Row:
        reply = answer.parse()
        made = ", ".join(
            f"{c.function.name}({c.function.arguments})" for c in reply.choices[0].message.tool_calls or []
        )
        return row(call, f"calls {made}; a prompt of {reply.usage.prompt_tokens:,} tokens", answer.headers)

    yield called("all", ask(_asking("London"), **{"X-Orqen-Optimize": "off"}))
    # Tools never seen are sent whole when reading them takes longer than a request may wait; later ones profit.
    for city in CITIES:
        messages = _asking(city)
        routed = ask(messages)
        if routed.headers["x-orqen-tools-output"] != routed.headers["x-orqen-tools-input"]:
            break
        time.sleep(READING_S)
    yield called("routed", routed)
    said = routed.parse().choices[0].message
    messages += [said, *({"role": "tool", "tool_call_id": c.id, "content": "Rain."} for c in said.tool_calls or [])]
    messages += [{"role": "assistant", "content": "It rains."}, {"role": "user", "content": LATER_QUESTION}]
    yield called("restore", ask(messages))


def _asking(city: str) -> list[Any]:
    return [{"role": "user", "content": f"What is the weather in {city}?"}]


def _rows(client: str) -> Callable[[str, Any, Any], Row]:
    def row(call: str, got: Any, headers: Any) -> Row:
        text = got if isinstance(got, str) else ", ".join(f"calls {name}({arguments})" for name, arguments in got)
        return Row(client, call, text, {name: value for name, value in headers.items() if name.startswith("x-orqen-")})

    return row


def _joined(pieces: list[str]) -> str:
    return f"{''.join(pieces)}  ({sum(map(bool, pieces))} pieces)"


def _header_lines(headers: dict[str, str]) -> Iterator[str]:
    """Who answered and how fast on one line, what became of the tools on another."""
    about_tools = {name for name in headers if name.endswith(("tools-input", "tools-output", "prune-ratio"))}
    for names in (sorted(headers.keys() - about_tools), sorted(about_tools)):
        if names:
            yield "  ".join(f"{name}: {headers[name]}" for name in names)


def _boto_headers(answer: Any) -> Any:
    return answer["ResponseMetadata"]["HTTPHeaders"]


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
