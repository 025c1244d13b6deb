"""Admission: who may come in. Looked at and reserved in one step, released exactly once.

There is no ``await`` between the look and the reservation because there is no ``await`` here at all; and a place
belongs to a ``Ticket``, which gives it back once however often it is asked to.
"""

from __future__ import annotations

from typing import Final

from voiceserver.errors import Refusal

# Browsers that cannot see a 503 are let in for a second to be told; no more of them than this at once.
MAX_LINGERING: Final = 1_000


class Ticket:
    """One reserved place."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Give the place back. Idempotent."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._taken -= 1


class Admission:
    """Places of one server process. ``max_connections`` and ``max_talkers`` of 0 are no limit; while a connection holds a
    talker's place (``hold`` "connection") the smaller of the two counts."""

    __slots__ = ("_limit", "_retry_after_ms", "_taken", "lingering")

    def __init__(self, max_connections: int, max_talkers: int, hold: str, retry_after_ms: float) -> None:
        limits = [max_connections, max_talkers if hold == "connection" else 0]
        self._limit = min((limit for limit in limits if limit > 0), default=0)
        self._retry_after_ms = retry_after_ms
        self._taken = 0
        self.lingering = 0  # refused callers that are being told

    @property
    def taken(self) -> int:
        return self._taken

    @property
    def free(self) -> int | None:
        """Places left; None for no limit."""
        return max(self._limit - self._taken, 0) if self._limit else None

    def try_enter(self, now_ms: float) -> Ticket | Refusal:
        """Reserve a place, or say when to ask again."""
        if self._limit and self._taken >= self._limit:
            return Refusal("at_capacity", self._retry_after_ms)
        self._taken += 1
        return Ticket(self)
