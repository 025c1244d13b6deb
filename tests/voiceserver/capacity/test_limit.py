from __future__ import annotations

from itertools import pairwise

import pytest

from voiceserver.capacity.limit import (
    LOOK_MS,
    SPEECH_SHARE,
    Cost,
    Ladder,
    Load,
    TalkerLimit,
    calibrate,
    carried,
    talkers_for,
)


class Served:
    """A server that carries ``capacity`` talkers: above it, what waits grows older. Admits as the limit says; nobody leaves."""

    def __init__(self, capacity: float, start: int) -> None:
        self.capacity = capacity
        self.limit = TalkerLimit(start, 0.0)
        self.now_ms = 0.0
        self.talkers = 0
        self.queue_ms = 0.0

    def run(self, offered: int, seconds: float) -> None:
        for _ in range(int(seconds * 1000 / LOOK_MS)):
            self.now_ms += LOOK_MS
            self.talkers = max(self.talkers, min(offered, self.limit.limit))
            surplus = self.talkers / self.capacity - 1.0
            self.queue_ms = max(self.queue_ms + surplus * LOOK_MS, 0.0)
            busy = min(self.talkers / self.capacity, 1.0)
            load = Load("stt", self.queue_ms, busy, used=self.talkers)
            self.limit.learn(self.talkers, offered > self.talkers, [load], 0.0, self.now_ms)


def test_without_anything_that_limits_there_is_no_limit() -> None:
    limit = TalkerLimit(0, 0.0)
    assert limit.learn(10_000, True, [Load("reply", 0.0, 0.0)], 0.0, 100.0) == 0
    assert calibrate([], 8) == 0


@pytest.mark.parametrize("times", [2, 10])
def test_a_calibrated_limit_holds_under_overload(times: int) -> None:
    served = Served(capacity=20, start=17)
    served.run(17 * times, 60)
    assert 17 <= served.talkers <= 20
    assert served.queue_ms == 0


def test_a_limit_that_was_too_low_grows_to_what_the_server_carries() -> None:
    served = Served(capacity=40, start=5)
    served.run(400, 120)
    assert 30 <= served.talkers <= 40
    assert served.queue_ms == 0


def test_it_does_not_grow_without_demand() -> None:
    served = Served(capacity=40, start=5)
    served.run(5, 60)
    assert served.limit.limit == 5


def test_a_step_of_twice_the_load_settles_within_a_second() -> None:
    served = Served(capacity=20, start=18)
    served.run(18, 30)
    served.run(36, 1)
    admitted = served.talkers
    served.run(36, 30)
    assert 18 <= admitted <= served.talkers <= 19


def test_a_standing_queue_lowers_it_and_a_burst_does_not() -> None:
    def after(ages_ms: list[float], busy: float = 0.9) -> int:
        limit = TalkerLimit(20, 0.0)
        now_ms = 0.0
        for age_ms in ages_ms:
            now_ms += LOOK_MS
            limit.learn(20, False, [Load("stt", age_ms, busy)], 0.0, now_ms)
        return limit.limit

    assert after([2_000.0] * 45 + [0.0] + [2_000.0] * 45 + [0.0] * 9) == 20
    assert after([2_000.0] * 120) < 18
    # Workers that have time to spare cannot be relieved by fewer callers.
    assert after([2_000.0] * 120, busy=0.3) == 20


def test_after_a_delay_it_comes_back() -> None:
    served = Served(capacity=20, start=17)
    served.run(17, 20)
    served.queue_ms = 3_000.0
    lowest = 17
    for _ in range(60):
        served.run(17, 0.5)
        lowest = min(lowest, served.limit.limit)
    assert lowest < 17
    served.run(34, 60)
    assert served.talkers >= 16


def test_newcomers_count_only_when_they_have_shown_what_they_cost() -> None:
    limit = TalkerLimit(10, 0.0)
    now_ms = 0.0
    for _ in range(30):
        now_ms += LOOK_MS
        limit.learn(10, True, [Load("stt", 0.0, 0.0)], 0.0, now_ms)
    assert limit.limit == 10


def test_places_that_are_all_taken_lower_it() -> None:
    limit = TalkerLimit(20, 0.0)
    now_ms = 0.0
    for _ in range(300):
        now_ms += LOOK_MS
        limit.learn(20, True, [Load("stt", 0.0, 0.3, used=8, places=8)], 0.0, now_ms)
    assert 8 <= limit.limit <= 18


def causes(limit: TalkerLimit) -> list[str]:
    return [move.cause for move in limit.moves]


def test_each_move_is_explained() -> None:
    growing = Served(capacity=40, start=5)
    growing.limit.start_again(5, 0.0, {"stt": Cost("stt", 0.5, 20, None, True)})
    growing.run(400, 60)
    assert causes(growing.limit)[:1] == ["demand"]
    assert {move.stage for move in growing.limit.moves} == {"stt"}
    first = growing.limit.moves[0]
    assert first.before == 5 < first.after <= first.value + 0.5

    late = TalkerLimit(20, 0.0)
    for look in range(1, 121):
        late.learn(20, False, [Load("stt", 2_000.0, 0.9)], 0.0, look * LOOK_MS)
    assert causes(late) == ["delay"]  # the steps of one move are one
    assert (late.moves[0].before, late.moves[0].after) == (20, late.limit)
    assert late.moves[0].value == 2_000.0

    full = TalkerLimit(20, 0.0)
    for look in range(1, 301):
        full.learn(20, True, [Load("stt", 0.0, 0.3, used=8, places=8)], 0.0, look * LOOK_MS)
    assert ("stage_full", "stt") in [(move.cause, move.stage) for move in full.moves]

    busy = TalkerLimit(20, 0.0)
    for look in range(1, 301):
        busy.learn(20, True, [Load("stt", 0.0, 2.0, used=20)], 0.0, look * LOOK_MS)
    assert ("time", "stt") in [(move.cause, move.stage) for move in busy.moves]


def test_the_first_limit_and_calibration_are_moves_too() -> None:
    limit = TalkerLimit(0, 0.0)
    limit.start_again(64, 0.0)
    limit.start_again(12, 1_000.0, {"stt": Cost("stt", 0.5, 2, None, True)})
    assert [(move.cause, move.before, move.after) for move in limit.moves] == [
        ("places", 0, 64),
        ("calibrated", 64, 12),
    ]


def test_long_steps_that_end_all_at_once_count_as_the_work_they_are() -> None:
    """Steps of a second, of two workers that do nothing else: seen in one look of ten."""
    limit = TalkerLimit(10, 0.0)
    now_ms = 0.0
    for look in range(600):
        now_ms += LOOK_MS
        limit.learn(10, True, [Load("stt", 0.0, 10.0 if look % 10 == 0 else 0.0)], 0.0, now_ms)
    assert limit.limit < 10


def test_more_talkers_than_places_as_far_as_they_take_turns() -> None:
    assert talkers_for(4, 1.0) == 4
    assert 5 <= talkers_for(4, 0.4) <= 8
    # The law of large numbers: the more places, the closer to places / share.
    assert 1_000 < talkers_for(500, 0.45) < 500 / 0.45


def test_calibration_takes_what_limits_first() -> None:
    vad = Cost("vad", 0.004, 1, None, False)
    stt = Cost("stt", 0.5, 2, 4, True)
    assert calibrate([vad, stt], cores=64) == talkers_for(4, SPEECH_SHARE)
    assert calibrate([vad], cores=64) == int(carried(1 / 0.004))
    assert calibrate([vad, Cost("stt", 2.0, 8, None, True)], cores=2) == 1


def test_the_ladder_goes_down_step_by_step_and_back_up_when_it_is_calm() -> None:
    ladder = Ladder(0.0)
    levels = []
    for look in range(1, 20):
        ladder.climb(1_000.0, look * 250.0)
        levels.append(ladder.level)
    assert [levels.index(level) for level in (1, 2, 3)] == [4, 8, 12]
    assert max(levels) == 3
    calm_from_ms = 19 * 250.0
    seen = []
    for look in range(1, 80):
        if ladder.climb(0.0, calm_from_ms + look * 250.0):
            seen.append((ladder.level, calm_from_ms + look * 250.0))
    assert [level for level, _ in seen] == [2, 1, 0]
    assert seen[0][1] - calm_from_ms == pytest.approx(10_000.0)
    assert [later - sooner for (_, sooner), (_, later) in pairwise(seen)] == [3_000.0, 3_000.0]


def test_a_lighter_engine_that_was_left_too_soon_is_kept_longer_the_next_time() -> None:
    ladder = Ladder(0.0)
    now_ms, stays = 0.0, []
    for _ in range(6):
        while ladder.level < 3:
            now_ms += 100.0
            ladder.climb(1_000.0, now_ms)
        climbed_ms = now_ms
        while ladder.level == 3:
            now_ms += 100.0
            ladder.climb(0.0, now_ms)
        stays.append(now_ms - climbed_ms)
    assert stays == [10_000.0, 20_000.0, 40_000.0, 80_000.0, 80_000.0, 80_000.0]
    while ladder.level:
        now_ms += 100.0
        ladder.climb(0.0, now_ms)
    now_ms += 90_000.0
    while ladder.level < 3:
        now_ms += 100.0
        ladder.climb(1_000.0, now_ms)
    climbed_ms = now_ms
    while ladder.level == 3:
        now_ms += 100.0
        ladder.climb(0.0, now_ms)
    assert now_ms - climbed_ms == 10_000.0, "long ago is forgotten"
