from __future__ import annotations

from collections.abc import Mapping

from tests.voiceserver.shell import AnsweredPool
from voiceserver.capacity.admission import Admission, Ticket
from voiceserver.capacity.controller import FIRST_TALKERS_PER_WORKER, CapacityController, NeededWork
from voiceserver.capacity.limit import LOOK_MS, SPEECH_SHARE, Cost, talkers_for
from voiceserver.events.events import ServerBusy
from voiceserver.pool import PoolStats, WorkerStats
from voiceserver.session.settings import ServerSnapshot


class MeasuredPool(AnsweredPool):
    """A stage of two workers whose figures a test sets."""

    def __init__(self, stage: str, places: int | None = 8) -> None:
        super().__init__(stage)
        self.places = places
        self.busy_ms = self.optional_ms = 0.0
        self.lag_ms = 0.0
        self.open = 0
        self.windows: list[float] = []
        self.state = "ready"

    def set_max_wait_ms(self, max_wait_ms: float) -> None:
        self.windows.append(max_wait_ms)

    def stats(self) -> PoolStats:
        workers = tuple(
            WorkerStats(index, 1, self.state, 1, 0, 0, 0.0, 0, 0, 0.0, self.busy_ms, self.optional_ms)  # type: ignore[arg-type]
            for index in range(2)
        )
        return PoolStats(self.stage, "measured", workers, self.open, self.places, self.lag_ms, 0, 0.0)


class Bench:
    def __init__(self, *pools: MeasuredPool, is_learned: bool = True) -> None:
        self.pools = {pool.stage: pool for pool in pools}
        self.admission = Admission(0, 0, "connection", 2_000.0, room=4)
        self.server_snapshot = ServerSnapshot()
        self.told: list[Mapping[str, object]] = []
        self.now_ms = 0.0
        self.controller = CapacityController(
            self.pools,
            self.admission,
            self.server_snapshot,
            is_learned=is_learned,
            windows_ms={"vad": 3.0},
            on_change=lambda name, fields: self.told.append({"name": name, **fields}),
            now_ms=0.0,
        )

    def look(
        self,
        seconds: float = LOOK_MS / 1000,
        busy: float = 0.0,
        optional: float = 0.0,
        cores_busy: float | None = None,
    ) -> None:
        """busy: part of the time that each worker is in a step; optional: in one for a partial transcript."""
        for _ in range(round(seconds * 1000 / LOOK_MS)):
            self.now_ms += LOOK_MS
            for pool in self.pools.values():
                pool.busy_ms += LOOK_MS * busy
                pool.optional_ms += LOOK_MS * optional
            self.controller.look(0.0, self.now_ms, cores_busy, cores=2.0)


def test_the_first_limit_comes_from_the_places_and_waits_for_a_worker() -> None:
    stt = MeasuredPool("stt", places=4)
    stt.state = "starting"
    bench = Bench(stt)
    bench.look()
    assert bench.admission.limit == 0
    stt.state = "ready"
    bench.look()
    assert bench.admission.limit == talkers_for(4, SPEECH_SHARE)


def test_a_stage_that_loads_longer_than_another_still_counts_for_the_first_limit() -> None:
    vad, stt = MeasuredPool("vad", places=None), MeasuredPool("stt", places=4)
    stt.state = "starting"
    bench = Bench(vad, stt)
    bench.look()
    assert bench.admission.limit == 2 * FIRST_TALKERS_PER_WORKER
    stt.state = "ready"
    bench.look()
    assert bench.admission.limit == talkers_for(4, SPEECH_SHARE)
    stt.places = 40  # from here on it is learned
    bench.look()
    assert bench.admission.limit == talkers_for(4, SPEECH_SHARE)


def test_a_server_that_does_not_listen_has_no_limit() -> None:
    bench = Bench(MeasuredPool("tts", places=1))
    bench.look(1.0)
    assert bench.admission.limit == 0


def test_an_operators_limit_is_not_touched() -> None:
    bench = Bench(MeasuredPool("stt"), is_learned=False)
    bench.admission.set_limit(3, 0.0)
    bench.look(20.0, busy=1.0)
    assert bench.admission.limit == 3


def test_talkers_that_fill_the_workers_lower_the_limit_and_nobody_is_sent_away() -> None:
    stt = MeasuredPool("stt", places=None)
    stt.open = 12
    bench = Bench(stt)
    bench.controller.start_with(20, 0.0, {"stt": Cost("stt", 0.09, 2, None, True)})
    inside = [bench.admission.try_enter(0.0) for _ in range(20)]
    bench.look(90.0, busy=1.0)
    assert 15 <= bench.admission.limit < 20
    assert all(isinstance(one, Ticket) and one.state == "admitted" for one in inside)


def test_partial_transcripts_fill_the_workers_and_keep_nobody_out() -> None:
    limits = []
    for optional in (0.0, 0.7):
        stt = MeasuredPool("stt", places=None)
        stt.open = 12
        bench = Bench(stt)
        bench.controller.start_with(20, 0.0, {"stt": Cost("stt", 0.09, 2, None, True)})
        for _ in range(20):
            bench.admission.try_enter(0.0)
        bench.look(90.0, busy=0.25 + optional, optional=optional, cores_busy=0.25 + optional)
        limits.append(bench.admission.limit)
    assert limits[0] == limits[1] >= 20


def test_what_the_processor_did_for_partials_is_taken_off_when_the_step_has_ended() -> None:
    """A step of two looks counts in the second."""
    stats = MeasuredPool("stt")
    work = NeededWork()
    found = []
    for ended_ms in (0.0, 200.0, 0.0, 0.0, 0.0, 0.0):
        stats.optional_ms += ended_ms / 2  # of two workers
        found.append(work.of_cores(0.5, [stats.stats()], span_ms=200.0))
    assert found == [0.5, 0.0, 0.0, 0.5, 0.5, 0.5]


def test_the_ladder_widens_the_windows_at_its_second_step_and_narrows_them_again() -> None:
    vad = MeasuredPool("vad", places=None)
    bench = Bench(vad)
    vad.lag_ms = 2_000.0
    bench.look(1.2)
    assert (bench.server_snapshot.degrade_level, vad.windows) == (1, [3.0])
    bench.look(1.2)
    assert (bench.server_snapshot.degrade_level, vad.windows) == (2, [3.0, 20.0])
    vad.lag_ms = 0.0
    bench.look(7.0)
    assert (bench.server_snapshot.degrade_level, vad.windows[-1]) == (0, 3.0)
    assert [one["step"] for one in bench.told] == [
        "fewer_partials",
        "wider_batches",
        "fewer_partials",
        "full",
    ]


def test_one_caller_who_sends_too_fast_is_no_sign_of_too_many() -> None:
    late = ServerBusy("stt", "slow", 3_000.0, 0.0, 3_000.0)
    bench = Bench(MeasuredPool("stt"))
    for _ in range(30):
        bench.controller.note_busy(1, late, bench.now_ms)
        bench.look()
    assert bench.server_snapshot.degrade_level == 0
    for _ in range(30):
        bench.controller.note_busy(1, late, bench.now_ms)
        bench.controller.note_busy(2, late, bench.now_ms)
        bench.look()
    assert bench.server_snapshot.degrade_level == 2


def test_waiting_for_a_place_or_for_a_new_worker_is_no_delay_of_the_stage() -> None:
    bench = Bench(MeasuredPool("stt"))
    for _ in range(30):
        for caller, step in enumerate(("waiting", "lost", "waiting")):
            event = ServerBusy("stt", "slow", 3_000.0, 0.0, 3_000.0, step=step)  # type: ignore[arg-type]
            bench.controller.note_busy(caller, event, bench.now_ms)
        bench.look()
    assert bench.server_snapshot.degrade_level == 0


def test_who_waits_too_long_is_found_by_the_look() -> None:
    bench = Bench(MeasuredPool("stt"), is_learned=False)
    bench.admission.set_limit(1, 0.0)
    bench.admission.try_enter(0.0)
    waiting = bench.admission.try_enter(0.0)
    bench.look(60.0)
    assert isinstance(waiting, Ticket)
    assert waiting.state == "expired"


class TieredMeasuredPool(MeasuredPool):
    has_lighter = True

    def __init__(self, stage: str) -> None:
        super().__init__(stage, places=None)
        self.tiers: list[bool] = []

    def set_lighter(self, is_lighter: bool) -> None:
        self.tiers.append(is_lighter)


def test_the_last_step_of_the_ladder_is_the_lighter_engine_where_there_is_one() -> None:
    stt, vad = TieredMeasuredPool("stt"), MeasuredPool("vad", places=None)
    bench = Bench(stt, vad)
    stt.lag_ms = 2_000.0
    bench.look(5.0)
    assert (bench.server_snapshot.degrade_level, bench.server_snapshot.lighter) == (3, frozenset({"stt"}))
    assert stt.tiers == [False, False, True]
    stt.lag_ms = 0.0
    bench.look(9.0)
    assert bench.server_snapshot.degrade_level == 3, "calm proves little there"
    bench.look(8.0)
    assert (bench.server_snapshot.degrade_level, bench.server_snapshot.lighter, stt.tiers[-1]) == (
        0,
        frozenset(),
        False,
    )
