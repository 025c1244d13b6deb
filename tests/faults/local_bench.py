"""A LocalPool with the obedient engine, for tests with real worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from voiceserver.config.schema import StageConfig
from voiceserver.pool.process_pool import ProcessPool
from voiceserver_workers.ipc.platform import Platform

ENGINE = "voiceserver.testing.engines:Obedient"
GIVE_UP_S = 30.0  # a broken promise, not a slow machine


class LocalBench:
    """A started pool; ``events`` is what it told about its workers."""

    def __init__(self, pool: ProcessPool, events: list[tuple[str, Mapping[str, object]]]) -> None:
        self.pool = pool
        self.events = events

    async def until(self, is_done: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GIVE_UP_S
        while not is_done():
            if loop.time() > deadline:
                pytest.fail(f"never happened; the pool said {self.events}")
            await asyncio.sleep(0.001)

    def pid(self, index: int = 0) -> int:
        return self.pool.stats().workers[index].pid

    def kill_worker(self, index: int, signal_number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(index), signal_number)

    def now_ms(self) -> float:
        return time.monotonic_ns() / 1e6

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


@asynccontextmanager
async def make_local_bench(
    workers: int = 1,
    max_streams: int = 0,
    request_slots: int = 64,
    step_timeout_ms: int = 5_000,
    params: Mapping[str, str] | None = None,
    platform: Platform | None = None,
) -> AsyncIterator[LocalBench]:
    """Every worker is ready on entry; on exit the pool is stopped and every process it had is gone."""
    events: list[tuple[str, Mapping[str, object]]] = []
    pool = ProcessPool(
        "reply",
        StageConfig(
            engine=ENGINE,
            params={"max_streams": max_streams, **(params or {})},
            workers=workers,
            max_batch_size=8,
            step_timeout_ms=step_timeout_ms,
            request_slots=request_slots,
            result_slots=64,
        ),
        platform=platform,
        on_event=lambda name, fields: events.append((name, fields)),
    )
    bench = LocalBench(pool, events)
    try:
        await pool.start()
        await bench.until(lambda: all(w.state == "ready" and w.pid for w in pool.stats().workers))
        yield bench
    finally:
        await pool.stop()
    pids = {int(str(fields["pid"])) for name, fields in events if name == "worker_ready" and fields["pid"]}
    await bench.until(lambda: not any(is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    """A zombie is dead: it holds nothing but its exit status."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
