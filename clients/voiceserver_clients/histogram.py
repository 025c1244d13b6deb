"""Latencies by the million in constant memory: logarithmic buckets, under 1 % wide, that can be added up over processes.

Values are milliseconds, kept as whole microseconds: exact below 128 us, then 128 buckets for each doubling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

_PRECISION_BITS = 7
_BUCKETS = 1 << _PRECISION_BITS
_MAX_US = 1 << 40  # 12 days; anything longer is counted there


class Histogram:
    """Counts of values in ms. Negative ones count as 0."""

    __slots__ = ("_counts", "count", "max_ms", "sum_ms")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.max_ms = 0.0
        self.sum_ms = 0.0

    def record(self, value_ms: float) -> None:  # hot
        micros = int(value_ms * 1000)
        if micros < _BUCKETS:
            index = max(micros, 0)
        else:
            shift = min(micros, _MAX_US).bit_length() - _PRECISION_BITS - 1
            index = (shift << _PRECISION_BITS) + (min(micros, _MAX_US) >> shift)
        counts = self._counts
        counts[index] = counts.get(index, 0) + 1
        self.count += 1
        self.sum_ms += value_ms
        if value_ms > self.max_ms:
            self.max_ms = value_ms

    def percentile(self, rank: float) -> float:
        """Nearest rank, as the upper end of its bucket and never above the largest value. Raises ValueError when empty."""
        if not self.count:
            raise ValueError("percentile of no values")
        if not 0 <= rank <= 100:
            raise ValueError(f"rank {rank} is not in 0..100")
        needed = max(1, math.ceil(round(rank * self.count / 100, 9)))
        seen = 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= needed:
                return min(_upper_us(index) / 1000, self.max_ms)
        return self.max_ms

    def mean(self) -> float:
        return self.sum_ms / self.count if self.count else 0.0

    def add(self, other: Histogram) -> None:
        for index, count in other._counts.items():
            self._counts[index] = self._counts.get(index, 0) + count
        self.count += other.count
        self.sum_ms += other.sum_ms
        self.max_ms = max(self.max_ms, other.max_ms)

    def clear(self) -> None:
        """Begin anew, for instance when a load has reached its full size."""
        self._counts.clear()
        self.count = 0
        self.max_ms = self.sum_ms = 0.0

    def to_buckets(self) -> list[tuple[int, int]]:
        """(bucket, count), for :meth:`from_buckets` in another process."""
        return sorted(self._counts.items())

    @classmethod
    def from_buckets(cls, buckets: Iterable[tuple[int, int]], max_ms: float, sum_ms: float) -> Self:
        histogram = cls()
        histogram._counts = dict(buckets)
        histogram.count = sum(histogram._counts.values())
        histogram.max_ms, histogram.sum_ms = max_ms, sum_ms
        return histogram


def _upper_us(index: int) -> int:
    """The largest whole microsecond of a bucket."""
    if index < _BUCKETS:
        return index
    # An index is (shift << 7) + mantissa, with the mantissa in 128..255: one more than the shift shows in the high bits.
    shift = (index >> _PRECISION_BITS) - 1
    mantissa = index - (shift << _PRECISION_BITS)
    return ((mantissa + 1) << shift) - 1
