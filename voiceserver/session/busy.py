"""The busy gate: turns waiting into an explicit signal by a deadline, and recovery into ``server.ready``.

::

    READY --(something waits busy_after_ms, or a loss, or a shed)--> BUSY    server.busy at once
    BUSY  --(every busy_repeat_ms while something waits)-----------> BUSY    server.busy with fresh numbers
    BUSY  --(nothing has waited longer than ready_below_ms)--------> READY   server.ready

Rule: from the moment a caller's work is overdue to the signal no more than one timer passes. The ladder, as far as
one session climbs it: ``slow`` (or ``lost``, ``waiting``), then ``degraded`` when its audio is still late at the next
signal, then ``shed``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from voiceserver.config.schema import BackpressureConfig
from voiceserver.events.events import ServerBusy, ServerReady


class StageDelay(NamedTuple):
    """A stage that has not taken work since ``since_ms``. ``patience_ms``: how long that is fine. ``lag_ms``: audio waiting
    there; None where requests wait, whose lag is their age."""

    stage: str
    reason: str
    since_ms: float
    patience_ms: float
    lag_ms: float | None
    retry_after_ms: float = 0.0
    turn: int = 0
    position: int = 0
    step: Literal["slow", "lost", "waiting", "degraded"] = "slow"

    @property
    def due_ms(self) -> float:
        return self.since_ms + self.patience_ms


class BusyMonitor:
    __slots__ = (
        "_config",
        "_last_stage",
        "cued_position",
        "dropped_ms",
        "dropped_stage",
        "is_busy",
        "is_degraded",
        "signalled_ms",
        "signals",
    )

    def __init__(self, config: BackpressureConfig) -> None:
        self._config = config
        self._last_stage = ""
        self.is_busy = False
        self.signalled_ms = -math.inf
        self.signals = 0
        self.is_degraded = False  # until ready again
        self.dropped_ms = 0.0  # shed and not announced yet
        self.dropped_stage = "vad"  # where the last of it was shed
        self.cued_position = -1  # what the caller was told aloud of this time of being busy

    @property
    def is_at_rest(self) -> bool:
        """It was busy once, and has nothing more to say."""
        return not self.is_busy and not self.dropped_ms

    def deadline_ms(self, delays: Sequence[StageDelay]) -> float:
        """When ``evaluate`` must be called next."""
        if self.is_busy:
            return self.signalled_ms + self._config.busy_repeat_ms
        return min((delay.due_ms for delay in delays), default=math.inf)

    def evaluate(
        self, delays: Sequence[StageDelay], credit_ms: float, now_ms: float, *, is_retreating: bool = False
    ) -> ServerBusy | ServerReady | None:
        """``is_retreating``: the whole server is late, so this caller's audio is degraded with its first signal."""
        overdue = [delay for delay in delays if now_ms >= delay.due_ms]
        is_late = any(delay.lag_ms is not None and delay.step != "waiting" for delay in overdue)
        if not self.is_busy:
            self.is_degraded = is_retreating and is_late
            return self._signal(overdue, credit_ms, now_ms) if overdue or self.dropped_ms else None
        if now_ms >= self.signalled_ms + self._config.busy_repeat_ms and (overdue or self.dropped_ms):
            self.is_degraded |= is_late
            return self._signal(overdue, credit_ms, now_ms)
        if overdue or self.dropped_ms or any(self._is_late(delay, now_ms) for delay in delays):
            return None
        self.is_busy = self.is_degraded = False
        self.cued_position = -1
        return ServerReady(stage=self._last_stage, credit_ms=round(credit_ms, 1))

    def _is_late(self, delay: StageDelay, now_ms: float) -> bool:
        """Audio comes all the time, so its recovery needs hysteresis; a request is taken once."""
        return delay.lag_ms is not None and now_ms - delay.since_ms > self._config.ready_below_ms

    def announce(self, delay: StageDelay, credit_ms: float, now_ms: float) -> ServerBusy:
        """Say so at once: a worker was lost, audio was shed, a place was refused."""
        return self._signal([delay], credit_ms, now_ms)

    def _signal(self, delays: Sequence[StageDelay], credit_ms: float, now_ms: float) -> ServerBusy:
        shed = StageDelay(self.dropped_stage, "shed", now_ms, 0.0, 0.0)
        late = [delay for delay in delays if delay.step != "degraded"]
        worst = max(late or delays, key=lambda delay: now_ms - delay.due_ms, default=shed)
        self.is_busy = True
        self.signalled_ms = now_ms
        self.signals += 1
        self._last_stage = worst.stage
        dropped_ms, self.dropped_ms = self.dropped_ms, 0.0
        # The last of a turn's audio may be little and still wait long: its age counts as well as its amount.
        lag_ms = (
            worst.lag_ms if worst.lag_ms is not None and worst.step == "waiting" else now_ms - worst.since_ms
        )
        lag_ms = max(lag_ms, worst.lag_ms or 0.0, 0.0) if worst.step != "degraded" else 0.0
        step: Literal["slow", "lost", "degraded", "shed", "waiting"] = worst.step
        if dropped_ms:
            step = "shed"
        elif self.is_degraded and step == "slow":
            step = "degraded"
        return ServerBusy(
            stage=worst.stage,
            reason=worst.reason,
            lag_ms=round(lag_ms, 1),
            credit_ms=round(credit_ms, 1),
            retry_after_ms=round(worst.retry_after_ms or max(lag_ms, float(self._config.busy_after_ms)), 1),
            dropped_ms=round(dropped_ms, 3),
            position=worst.position,
            turn=worst.turn,
            step=step,
        )
