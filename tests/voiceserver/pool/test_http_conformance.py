"""What of the pools' conformance suite is about streams and owners holds for tasks on the loop too.

The rest of the suite is about workers: places, rings, deaths, state that an engine keeps. A remote engine has none of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.conformance.pool_suite import Bench, PoolConformance
from voiceserver.pool.http import HttpPool, Say
from workers.ipc.messages import ResultKind


class Echo:
    """A RemoteEngine that says its text back."""

    name = "echo"

    async def open(self) -> None:
        pass

    async def answer(self, request: bytes, say: Say) -> None:
        await asyncio.sleep(0)
        if request == b"raise":
            raise RuntimeError("a secret of the engine")
        say(ResultKind.TEXT, request)
        say(ResultKind.DONE, json.dumps({"finish_reason": "stop"}).encode())

    async def watch(self) -> None:
        pass

    def is_up(self) -> bool:
        return True

    async def close(self) -> None:
        pass


class TaskBench:
    def __init__(self) -> None:
        self.pool = HttpPool(stage="reply", remote=Echo())

    async def until(self, is_done: Callable[[], bool]) -> None:
        for _ in range(2_000):
            if is_done():
                return
            await asyncio.sleep(0)
        pytest.fail("never happened")

    def kill_worker(self, index: int) -> None:
        raise NotImplementedError("there is none")


class TestHttpPool:
    @pytest.fixture
    async def bench(self) -> AsyncIterator[Bench]:
        async with self.make() as bench:
            yield bench

    @asynccontextmanager
    async def make(self) -> AsyncIterator[Bench]:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        bench = TaskBench()
        await bench.pool.start()
        yield bench
        await bench.pool.stop()

    test_every_burst_of_calls_ends_in_a_tick = PoolConformance.test_every_burst_of_calls_ends_in_a_tick
    test_a_closed_stream_hears_nothing_more = PoolConformance.test_a_closed_stream_hears_nothing_more
    test_an_engine_that_raises_fails_that_request_only = (
        PoolConformance.test_an_engine_that_raises_fails_that_request_only
    )
    test_stop_is_idempotent_and_ends_every_stream = (
        PoolConformance.test_stop_is_idempotent_and_ends_every_stream
    )
