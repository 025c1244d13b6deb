"""Who waits for a place of a stage: first come, first served.

Rules: a place goes to whoever has waited longest. A newcomer gets one only if there are more than those who wait, also in the
tick in which it became free. Whoever is called and finds the place gone after all keeps its turn; whoever is called and asks
for none has left.
"""

from __future__ import annotations

from voiceserver.pool import StreamOwner


class PlaceQueue:
    __slots__ = ("_asked_again", "_called", "_owners")

    def __init__(self) -> None:
        self._owners: dict[int, StreamOwner] = {}  # in the order of their coming
        self._called: dict[int, StreamOwner] = {}
        self._asked_again: set[int] = set()

    def __len__(self) -> int:
        return len(self._owners)

    def may_take(self, owner: StreamOwner, free: int | None) -> bool:
        """Whether it is the turn of ``owner``. free: places, None for no limit."""
        key = id(owner)
        if free is None or not self._owners or key in self._called:
            return True
        ahead = 0
        for other in self._owners:
            if other == key or ahead >= free:
                break
            ahead += 1
        return ahead < free

    def wait(self, owner: StreamOwner) -> None:
        """``owner`` was refused. One that waits already stays where it is."""
        self._owners[id(owner)] = owner
        self._asked_again.add(id(owner))

    def forget(self, owner: StreamOwner) -> None:
        """``owner`` has a place, or is leaving."""
        self._owners.pop(id(owner), None)

    def call(self, count: int) -> dict[int, StreamOwner]:
        """The first ``count``, whose turn it is until ``done``."""
        self._called = dict(list(self._owners.items())[:count])
        self._asked_again.clear()
        return self._called

    def done(self) -> None:
        """Those who were called have had their turn."""
        for key in self._called:
            if key not in self._asked_again:
                self._owners.pop(key, None)
        self._called = {}
