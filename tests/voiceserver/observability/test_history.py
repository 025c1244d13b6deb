"""The dashboard's hour: what is kept, how much memory that is, and that it says what the metrics said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from voiceserver.capacity.admission import Admission
from voiceserver.capacity.controller import CapacityController
from voiceserver.events.events import ReplyDone, ServerBusy, Timings
from voiceserver.observability.history import (
    PERIOD_MS,
    ROWS,
    History,
    HistoryReport,
    OwnFigures,
    Past,
    Read,
    merged_figures,
)
from voiceserver.observability.metrics import Metrics, Sample
from voiceserver.pool import PoolStats
from voiceserver.session.settings import ServerSnapshot


def series(history: History, now_ms: float, name: str) -> list[Past]:
    return [one for one in history.report(now_ms).series if one.name == name]


@pytest.fixture(params=["own", "merged"])
def read(request: pytest.FixtureRequest) -> Callable[[Metrics], Read]:
    """The figures of one process, or of several: the same, where there is one."""

    def of(metrics: Metrics) -> Read:
        admission = Admission(0, 0, "connection", 1_000.0)
        controller = CapacityController(
            {},
            admission,
            ServerSnapshot(),
            is_learned=False,
            windows_ms={},
            on_change=lambda *_: None,
            now_ms=0.0,
        )
        stats = [PoolStats("stt", "echo", (), 0, None, 250.0, 0, 0.0)]
        if request.param == "own":
            return OwnFigures(metrics, admission, controller, lambda: stats)
        metrics.observe_admission(admission, controller, list)
        metrics.observe_pools(lambda: stats)
        return merged_figures(metrics)

    return of


NAMES = {
    "voiceserver_sessions",
    "voiceserver_talkers",
    "voiceserver_talkers_limit",
    "voiceserver_waiting",
    "voiceserver_degrade_level",
    "voiceserver_busiest_stage_ratio",
    "voiceserver_stage_lag_seconds",
    "voiceserver_refused_total",
    "voiceserver_busy_signals_total",
    "voiceserver_turn_seconds_bucket",
    "voiceserver_loop_lag_seconds_bucket",
}


def test_all_that_is_drawn_over_time_is_kept(read: Callable[[Metrics], Read]) -> None:
    history = History(read(Metrics()))
    assert history.report(0.0) == HistoryReport([], [])
    history.sample(0.0)
    report = history.report(0.0)
    assert {one.name for one in report.series} == NAMES
    assert [one.values for one in report.series if one.labels == {"stage": "stt"}] == [[0.25]]


def test_gauges_are_as_they_were_and_counters_what_they_had_reached(read: Callable[[Metrics], Read]) -> None:
    metrics = Metrics()
    history = History(read(metrics))
    for turn in range(1, 4):
        metrics.count_opened("native")
        metrics.count_refused("at_capacity")
        metrics.count_refused("draining")
        metrics.observe(ServerBusy("stt", "slow", 300.0, 1_000.0, 300.0))
        metrics.observe(ReplyDone(turn, "completed", Timings(first_audio_ms=90.0, tts_ms=40.0)))
        history.sample(turn * PERIOD_MS)
    assert history.report(3 * PERIOD_MS).ages_ms == [2 * PERIOD_MS, PERIOD_MS, 0.0]
    (sessions,) = series(history, 0.0, "voiceserver_sessions")
    assert sessions.values == [1, 2, 3]
    (refused,) = series(history, 0.0, "voiceserver_refused_total")
    assert (refused.labels, refused.values) == ({}, [2, 4, 6])
    (busy,) = series(history, 0.0, "voiceserver_busy_signals_total")
    assert busy.values == [1, 2, 3]
    buckets = series(history, 0.0, "voiceserver_turn_seconds_bucket")
    assert {one.labels["part"] for one in buckets} == {"first_audio"}
    found = {one.labels["le"]: one.values for one in buckets}
    assert (found["0.05"], found["0.1"], found["+Inf"]) == ([0, 0, 0], [1, 2, 3], [1, 2, 3])


def test_only_an_hour_is_kept_in_little_memory_and_counters_stay_right(
    read: Callable[[Metrics], Read],
) -> None:
    metrics = Metrics()
    history = History(read(metrics))
    for tick in range(ROWS + 50):
        metrics.count_refused("at_capacity")
        history.sample(tick * PERIOD_MS)
    report = history.report((ROWS + 49) * PERIOD_MS)
    assert report.ages_ms[0] == (ROWS - 1) * PERIOD_MS
    assert ROWS * PERIOD_MS == 3_600_000
    (refused,) = series(history, 0.0, "voiceserver_refused_total")
    assert (refused.values[0], refused.values[-1]) == (51, ROWS + 50)
    assert sum(sys.getsizeof(part) for row in history._rows for part in (row, *row[1:])) < 250_000


class Growing:
    """A stage that comes later."""

    def __init__(self) -> None:
        self.stages = ["vad"]

    def __call__(self) -> Iterator[tuple[str, Sample]]:
        for stage in self.stages:
            yield "voiceserver_stage_lag_seconds", Sample({"stage": stage}, 0.25)


def test_a_figure_that_came_later_was_not_there_before() -> None:
    source = Growing()
    history = History(source)
    history.sample(0.0)
    source.stages.append("stt")
    history.sample(PERIOD_MS)
    source.stages.remove("vad")
    history.sample(2 * PERIOD_MS)
    values = {
        one.labels["stage"]: one.values for one in series(history, 0.0, "voiceserver_stage_lag_seconds")
    }
    assert values["stt"] == [None, 0.25, 0.25]
    assert values["vad"][:2] == [0.25, 0.25]


@pytest.mark.parametrize("value", [0.0, 1.0, 123_456.0, 0.1235, 16_000_000.0])
def test_values_are_as_good_as_they_are_kept(value: float) -> None:
    history = History(lambda: [("voiceserver_sessions", Sample({}, value))])
    history.sample(0.0)
    (found,) = series(history, 0.0, "voiceserver_sessions")
    assert found.values == [pytest.approx(value, rel=1e-4)]


def test_a_counter_that_fell_is_followed() -> None:
    """A process of several was lost, and its part with it."""
    told = iter([10.0, 25.0, 5.0, 2.0**40])
    history = History(lambda: [("voiceserver_refused_total", Sample({}, next(told)))])
    for tick in range(3):
        history.sample(tick * PERIOD_MS)
    assert [one.values for one in history.report(0.0).series] == [[10, 25, 5]]
    history.sample(3 * PERIOD_MS)  # more than a row can say
    assert history.report(0.0).series[0].values[-1] == 2**40
