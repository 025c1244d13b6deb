"""Which sessions' input kills workers. Pure.

::

    in the batch of a crash --> on trial --alone in the batch of a second crash--> quarantined
                                  '--its companion of the first crash was found guilty--> acquitted

Rules: who is on trial is stepped alone, long enough for all that is sent again. Nobody is guilty in company: two workers that
were killed from outside prove nothing against the hundred callers of their batches. Both end after ``window_ms``.
"""

from __future__ import annotations

from collections.abc import Collection

TRIAL_ITEMS = 40  # a replayed backlog is merged into items of a second, and a turn has an end


class Quarantine:
    """``window_ms``: how long a crash is remembered."""

    def __init__(self, window_ms: float = 600_000.0) -> None:
        self.window_ms = window_ms
        self._crashed_ms: dict[str, float] = {}
        self._companions: dict[str, frozenset[str]] = {}  # of a key's first crash
        self._until_ms: dict[str, float] = {}

    def record_crash(self, keys: Collection[str], now_ms: float) -> set[str]:
        """These were in the batch of a crash. Returns those that are quarantined now."""
        self._forget_old(now_ms)
        batch = frozenset(keys)
        guilty = {key for key in batch if len(batch) == 1 and key in self._crashed_ms}
        for key in guilty:
            self._until_ms[key] = now_ms + self.window_ms
            for other in self._companions.get(key, frozenset()) - {key}:
                self._crashed_ms.pop(other, None)
                self._companions.pop(other, None)
        for key in batch:
            self._companions.setdefault(key, batch)
            self._crashed_ms[key] = now_ms
        return guilty

    def left_ms(self, key: str, now_ms: float) -> float:
        """How long ``key`` stays quarantined; 0 for everybody else."""
        return max(0.0, self._until_ms.get(key, now_ms) - now_ms)

    def trial_items(self, key: str, now_ms: float) -> int:
        """How many first items of a new stream of ``key`` are to be stepped alone."""
        crashed_ms = self._crashed_ms.get(key)
        return TRIAL_ITEMS if crashed_ms is not None and now_ms - crashed_ms < self.window_ms else 0

    def _forget_old(self, now_ms: float) -> None:
        self._crashed_ms = {k: ms for k, ms in self._crashed_ms.items() if now_ms - ms < self.window_ms}
        self._companions = {k: batch for k, batch in self._companions.items() if k in self._crashed_ms}
        self._until_ms = {k: ms for k, ms in self._until_ms.items() if ms > now_ms}
