"""A process with a pool, to be killed: prints the pids of its forkserver and workers, then waits."""

from __future__ import annotations

import asyncio
import sys

from tests.faults.local_bench import make_local_bench
from voiceserver_workers.ipc.platform import PORTABLE


async def main() -> None:
    platform = PORTABLE if "portable" in sys.argv else None
    async with make_local_bench(workers=2, platform=platform) as bench:
        print(bench.pool.forkserver_pid(), bench.pid(0), bench.pid(1), flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
