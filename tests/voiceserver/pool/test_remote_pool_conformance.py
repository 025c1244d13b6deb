"""What every pool promises of streams and to owners holds for tasks on the loop too; they have no workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from voiceserver.pool.remote_pool import RemotePool, Say
from voiceserver.testing.pool_suite import Bench, MakeBench, StreamSuite
from voiceserver_workers.ipc.messages import ResultKind


class Echo:
    """A RemoteEngine that says its text back."""

    name = "echo"
    skipped = 0

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
        self.pool = RemotePool(stage="reply", remote=Echo())

    async def until(self, is_done: Callable[[], bool]) -> None:
        for _ in range(2_000):
            if is_done():
                return
            await asyncio.sleep(0)
        pytest.fail("never happened")

    def kill_worker(self, index: int) -> None:
        raise NotImplementedError("there is none")


@asynccontextmanager
async def make_bench() -> AsyncIterator[Bench]:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    bench = TaskBench()
    await bench.pool.start()
    yield bench
    await bench.pool.stop()


class TestHttpPool(StreamSuite):
    @pytest.fixture
    def make_bench(self) -> MakeBench:
        return make_bench
