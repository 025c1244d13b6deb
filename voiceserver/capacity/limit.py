"""How many talkers at once? Learned from what is measured: work done, places taken, and how long work waits.

Admitted callers are never sent away, so a limit that was too high cannot be taken back before somebody hangs up. So it
is a model first, and a correction by delay second:

- **Model** (measured-sum admission control: Jamin, Danzig, Shenker, Zhang, "A Measurement-based Admission Control
  Algorithm for Integrated Services Packet Networks", SIGCOMM 1995): the limit is what the busiest stage can carry
  (``carried``), or where a stage's places are all taken for ``TARGET_FULL`` of the time. What a talker costs a stage is the
  product of two things that are measured apart, because they change for other reasons: the *work* of an open stream, which
  follows the machine within seconds, and the *share* of the time in which talkers have one, which is how people talk, and
  is known no sooner than many have talked. ``calibrate`` gives both to begin with, before anybody calls.
- **Delay** (Netflix concurrency-limits, ``Gradient2Limit``, after TCP Vegas): while work waits longer than it should, the
  limit shrinks in proportion, ``target / delay``, and comes back when it does not; nobody is added meanwhile.
- What counts as delay is a *standing* queue (CoDel, RFC 8289): the smallest queue age of an interval, which here is as long as
  people's turns are: that many of them speak at once for a moment is no sign of too many callers.

Time is as the wall has it: a step that another process kept from the processor took long, and fewer callers will do. The
processor itself is one more stage (``controller``).
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

LOOK_MS: Final = 100.0  # how often to call ``learn``
BUSY: Final = 0.75  # of its time: a stage whose delay may come from its callers
SPARE: Final = 0.22  # see ``carried``
TARGET_DELAY_MS: Final = 500.0
TARGET_FULL: Final = 0.10  # how often a stage's places may all be taken
INTERVAL_MS: Final = 5_000.0
SETTLE_MS: Final = 2_000.0  # until the work of a talker who has come begins to show
MOVE_MS: Final = 1_000.0
# Of a call, before it was measured: half of it, and what is heard around each turn.
SPEECH_SHARE: Final = 0.6
AROUND: Final = 1.15  # the loop, rings, and batches that are smaller than calibration's
PROCESSOR: Final = "processor"
CAUTION: Final = 0.85  # of what calibration says, to begin with; the rest is added by what is seen
_GROWTH: Final = 0.1  # for one move
_SURE_MOVES: Final = 5  # in a row that want more, before there is more
_LEAST_FACTOR: Final = 0.75
_KEPT_MOVES: Final = 20
_ONE_MOVE_MS: Final = 15_000.0
# How far back to look is counted in what was seen and not in time: many callers teach as much in less of it.
_SHARE_MEMORY_S: Final = 1_200.0  # of talkers' time: a minute of twenty
_LONGEST_MEMORY_S: Final = 60.0
_WORK_MEMORY_S: Final = 100.0  # of streams' time: ten seconds of ten
_PRIOR_TALK_S: Final = 150.0  # what calibration weighs
_PRIOR_OPEN_S: Final = 10.0
_LEAST_TALK_S: Final = 5.0  # before a cost is believed that was not calibrated
_LEAST_OPEN_S: Final = 2.0


class Load(NamedTuple):
    """A stage at one look. queue_ms: age of its oldest waiting work; busy: work of the steps that ended since the last look,
    over its workers' time; used: streams it has open; places: how many it can have, None for no limit."""

    stage: str
    queue_ms: float
    busy: float
    used: int = 0
    places: int | None = None


class Cost(NamedTuple):
    """What calibration found of a stage. work: seconds of one worker per second of audio; workers: or cores, of which there may
    be a part; places: streams at once, None for no limit; is_speech_only: works while somebody speaks, not all the time."""

    stage: str
    work: float
    workers: float
    places: int | None
    is_speech_only: bool

    @property
    def share(self) -> float:
        return SPEECH_SHARE if self.is_speech_only else 1.0


def calibrate(costs: Iterable[Cost], cores: float) -> int:
    """The limit to begin with; 0 when nothing limits."""
    limits: list[float] = []
    stages = list(costs)
    for cost in (*stages, processor_of(stages, cores)):
        work = cost.work * cost.share
        if work > 0:
            limits.append(carried(cost.workers / work))
        if cost.places is not None:
            limits.append(talkers_for(cost.places, cost.share))
    return max(int(min(limits)), 1) if limits else 0


def processor_of(costs: Iterable[Cost], cores: float) -> Cost:
    """The cores as one more stage, which does the work of all others and what is around it."""
    work = sum(cost.work * cost.share for cost in costs) * AROUND
    return Cost(PROCESSOR, work / SPEECH_SHARE, cores, None, True)


def carried(talkers: float) -> float:
    """Of the ``talkers`` whose work, on average, a stage could just do: less by a part of the square root, because people do
    not take turns evenly (square-root staffing: Halfin, Whitt, "Heavy-Traffic Limits for Queues with Many Exponential
    Servers", Operations Research 29(3), 1981). Short of it work waits for moments only; beyond it queues grow without end
    and goodput falls off a cliff."""
    return max(talkers - SPARE * math.sqrt(talkers), talkers / 2)


@functools.lru_cache(maxsize=1024)
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
        spread = math.sqrt(talkers * share * (1 - share)) or 1e-9
        return 0.5 * math.erfc((places + 0.5 - talkers * share) / (spread * math.sqrt(2)))
    below = sum(
        math.comb(talkers, speaking) * share**speaking * (1 - share) ** (talkers - speaking)
        for speaking in range(min(places, talkers) + 1)
    )
    return 1.0 - below


class LimitMove(NamedTuple):
    """The limit went from ``before`` to ``after``. ``cause``, with what ``value`` is:

    places       the places that the stages have, before anything was measured
    calibrated   what the engines were measured to need, before anybody called
    delay        work waited: the ms of it
    time         ``stage`` has no time for more: the talkers that it carries
    stage_full   ``stage`` has no places for more: the talkers that they are enough for
    demand       callers waited for a place, and ``stage``, the first to be full, has room: the talkers that it carries
    """

    at_ms: float
    before: int
    after: int
    cause: str
    stage: str = ""
    value: float = 0.0


class _Usage:
    """What talkers cost one stage: ``share`` of their time with a stream open, times ``work`` of the stage for an open one."""

    __slots__ = ("busy_s", "open_s", "places", "spent_s", "talk_s", "used_s")

    def __init__(self) -> None:
        self.talk_s = self.used_s = self.spent_s = (
            0.0  # of talkers: in all, with a stream open, and the stage's work
        )
        self.open_s = self.busy_s = 0.0  # of streams: in all, and the stage's work
        self.places: int | None = None

    def expect(self, cost: Cost) -> None:
        """What calibration found, until more is seen."""
        self.talk_s = _PRIOR_TALK_S
        self.used_s = self.talk_s * cost.share
        self.spent_s = self.used_s * cost.work / (cost.workers or 1)
        self.open_s = _PRIOR_OPEN_S
        self.busy_s = self.open_s * cost.work / (cost.workers or 1)
        self.places = cost.places

    def add(self, load: Load, talkers: int, seconds: float) -> None:
        keep = math.exp(-max(talkers * seconds / _SHARE_MEMORY_S, seconds / _LONGEST_MEMORY_S))
        self.talk_s = self.talk_s * keep + talkers * seconds
        self.used_s = self.used_s * keep + load.used * seconds
        self.spent_s = self.spent_s * keep + load.busy * seconds
        keep = math.exp(-load.used * seconds / _WORK_MEMORY_S)
        self.open_s = self.open_s * keep + load.used * seconds
        self.busy_s = self.busy_s * keep + load.busy * seconds
        self.places = load.places

    @property
    def share(self) -> float:
        return self.used_s / self.talk_s

    @property
    def cost(self) -> float:
        """Of the stage's time, for one talker."""
        if self.open_s < _LEAST_OPEN_S:  # a stage that works without streams
            return self.spent_s / self.talk_s
        return self.busy_s / self.open_s * self.share

    @property
    def capacity(self) -> float:
        return min(self.carried, self.held)

    @property
    def carried(self) -> float:
        """Talkers that the stage has time for."""
        if self.talk_s < _LEAST_TALK_S:
            return math.inf
        return carried(1.0 / self.cost) if self.cost > 0 else math.inf

    @property
    def held(self) -> float:
        """Talkers that its places are enough for."""
        if self.talk_s < _LEAST_TALK_S or not self.places:
            return math.inf
        return talkers_for(self.places, min(max(round(self.share, 2), 0.02), 1.0))


class TalkerLimit:
    """``limit`` 0: nothing is known to limit. Call ``learn`` every ``LOOK_MS``."""

    def __init__(self, start: int, now_ms: float) -> None:
        self._limit = float(start)
        self._factor = 1.0  # what delay leaves of the model's answer
        self._looked_ms = self._moved_ms = now_ms
        self._usage: dict[str, _Usage] = {}
        self._delays: deque[tuple[float, float]] = deque()
        self._aims: deque[float] = deque(maxlen=_SURE_MOVES)
        self._talkers: deque[tuple[float, int]] = deque()
        self.busy = 0.0  # of the busiest stage, over a few seconds
        self.moves: deque[LimitMove] = deque(maxlen=_KEPT_MOVES)  # the oldest first

    @property
    def limit(self) -> int:
        return max(int(self._limit + 0.2), 1) if self._limit else 0

    @property
    def standing_ms(self) -> float:
        """The delay that has not gone away for an interval."""
        return min((delay for _, delay in self._delays), default=0.0) if self._is_interval_full else 0.0

    @property
    def _is_interval_full(self) -> bool:
        return bool(self._delays) and self._delays[-1][0] - self._delays[0][0] >= INTERVAL_MS - LOOK_MS * 1.5

    def start_again(self, limit: int, now_ms: float, costs: Mapping[str, Cost] | None = None) -> None:
        """Calibration has come to a result."""
        self._note(LimitMove(now_ms, self.limit, limit, "calibrated" if costs else "places"))
        self._limit, self._factor, self._moved_ms = float(limit), 1.0, now_ms
        self._usage.clear()
        self._aims.clear()
        for cost in (costs or {}).values():
            self._usage[cost.stage] = _Usage()
            self._usage[cost.stage].expect(cost)

    def learn(
        self, talkers: int, has_demand: bool, loads: Sequence[Load], loop_lag_ms: float, now_ms: float
    ) -> int:
        """The limit after one look. talkers: those with a place; has_demand: somebody waits or was refused."""
        self._observe(talkers, loads, loop_lag_ms, now_ms)
        if self._limit and now_ms - self._moved_ms >= MOVE_MS:
            self._moved_ms = now_ms
            self._correct(loop_lag_ms)
            capacity = min((usage.capacity for usage in self._usage.values()), default=math.inf)
            self._aims.append(capacity * self._factor)
            before = self.limit
            self._move(talkers, has_demand)
            if self.limit != before:
                self._note(self._explain(before, now_ms))
        return self.limit

    def _explain(self, before: int, now_ms: float) -> LimitMove:
        """Why the limit has just moved from ``before``."""
        after = self.limit
        stage, usage = min(self._usage.items(), key=lambda one: one[1].capacity, default=("", None))
        if after < before and self._factor < 1.0:
            return LimitMove(now_ms, before, after, "delay", "", self.standing_ms)
        cause = "demand"
        if after < before:
            cause = "stage_full" if usage is not None and usage.held < usage.carried else "time"
        capacity = usage.capacity if usage is not None and usage.capacity < math.inf else 0.0
        return LimitMove(now_ms, before, after, cause, stage, capacity)

    def _note(self, move: LimitMove) -> None:
        """Steps of one move are kept as one."""
        last = self.moves[-1] if self.moves else None
        is_same = last is not None and (last.cause, last.stage) == (move.cause, move.stage)
        if last is not None and is_same and move.at_ms - last.at_ms < _ONE_MOVE_MS:
            self.moves[-1] = move._replace(before=last.before)
        elif move.before != move.after:
            self.moves.append(move)

    def _correct(self, loop_lag_ms: float) -> None:
        standing_ms = self.standing_ms
        # Work that waits for workers with time to spare waits for something else than fewer callers.
        is_ours = self.busy > BUSY or loop_lag_ms > TARGET_DELAY_MS
        if standing_ms > TARGET_DELAY_MS and is_ours:
            self._factor = max(self._factor * max(TARGET_DELAY_MS / standing_ms, 0.9), _LEAST_FACTOR)
        elif standing_ms < TARGET_DELAY_MS / 2:
            self._factor = min(self._factor + 0.02, 1.0)

    def _move(self, talkers: int, has_demand: bool) -> None:
        aim = self._aims[-1]
        if aim < self._limit:
            self._limit = max(self._limit + (aim - self._limit) * 0.3, 1.0)
            return
        # Who has been let in stays: more come in on what was true for a while, fewer on what is true now.
        aim = min(self._aims)
        if has_demand and talkers >= self._limit * 0.9 and aim < math.inf and not self._is_late:
            self._limit = min(self._limit + max(self._limit * _GROWTH, 1.0), max(aim, self._limit))

    @property
    def _is_late(self) -> bool:
        """Work waits now, or there is no time to spare for more."""
        return self.busy > 0.97 or bool(self._delays and self._delays[-1][1] > TARGET_DELAY_MS)

    def _observe(self, talkers: int, loads: Sequence[Load], loop_lag_ms: float, now_ms: float) -> None:
        seconds = max(now_ms - self._looked_ms, 0.0) / 1000.0
        self._looked_ms = now_ms
        busiest = max((load.busy for load in loads), default=0.0)
        self.busy += (busiest - self.busy) * (1.0 - math.exp(-seconds * 1000.0 / INTERVAL_MS))
        self._talkers.append((now_ms, talkers))
        while self._talkers[0][0] < now_ms - SETTLE_MS:
            self._talkers.popleft()
        settled = min(count for _, count in self._talkers)
        if settled:  # nobody there teaches nothing
            for load in loads:
                self._usage.setdefault(load.stage, _Usage()).add(load, settled, seconds)
        self._delays.append((now_ms, max([loop_lag_ms, *(load.queue_ms for load in loads)])))
        while self._delays[0][0] < now_ms - INTERVAL_MS:
            self._delays.popleft()


class Ladder:
    """How far the server has retreated: 0 not at all, then a step for each ``STEP_MS`` in which work never stopped waiting, and
    back a step for each ``CALM_MS`` without that. What a step does is its caller's affair; ``STEPS`` are its names.

    The last step relieves so much that calm proves little: it is left after ``LAST_CALM_MS``, and after twice as long each time
    that it is needed again within as long (at most ``MOST_CALM_MS``), so that callers do not swing between two engines."""

    STEPS: Final = ("full", "fewer_partials", "wider_batches", "lighter_engines")
    DELAY_MS: Final = TARGET_DELAY_MS
    STEP_MS: Final = 1_000.0
    CALM_MS: Final = 3_000.0
    LAST_CALM_MS: Final = 10_000.0
    MOST_CALM_MS: Final = 80_000.0

    def __init__(self, now_ms: float, top: int = len(STEPS) - 1) -> None:
        self.level = 0
        self._top = top
        self._late_from_ms = math.inf
        self._calm_from_ms = now_ms
        self._last_calm_ms = self.LAST_CALM_MS
        self._left_last_ms = -math.inf

    @property
    def _calm_ms(self) -> float:
        return self._last_calm_ms if self.level == len(self.STEPS) - 1 else self.CALM_MS

    def climb(self, delay_ms: float, now_ms: float) -> bool:
        """``delay_ms``: now. True when the level changed."""
        if delay_ms <= self.DELAY_MS:
            self._late_from_ms = math.inf
            if self.level and now_ms - self._calm_from_ms >= self._calm_ms:
                if self.level == len(self.STEPS) - 1:
                    self._left_last_ms = now_ms
                self.level -= 1
                self._calm_from_ms = now_ms
                return True
            return False
        self._calm_from_ms = now_ms
        if self._late_from_ms == math.inf:
            self._late_from_ms = now_ms
        if self.level < self._top and now_ms - self._late_from_ms >= self.STEP_MS:
            self.level += 1
            self._late_from_ms = now_ms
            if self.level == len(self.STEPS) - 1:
                is_again = now_ms - self._left_last_ms < self._last_calm_ms
                longer_ms = min(self._last_calm_ms * 2, self.MOST_CALM_MS)
                self._last_calm_ms = longer_ms if is_again else self.LAST_CALM_MS
            return True
        return False
