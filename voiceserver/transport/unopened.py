"""Connections before their upgrade: how many there may be, and which of them goes when there are more.

Anybody can connect and say nothing. So those who are not (yet) a call are bounded, by their own number and by what the calls
leave of the open files; beyond it the oldest is dropped, at once and without a word. A caller sends its request within
milliseconds, so it is never the oldest for long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol


class SocketLimits(NamedTuple):
    """``sockets``: at once, of all kinds; ``unopened``: of them without a call."""

    sockets: int
    unopened: int


UNLIMITED: Final = SocketLimits(sys.maxsize, sys.maxsize)


class Droppable(Protocol):
    def abort(self) -> None: ...


class UnopenedConnections:
    """``on_drop`` is called for each that is dropped."""

    __slots__ = ("_limits", "_members", "_on_drop")

    def __init__(self, limits: SocketLimits = UNLIMITED, on_drop: Callable[[], None] = lambda: None) -> None:
        # In the order of their coming.
        self._members: dict[Droppable, None] = {}
        self._limits = limits
        self._on_drop = on_drop

    def __len__(self) -> int:
        return len(self._members)

    def limit_to(self, limits: SocketLimits) -> None:
        """From now on; the limit of open files may be changed under a running process."""
        self._limits = limits

    def add(self, member: Droppable, opened: int) -> None:
        """A connection was accepted. ``opened``: how many calls there are."""
        self._members[member] = None
        most = min(self._limits.unopened, self._limits.sockets - opened)
        # The newest has to be read first.
        while len(self._members) > max(most, 1):
            oldest = next(iter(self._members))
            del self._members[oldest]
            self._on_drop()
            oldest.abort()

    def discard(self, member: Droppable) -> None:
        """It is a call now, or gone."""
        self._members.pop(member, None)
