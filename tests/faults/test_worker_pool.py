"""The local pool keeps every promise of a pool, with real worker processes, on both event loops."""

from __future__ import annotations

import pytest
import uvloop

from tests.conformance.pool_suite import MakeBench, Owner, PoolConformance
from tests.faults.local_bench import make_local_bench
from workers.ipc.messages import RequestKind


class TestLocalPool(PoolConformance):
    @pytest.fixture
    def make_bench(self) -> MakeBench:
        return make_local_bench


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
