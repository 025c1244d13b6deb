"""The busy gate: signals by deadline, fresh numbers, the ladder, and recovery that does not flutter."""

from __future__ import annotations

import math

from voiceserver.config.schema import BackpressureConfig
from voiceserver.events.events import ServerBusy, ServerReady
from voiceserver.session.busy import BusyMonitor, StageDelay

CONFIG = BackpressureConfig(busy_after_ms=250, busy_repeat_ms=1_000, ready_below_ms=100)


def late(
    since_ms: float, stage: str = "vad", lag_ms: float | None = 50.0, patience_ms: float = 250.0
) -> StageDelay:
    return StageDelay(stage, "slow", since_ms, patience_ms, lag_ms)


def busy_of(said: ServerBusy | ServerReady | None) -> ServerBusy:
    assert isinstance(said, ServerBusy)
    return said


def test_nothing_is_said_before_the_deadline_and_it_is_said_at_it() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    assert busy_monitor.deadline_ms([late(10.0), late(5.0)]) == 255.0
    assert busy_monitor.evaluate([late(5.0)], 0.0, 254.9) is None
    busy = busy_of(busy_monitor.evaluate([late(5.0)], 700.0, 255.0))
    assert (busy.stage, busy.lag_ms, busy.credit_ms, busy.step) == ("vad", 250.0, 700.0, "slow")
    assert busy_monitor.deadline_ms([]) == 1_255.0


def test_with_nothing_to_wait_for_there_is_no_deadline() -> None:
    assert BusyMonitor(CONFIG).deadline_ms([]) == math.inf


def test_the_stage_that_is_most_overdue_is_named() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    delays = [late(100.0, "vad"), late(0.0, "reply", None, 1_000.0), late(50.0, "tts", None)]
    busy = busy_of(busy_monitor.evaluate(delays, 0.0, 1_000.0))
    assert (busy.stage, busy.lag_ms) == ("tts", 950.0)


def test_a_request_that_is_due_is_not_ready_at_the_same_moment() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    busy_monitor.announce(late(0.0), 0.0, 0.0)
    assert busy_monitor.evaluate([late(0.0, "reply", None, 1_000.0)], 0.0, 1_000.0) is not None
    assert busy_monitor.is_busy


def test_recovery_waits_until_the_audio_is_fresh() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    busy_monitor.announce(late(0.0), 0.0, 300.0)
    assert busy_monitor.evaluate([late(350.0)], 0.0, 451.0) is None
    ready = busy_monitor.evaluate([late(352.0)], 900.0, 451.0)
    assert ready == ServerReady(stage="vad", credit_ms=900.0)
    assert not busy_monitor.is_busy


def test_audio_that_stays_late_degrades_and_ready_restores() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    assert busy_of(busy_monitor.evaluate([late(0.0)], 0.0, 250.0)).step == "slow"
    assert busy_monitor.evaluate([late(0.0)], 0.0, 1_249.0) is None
    assert busy_of(busy_monitor.evaluate([late(1_000.0)], 0.0, 1_250.0)).step == "degraded"
    assert busy_monitor.is_degraded
    busy_monitor.evaluate([], 0.0, 1_300.0)
    assert not busy_monitor.is_degraded


def test_a_late_answer_degrades_nothing() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    delays = [late(0.0, "reply", None, 1_000.0)]
    busy_monitor.evaluate(delays, 0.0, 1_000.0)
    assert busy_of(busy_monitor.evaluate(delays, 0.0, 2_000.0)).step == "slow"


def test_what_was_shed_is_told_once_with_its_stage() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    busy_monitor.dropped_ms, busy_monitor.dropped_stage = 12.3456, "stt"
    busy = busy_of(busy_monitor.evaluate([], 0.0, 10.0))
    assert (busy.stage, busy.reason, busy.step, busy.dropped_ms) == ("stt", "shed", "shed", 12.346)
    busy_monitor.dropped_ms = 1.0
    assert busy_monitor.evaluate([], 0.0, 20.0) is None, "not before the next repeat"
    assert busy_of(busy_monitor.evaluate([], 0.0, 1_010.0)).dropped_ms == 1.0
    assert isinstance(busy_monitor.evaluate([], 0.0, 1_011.0), ServerReady)


def test_the_estimate_is_the_pools_or_else_the_lag() -> None:
    busy_monitor = BusyMonitor(CONFIG)
    delay = late(0.0)._replace(retry_after_ms=1_234.0, position=3)
    busy = busy_of(busy_monitor.evaluate([delay], 0.0, 250.0))
    assert (busy.retry_after_ms, busy.position) == (1_234.0, 3)
    assert busy_monitor.announce(late(0.0, lag_ms=900.0), 0.0, 0.0).retry_after_ms == 900.0
    assert busy_monitor.announce(late(0.0, lag_ms=1.0), 0.0, 0.0).retry_after_ms == 250.0
    assert busy_monitor.signals == 3
