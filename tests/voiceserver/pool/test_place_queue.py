"""Places of a stage are given in the order of asking, whatever comes between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.errors import Refusal
from voiceserver.pool import LossReason, Stream
from voiceserver.pool.inline import InlinePool
from voiceserver.pool.place_queue import PlaceQueue
from voiceserver.testing import engines as broken_engines
from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.ipc.channel import WorkerEnd
from voiceserver_workers.ipc.messages import Record, StreamParams
from voiceserver_workers.worker import Worker

PARAMS = StreamParams()
PLACES = 2


class Caller:
    """Asks for a place at once when it is called, as sessions do, as long as it wants one."""

    def __init__(self, pool: InlinePool, served: list[Caller]) -> None:
        self.pool = pool
        self.served = served
        self.stream: Stream | None = None
        self.wants = False
        self.is_called = False

    def ask(self) -> bool:
        self.wants = True
        got = self.pool.try_open(self, PARAMS)
        if isinstance(got, Refusal):
            return False
        self.stream, self.wants = got, False
        self.served.append(self)
        return True

    def leave(self) -> None:
        assert self.stream is not None
        stream, self.stream = self.stream, None
        stream.close()

    def on_result(self, stage: str, record: Record) -> None: ...

    def on_stream_lost(self, stage: str, reason: LossReason) -> None: ...

    def on_room(self, stage: str) -> None:
        self.is_called = True

    def on_tick(self) -> None:
        if self.is_called and self.wants and self.stream is None:
            self.ask()
        self.is_called = False


def worker_of(max_streams: int) -> Callable[[WorkerEnd], Worker]:
    def make(end: WorkerEnd) -> Worker:
        return Worker(broken_engines.Obedient({"max_streams": max_streams}), end, BatchLimits(8))

    return make


class Bench:
    def __init__(self) -> None:
        self.pool = InlinePool("reply", worker_of(PLACES))
        self.pool.now_ms = self.now_ms = 1_000.0
        for handle in self.pool.handles:
            self.pool.spawn(handle)
        self.settle()
        self.served: list[Caller] = []

    def settle(self) -> None:
        for _ in range(20):
            self.now_ms += 10.0
            self.pool.step(self.now_ms)

    def caller(self) -> Caller:
        return Caller(self.pool, self.served)


def full() -> tuple[Bench, list[Caller]]:
    bench = Bench()
    inside = [bench.caller() for _ in range(PLACES)]
    assert all(one.ask() for one in inside)
    return bench, inside


def test_a_newcomer_in_the_tick_in_which_a_place_became_free_waits_behind_the_others() -> None:
    bench, inside = full()
    waiting = [bench.caller() for _ in range(3)]
    assert not any(one.ask() for one in waiting)
    inside[0].leave()
    newcomer = bench.caller()
    assert not newcomer.ask()
    assert not waiting[2].ask(), "asking again is no way past the others"
    bench.settle()
    assert bench.served[PLACES:] == waiting[:1]
    for one in (inside[1], waiting[0]):
        one.leave()
        bench.settle()
    assert bench.served[PLACES:] == waiting
    waiting[1].leave()
    bench.settle()
    assert bench.served[-1] is newcomer


def test_more_places_than_people_who_wait_are_for_anybody() -> None:
    bench, inside = full()
    first = bench.caller()
    assert not first.ask()
    for one in inside:
        one.leave()
    assert bench.caller().ask()
    bench.settle()
    assert first.stream is not None


def test_who_has_lost_interest_or_has_left_is_passed_over() -> None:
    bench, inside = full()
    bored, gone, third = (bench.caller() for _ in range(3))
    assert not any(one.ask() for one in (bored, gone, third))
    bored.wants = False
    bench.pool.forget(gone)
    inside[0].leave()
    bench.settle()
    assert third.stream is not None


@given(st.lists(st.integers(min_value=0, max_value=6), max_size=60))
def test_all_are_served_in_the_order_in_which_they_first_asked(moves: list[int]) -> None:
    """0: somebody new asks; 1 to 3: one who waits asks again; 4 and 5: one leaves; 6: time passes."""
    bench = Bench()
    asked: list[Caller] = []
    for move in moves:
        waiting = [one for one in asked if one.wants]
        inside = [one for one in asked if one.stream is not None]
        if move == 0:
            asked.append(bench.caller())
            asked[-1].ask()
        elif move <= 3 and len(waiting) >= move:
            waiting[-move].ask()
        elif move in (4, 5) and inside:
            inside[4 - move].leave()
        elif move == 6:
            bench.settle()
    while any(one.wants for one in asked):
        next(one for one in asked if one.stream is not None).leave()
        bench.settle()
    order = {id(one): index for index, one in enumerate(asked)}
    assert [order[id(one)] for one in bench.served] == list(range(len(asked)))


@pytest.mark.parametrize("asks_again", [True, False])
def test_who_was_called_in_vain_keeps_its_turn(asks_again: bool) -> None:
    bench = Bench()
    queue = PlaceQueue()
    first, second = bench.caller(), bench.caller()
    for one in (first, second):
        queue.wait(one)
    assert list(queue.call(1).values()) == [first]
    assert queue.may_take(first, 0)
    if asks_again:
        queue.wait(first)
    queue.done()
    assert list(queue.call(1).values()) == [first if asks_again else second]
