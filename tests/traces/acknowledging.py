"""A gateway process as far as traces go: writes rows as fast as it can, and names each on its output afterwards.

    python -m tests.traces.acknowledging URI SPOOL FIRST COUNT

The rows are numbered from FIRST; after COUNT of them, or when its input ends, it stops in good order.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime

from orqen_ray.traces.writer import SpoolLimits, TraceWriter
from tests.traces.rows import row

LIMITS = SpoolLimits(seal_bytes=20_000, seal_s=0.2)


async def main(uri: str, spool: str, first: int, count: int) -> None:
    writer = TraceWriter(uri, spool, limits=LIMITS)
    await writer.start()
    for number in range(first, first + count):
        writer.write(row(number, datetime.now(UTC)))
        os.write(1, b"%d\n" % number)
        if number % 20 == 0:
            await asyncio.sleep(0.002)  # some thousand rows a second are enough
    await asyncio.to_thread(sys.stdin.read)
    await writer.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
