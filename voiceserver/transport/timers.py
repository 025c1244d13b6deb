"""A timer wheel: everything that is due some day, in buckets of one tick. One loop timer drives it for all connections.

Scheduling costs one dictionary look-up, and nothing is ever cancelled: whoever is woken looks whether it is still due.
An owner that is scheduled again for an earlier time simply stands in two buckets.
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

T = TypeVar("T")


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
