"""What a million requests cost the trace log: bytes, time on the event loop, time to ship, time to read, memory.

    python -m benchmarks.traces [--rows 1000000] [--json FILE]

Rows of agents' requests, spread over the last four days, go through the real writer into a spool, from there through
the real shipper process into Parquet, and back through the real reader. Everything is on one local disk, and nothing
else runs at the same time: the writer's figures are those of its loop, not of a loop that also answers requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from orqen_ray.traces.row import Trace
from orqen_ray.traces.spool import has_rows, spooled_bytes
from orqen_ray.traces.supervisor import ShipperOptions
from orqen_ray.traces.writer import SpoolLimits, TraceWriter
from orqen_ray.types import Attempt

DAYS = 4
PREPARED_ROWS = 10_000
MODELS = (
    ("anthropic", "anthropic_messages", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
    ("anthropic", "anthropic_messages", "claude-haiku-4-5", "claude-haiku-4-5-20251001"),
    ("openai", "openai_chat", "gpt-4o", "gpt-4o-2024-08-06"),
    ("openai", "openai_chat", "gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
    ("bedrock", "bedrock_converse", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", None),
)
TOOLS = ("read_file", "edit_file", "run_command", "search", "list_files", "fetch_page")


def agents_rows(count: int, end: datetime) -> Iterator[Trace]:
    """`count` rows in the order of time: agents whose prompts grow and are mostly read from the provider's cache."""
    dice = random.Random(1)
    sessions = [f"derived-{secrets.token_hex(12)}" for _ in range(200)]
    keys = [f"key_{secrets.token_hex(8)}" for _ in range(30)]
    step = timedelta(days=DAYS) / count
    for number in range(count):
        if dice.random() < 0.01:
            sessions[dice.randrange(len(sessions))] = f"derived-{secrets.token_hex(12)}"
        provider, dialect, sent, served = dice.choice(MODELS)
        prompt, failed = int(dice.lognormvariate(9.5, 0.8)), dice.random() < 0.02
        first_byte_ms = dice.lognormvariate(6.8, 0.6)
        status = 529 if failed else 200
        first = Attempt(provider=provider, model=sent, status=status, started_ms=1.2, took_ms=round(first_byte_ms, 3))
        yield Trace(
            request_id=f"req_{secrets.token_hex(12)}",
            started_at=end - timedelta(days=DAYS) + number * step,
            key_id=dice.choice(keys),
            session_id=dice.choice(sessions),
            inbound_format=dice.choice(("openai_chat", "anthropic_messages")),
            dialect=dialect,
            provider=provider,
            requested_model=f"{provider}/{sent}",
            sent_model=sent,
            served_model=served or sent,
            stream=dice.random() < 0.9,
            status=status,
            error_code="upstream_rejected" if failed else None,
            error_class="provider" if failed else None,
            attempts=1,
            attempt_log=(first,),
            tools_input=40,
            tools_output=40,
            input_tokens=dice.randrange(2000),
            cache_read_tokens=prompt,
            cache_write_tokens=dice.randrange(3000),
            cache_write_1h_tokens=0,
            output_tokens=int(dice.lognormvariate(5, 1)),
            reasoning_tokens=0,
            usage_source=None if failed else "provider",
            request_bytes=prompt * 4,
            response_bytes=dice.randrange(200, 50_000),
            read_ms=round(dice.uniform(0.1, 0.9), 3),
            select_ms=round(dice.uniform(0.01, 0.1), 3),
            build_ms=round(dice.uniform(0.05, 0.4), 3),
            overhead_ms=round(dice.uniform(0.3, 1.6), 3),
            first_byte_ms=round(first_byte_ms, 3),
            total_ms=round(first_byte_ms * dice.uniform(1, 10), 3),
            stop_reason="tool_use",
            tools_called=tuple(dice.choices(TOOLS, k=dice.randrange(3))),
        )


async def write(folder: Path, count: int, end: datetime) -> dict[str, float]:
    """All rows through the writer, as fast as its loop takes them; making them up is not counted."""
    writer = TraceWriter(str(folder), limits=SpoolLimits(max_spool_bytes=8 << 30), ship=False)
    await writer.start()
    rows, took_s, longest_s = agents_rows(count, end), 0.0, 0.0
    for _ in range(0, count, PREPARED_ROWS):
        prepared = [row for _, row in zip(range(PREPARED_ROWS), rows, strict=False)]
        for row in prepared:
            before = time.perf_counter()
            writer.write(row)
            one_s = time.perf_counter() - before
            took_s += one_s
            longest_s = max(longest_s, one_s)
        await asyncio.sleep(0)
    await writer.aclose()
    assert writer.dropped_rows == 0
    return {
        "writer_us_per_row": took_s / count * 1e6,
        "writer_rows_per_s": count / took_s,
        "writer_longest_row_us": longest_s * 1e6,
        "spool_bytes_per_row": spooled_bytes(folder / ".spool") / count,
    }


def ship(folder: Path, count: int) -> dict[str, float]:
    """Everything through the shipper process: until the spool is empty, then until nothing is left to merge."""
    options = ShipperOptions(spool=folder / ".spool", uri=str(folder))
    started = time.perf_counter()
    with subprocess.Popen(options.command(), stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)
        peak = 0
        while has_rows(folder / ".spool"):
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)
        shipped_s = time.perf_counter() - started
        quiet_since = time.perf_counter()
        used_s = 0.0
        while time.perf_counter() - quiet_since < 3:  # merging
            peak = max(peak, process.memory_info().rss)
            if (now_s := sum(process.cpu_times()[:2])) - used_s > 0.05:
                used_s, quiet_since = now_s, time.perf_counter()
            time.sleep(0.02)
        idle, cpu_s = process.memory_info().rss, sum(process.cpu_times()[:2])
        merged_s = quiet_since - started
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30) == 0
    files = list(folder.glob("day=*/*.parquet"))
    return {
        "shipper_rows_per_s": count / shipped_s,
        "shipper_s_with_merging": merged_s,
        "shipper_cpu_us_per_row": cpu_s / count * 1e6,
        "shipper_peak_mib": peak / 2**20,
        "shipper_idle_mib": idle / 2**20,
        "parquet_bytes_per_row": sum(file.stat().st_size for file in files) / count,
        "parquet_files": len(files),
    }


def shipper_without_work(folder: Path) -> dict[str, float]:
    options = ShipperOptions(spool=folder / ".spool", uri=str(folder))
    with subprocess.Popen(options.command(), stdin=subprocess.PIPE) as child:
        time.sleep(5)
        idle = psutil.Process(child.pid).memory_info().rss
        before = sum(psutil.Process(child.pid).cpu_times()[:2])
        time.sleep(10)
        cpu_ratio = (sum(psutil.Process(child.pid).cpu_times()[:2]) - before) / 10
        child.kill()
    return {"shipper_fresh_idle_mib": idle / 2**20, "shipper_idle_cpu_ratio": cpu_ratio}


def reads(folder: Path, end: datetime) -> dict[str, dict[str, Any]]:
    """What is read, for each kind of question."""
    day = end - timedelta(days=2)
    return {
        "all": {},
        "all_3_columns": {"columns": ["provider", "cost_usd", "output_tokens"]},
        "last_hour": {"since": end - timedelta(hours=1)},
        "one_day_3_columns": {
            "since": day,
            "until": day + timedelta(days=1),
            "columns": ["provider", "cost_usd", "output_tokens"],
        },
        "last_hour_and_10000_rows_in_the_spool": {"since": end - timedelta(hours=1)},
    }


def read_once(uri: str, arguments: dict[str, Any], results: Any) -> None:
    """In a process of its own: the first time with everything that must be loaded, then three times more."""
    from orqen_ray.traces.reader import read_traces  # a fresh process: its memory is the reader's alone

    times: list[float] = []
    for _ in range(4):
        before = time.perf_counter()
        rows = read_traces(uri, **arguments).num_rows
        times.append(time.perf_counter() - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put({"rows": rows, "first_ms": times[0] * 1e3, "best_ms": min(times) * 1e3, "peak_mib": peak})


def in_own_process(function: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=function, args=(*arguments, results))
    process.start()
    result = results.get(timeout=600)
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    end = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, Any] = {"rows": options.rows, **asyncio.run(write(folder, options.rows, end))}
        figures |= ship(folder, options.rows)
        for question, arguments in reads(folder, end).items():
            if "spool" in question:
                asyncio.run(write(folder, 10_000, end))
            figures[f"read_{question}"] = in_own_process(read_once, str(folder), arguments)
        (folder / "empty").mkdir()
        figures |= shipper_without_work(folder / "empty")
    for name, figure in figures.items():
        print(
            f"{name:45}", {k: round(v, 1) for k, v in figure.items()} if isinstance(figure, dict) else round(figure, 3)
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
