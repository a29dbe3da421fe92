"""`make bench-routing`: what tool routing adds to a request through Ray Serve; writes docs/benchmarks-routing.md.

    python -m benchmarks.routing [--rounds N]

Each request is sent twice in turn: as it is, and with `X-Orqen-Optimize: off`. The difference of the medians is what
routing adds; the rest of the gateway, and the mock provider behind it, are in both.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.overhead.contestants import Contestant, mock, orqen
from benchmarks.overhead.processes import ROOT
from benchmarks.routing.queries import QueryFigures, one_query
from benchmarks.routing.tool_sets import request_for, tool_set
from orqen_ray.store.database import Database
from orqen_ray.store.keys import Keys

DOCUMENT = ROOT / "docs" / "benchmarks-routing.md"
WARM_UP_S = 60.0
NEVER_SEEN = 15
"""Sets of tools that no request has brought before; each is sent once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of request: medians in ms with and without routing, what was kept, and the bound."""

    what: str
    off_ms: float
    on_ms: float
    p90_added_ms: float
    kept: str
    bound_ms: float | None

    @property
    def added_ms(self) -> float:
        return self.on_ms - self.off_ms


class Client:
    """A keep-alive connection, as an SDK has it."""

    def __init__(self, gateway: Contestant) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
        self._headers = {**gateway.headers, "content-type": "application/json"}

    def ask(self, body: bytes, *, off: bool = False) -> tuple[float, dict[str, str]]:
        """Milliseconds until the whole answer was there, and its headers."""
        headers = {**self._headers, "x-orqen-optimize": "off"} if off else self._headers
        start_s = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", body, headers)
        answer = self._connection.getresponse()
        answer.read()
        took_ms = (time.perf_counter() - start_s) * 1000
        if answer.status != 200:
            raise RuntimeError(f"the gateway answered {answer.status}")
        return took_ms, {name.lower(): value for name, value in answer.getheaders()}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="orqen-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        mock_url = stack.enter_context(mock(folder))
        gateway = stack.enter_context(orqen("routing", "ingress")(mock_url, folder))
        routed = asyncio.run(_key_with_few_tools(f"sqlite+aiosqlite:///{folder}/routing/orqen.db"))
        headers = {"authorization": f"Bearer {routed}"}
        rows = list(_rows(Client(replace(gateway, headers=headers)), options.rounds))
    text = _document(rows, one_query(), options.rounds)
    print(text)
    DOCUMENT.write_text(text)


async def _key_with_few_tools(database_url: str) -> str:
    """A key whose conversations get eight tools each. With any other, a new set of tools is sent whole while that costs
    less, and a known one by what its conversations called, which are calls of no model here."""
    database = Database(database_url)
    try:
        keys = Keys(database)
        record, secret = await keys.create("few tools")
        await keys.switch(record.id, {}, k_target=8, reset=False)
        return secret
    finally:
        await database.aclose()


def _rows(client: Client, rounds: int) -> Iterator[Row]:
    for size, bound_ms in ((64, 12.0), (500, 25.0)):
        tools = tool_set(size)
        _warm(client, tools)
        numbers = iter(range(1, 1_000_000))

        def first(tools: list[dict[str, object]] = tools, numbers: Iterator[int] = numbers) -> bytes:
            number = next(numbers)
            return _body(tools, [{"role": "user", "content": request_for(tools[number % len(tools)], number)}])

        yield _measure(client, f"first turn, {size} tools", first, rounds, bound_ms)
        yield _measure(client, f"later turn, {size} tools", _later(client, tools), rounds, 2.0)
    yield _never_seen(client)


def _later(client: Client, tools: list[dict[str, object]]) -> Callable[[], bytes]:
    """A conversation of eleven messages whose first turn the gateway has decided already."""
    messages: list[dict[str, object]] = [{"role": "user", "content": request_for(tools[3], 0)}]
    client.ask(_body(tools, messages))
    for turn in range(5):
        call = {"id": f"call_{turn}", "type": "function", "function": {"name": _name(tools[3]), "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{turn}", "content": '{"status": "open"} ' * 40})
    body = _body(tools, messages)
    client.ask(body)
    return lambda: body


def _never_seen(client: Client) -> Row:
    off, on, kept = [], [], []
    for seed in range(1, NEVER_SEEN + 1):
        tools = tool_set(64, seed)
        body = _body(tools, [{"role": "user", "content": request_for(tools[5], seed)}])
        off.append(client.ask(body, off=True)[0])
        took_ms, headers = client.ask(body)
        on.append(took_ms)
        kept.append(headers.get("x-orqen-prune-ratio", "-"))
    fell_back = sum(ratio.split("/")[0] == "64" for ratio in kept)
    said = f"{NEVER_SEEN - fell_back} of {NEVER_SEEN} routed, {fell_back} sent whole"
    return Row("first turn, 64 never-seen tools", *_figures(off, on), said, 250.0)


def _measure(client: Client, what: str, body: Callable[[], bytes], rounds: int, bound_ms: float) -> Row:
    off, on, kept = [], [], ""
    for _ in range(rounds):
        off.append(client.ask(body(), off=True)[0])
        took_ms, headers = client.ask(body())
        on.append(took_ms)
        kept = headers.get("x-orqen-prune-ratio", "-")
    return Row(what, *_figures(off, on), kept, bound_ms)


def _figures(off: list[float], on: list[float]) -> tuple[float, float, float]:
    p90 = statistics.quantiles(on, n=10)[-1] - statistics.quantiles(off, n=10)[-1]
    return statistics.median(off), statistics.median(on), p90


def _warm(client: Client, tools: list[dict[str, object]]) -> None:
    """Until a new conversation with these tools is routed: the encoder is loaded and knows them."""
    deadline_s = time.monotonic() + WARM_UP_S
    number = 0
    while time.monotonic() < deadline_s:
        number -= 1
        body = _body(tools, [{"role": "user", "content": request_for(tools[number % len(tools)], number)}])
        if "x-orqen-routing" in client.ask(body)[1]:
            return
        time.sleep(0.2)
    raise RuntimeError(f"{len(tools)} tools were not routed within {WARM_UP_S:g} s")


def _body(tools: list[dict[str, object]], messages: list[dict[str, object]]) -> bytes:
    return json.dumps({"model": "lab/m", "messages": messages, "tools": tools}).encode()


def _name(tool: dict[str, object]) -> str:
    function = tool["function"]
    assert isinstance(function, dict)
    return str(function["name"])


def _document(rows: list[Row], query: QueryFigures, rounds: int) -> str:
    lines = [
        f"| {row.what} | {row.off_ms:.2f} | {row.on_ms:.2f} | {row.added_ms:+.2f} | {row.p90_added_ms:+.2f} | "
        f"{'-' if row.bound_ms is None else f'<= {row.bound_ms:g}'} | {row.kept} |"
        for row in rows
    ]
    table = "\n".join(lines)
    return f"""# Benchmarks: what tool routing adds

`make bench-routing` writes this page: one caller on a keep-alive connection, through HAProxy and Ray Serve, with the
embedder as a deployment of its own, before a mock provider that costs next to nothing. Everything shares the machine,
so read the differences. Measured {datetime.now(UTC):%Y-%m-%d} with Python {platform.python_version()} on
{os.cpu_count()} cores, {platform.machine()}; medians of {rounds} pairs of requests.

| request | off, p50 ms | on, p50 ms | added p50 | added p90 | bound | tools sent |
|---|---:|---:|---:|---:|---:|---|
{table}

The key is one that gets eight tools in each conversation (`orqen keys optimize --k-target 8`), so that tools are scored
whatever they cost. A first turn is a new conversation with a tool set that is known: its tools' vectors are in the
cache, and the texts of the conversation are embedded. A later turn is one of a conversation whose pin is known. Never-seen tools must be
embedded first; where that does not fit the time, all are sent, and the embedding goes on for the next conversation.

## One query

In one process, one thread each, the same text: {query.ours_ms:.2f} ms by `OnnxEmbedder`, {query.peer_ms:.2f} ms by
`SentenceTransformer.encode` of all-MiniLM-L6-v2: **{query.peer_ms / query.ours_ms:.1f}x** as fast (bound >= 3x).
Texts of a tool set: {query.per_s:.0f} a second and core; 64 never-seen tools take {query.sixty_four_ms:.0f} ms.
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What tool routing adds to a request.")
    parser.add_argument("--rounds", type=int, default=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
