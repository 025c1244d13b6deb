"""Work that an event loop does again and again.

All duties are due on one grid of time: the periods are multiples of each other, so a loop wakes once for all that are due. A
duty *rests* while nothing happens that it would have to see: it is due once in ``REST_PERIOD_MS`` until it is woken.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

REST_PERIOD_MS: Final = 1_000.0
# A loop counts in whole milliseconds and may be this early.
_EARLY_S: Final = 0.001


def next_due_s(after_s: float, period_ms: float) -> float:
    """The next point of the grid of ``period_ms`` that is later than ``after_s``, both in seconds of the loop's clock."""
    period_s = period_ms / 1000.0
    return (math.floor((after_s + _EARLY_S) / period_s) + 1) * period_s


def _never() -> bool:
    return False


class Duty:
    """Calls ``work`` now and then every ``period_ms``, also after it failed; the loop's exception handler hears of that.

    ``may_rest`` is asked after each call. A duty that rests must be woken (``wake``) when something happens.
    ``late_s``: how long after its time the work began.
    """

    __slots__ = ("_due_s", "_is_resting", "_loop", "_may_rest", "_period_ms", "_timer", "_work", "late_s")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        period_ms: float,
        work: Callable[[], None],
        may_rest: Callable[[], bool] = _never,
    ) -> None:
        self._loop = loop
        self._period_ms = period_ms
        self._work = work
        self._may_rest = may_rest
        self._due_s = 0.0
        self._is_resting = False
        self._timer: asyncio.TimerHandle | None = None
        self.late_s = 0.0

    def start(self) -> None:
        self._due_s = self._loop.time()
        self._run()

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_resting = False

    def wake(self) -> None:
        """Something happens: be due at the next point of the grid of its own period."""
        if self._is_resting:
            self.stop()
            self._set(self._loop.time(), self._period_ms)

    def _run(self) -> None:
        self.late_s = max(self._loop.time() - self._due_s, 0.0)
        self._timer = None
        self._is_resting = False
        try:
            self._work()
            self._is_resting = self._period_ms < REST_PERIOD_MS and self._may_rest()
        except Exception as error:
            self._loop.call_exception_handler({"message": "a duty of the server failed", "exception": error})
        finally:
            period_ms = REST_PERIOD_MS if self._is_resting else self._period_ms
            self._set(max(self._loop.time(), self._due_s), period_ms)

    def _set(self, after_s: float, period_ms: float) -> None:
        self._due_s = next_due_s(after_s, period_ms)
        self._timer = self._loop.call_at(self._due_s, self._run)
