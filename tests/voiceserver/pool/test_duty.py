"""Duties share a grid of time, and rest while nothing happens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.pool.duty import REST_PERIOD_MS, Duty, next_due_s


class Handle:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """A clock moved by hand. ``early_s``: timers run so long before they are due, as those of a loop that rounds do."""

    def __init__(self, early_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.early_s = early_s
        self.timers: list[tuple[float, Callable[[], None], Handle]] = []
        self.wakes = 0

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Handle:
        handle = Handle()
        self.timers.append((when_s, callback, handle))
        return handle

    def run_until(self, end_s: float) -> None:
        while True:
            live = [timer for timer in self.timers if not timer[2].is_cancelled]
            due_s = min(when for when, _, _ in live)
            if due_s > end_s:
                break
            self.now_s = max(self.now_s, due_s - self.early_s)
            self.wakes += 1
            now = [timer for timer in live if timer[0] <= due_s]
            self.timers = [timer for timer in live if timer[0] > due_s]
            for _, callback, handle in now:
                if not handle.is_cancelled:
                    callback()
        self.now_s = end_s


def duty(loop: Loop, period_ms: float, work: Callable[[], None], may_rest: Callable[[], bool]) -> Duty:
    made = Duty(loop, period_ms, work, may_rest)  # type: ignore[arg-type]
    made.start()
    return made


@pytest.mark.parametrize("early_s", [0.0, 0.0006])
def test_all_that_is_due_is_one_wake_up(early_s: float) -> None:
    loop, calls = Loop(early_s), list[float]()
    for period_ms in (50.0, 100.0, 1_000.0):
        duty(loop, period_ms, lambda: calls.append(loop.now_s), lambda: False)
    loop.run_until(110.0)
    assert loop.wakes == 200
    assert len(calls) == 3 + 200 + 100 + 10


def test_a_duty_rests_until_it_is_woken() -> None:
    loop, calls, is_quiet = Loop(), list[float](), [True]
    found = duty(loop, 50.0, lambda: calls.append(loop.now_s), lambda: is_quiet[0])
    loop.run_until(110.0)
    assert len(calls) == 1 + 10
    loop.run_until(110.3)
    is_quiet[0] = False
    found.wake()
    found.wake()
    loop.run_until(111.0)
    assert calls[11] == pytest.approx(110.35), "at the next point of its own grid"
    assert len(calls) == 11 + 14
    found.stop()
    found.wake()
    assert all(handle.is_cancelled for _, _, handle in loop.timers)


def test_a_duty_of_a_long_period_does_not_come_sooner_for_resting() -> None:
    loop, calls = Loop(), list[float]()
    duty(loop, 10_000.0, lambda: calls.append(loop.now_s), lambda: True)
    loop.run_until(140.0)
    assert len(calls) == 1 + 4


def test_how_late_it_was() -> None:
    loop, late = Loop(), list[float]()
    found = duty(loop, 50.0, lambda: late.append(found.late_s) if loop.wakes else None, lambda: False)
    loop.now_s = 100.12
    loop.run_until(100.16)
    assert late[0] == pytest.approx(0.07)


@given(st.floats(0, 1e7), st.sampled_from([50.0, 100.0, REST_PERIOD_MS, 10_000.0]))
def test_the_grid_goes_on(after_s: float, period_ms: float) -> None:
    due_s = next_due_s(after_s, period_ms)
    assert 0.0009 < due_s - after_s <= period_ms / 1000 + 0.0011
    beats = due_s * 1000.0 / period_ms
    assert beats == pytest.approx(round(beats), abs=1e-3)
