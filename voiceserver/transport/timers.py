"""Timer wheels: what is due later, in buckets of one tick. One loop timer drives them for all connections.

Scheduling costs one dictionary look-up. Nothing is ever cancelled: an owner that is woken checks whether it is still due.
An owner that is scheduled again for an earlier time is in two buckets.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, Generic, Protocol, TypeVar

from voiceserver.transport.ticks import Faulty, Ticks, Timer, guard

DEADLINE_TICK_MS: Final = 2.0
KEEPALIVE_TICK_MS: Final = 250.0

T = TypeVar("T")


class Sleeper(Faulty, Protocol):
    """A call or a connection with a deadline."""

    def on_deadline(self, now_ms: float) -> None: ...


class Member(Faulty, Protocol):
    """A connection, as its slow timers see it."""

    def on_keepalive(self, now_ms: float) -> None: ...

    def on_unopened(self, now_ms: float) -> None: ...


class Wheel(Generic[T]):
    """``tick_ms``: how exact it is. What is scheduled is never early, and at most one tick late."""

    __slots__ = ("_buckets", "_heap", "_tick_ms")

    def __init__(self, tick_ms: float) -> None:
        self._tick_ms = tick_ms
        self._buckets: dict[int, list[T]] = {}
        self._heap: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def schedule(self, due_ms: float, owner: T) -> None:  # hot
        """Have ``owner`` given by ``take_due`` at ``due_ms``. Infinity is never."""
        if due_ms == math.inf:
            return
        tick = math.ceil(due_ms / self._tick_ms)
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [owner]
            heapq.heappush(self._heap, tick)
        else:
            bucket.append(owner)

    @property
    def next_due_ms(self) -> float:
        """When ``take_due`` has something to give; infinity for never."""
        return self._heap[0] * self._tick_ms if self._heap else math.inf

    def take_due(self, now_ms: float) -> list[T]:
        """Take all whose time has come, earliest bucket first."""
        due: list[T] = []
        while self._heap and self._heap[0] * self._tick_ms <= now_ms:
            due += self._buckets.pop(heapq.heappop(self._heap))
        return due


class Timers:
    """The wheels of one server, and the loop timer that is set for the earliest of them."""

    __slots__ = ("_deadlines", "_due_ms", "_keepalives", "_ticks", "_timer", "_unopened")

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._deadlines: Wheel[Sleeper] = Wheel(DEADLINE_TICK_MS)
        self._keepalives: Wheel[Member] = Wheel(KEEPALIVE_TICK_MS)
        self._unopened: Wheel[Member] = Wheel(KEEPALIVE_TICK_MS)
        self._timer: Timer | None = None
        self._due_ms = math.inf

    def wake_at(self, due_ms: float, sleeper: Sleeper) -> None:  # hot
        self._deadlines.schedule(due_ms, sleeper)
        if due_ms < self._due_ms:
            self._arm()

    def keep_at(self, due_ms: float, member: Member) -> None:
        self._keepalives.schedule(due_ms, member)
        if due_ms < self._due_ms:
            self._arm()

    def expect_by(self, due_ms: float, member: Member) -> None:
        """Have ``member.on_unopened`` called at ``due_ms``."""
        self._unopened.schedule(due_ms, member)
        if due_ms < self._due_ms:
            self._arm()

    def _arm(self) -> None:
        due_ms = min(self._deadlines.next_due_ms, self._keepalives.next_due_ms, self._unopened.next_due_ms)
        if due_ms >= self._due_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_ms = due_ms
        # In whole milliseconds, as the loop counts them: it rounds, and a timer a moment early would go off again and again.
        delay_ms = math.ceil(due_ms - self._ticks.clock())
        self._timer = self._ticks.call_later(max(delay_ms, 0), self._on_timer)

    def _on_timer(self) -> None:
        now_ms = self._ticks.read_clock()
        self._timer = None
        # While the timer is served, nothing needs to set it.
        self._due_ms = -math.inf
        try:
            self._wake_due(now_ms)
        finally:
            self._due_ms = math.inf
            self._arm()

    def _wake_due(self, now_ms: float) -> None:
        for sleeper in self._deadlines.take_due(now_ms):
            guard(sleeper, sleeper.on_deadline, now_ms)
        for member in self._keepalives.take_due(now_ms):
            guard(member, member.on_keepalive, now_ms)
        for member in self._unopened.take_due(now_ms):
            guard(member, member.on_unopened, now_ms)

    def stop(self) -> None:
        """Cancel the loop timer. Nothing is due any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due_ms = -math.inf


class Alarm:
    """One owner's next deadline. The wheel holds the alarm and not its owner, which is let go by ``stop``."""

    __slots__ = ("_owner", "_timers", "due_ms")

    def __init__(self, timers: Timers, owner: Sleeper) -> None:
        self._timers = timers
        self._owner: Sleeper | None = owner
        self.due_ms = math.inf

    def wake_at(self, due_ms: float) -> None:  # hot
        """Have the owner's ``on_deadline`` called at ``due_ms`` or earlier."""
        if due_ms < self.due_ms:
            self.due_ms = due_ms
            self._timers.wake_at(due_ms, self)

    def on_deadline(self, now_ms: float) -> None:
        if self._owner is not None and now_ms >= self.due_ms:
            self.due_ms = math.inf
            self._owner.on_deadline(now_ms)

    def on_fault(self, error: Exception) -> None:
        if self._owner is not None:
            self._owner.on_fault(error)

    def stop(self) -> None:
        self._owner = None
