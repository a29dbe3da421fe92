"""Many callers at once, each of whom knows what became of every request that it made."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

HUNG_AFTER_S = 20.0
QUESTION = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True, slots=True)
class Ended:
    """One request. `complete`: the caller has the whole answer, so its row must be in the trace log."""

    request_id: str
    status: int | None
    complete: bool
    took_s: float
    ended_s: float
    hung: bool = False
    error: str | None = None


@dataclass
class Load:
    """Callers that ask for plain answers and for streams by turns, until they are told to stop.

    `prefix` begins the id of each request.
    """

    url: str
    key: str
    callers: int = 16
    model: str = "faulty-stream/stream"
    prefix: str = "load"
    ended: list[Ended] = field(default_factory=list)
    _stopping: bool = False
    _one_more: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Load:
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        headers = {"authorization": f"Bearer {self.key}"}
        self._session = aiohttp.ClientSession(self.url, connector=connector, headers=headers)
        self._tasks = [asyncio.create_task(self._caller(n)) for n in range(self.callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def until(self, count: int, within_s: float = 60) -> None:
        """Wait until `count` more answers are complete."""
        goal = len(self.complete) + count
        async with asyncio.timeout(within_s):
            while len(self.complete) < goal:
                self._one_more.clear()
                await self._one_more.wait()

    @property
    def complete(self) -> list[Ended]:
        return [each for each in self.ended if each.complete]

    @property
    def hung(self) -> int:
        return sum(each.hung for each in self.ended)

    @property
    def failures(self) -> Counter[str]:
        return Counter(str(each.status or each.error) for each in self.ended if not each.complete)

    async def _caller(self, number: int) -> None:
        turn = 0
        while not self._stopping:
            turn += 1
            ended = await ask(
                self._session, self.model, f"{self.prefix}-{number}-{turn}", stream=bool((number + turn) % 2)
            )
            self.ended.append(ended)
            self._one_more.set()
            if not ended.complete:
                await asyncio.sleep(0.05)  # as an SDK does before it tries again


async def ask(session: aiohttp.ClientSession, model: str, request_id: str, *, stream: bool) -> Ended:
    """One chat request, to its end."""
    body: dict[str, Any] = {"model": model, "messages": QUESTION, "stream": stream}
    started = time.monotonic()
    status: int | None = None
    try:
        async with asyncio.timeout(HUNG_AFTER_S):
            headers = {"x-request-id": request_id}
            async with session.post("/v1/chat/completions", json=body, headers=headers) as answer:
                status = answer.status
                data = await answer.read()
    except TimeoutError:
        return _ended(request_id, status, started, hung=True, error="hung")
    except (aiohttp.ClientError, OSError) as error:
        return _ended(request_id, status, started, error=type(error).__name__)
    whole = data.endswith(b"data: [DONE]\n\n") if stream and status == 200 else True
    return _ended(request_id, status, started, complete=status == 200 and whole, error=None if whole else "cut")


def _ended(request_id: str, status: int | None, started: float, **more: Any) -> Ended:
    now = time.monotonic()
    return Ended(request_id, status, more.pop("complete", False), now - started, now, **more)
