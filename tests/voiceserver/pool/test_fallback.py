"""Two engines for one stage: where new streams open, and what is told of both."""

from __future__ import annotations

from collections.abc import Callable

from voiceserver.config.schema import StageConfig
from voiceserver.errors import Refusal
from voiceserver.pool import LossReason, Stream
from voiceserver.pool.fallback import FallbackPool
from voiceserver.pool.inline import InlinePool
from voiceserver.testing import engines as broken_engines
from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.ipc.channel import WorkerEnd
from voiceserver_workers.ipc.messages import Record, StreamParams
from voiceserver_workers.worker import Worker

PARAMS = StreamParams()


class Owner:
    def __init__(self) -> None:
        self.rooms = 0

    def on_result(self, stage: str, record: Record) -> None: ...

    def on_stream_lost(self, stage: str, reason: LossReason) -> None: ...

    def on_room(self, stage: str) -> None:
        self.rooms += 1

    def on_tick(self) -> None: ...


def worker_of(max_streams: int) -> Callable[[WorkerEnd], Worker]:
    def make(end: WorkerEnd) -> Worker:
        return Worker(broken_engines.Obedient({"max_streams": max_streams}), end, BatchLimits(8))

    return make


class Bench:
    def __init__(self, own_places: int = 0, lighter_places: int = 0) -> None:
        self.own = InlinePool(
            "reply",
            worker_of(own_places),
            StageConfig(engine="own", workers=2, request_slots=64, result_slots=128),
        )
        self.lighter = InlinePool(
            "reply",
            worker_of(lighter_places),
            StageConfig(engine="light", request_slots=64, result_slots=128),
        )
        self.pool = FallbackPool(self.own, self.lighter)
        self.now_ms = 1_000.0
        for one in (self.own, self.lighter):
            one.now_ms = self.now_ms
            one.start_workers()
        self.settle()

    def settle(self) -> None:
        for one in (self.own, self.lighter):
            for _ in range(20):
                self.now_ms += 10.0
                one.step(self.now_ms)

    def open(self, owner: Owner | None = None) -> Stream:
        stream = self.pool.try_open(owner or Owner(), PARAMS)
        assert not isinstance(stream, Refusal)
        return stream


def test_new_streams_open_on_the_engine_of_the_hour_and_stay_there() -> None:
    bench = Bench()
    first = bench.open()
    bench.pool.set_lighter(True)
    second = bench.open()
    bench.pool.set_lighter(False)
    third = bench.open()
    assert [one.is_lighter for one in (first, second, third)] == [False, True, False]
    stats = bench.pool.stats()
    assert (stats.streams, stats.lighter_streams, stats.engine) == (3, 1, "own")
    assert [worker.index for worker in stats.workers] == [0, 1, 2], "each worker has a number of its own"


def test_where_the_lighter_engine_has_no_place_the_stages_own_serves() -> None:
    bench = Bench(lighter_places=1)
    bench.pool.set_lighter(True)
    assert bench.open().is_lighter
    assert not bench.open().is_lighter
    assert bench.pool.stats().engine == "light"


def test_who_finds_neither_is_called_when_there_is_room_in_either() -> None:
    bench = Bench(own_places=1, lighter_places=1)
    bench.pool.set_lighter(True)
    streams = [bench.open() for _ in range(3)]
    owner = Owner()
    assert isinstance(bench.pool.try_open(owner, PARAMS), Refusal)
    streams[-1].close()
    bench.settle()
    assert owner.rooms == 1


def test_the_lighter_engine_does_not_make_a_stage_ready() -> None:
    bench = Bench()
    assert bench.pool.is_ready()
    for index in (0, 1):
        bench.own.crash(index)
    bench.own.step(bench.now_ms)
    assert bench.lighter.is_ready()
    assert not bench.pool.is_ready()
