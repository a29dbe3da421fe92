"""The load: `wrk` where it is, else a generator of our own; each sample is one request, repeated by some callers."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from benchmarks.overhead.processes import clean_environment

PATH = "/v1/chat/completions"
SCRIPT = Path(__file__).with_name("bench.lua")
_SLOW_S = 60
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class LoadFailed(Exception):
    """The answers were not what was asked for; with the reason."""


class NoAnswer(LoadFailed):
    """Not one answer was complete in the time given."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one run: time to the last byte in ms, answers a second, and how many there were."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_s: float
    answers: int


def generator_name() -> str:
    return "wrk" if shutil.which("wrk") else "a generator of its own (wrk is not here: high rates are its limit)"


def measure(url: str, headers: Mapping[str, str], body: Path, clients: int, seconds: int) -> Sample:
    """Send the request in `body` for `seconds` over `clients` connections, on each as soon as it was answered.

    Raises:
        LoadFailed: an answer was no success; NoAnswer: none came.
    """
    run = _by_wrk if shutil.which("wrk") else _by_generator
    sample = run(url, {**headers, "content-type": "application/json"}, body, clients, seconds)
    if not sample.answers:
        raise NoAnswer(f"no answer within {seconds} s")
    return sample


def _by_wrk(url: str, headers: Mapping[str, str], body: Path, clients: int, seconds: int) -> Sample:
    lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", f"--timeout={_SLOW_S}s", "-s", str(SCRIPT), url + PATH]
    done = subprocess.run(
        command,
        env={**clean_environment(), "BODY": str(body), "HEADERS": lines},
        capture_output=True,
        text=True,
        timeout=seconds + _SLOW_S,
    )
    if done.returncode:
        raise LoadFailed(f"wrk: {done.stderr.strip()[:200]}")
    seen: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    if seen["refused"] or seen["broken"]:
        raise LoadFailed(f"{seen['refused']} answers were no success, {seen['broken']} broke off")
    per_s = seen["requests"] / (seen["took"] / 1e6)
    return Sample(seen["p50"] / 1e3, seen["p90"] / 1e3, seen["p99"] / 1e3, per_s, seen["requests"])


def _by_generator(url: str, headers: Mapping[str, str], body: Path, clients: int, seconds: int) -> Sample:
    whole, _, took_s = uvloop.run(_generate(url, headers, body.read_bytes(), clients, seconds))
    cuts = statistics.quantiles(whole, n=100) if len(whole) > 1 else whole * 99
    return Sample(cuts[49] * 1e3, cuts[89] * 1e3, cuts[98] * 1e3, len(whole) / took_s, len(whole))


def first_chunk_ms(url: str, headers: Mapping[str, str], body: Path, seconds: int) -> float:
    """Median time until the first event of a stream is there, one caller. Raises LoadFailed."""
    headers = {**headers, "content-type": "application/json"}
    _, first, _ = uvloop.run(_generate(url, headers, body.read_bytes(), 1, seconds))
    return statistics.median(first) * 1e3


async def _generate(
    url: str, headers: Mapping[str, str], content: bytes, clients: int, seconds: int
) -> tuple[list[float], list[float], float]:
    """Seconds to the last byte and to the first event of each answer, and how long it all took."""
    address = urlsplit(url)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {PATH} HTTP/1.1\r\nhost: {address.netloc}\r\n{lines}content-length: {len(content)}\r\n\r\n"
    loop, started_s = asyncio.get_running_loop(), time.perf_counter()
    callers = [_Caller(head.encode() + content, started_s + seconds) for _ in range(clients)]
    for caller in callers:
        connected = functools.partial(_same, caller)
        await loop.create_connection(connected, address.hostname or "", address.port or 80)
    await asyncio.gather(*(caller.done for caller in callers))
    whole = [took for caller in callers for took in caller.whole]
    first = [took for caller in callers for took in caller.first]
    return whole, first, time.perf_counter() - started_s


def _same(caller: _Caller) -> _Caller:
    return caller


class _Caller(asyncio.Protocol):
    def __init__(self, request: bytes, until_s: float) -> None:
        self._request = request
        self._until_s = until_s
        self.whole: list[float] = []
        self.first: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._head: bytes | None = b""
        self._missing_bytes: int | None = None
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            data = self._head + data
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 or (len(data) == end and b"content-length" not in data.lower()):
                self._head = data
                return
            self._read_head(data, end)
        if self._missing_bytes is None:
            if data.endswith(b"0\r\n\r\n"):
                self._answered()
            return
        self._missing_bytes -= len(data)
        if self._missing_bytes <= 0:
            self._answered()

    def _read_head(self, data: bytes, end: int) -> None:
        if b" 200 " not in data[:16]:
            self._fail(f"answered {data[:40]!r}")
        length = _LENGTH.search(data, 0, end)
        self._head = None
        self._missing_bytes = None if length is None else int(length[1]) + end
        self.first.append(time.perf_counter() - self._sent_s)

    def _answered(self) -> None:
        now_s = time.perf_counter()
        self.whole.append(now_s - self._sent_s)
        if now_s < self._until_s:
            self._send()
            return
        self._transport.close()
        if not self.done.done():
            self.done.set_result(None)

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(LoadFailed(why))
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("the connection broke off")
