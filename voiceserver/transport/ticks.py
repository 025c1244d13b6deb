"""The loop and the clock that all connections of one server share, and what they do at the end of a tick.

One callback per tick writes what all connections queued, and one lets connections go on that gave the rest of their turn away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

# A callback that keeps the loop longer lets other connections go first.
LONG_TURN_MS: Final = 2.0


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """The two things that the transport asks of an event loop."""

    def call_soon(self, callback: Callable[[], None]) -> object: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer: ...


class Faulty(Protocol):
    """An object that ends itself when a callback of it fails."""

    def on_fault(self, error: Exception) -> None: ...


class Writer(Faulty, Protocol):
    """A connection that has something to write at the end of a tick."""

    def flush(self) -> None: ...


class TurnTaker(Faulty, Protocol):
    """A connection that goes on reading when the others had their turn."""

    def take_turn(self) -> None: ...


def monotonic_ms() -> float:
    return time.monotonic() * 1000.0


def guard(member: Faulty, call: Callable[..., None], *args: object) -> None:
    """A fault in one connection ends that connection and nothing else."""
    try:
        call(*args)
    except Exception as error:
        member.on_fault(error)


class Ticks:
    """``now_ms``: when the callback began that runs now. Every callback sets it first."""

    __slots__ = ("_dirty", "_loop", "_turns", "clock", "now_ms", "waiting")

    def __init__(self, loop: Loop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self.clock = clock
        self.now_ms = clock()
        self._dirty: list[Writer] = []
        self._turns: list[TurnTaker] = []
        # Connections that wait for their turn to go on reading.
        self.waiting: set[TurnTaker] = set()

    def read_clock(self) -> float:
        self.now_ms = now_ms = self.clock()
        return now_ms

    def is_turn_long(self) -> bool:
        """Whether the callback that runs now has kept the loop for longer than a turn may last."""
        return self.clock() - self.now_ms > LONG_TURN_MS

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def call_later(self, delay_ms: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(delay_ms / 1000.0, callback)

    def flush_later(self, member: Writer) -> None:  # hot
        """Have ``member.flush`` called after the callbacks of this tick."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(member)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for member in dirty:
            guard(member, member.flush)

    def take_turn_later(self, member: TurnTaker, rest_ms: float = 0.0) -> None:
        """Have ``member.take_turn`` called after the other connections had their turn, and not before ``rest_ms`` are over. It is
        ``waiting`` until it takes its turn."""
        self.waiting.add(member)
        if rest_ms:
            self.call_later(rest_ms, lambda: guard(member, member.take_turn))
            return
        if not self._turns:
            self._loop.call_soon(self._take_turns)
        self._turns.append(member)

    def _take_turns(self) -> None:
        turns, self._turns = self._turns, []
        for member in turns:
            guard(member, member.take_turn)
