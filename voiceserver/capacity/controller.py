"""The server's look at itself: ten times a second it turns what pools and callers tell into the talkers' limit and the ladder.

Pure: pools are asked for ``stats``, time is given. Rule: what is measured decides, never a typed-in number, unless the operator
typed one (``max_talkers``). The ladder is climbed for queue ages and nothing else; how busy the processor is counts for the limit
only, as what talkers cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

from voiceserver.capacity.admission import Admission
from voiceserver.capacity.limit import (
    PROCESSOR,
    SPEECH_SHARE,
    Cost,
    Ladder,
    LimitMove,
    Load,
    TalkerLimit,
    talkers_for,
)
from voiceserver.events.events import ServerBusy
from voiceserver.pool import Pool, PoolStats, never_raising
from voiceserver.session.settings import ServerSnapshot

# A caller that was told to be late counts as late for so long; the signal repeats every second.
LATE_FOR_MS: Final = 1_200.0
# One caller who sends faster than real time is late by its own doing.
LATE_SHARE: Final = 0.1
LATE_AT_LEAST: Final = 2
FIRST_TALKERS_PER_WORKER: Final = 64  # of a stage without places, before anything was measured
WIDE_WINDOW_MS: Final = 20.0
_SPEECH_STAGES: Final = ("stt", "reply", "tts")
_OF_LOAD: Final = ("slow", "degraded", "shed")

OnChange = Callable[[str, Mapping[str, object]], None]


class CapacityController:
    """``is_learned`` False: the limit is the operator's, and only the ladder is climbed. windows_ms: the configured batch window
    of each stage; on_change(name, fields): for the log."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        admission: Admission,
        server_snapshot: ServerSnapshot,
        *,
        is_learned: bool,
        windows_ms: Mapping[str, float],
        on_change: OnChange,
        now_ms: float,
    ) -> None:
        self._pools = pools
        self._admission = admission
        self._server_snapshot = server_snapshot
        self._is_learned = is_learned
        self._windows_ms = windows_ms
        self._on_change = never_raising(on_change)
        # The step of the lighter engines is there only where there is one.
        self._tiered = {stage: pool for stage, pool in pools.items() if pool.has_lighter}
        self._ladder = Ladder(now_ms, top=3 if self._tiered else 2)
        self._limit = TalkerLimit(0, now_ms)
        self._has_start = False
        self._late: dict[int, tuple[float, float]] = {}  # caller -> lag_ms, when
        self._needed = NeededWork()
        self._looked_ms = now_ms
        self._refused = 0
        self.workers: list[int] = []  # processes, as of the last look

    @property
    def level(self) -> int:
        """How far the server has retreated: an index of ``Ladder.STEPS``."""
        return self._ladder.level

    @property
    def standing_ms(self) -> float:
        return self._limit.standing_ms

    @property
    def busy(self) -> float:
        return self._limit.busy

    @property
    def limit_moves(self) -> tuple[LimitMove, ...]:
        """How the limit has moved, and why; the oldest first."""
        return tuple(self._limit.moves)

    def note_busy(self, caller: int, event: ServerBusy, now_ms: float) -> None:
        """A caller was told that its audio waits: the queue age as callers see it."""
        if (
            event.is_late
            and event.step in _OF_LOAD
            and event.stage in self._pools
            and self._computes(event.stage)
        ):
            self._late[caller] = (event.lag_ms, now_ms)

    def start_with(self, limit: int, now_ms: float, costs: Mapping[str, Cost] | None = None) -> None:
        """What calibration found."""
        if self._is_learned and limit:
            self._has_start = True
            self._limit.start_again(limit, now_ms, costs)
            self._admission.set_limit(self._limit.limit, now_ms)

    def look(
        self, loop_lag_ms: float, now_ms: float, cores_busy: float | None = None, cores: float = 1.0
    ) -> None:
        """Call every ``LOOK_MS``. cores_busy: part of the ``cores`` that this server and its ``workers`` used since the last
        look; None where that is not known."""
        stats = [pool.stats() for pool in self._pools.values()]
        stats = [one for one in stats if one.workers]
        self.workers = [worker.pid for one in stats for worker in one.workers if worker.pid]
        if self._is_learned and not self._has_start:
            first = first_limit(stats)
            if first:
                self.start_with(first, now_ms)
                self._has_start = all(_is_there(one) for one in stats)
        loads = [self._load(one, now_ms - self._looked_ms) for one in stats]
        if cores_busy is not None and loads:
            needed = self._needed.of_cores(cores_busy, stats, (now_ms - self._looked_ms) * cores)
            loads.append(_processor(loads, needed))
        loads.append(Load("callers", self._lag_of_callers(now_ms), 0.0))
        self._looked_ms = now_ms
        admission = self._admission
        has_demand = admission.waiting > 0 or admission.refused > self._refused
        self._refused = admission.refused
        limit = self._limit.learn(admission.talkers, has_demand, loads, loop_lag_ms, now_ms)
        if self._is_learned and limit:
            admission.set_limit(limit, now_ms)
        admission.tick(now_ms)
        if self._ladder.climb(max(load.queue_ms for load in loads), now_ms):
            self._retreat()

    def _load(self, stats: PoolStats, since_ms: float) -> Load:
        spent_ms = self._needed.of_stage(stats)
        ready = sum(worker.state == "ready" for worker in stats.workers)
        # Steps count when they end, so one look may see more work than time; the sums are right.
        busy = spent_ms / (since_ms * ready) if ready and since_ms > 0 else 0.0
        places = None if stats.free is None else stats.free + stats.streams
        return Load(stats.stage, stats.lag_ms if ready else 0.0, busy, stats.streams, places)

    def _lag_of_callers(self, now_ms: float) -> float:
        """The median lag of those that are late, when they are more than a few."""
        self._late = {who: late for who, late in self._late.items() if now_ms - late[1] <= LATE_FOR_MS}
        talkers = max(self._admission.talkers, self._server_snapshot.talkers)
        if len(self._late) < max(LATE_AT_LEAST, talkers * LATE_SHARE):
            return 0.0
        return median(lag_ms for lag_ms, _ in self._late.values())

    def _retreat(self) -> None:
        level = self._ladder.level
        self._server_snapshot.degrade_level = level
        self._server_snapshot.lighter = frozenset(self._tiered) if level >= 3 else frozenset()
        self._on_change("degrade", {"degrade_level": level, "step": Ladder.STEPS[level]})
        for stage, pool in self._pools.items():
            if self._computes(stage):
                window_ms = self._windows_ms.get(stage, 0.0)
                pool.set_max_wait_ms(max(window_ms, WIDE_WINDOW_MS) if level >= 2 else window_ms)
        for tiered in self._tiered.values():
            tiered.set_lighter(level >= 3)

    def _computes(self, stage: str) -> bool:
        return bool(self._pools[stage].stats().workers)


class NeededWork:
    """What is done without that which is left out where there is more to do: only this says how many can be carried."""

    __slots__ = ("_left_ms", "_needed_ms", "_seen_ms")

    def __init__(self) -> None:
        # Of a stage's worker.
        self._needed_ms: dict[tuple[str, int], float] = {}
        self._seen_ms = 0.0
        # Steps count when they end, and the processor is measured while they go on. What one look cannot take, the next ones do.
        self._left_ms = 0.0

    def of_stage(self, stats: PoolStats) -> float:
        """Ms of all its workers since the last call."""
        spent_ms = 0.0
        for worker in stats.workers:
            key = (stats.stage, worker.index)
            needed_ms = worker.busy_ms - worker.optional_ms
            spent_ms += needed_ms - self._needed_ms.get(key, needed_ms)
            self._needed_ms[key] = needed_ms
        return spent_ms

    def of_cores(self, busy: float, stats: Sequence[PoolStats], span_ms: float) -> float:
        """``busy`` without the optional steps that have ended since the last call. span_ms: time of all cores since then."""
        seen_ms = sum(worker.optional_ms for one in stats for worker in one.workers)
        self._left_ms += max(seen_ms - self._seen_ms, 0.0)
        self._seen_ms = seen_ms
        if span_ms <= 0:
            return busy
        taken_ms = min(self._left_ms, busy * span_ms)
        self._left_ms -= taken_ms
        return busy - taken_ms / span_ms


def _processor(loads: Sequence[Load], cores_busy: float) -> Load:
    """The processor as one more stage. More workers than cores wait for each other, and the time that their steps take tells
    of it only when it is full. What it does follows the streams of the stage that works most."""
    busiest = max(loads, key=lambda load: load.busy)
    return Load(PROCESSOR, 0.0, cores_busy, busiest.used)


def _is_there(stats: PoolStats) -> bool:
    return any(worker.state == "ready" for worker in stats.workers)


def first_limit(stats: list[PoolStats]) -> int:
    """A careful limit from the places that the stages have, until calibration knows better; 0 when there is no stage that
    hears or none is ready yet."""
    limits = []
    for one in stats:
        ready = sum(worker.state == "ready" for worker in one.workers)
        if one.stage not in ("vad", "stt", "reply") or not ready:
            continue
        if one.free is None:
            limits.append(ready * FIRST_TALKERS_PER_WORKER)
        else:
            share = SPEECH_SHARE if one.stage in _SPEECH_STAGES else 1.0
            limits.append(talkers_for(one.free + one.streams, share))
    return max(min(limits), 1) if limits else 0
