"""Time that only the test moves."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

# Timers at one moment, after which the clock is taken to stand still.
_MOST_AT_ONCE = 10_000


class ManualTimer:
    """What ``ManualClock.call_later`` returns."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock:
    """A clock in milliseconds, and the part of an event loop that ``voiceserver.transport.ticks.Loop`` asks for.

    Call it for the time. ``advance`` moves it and runs each timer at its time; nothing else does.
    """

    def __init__(self, now_ms: float = 1_000.0) -> None:
        self.now_ms = now_ms
        self.timers_set = 0
        self._soon: list[Callable[[], None]] = []
        self._later: list[tuple[float, int, ManualTimer, Callable[[], None]]] = []
        self._count = itertools.count()

    def __call__(self) -> float:
        return self.now_ms

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> ManualTimer:
        """After ``delay`` seconds, in whole milliseconds as uvloop counts them."""
        timer = ManualTimer()
        self.timers_set += 1
        due_ms = self.now_ms + round(delay * 1000.0)
        heapq.heappush(self._later, (due_ms, next(self._count), timer, callback))
        return timer

    def run_tick(self) -> int:
        """Run what was called soon, without what that calls soon; how many callbacks."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        return len(soon)

    def settle(self) -> None:
        """Run ticks until nothing is called soon."""
        while self.run_tick():
            pass

    def advance(self, by_ms: float) -> None:
        """Move the clock, running each timer at its time."""
        self.settle()
        end_ms = self.now_ms + by_ms
        at_once = 0
        while self._later and self._later[0][0] <= end_ms:
            due_ms, _, timer, callback = heapq.heappop(self._later)
            at_once = at_once + 1 if due_ms <= self.now_ms else 0
            assert at_once < _MOST_AT_ONCE, "timers go off again and again, and time stands still"
            self.now_ms = max(self.now_ms, due_ms)
            if not timer.is_cancelled:
                callback()
            self.settle()
        self.now_ms = end_ms
