"""What the flight recorder of a worker says over time: how long its steps take, what it has done, whether it is silent."""

from __future__ import annotations

from typing import Final, NamedTuple

from voiceserver_workers.ipc.channel import Flight, FlightState, ServerEnd

_SMOOTHING: Final = 0.3


class Totals(NamedTuple):
    """What a worker has done. busy_ms: in steps; optional_ms: of it, in steps that are left out under pressure."""

    steps: int
    items: int
    busy_ms: float
    optional_ms: float


class WorkerMeter:
    """``service_ms``: moving average of a step; ``longest_step_ms``: that ended, ever."""

    __slots__ = (
        "_heartbeat_seen",
        "_items_before",
        "_optional_ns_before",
        "_step_ns_before",
        "_step_ns_seen",
        "_steps_before",
        "_steps_seen",
        "longest_step_ms",
        "service_ms",
    )

    def __init__(self) -> None:
        self.service_ms = 0.0
        self.longest_step_ms = 0.0
        self._steps_before = self._items_before = self._step_ns_before = self._optional_ns_before = 0
        self._steps_seen = self._step_ns_seen = self._heartbeat_seen = 0

    def begin(self) -> None:
        """A new incarnation."""
        self._steps_seen = self._step_ns_seen = self._heartbeat_seen = 0

    def finish(self, flight: Flight) -> None:
        """The incarnation has ended; its counts are kept."""
        self._steps_before += flight.steps
        self._items_before += flight.items
        self._step_ns_before += flight.step_ns_total
        self._optional_ns_before += flight.optional_ns_total

    def measure(self, flight: Flight) -> None:
        """Update the times of a step."""
        steps = flight.steps - self._steps_seen
        if steps > 0:
            step_ms = (flight.step_ns_total - self._step_ns_seen) / steps / 1e6
            self.longest_step_ms = max(self.longest_step_ms, step_ms)
            self.service_ms += (step_ms - self.service_ms) * (_SMOOTHING if self.service_ms else 1.0)
            self._steps_seen, self._step_ns_seen = flight.steps, flight.step_ns_total

    def is_silent(self, flight: Flight, sign_ns: int, now_ns: int, quiet_ns: int) -> bool:
        """No sign of life for ``quiet_ns`` since ``sign_ns``, or a step past its deadline, and seen so twice without one between:
        after a pause of the whole machine everybody gets a chance to move first."""
        is_stepping = flight.state is FlightState.STEPPING
        is_late = now_ns > (flight.deadline_ns if is_stepping else sign_ns + quiet_ns)
        was_late = self._heartbeat_seen == flight.heartbeat_ns
        self._heartbeat_seen = flight.heartbeat_ns if is_late else 0
        return is_late and was_late

    def totals(self, end: ServerEnd | None) -> Totals:
        """Over all incarnations; ``end``: of the one that lives."""
        steps, items, step_ns = self._steps_before, self._items_before, self._step_ns_before
        optional_ns = self._optional_ns_before
        if end is not None:
            flight = end.flight()
            steps, items, step_ns = steps + flight.steps, items + flight.items, step_ns + flight.step_ns_total
            optional_ns += flight.optional_ns_total
        return Totals(steps, items, step_ns / 1e6, optional_ns / 1e6)
