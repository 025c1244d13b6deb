"""``StreamSuite`` and ``PoolSuite``: what every pool promises, as tests.

``StreamSuite`` holds for each pool, also for tasks on the loop; ``PoolSuite`` adds what holds for workers: places, rings,
deaths, and the state that an engine keeps. Subclass one with a fixture ``make_bench`` that returns a function, which makes a
started pool and the way to let it work::

    class TestMyPool(PoolSuite):
        @pytest.fixture
        def make_bench(self) -> MakeBench:
            return my_bench  # an async context manager that yields a Bench

The engine behind the pool is ``voiceserver.testing.engines:Obedient``, or one that does the same: it answers DATA with a TEXT
of what it got and the number of items that its stream has had, then DONE.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import pytest
import pytest_asyncio

from voiceserver.errors import Refusal
from voiceserver.pool import LossReason, Pool, Stream
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams


@dataclass(eq=False)
class Owner:
    """The owner of a stream: it remembers every callback, and checks that none comes from inside a call of its own."""

    name: str = ""
    results: list[Record] = field(default_factory=list)
    lost: list[LossReason] = field(default_factory=list)
    rooms: int = 0
    ticks: int = 0
    log: list[str] = field(default_factory=list)
    is_calling: bool = False
    on_ready: Callable[[], object] | None = None

    def _record(self, what: str) -> None:
        assert not self.is_calling, "a callback from inside a call of the owner"
        self.log.append(what)

    def on_result(self, stage: str, record: Record) -> None:
        self._record("result")
        self.results.append(record)

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        self._record("lost")
        self.lost.append(reason)

    def on_room(self, stage: str) -> None:
        self._record("room")
        self.rooms += 1

    def on_tick(self) -> None:
        self._record("tick")
        self.ticks += 1
        if self.on_ready is not None:
            self.on_ready()

    def try_open(self, pool: Pool, params: StreamParams | None = None) -> Stream | Refusal:
        self.is_calling = True
        try:
            return pool.try_open(self, params or StreamParams(), key=self.name)
        finally:
            self.is_calling = False

    def open(self, pool: Pool, params: StreamParams | None = None) -> Stream:
        stream = self.try_open(pool, params)
        assert not isinstance(stream, Refusal), stream
        return stream

    async def reopen(self, bench: Bench) -> Stream:
        """Open as a session does: ask again when told that there may be room."""
        while isinstance(stream := self.try_open(bench.pool), Refusal):
            assert stream.reason in ("no_worker", "full")
            self.rooms = 0
            await bench.until(self.has_room)
        return stream

    def open_once(self, pool: Pool) -> None:
        self.on_ready = None
        self.open(pool)

    def say(self, stream: Stream, text: str, turn: int = 1, seq: int = 1) -> bool:
        self.is_calling = True
        try:
            return stream.send(RequestKind.DATA, turn, seq, text.encode())
        finally:
            self.is_calling = False

    def is_lost(self) -> bool:
        return bool(self.lost)

    def has_room(self) -> bool:
        return self.rooms > 0

    def texts(self) -> list[str]:
        return [r.payload.decode() for r in self.results if r.kind == ResultKind.TEXT]

    def kinds(self) -> list[ResultKind]:
        return [ResultKind(r.kind) for r in self.results]


class Bench(Protocol):
    """A started pool, and the way to let it work."""

    @property
    def pool(self) -> Pool: ...

    async def until(self, is_done: Callable[[], bool]) -> None:
        """Drive the pool until the condition holds; fails the test if it never does."""

    def kill_worker(self, index: int) -> None:
        """The worker dies where it stands."""


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.mark.asyncio
class StreamSuite:
    """What every pool promises of its streams and to their owners."""

    @pytest_asyncio.fixture
    async def bench(self, make_bench: MakeBench) -> AsyncIterator[Bench]:
        async with make_bench() as bench:
            yield bench

    async def test_every_burst_of_calls_ends_in_a_tick(self, bench: Bench) -> None:
        owner = Owner()
        stream = owner.open(bench.pool)
        owner.say(stream, "hello")
        await bench.until(lambda: ResultKind.DONE in owner.kinds())
        assert owner.log[-1] == "tick"
        assert "tick tick" not in " ".join(owner.log), "a tick without a reason"

    async def test_a_closed_stream_hears_nothing_more(self, bench: Bench) -> None:
        closed, other = Owner(), Owner()
        stream, witness = closed.open(bench.pool), other.open(bench.pool)
        closed.say(stream, "never answered")
        stream.close()
        stream.close()
        assert not closed.say(stream, "too late")
        other.say(witness, "answered")
        await bench.until(lambda: ResultKind.DONE in other.kinds())
        assert closed.log == []
        assert bench.pool.stats().streams == 1

    async def test_an_engine_that_raises_fails_that_request_only(self, bench: Bench) -> None:
        owner, other = Owner(), Owner()
        stream, witness = owner.open(bench.pool), other.open(bench.pool)
        owner.say(stream, "raise", turn=3, seq=1)
        other.say(witness, "fine")
        await bench.until(lambda: ResultKind.FAILED in owner.kinds() and ResultKind.DONE in other.kinds())
        (failed,) = [r for r in owner.results if r.kind == ResultKind.FAILED]
        assert failed.turn == 3
        assert json.loads(failed.payload)["code"] == "engine_failed"
        assert b"secret" not in failed.payload
        owner.say(stream, "again", turn=4, seq=2)
        await bench.until(lambda: ResultKind.DONE in owner.kinds())

    async def test_stop_is_idempotent_and_ends_every_stream(self, bench: Bench) -> None:
        stream = Owner().open(bench.pool)
        await bench.pool.stop()
        await bench.pool.stop()
        assert not bench.pool.is_ready()
        assert not stream.send(RequestKind.DATA, 1, 1, b"x")
        assert isinstance(Owner().try_open(bench.pool), Refusal)


class PoolSuite(StreamSuite):
    """What pools of workers promise besides. ``make_bench`` takes ``workers=1``, ``max_streams=0`` and ``request_slots=64``."""

    async def test_a_stream_says_hello_and_answers_in_order(self, bench: Bench) -> None:
        owner = Owner()
        stream = owner.open(bench.pool)
        for seq in range(1, 31):
            assert owner.say(stream, f"word{seq}", turn=7, seq=seq)
        await bench.until(lambda: owner.kinds().count(ResultKind.DONE) == 30)
        assert owner.kinds()[0] is ResultKind.OPENED
        assert owner.texts() == [f"word{seq} {seq}" for seq in range(1, 31)]
        assert [r.seq for r in owner.results if r.kind == ResultKind.DONE] == list(range(1, 31))
        assert {r.turn for r in owner.results[1:]} == {7}

    async def test_streams_keep_their_own_state(self, bench: Bench) -> None:
        owners = [Owner(str(number)) for number in range(5)]
        streams = [owner.open(bench.pool) for owner in owners]
        for round_ in range(1, 4):
            for owner, stream in zip(owners, streams, strict=True):
                assert owner.say(stream, owner.name, seq=round_)
        await bench.until(lambda: all(len(owner.texts()) == 3 for owner in owners))
        for owner in owners:
            assert owner.texts() == [f"{owner.name} {n}" for n in (1, 2, 3)]

    async def test_bad_options_fail_the_stream_and_not_the_pool(self, bench: Bench) -> None:
        owner = Owner()
        owner.open(bench.pool, StreamParams(options={"voice": "nobody"}))
        await bench.until(lambda: bool(owner.results))
        assert owner.kinds() == [ResultKind.FAILED]
        assert json.loads(owner.results[0].payload)["code"] == "bad_voice"
        assert bench.pool.is_ready()

    async def test_an_engine_gets_the_options_that_it_names_and_no_others(self, bench: Bench) -> None:
        owner = Owner()
        stream = owner.open(bench.pool, StreamParams(options={"voice": "somebody", "language": "de"}))
        assert owner.say(stream, "hello")
        await bench.until(lambda: bool(owner.texts()))
        assert owner.texts() == ["hello 1"]

    async def test_full_places_are_refused_and_given_in_order_when_free(self, make_bench: MakeBench) -> None:
        async with make_bench(workers=2, max_streams=1) as bench:
            first, second = Owner(), Owner()
            held = [first.open(bench.pool), second.open(bench.pool)]
            waiting = [Owner(str(number)) for number in range(3)]
            for owner in waiting:
                refusal = owner.try_open(bench.pool)
                assert isinstance(refusal, Refusal)
                assert (refusal.reason, refusal.retry_after_ms > 0) == ("full", True)
                owner.on_ready = partial(owner.open_once, bench.pool)
            assert bench.pool.stats().free == 0
            for owner, stream in zip(waiting, held, strict=False):
                stream.close()
                await bench.until(owner.has_room)
            assert [owner.log[:2] for owner in waiting] == [["room", "tick"], ["room", "tick"], []]
            assert bench.pool.stats().free == 0

    async def test_streams_spread_over_the_workers(self, make_bench: MakeBench) -> None:
        async with make_bench(workers=2) as bench:
            for _ in range(6):
                Owner().open(bench.pool)
            assert [worker.streams for worker in bench.pool.stats().workers] == [3, 3]

    async def test_a_full_ring_says_no_loses_nothing_and_calls_back(self, make_bench: MakeBench) -> None:
        async with make_bench(request_slots=16) as bench:
            owner = Owner()
            stream = owner.open(bench.pool)
            sent = 0

            def send_all() -> None:
                nonlocal sent
                while sent < 200 and stream.send(RequestKind.DATA, 1, sent + 1, str(sent).encode()):
                    sent += 1

            send_all()
            assert sent < 200, "the ring must be full by now"
            owner.on_ready = send_all
            await bench.until(lambda: len(owner.texts()) == 200)
            assert owner.texts() == [f"{n} {n + 1}" for n in range(200)]
            assert owner.rooms > 0

    async def test_a_payload_that_could_never_fit_is_an_error(self, bench: Bench) -> None:
        stream = Owner().open(bench.pool)
        with pytest.raises(ValueError, match="ring"):
            stream.send(RequestKind.DATA, 1, 1, bytes(10_000_000))

    async def test_a_dead_workers_owners_hear_it_once_and_streams_reopen(self, bench: Bench) -> None:
        owners = [Owner(str(number)) for number in range(3)]
        streams = [owner.open(bench.pool) for owner in owners]
        for owner, stream in zip(owners, streams, strict=True):
            owner.say(stream, "before")
        await bench.until(lambda: all(ResultKind.DONE in owner.kinds() for owner in owners))
        bench.kill_worker(0)
        await bench.until(lambda: all(owner.lost for owner in owners))
        for owner, stream in zip(owners, streams, strict=True):
            assert owner.lost == ["worker_lost"]
            assert owner.log[-2:] == ["lost", "tick"]
            assert not owner.say(stream, "to nobody")
            stream.close()
        assert bench.pool.stats().restarts == 1
        reopened = Owner("late")
        refusal = reopened.try_open(bench.pool)
        if isinstance(refusal, Refusal):
            assert refusal.reason == "no_worker"
            await bench.until(lambda: reopened.rooms > 0)
        else:
            refusal.close()
        stream = reopened.open(bench.pool)
        reopened.say(stream, "after")
        await bench.until(lambda: reopened.texts() == ["after 1"])
        assert bench.pool.stats().workers[0].generation == 2

    async def test_the_other_workers_streams_do_not_notice_a_death(self, make_bench: MakeBench) -> None:
        async with make_bench(workers=2) as bench:
            victim, witness = Owner("victim"), Owner("witness")
            victim.open(bench.pool)
            stream = witness.open(bench.pool)
            bench.kill_worker(0)
            await bench.until(lambda: bool(victim.lost))
            witness.say(stream, "still here")
            await bench.until(lambda: ResultKind.DONE in witness.kinds())
            assert witness.lost == []
            # A live worker has places at once.
            again = Owner("victim")
            again.say(again.open(bench.pool), "moved")
            await bench.until(lambda: again.texts() == ["moved 1"])

    async def test_input_that_kills_twice_is_quarantined_and_the_others_notice_one_hiccup(
        self, bench: Bench
    ) -> None:
        poison, batchmate, witness = Owner("poison"), Owner("batchmate"), Owner("witness")
        dose, beside = await poison.reopen(bench), await batchmate.reopen(bench)
        await witness.reopen(bench)
        batchmate.say(beside, "harmless")
        poison.say(dose, "kill")
        await bench.until(lambda: bool(poison.lost and batchmate.lost and witness.lost))
        await bench.until(bench.pool.is_ready)
        stream, beside = await witness.reopen(bench), await batchmate.reopen(bench)
        poison.say(await poison.reopen(bench), "kill")
        await bench.until(lambda: len(poison.lost) == 2)
        assert poison.lost == ["worker_lost", "quarantined"]
        refusal = poison.try_open(bench.pool)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "quarantined"
        witness.say(stream, "still the same stream")
        await bench.until(lambda: witness.texts() == ["still the same stream 1"])
        assert witness.lost == ["worker_lost"]
        # In the batch of the first crash only: trusted again, whatever became of its neighbour.
        batchmate.say(await batchmate.reopen(bench), "still welcome")
        await bench.until(lambda: "still welcome 1" in batchmate.texts())
        assert batchmate.lost in (["worker_lost"], ["worker_lost", "moved"])

    async def test_stats_count_the_work(self, bench: Bench) -> None:
        owner = Owner()
        stream = owner.open(bench.pool)
        for seq in range(1, 11):
            owner.say(stream, "x", seq=seq)
        await bench.until(lambda: len(owner.texts()) == 10)
        stats = bench.pool.stats()
        (worker,) = stats.workers
        assert worker.items >= 10
        assert (worker.state, worker.streams, worker.queued) == ("ready", 1, 0)
        assert stats.mean_batch >= 1.0
