"""The last thing that went wrong with each stage, for people: what happened, why, and at which address.

Pools tell it all that they tell the log. A problem is over when the stage says that it is well again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from voiceserver.transport.ticks import monotonic_ms

_IS_WELL: Final = ("worker_ready", "endpoint_up")
_IS_NO_PROBLEM: Final = ("worker_stopped", "endpoint_odd")
# The same names in every pool's events; the first that an event has is why it happened.
_LOSSES: Final = ("worker_lost", "worker_hung", "worker_memory")
_REASONS: Final = ("reason", "message", "error", "code")


class StageProblem(msgspec.Struct, frozen=True):
    """``kind``: the event's name in the log, such as worker_lost or endpoint_down. ``url``: the address that was asked, if any.
    ``count``: how often it happened in a row."""

    kind: str
    reason: str
    url: str
    age_ms: float
    count: int


class StageProblems:
    """``clock_ms``: of the loop."""

    def __init__(self, clock_ms: Callable[[], float] = monotonic_ms) -> None:
        self._clock_ms = clock_ms
        # By stage: kind, reason, url, when, how often.
        self._last: dict[str, tuple[str, str, str, float, int]] = {}

    def note(self, name: str, fields: Mapping[str, object]) -> None:
        """Something happened to a pool; ``fields`` are those of the log."""
        stage = str(fields.get("stage", ""))
        known = self._last.get(stage)
        if name in _IS_WELL:
            self._last.pop(stage, None)
        elif name == "worker_exited":
            self._note_status(stage, fields.get("status"))
        elif name not in _IS_NO_PROBLEM:
            # The failed answers that follow from it say less.
            if name == "reply_failed" and known is not None and known[0] == "endpoint_down":
                return
            reason = next((str(fields[key]) for key in _REASONS if fields.get(key)), "")
            if reason in _LOSSES:  # why a worker was lost is what happened
                name, reason = reason, ""
            kind, _, url, _, count = known or ("", "", "", 0.0, 0)
            url = str(fields.get("url", url))
            self._last[stage] = (name, reason, url, self._clock_ms(), count + 1 if kind == name else 1)

    def _note_status(self, stage: str, status: object) -> None:
        """How the worker ended that was lost; of one that was told to end it is no problem."""
        known = self._last.get(stage)
        if known is not None and known[0] in _LOSSES and status:
            kind, _, url, at_ms, count = known
            self._last[stage] = (kind, f"exit status {status}", url, at_ms, count)

    def of(self, stage: str) -> StageProblem | None:
        last = self._last.get(stage)
        if last is None:
            return None
        kind, reason, url, at_ms, count = last
        return StageProblem(kind, reason, url, round(self._clock_ms() - at_ms), count)
