"""How many talkers at once? Learned from what is measured: work done, places taken, and how long work waits.

Admitted callers are never sent away, so a limit that was too high cannot be taken back before somebody hangs up. So it
is a model first and a probe second:

- **Model** (measured-sum admission control: Jamin, Danzig, Shenker, Zhang, "A Measurement-based Admission Control
  Algorithm", IEEE/ACM ToN 1997). ``n`` talkers keep the busiest stage busy for a part ``u`` of its time, so ``n * TARGET / u`` of
  them would fill it. Only talkers that are in for ``SETTLE_MS`` count: the rest have not shown yet what they cost.
- **Probe** (Netflix concurrency-limits, Gradient2, after TCP Vegas): one step up per ``GROW_MS`` as long as there is demand and
  no delay; with a delay, down in proportion: ``limit * target / delay``.
- **Delay** is a *standing* queue (CoDel, RFC 8289): the smallest queue age of an interval. A burst that drains is fine.

The first limit comes from ``calibrate``: measured service times of each stage, before anybody calls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

LOOK_MS: Final = 100.0  # how often to call ``learn``
TARGET_BUSY: Final = 0.85
TARGET_DELAY_MS: Final = 250.0
TARGET_FULL: Final = 0.10  # how often a stage's places may all be taken
INTERVAL_MS: Final = 500.0
GROW_MS: Final = 1_000.0
SHRINK_MS: Final = 1_000.0
SETTLE_MS: Final = 4_000.0
SPEECH_SHARE: Final = 0.45  # of a call, before it was measured: callers listen, too
_STEP: Final = 0.1
_TAU_MS: Final = 4_000.0


class Load(NamedTuple):
    """A stage at one look. queue_ms: age of its oldest waiting work; busy: part of its workers' time since the last look;
    is_full: all its places for streams are taken."""

    stage: str
    queue_ms: float
    busy: float
    is_full: bool = False


class Cost(NamedTuple):
    """What calibration found of a stage. work: seconds of one worker per second of audio; workers; places: streams at once,
    None for no limit; is_speech_only: works while somebody speaks, not all the time."""

    stage: str
    work: float
    workers: int
    places: int | None
    is_speech_only: bool


def calibrate(costs: Iterable[Cost], cores: int) -> int:
    """The limit to begin with; 0 when nothing limits."""
    limits: list[float] = []
    total = 0.0
    for cost in costs:
        share = SPEECH_SHARE if cost.is_speech_only else 1.0
        work = cost.work * share
        total += work
        if work > 0:
            limits.append(cost.workers * TARGET_BUSY / work)
        if cost.places is not None:
            limits.append(talkers_for(cost.places, share))
    if total > 0:
        limits.append(cores * TARGET_BUSY / total)
    return max(int(min(limits)), 1) if limits else 0


def talkers_for(places: int, share: float) -> int:
    """How many talkers, each speaking a ``share`` of the time, find a place but for ``TARGET_FULL`` of it (Engset's question,
    answered by the binomial tail)."""
    talkers = places
    while talkers < 100_000 and _all_taken(talkers + 1, places, share) <= TARGET_FULL:
        talkers += max(talkers // 64, 1)
    return talkers


def _all_taken(talkers: int, places: int, share: float) -> float:
    """How likely more than ``places`` of ``talkers`` speak at once."""
    if talkers > 200:  # the normal curve is close enough, and the sum below would be long
        spread = math.sqrt(talkers * share * (1 - share))
        return 0.5 * math.erfc((places + 0.5 - talkers * share) / (spread * math.sqrt(2)))
    below = sum(
        math.comb(talkers, speaking) * share**speaking * (1 - share) ** (talkers - speaking)
        for speaking in range(places + 1)
    )
    return 1.0 - below


class TalkerLimit:
    """``limit`` 0: nothing is known to limit. Call ``learn`` every ``LOOK_MS``."""

    def __init__(self, start: int, now_ms: float) -> None:
        self._limit = float(start)
        self._looked_ms = now_ms
        self._changed_ms = now_ms
        self._busy: dict[str, float] = {}
        self._full: dict[str, float] = {}
        self._delays: deque[tuple[float, float]] = deque()
        self._talkers: deque[tuple[float, int]] = deque()

    @property
    def limit(self) -> int:
        return max(int(self._limit), 1) if self._limit else 0

    @property
    def standing_ms(self) -> float:
        """The delay that has not gone away for an interval."""
        return min((delay for _, delay in self._delays), default=0.0)

    @property
    def busy(self) -> float:
        """Of the busiest stage, smoothed."""
        return max(self._busy.values(), default=0.0)

    @property
    def fullness(self) -> float:
        """How often the fullest stage had no place left, smoothed."""
        return max(self._full.values(), default=0.0)

    def start_again(self, limit: int, now_ms: float) -> None:
        """Calibration has come to a result."""
        self._limit = float(limit)
        self._changed_ms = now_ms

    def learn(
        self, talkers: int, has_demand: bool, loads: Sequence[Load], loop_lag_ms: float, now_ms: float
    ) -> int:
        """The limit after one look. talkers: those with a place; has_demand: somebody waits or was refused."""
        self._observe(talkers, loads, loop_lag_ms, now_ms)
        if not self._limit:
            return 0
        standing_ms, settled = self.standing_ms, self._settled()
        is_late = len(self._delays) > 1 and standing_ms > TARGET_DELAY_MS
        if is_late or self.fullness > 3 * TARGET_FULL:
            if now_ms - self._changed_ms >= SHRINK_MS and talkers >= 0.5 * self._limit:
                factor = min(max(TARGET_DELAY_MS / standing_ms, 0.8), 1.0) if is_late else 0.95
                self._move(max(min(self._limit, talkers) * factor, 1.0), now_ms)
        elif has_demand and talkers >= self._limit * 0.9 and now_ms - self._changed_ms >= GROW_MS:
            most = max(self._room_for(settled), self._limit)
            is_well = standing_ms < TARGET_DELAY_MS / 2 and self.fullness < TARGET_FULL
            if is_well and most > self._limit:
                self._move(min(self._limit + max(self._limit * _STEP, 1.0), most), now_ms)
        return self.limit

    def _room_for(self, settled: int) -> float:
        """What the model allows, given what those cost who have shown it."""
        if not settled:
            return self._limit
        return settled * TARGET_BUSY / max(self.busy, 0.02)

    def _move(self, limit: float, now_ms: float) -> None:
        self._limit = limit
        self._changed_ms = now_ms

    def _settled(self) -> int:
        """Talkers that were in all the time for ``SETTLE_MS``."""
        if not self._talkers or self._looked_ms - self._talkers[0][0] < SETTLE_MS - LOOK_MS:
            return 0
        return min(count for _, count in self._talkers)

    def _observe(self, talkers: int, loads: Sequence[Load], loop_lag_ms: float, now_ms: float) -> None:
        weight = 1.0 - math.exp(-max(now_ms - self._looked_ms, 0.0) / _TAU_MS)
        self._looked_ms = now_ms
        for load in loads:
            for known, value in ((self._busy, load.busy), (self._full, float(load.is_full))):
                known[load.stage] = known.get(load.stage, 0.0) + (value - known.get(load.stage, 0.0)) * weight
        self._delays.append((now_ms, max([loop_lag_ms, *(load.queue_ms for load in loads)])))
        self._talkers.append((now_ms, talkers))
        while self._delays[0][0] < now_ms - INTERVAL_MS:
            self._delays.popleft()
        while self._talkers[0][0] < now_ms - SETTLE_MS:
            self._talkers.popleft()


class Ladder:
    """How far the server has retreated: 0 not at all, then a step for each interval with a standing queue, and back a step for
    each ``CALM_MS`` without one. What a step does is its caller's affair; ``STEPS`` are its names."""

    STEPS: Final = ("full", "fewer_partials", "wider_batches", "lighter_engines")
    CALM_MS: Final = 2_000.0

    def __init__(self, now_ms: float, top: int = len(STEPS) - 1) -> None:
        self.level = 0
        self._top = top
        self._changed_ms = self._late_ms = now_ms

    def climb(self, standing_ms: float, now_ms: float) -> bool:
        """True when the level changed."""
        is_late = standing_ms > TARGET_DELAY_MS
        if is_late:
            self._late_ms = now_ms
        step = 0
        if is_late and self.level < self._top and now_ms - self._changed_ms >= INTERVAL_MS:
            step = 1
        elif self.level and now_ms - max(self._late_ms, self._changed_ms) >= self.CALM_MS:
            step = -1
        if step:
            self.level += step
            self._changed_ms = now_ms
        return bool(step)
