"""The local pool keeps every promise of a pool, with real worker processes, on both event loops."""

from __future__ import annotations

import os

import pytest
import uvloop

from tests.faults.local_bench import make_local_bench
from voiceserver.testing.pool_suite import MakeBench, Owner, PoolSuite
from voiceserver_workers.ipc.messages import RequestKind
from voiceserver_workers.process import NICENESS


class TestLocalPool(PoolSuite):
    @pytest.fixture
    def make_bench(self) -> MakeBench:
        return make_local_bench


async def test_a_worker_gives_way_to_the_loop_that_feeds_it() -> None:
    async with make_local_bench() as bench:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, bench.pid()) == min(own + NICENESS, 19)


def test_on_uvloop_a_death_is_heard_of_and_streams_reopen() -> None:
    async def run() -> None:
        async with make_local_bench() as bench:
            owner = Owner("caller")
            stream = owner.open(bench.pool)
            for seq in range(1, 101):
                assert stream.send(RequestKind.DATA, 1, seq, b"x")
                await bench.until(lambda seq=seq: len(owner.texts()) == seq)  # type: ignore[misc]
            bench.kill_worker(0)
            await bench.until(lambda: owner.lost == ["worker_lost"])
            await bench.until(bench.pool.is_ready)
            owner.say(owner.open(bench.pool), "after")
            await bench.until(lambda: owner.texts()[-1] == "after 1")

    uvloop.run(run())
