"""What `orqen doctor` finds, and how its checks are run: all at once, each within its own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

State = Literal["ok", "warning", "failed"]
CHECK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. `advice` says what to do; nothing where all is well. No secret is in either."""

    check: str
    state: State
    message: str
    advice: str = ""
    took_ms: float = 0.0


def ok(check: str, message: str) -> Finding:
    return Finding(check=check, state="ok", message=message)


def warning(check: str, message: str, advice: str) -> Finding:
    return Finding(check=check, state="warning", message=message, advice=advice)


def failed(check: str, message: str, advice: str) -> Finding:
    return Finding(check=check, state="failed", message=message, advice=advice)


Check = Callable[[], Awaitable[Sequence[Finding]]]


async def run_checks(checks: Mapping[str, Check], timeout_s: float = CHECK_TIMEOUT_S) -> list[Finding]:
    """The findings of all checks, in their order. One that breaks or takes too long is a finding itself."""
    found = await asyncio.gather(*(_run(name, check, timeout_s) for name, check in checks.items()))
    return [finding for findings in found for finding in findings]


async def _run(name: str, check: Check, timeout_s: float) -> list[Finding]:
    started_s = time.perf_counter()
    findings: Sequence[Finding]
    try:
        async with asyncio.timeout(timeout_s):
            findings = await check()
    except TimeoutError:
        findings = [failed(name, f"no answer within {timeout_s:g} s", "see whether what it asks hangs")]
    except Exception as error:  # noqa: BLE001  # one check that breaks must not hide what the others find
        findings = [failed(name, f"the check itself broke: {type(error).__name__}", "report it as a bug")]
    took_ms = (time.perf_counter() - started_s) * 1000
    return [replace(finding, took_ms=took_ms) for finding in findings]
