"""Which sessions' input kills workers. Pure.

Rule: a key found in the batch of one crash is *on trial*: its next streams are first stepped alone. Found in the batch of a
second crash within ``window_ms``, it is quarantined for as long. Being alone in its batch by then, it is the culprit.
"""

from __future__ import annotations

from collections.abc import Iterable

TRIAL_ITEMS = 8  # a replayed backlog is merged into few items, so this covers what is sent again


class Quarantine:
    """``window_ms``: how long a crash is remembered."""

    def __init__(self, window_ms: float = 600_000.0) -> None:
        self.window_ms = window_ms
        self._crashed_ms: dict[str, float] = {}
        self._until_ms: dict[str, float] = {}

    def record_crash(self, keys: Iterable[str], now_ms: float) -> set[str]:
        """These were in the batch of a crash. Returns those that are quarantined now."""
        self._forget_old(now_ms)
        guilty = set()
        for key in keys:
            if key in self._crashed_ms:
                guilty.add(key)
                self._until_ms[key] = now_ms + self.window_ms
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
        self._until_ms = {k: ms for k, ms in self._until_ms.items() if ms > now_ms}
