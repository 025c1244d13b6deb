"""The inline pool keeps every promise of a pool, and its faults are found on a manual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from voiceserver.config.schema import StageConfig
from voiceserver.pool.inline import InlinePool, SimulatedDeath
from voiceserver.testing import engines as broken_engines
from voiceserver.testing.pool_suite import MakeBench, Owner, PoolSuite
from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.ipc.channel import WorkerEnd
from voiceserver_workers.worker import Worker

STEP_TIMEOUT_MS = 500


def die() -> None:
    raise SimulatedDeath


class InlineBench:
    """Ten milliseconds of manual clock a step."""

    def __init__(self, workers: int = 1, max_streams: int = 0, request_slots: int = 64) -> None:
        def make_worker(end: WorkerEnd) -> Worker:
            engine = broken_engines.Obedient({"max_streams": max_streams})
            return Worker(engine, end, BatchLimits(8), step_timeout_ms=STEP_TIMEOUT_MS)

        self.now_ms = 1_000.0
        self.events: list[str] = []
        self.pool = InlinePool(
            "reply",
            make_worker,
            StageConfig(
                engine="inline",
                workers=workers,
                step_timeout_ms=STEP_TIMEOUT_MS,
                request_slots=request_slots,
                result_slots=64,
            ),
            now_ms=self.now_ms,
            on_event=lambda name, fields: self.events.append(name),
        )

    async def until(self, is_done: Callable[[], bool]) -> None:
        for _ in range(2_000):
            if is_done():
                return
            self.now_ms += 10.0
            self.pool.step(self.now_ms)
        pytest.fail("never happened")

    def kill_worker(self, index: int) -> None:
        self.pool.crash(index)


MakeInlineBench = Callable[..., AbstractAsyncContextManager[InlineBench]]


class TestInlinePool(PoolSuite):
    @pytest.fixture
    def make_bench(self, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
        monkeypatch.setitem(broken_engines.POISON, "kill", die)

        @asynccontextmanager
        async def make(
            workers: int = 1, max_streams: int = 0, request_slots: int = 64
        ) -> AsyncIterator[InlineBench]:
            bench = InlineBench(workers, max_streams, request_slots)
            await bench.pool.start()
            await bench.until(lambda: all(w.state == "ready" for w in bench.pool.stats().workers))
            yield bench
            await bench.pool.stop()

        return make

    async def test_a_hang_is_found_after_the_step_timeout_and_not_before(
        self, make_bench: MakeInlineBench
    ) -> None:
        async with make_bench() as bench:
            owner = Owner("victim")
            owner.open(bench.pool)
            bench.pool.hang(0)
            hung_ms = bench.now_ms
            await bench.until(lambda: bool(owner.lost))
            assert owner.lost == ["worker_hung"]
            assert STEP_TIMEOUT_MS < bench.now_ms - hung_ms <= STEP_TIMEOUT_MS + 30.0
            await bench.until(bench.pool.is_ready)
            assert bench.events.count("worker_ready") == 2

    async def test_a_worker_that_keeps_dying_comes_back_ever_more_slowly(
        self, make_bench: MakeInlineBench
    ) -> None:
        async with make_bench() as bench:
            waits = []
            for _ in range(5):
                bench.kill_worker(0)
                died_ms = bench.now_ms
                await bench.until(lambda: not bench.pool.is_ready())
                await bench.until(bench.pool.is_ready)
                waits.append(bench.now_ms - died_ms)
            assert waits == sorted(waits)
            assert waits[-1] > 300.0
            bench.now_ms += 2_000.0
            bench.kill_worker(0)
            await bench.until(lambda: not bench.pool.is_ready())
            back_ms = bench.now_ms
            await bench.until(bench.pool.is_ready)
            assert bench.now_ms - back_ms <= 50.0, "a healthy life wipes the slate"

    async def test_out_of_memory_is_told_as_such(self, make_bench: MakeInlineBench) -> None:
        def no_memory() -> None:
            raise MemoryError

        broken_engines.POISON["memory"], before = no_memory, broken_engines.POISON["memory"]
        try:
            async with make_bench() as bench:
                owner = Owner("greedy")
                owner.say(owner.open(bench.pool), "memory")
                await bench.until(lambda: bool(owner.lost))
                assert owner.lost == ["worker_memory"]
        finally:
            broken_engines.POISON["memory"] = before

    async def test_results_published_before_a_death_arrive_before_the_news(
        self, make_bench: MakeInlineBench
    ) -> None:
        async with make_bench() as bench:
            owner = Owner("lucky")
            stream = owner.open(bench.pool)
            owner.say(stream, "published")
            bench.pool.step_workers(bench.now_ms)
            bench.kill_worker(0)
            bench.pool.step_server(bench.now_ms)
            assert owner.texts() == ["published 1"]
            assert owner.log[-2:] == ["lost", "tick"]

    async def test_a_step_under_way_is_not_a_hang_before_its_deadline(
        self, make_bench: MakeInlineBench
    ) -> None:
        async with make_bench() as bench:
            owner = Owner("patient")
            owner.open(bench.pool)
            for _ in range(100):
                bench.now_ms += STEP_TIMEOUT_MS - 10.0
                bench.pool.step(bench.now_ms)
            assert owner.lost == []

    async def test_suspects_get_a_worker_of_their_own_for_as_long_as_they_need_it(
        self, make_bench: MakeInlineBench
    ) -> None:
        async with make_bench() as bench:
            suspect, bystander = Owner("suspect"), Owner("bystander")
            bystander.open(bench.pool)
            suspect.say(suspect.open(bench.pool), "kill")
            await bench.until(suspect.is_lost)
            stream = await suspect.reopen(bench)
            await bystander.reopen(bench)
            assert [(w.index, w.streams) for w in bench.pool.stats().workers] == [(0, 1), (1, 1)]
            suspect.say(stream, "harmless now")
            await bench.until(lambda: suspect.texts() == ["harmless now 1"])
            stream.close()
            await bench.until(lambda: len(bench.pool.stats().workers) == 1)
            assert bench.events.count("worker_lost") == 1
            assert bench.pool.stats().restarts == 1

    @pytest.mark.parametrize("count", [1, 3])
    async def test_who_shared_a_batch_with_poison_has_one_hiccup_and_is_acquitted(
        self, make_bench: MakeInlineBench, count: int
    ) -> None:
        """In the batch of the first crash, and served on the suspects' workers when the poison comes again."""
        async with make_bench() as bench:
            poison, mates = Owner("poison"), [Owner(f"mate {index}") for index in range(count)]
            dose, streams = poison.open(bench.pool), [mate.open(bench.pool) for mate in mates]
            await bench.until(lambda: all(owner.results for owner in (poison, *mates)))
            for mate, stream in zip(mates, streams, strict=True):
                mate.say(stream, "harmless")
            poison.say(dose, "kill")
            await bench.until(lambda: all(mate.lost for mate in mates))
            for mate in mates:
                mate.say(await mate.reopen(bench), "harmless again")
            dose = await poison.reopen(bench)
            await bench.until(lambda: all("harmless again 1" in mate.texts() for mate in mates))
            suspects = [len(handle.streams) for handle in bench.pool.workers.trials]
            assert sorted(suspects) == ([1, 1] if count == 1 else [2, 2])
            poison.say(dose, "kill")
            await bench.until(lambda: len(poison.lost) == 2)
            assert poison.lost == ["worker_lost", "quarantined"]
            # With a worker each they meet no second time; in larger company they are moved, and nobody speaks of it.
            lost = sorted(mate.lost for mate in mates)
            assert lost == [["worker_lost"]] * (2 if count == 3 else 1) + [["worker_lost", "moved"]] * (
                count == 3
            )
            before = sum(len(handle.streams) for handle in bench.pool.workers.trials)
            for mate in mates:
                mate.open(bench.pool)
            assert sum(len(handle.streams) for handle in bench.pool.workers.trials) == before, "acquitted"
