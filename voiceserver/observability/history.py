"""An hour of the figures that the dashboard draws, one row every ``PERIOD_MS``, so that a page has a past when it opens.

A row is what gauges were (32-bit floats) and what counters grew by (32-bit integers). 360 rows of some 40 figures are 130 KB, and
never more. A row costs a fraction of a millisecond, and nothing else is done until somebody asks.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, zip_longest
from typing import Final, NamedTuple

import msgspec

from voiceserver.observability.metrics import (
    HISTORY_COUNTERS,
    HISTORY_GAUGES,
    Admitting,
    Metrics,
    Retreating,
    Sample,
)
from voiceserver.pool import PoolStats

PERIOD_MS: Final = 10_000.0
ROWS: Final = 360
_MOST_GROWTH: Final = 2**31 - 1

Read = Callable[[], Iterable[tuple[str, Sample]]]
Series = tuple[str, tuple[tuple[str, str], ...]]


class Past(msgspec.Struct, frozen=True):
    """One figure over time. ``values``: one a row, null where it was not there yet. Of a counter: what it had reached."""

    name: str
    labels: dict[str, str]
    values: list[float | None]


class HistoryReport(msgspec.Struct, frozen=True):
    """``/v1/history``. ``ages_ms``: of each row, the oldest first."""

    ages_ms: list[float]
    series: list[Past]


class _Row(NamedTuple):
    at_ms: float
    gauges: array[float]
    growth: array[int]


class History:
    """``read`` gives the figures: gauges of ``HISTORY_GAUGES``, and counters. ``sample`` every ``PERIOD_MS``."""

    def __init__(self, read: Read, rows: int = ROWS) -> None:
        self._read = read
        self._gauges: dict[Series, int] = {}
        self._counters: dict[Series, int] = {}
        self._reached: list[int] = []
        self._rows: deque[_Row] = deque(maxlen=rows)

    def sample(self, now_ms: float) -> None:
        gauges = array("f", bytes(4 * len(self._gauges)))
        growth = array("i", bytes(4 * len(self._counters)))
        for name, sample in self._read():
            key = (name, tuple(sorted(sample.labels.items())))
            if name in HISTORY_GAUGES:
                index = self._gauges.setdefault(key, len(gauges))
                if index == len(gauges):
                    gauges.append(0.0)
                gauges[index] = sample.value
                continue
            index = self._counters.setdefault(key, len(growth))
            reached = int(sample.value)
            if index == len(growth):
                growth.append(0)
                self._reached.append(0)
            growth[index] = max(min(reached - self._reached[index], _MOST_GROWTH), -_MOST_GROWTH)
            self._reached[index] = reached
        self._rows.append(_Row(now_ms, gauges, growth))

    def report(self, now_ms: float) -> HistoryReport:
        rows = list(self._rows)
        series = [
            Past(name, dict(labels), [None if one is None else round(one, 4) for one in values])
            for (name, labels), values in zip(
                self._gauges, zip_longest(*(row.gauges for row in rows)), strict=True
            )
        ]
        grown = zip_longest(*(row.growth for row in rows))
        for (name, labels), growth, reached in zip(self._counters, grown, self._reached, strict=True):
            series.append(Past(name, dict(labels), _reached_by(growth, reached)))
        return HistoryReport([round(now_ms - row.at_ms) for row in rows], series)


def _reached_by(growth: Sequence[int | None], reached: int) -> list[float | None]:
    """What a counter had reached at each row, from what it grew by; counted back from now, because the oldest rows are gone."""
    known = [one for one in growth if one is not None]
    sums: list[float | None] = [*accumulate(known, initial=reached - sum(known))]
    return [None] * (len(growth) - len(known)) + sums[1:]


class OwnFigures:
    """The figures of a server of one process, read without a scrape, which would look at each session and each worker."""

    def __init__(
        self,
        metrics: Metrics,
        admission: Admitting,
        controller: Retreating,
        pools: Callable[[], Iterable[PoolStats]],
    ) -> None:
        self._metrics = metrics
        self._admission = admission
        self._controller = controller
        self._pools = pools

    def __call__(self) -> Iterator[tuple[str, Sample]]:
        yield from self._metrics.history_counts()
        admission, controller = self._admission, self._controller
        gauges = {
            "talkers": admission.talkers,
            "talkers_limit": admission.limit,
            "waiting": admission.waiting,
            "degrade_level": controller.level,
            "busiest_stage_ratio": controller.busy,
        }
        for name, value in gauges.items():
            yield f"voiceserver_{name}", Sample({}, value)
        for pool in self._pools():
            yield "voiceserver_stage_lag_seconds", Sample({"stage": pool.stage}, pool.lag_ms / 1000.0)


def merged_figures(metrics: Metrics) -> Read:
    """The figures of a server of several processes, from a scrape of all."""

    def read() -> Iterator[tuple[str, Sample]]:
        sums = dict.fromkeys(HISTORY_COUNTERS, 0.0)
        for name, sample in metrics.history_samples():
            if name in HISTORY_GAUGES or "le" in sample.labels:
                yield name, sample
            else:  # of counters with labels the sum is drawn
                sums[name] += sample.value
        for name, value in sums.items():
            yield name, Sample({}, value)

    return read
