"""Who waits for a place of a stage, and in which order the places are given.

Rules:

- A live caller goes before a recording, which loses nothing by waiting.
- Among equals places are given fairly in audio time (start-time fair queueing, Goyal, Vin and Cheng, 1996). Whoever comes is
  given a *tag*, the progress of the queue at that moment; whoever gives a place back is further on by the audio that it had the
  place for. The smallest tag is next, then the one that has waited longest. So newcomers are served in the order of coming.
- While others wait, a place is offered again at the end of each turn (``is_before``).
- A newcomer gets a place only if there are more than those who come before it, also in the tick in which it became free.
  Whoever is called and finds the place gone after all keeps its turn; whoever is called and asks for none has left.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final, NamedTuple

from voiceserver.pool import StreamOwner

MAX_RETRY_MS: Final = 60_000.0
_SMOOTHING: Final = 0.2


class _Waiting(NamedTuple):
    """In the order of serving. ``tag``: ms of audio."""

    is_recording: bool
    tag: float
    arrival: int
    owner: StreamOwner


class PlaceQueue:
    """``waiting``: nobody where it is empty."""

    __slots__ = ("_arrivals", "_asked_again", "_called", "_goes_on", "_had", "_of", "_progress", "waiting")

    def __init__(self) -> None:
        self.waiting: list[_Waiting] = []
        # The same, by owner.
        self._of: dict[int, _Waiting] = {}
        self._called: dict[int, StreamOwner] = {}
        self._asked_again: set[int] = set()
        self._arrivals = 0
        # Of live callers and of recordings: ms of audio.
        self._progress = [0.0, 0.0]
        # The tag of each owner that has had a place for which others wait.
        self._had: dict[int, float] = {}
        # Those of them that gave it back in the middle of what they have to say: they keep their tag.
        self._goes_on: set[int] = set()

    def __len__(self) -> int:
        return len(self.waiting)

    def may_take(self, owner: StreamOwner, free: int | None, *, is_live: bool = True) -> bool:
        """Whether it is the turn of ``owner``. free: places, None for no limit."""
        key = id(owner)
        if free is None or not self.waiting or key in self._called:
            return True
        known = self._of.get(key)
        place = known or self._next(owner, is_live)
        return bisect_left(self.waiting, place[:3]) < free

    def wait(self, owner: StreamOwner, *, is_live: bool = True) -> None:
        """``owner`` was refused. One that waits already stays where it is."""
        key = id(owner)
        self._asked_again.add(key)
        if key not in self._of:
            place = self._of[key] = self._next(owner, is_live)
            self._arrivals += 1
            insort(self.waiting, place, key=lambda one: one[:3])

    def admit(self, owner: StreamOwner, *, is_live: bool = True) -> None:
        """``owner`` has a place."""
        place = self._of.get(id(owner)) or self._next(owner, is_live)
        self._remove(id(owner))
        self._had[id(owner)] = place.tag
        self._goes_on.discard(id(owner))
        self._forget_if_idle()

    def is_before(self, owner: StreamOwner, taken: int, *, is_live: bool, heard_ms: float) -> bool:
        """Whether somebody who waits comes before ``owner``, which has had a place for another ``heard_ms`` of audio. taken:
        places that are not free."""
        if not self.waiting:
            return False
        is_recording = not is_live
        tag = self._had.get(id(owner), self._progress[is_recording]) + heard_ms
        self._had[id(owner)] = tag
        # What each would have been heard if all were heard at once.
        self._progress[is_recording] += heard_ms / (len(self.waiting) + max(taken, 1))
        is_before = self.waiting[0][:2] <= (is_recording, tag)
        if is_before:
            self._goes_on.add(id(owner))
        return is_before

    def forget(self, owner: StreamOwner) -> None:
        """``owner`` is leaving."""
        self._remove(id(owner))
        self._had.pop(id(owner), None)
        self._goes_on.discard(id(owner))
        self._forget_if_idle()

    def call(self, count: int) -> dict[int, StreamOwner]:
        """The first ``count``, whose turn it is until ``done``."""
        self._called = {id(one.owner): one.owner for one in self.waiting[:count]}
        self._asked_again.clear()
        return self._called

    def done(self) -> None:
        """Those who were called have had their turn."""
        for key in self._called:
            if key not in self._asked_again:
                self._remove(key)
        self._called = {}
        self._forget_if_idle()

    def _next(self, owner: StreamOwner, is_live: bool) -> _Waiting:
        """Where ``owner`` would wait if it came now."""
        is_recording = not is_live
        tag = self._had.get(id(owner), 0.0)
        if id(owner) not in self._goes_on:
            tag = max(self._progress[is_recording], tag)
        return _Waiting(is_recording, tag, self._arrivals, owner)

    def _remove(self, key: int) -> None:
        place = self._of.pop(key, None)
        if place is not None:
            del self.waiting[bisect_left(self.waiting, place[:3])]

    def _forget_if_idle(self) -> None:
        """Nobody waits, so nobody owes anybody anything."""
        if not self.waiting:
            self._had.clear()
            self._goes_on.clear()
            self._progress = [0.0, 0.0]


class Turnover:
    """How soon a place becomes free, from how soon places did: what a caller is told who finds none.

    ``mean_ms``: between two places becoming free; begins with what it is given.
    """

    __slots__ = ("_freed_ms", "mean_ms")

    def __init__(self, mean_ms: float) -> None:
        self.mean_ms = mean_ms
        self._freed_ms = 0.0

    def freed(self, now_ms: float) -> None:
        """A place became free."""
        if self._freed_ms:
            # Clamped, so that one quiet night does not promise the next caller an hour.
            self.add(min(now_ms - self._freed_ms, MAX_RETRY_MS))
        self._freed_ms = now_ms

    def add(self, took_ms: float) -> None:
        """Another measurement."""
        self.mean_ms += (took_ms - self.mean_ms) * _SMOOTHING

    def retry_ms(self, ahead: float, least_ms: float) -> float:
        """When to ask again, for one who has ``ahead`` places to wait for."""
        return max(least_ms, min(MAX_RETRY_MS, self.mean_ms * ahead))
