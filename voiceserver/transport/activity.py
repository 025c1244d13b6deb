"""How duties that rest while nothing happens on a server hear that something does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Resting(Protocol):
    """A duty; ``voiceserver.pool.duty.Duty`` is one."""

    def wake(self) -> None: ...


class Activity:
    """``note`` wakes the duties of ``watch``. ``is_resting``: one of them may rest; a hot path asks before it calls."""

    __slots__ = ("_duties", "is_resting")

    def __init__(self) -> None:
        self._duties: Sequence[Resting] = ()
        self.is_resting = False

    def watch(self, duties: Sequence[Resting]) -> None:
        """Wake these from now on, and no others."""
        self._duties = duties

    def rest(self) -> None:
        """A duty rests from now on."""
        self.is_resting = True

    def note(self) -> None:
        """A caller comes, a caller begins to speak, or a worker has changed its state."""
        self.is_resting = False
        for duty in self._duties:
            duty.wake()
