"""Whether a connection is read: not while it waits for its turn, is ahead of the clock, or does not read our answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from voiceserver.transport.ticks import LONG_TURN_MS, Faulty, Ticks

if TYPE_CHECKING:
    import asyncio

CHOKE: Final = 4  # times the write limit
REST: Final = 3.0  # times a long turn: whoever keeps the loop busy has a quarter of it


class ReadConnection(Faulty, Protocol):
    """``transport`` None: the connection is lost."""

    @property
    def transport(self) -> asyncio.Transport | None: ...

    def data_received(self, data: bytes) -> None: ...


class FlowControl:
    """``is_held_back``: not read because it is ahead of the clock. ``read_since_ms``: when that last ended, 0 for never: what it
    sent meanwhile was not late, we did not read it."""

    __slots__ = ("_connection", "_ticks", "_write_limit_bytes", "is_held_back", "read_since_ms")

    def __init__(self, connection: ReadConnection, ticks: Ticks, write_limit_bytes: int) -> None:
        self._connection = connection
        self._ticks = ticks
        self._write_limit_bytes = write_limit_bytes
        self.is_held_back = False
        self.read_since_ms = 0.0

    def wait_for_turn(self) -> None:
        """Stop reading, and go on when the other connections had their turn."""
        transport, ticks = self._connection.transport, self._ticks
        if transport is not None and self not in ticks.waiting:
            if transport.is_reading():
                transport.pause_reading()
            spent_ms = ticks.clock() - ticks.now_ms
            ticks.take_turn_later(self, spent_ms * REST if spent_ms > LONG_TURN_MS else 0.0)

    def take_turn(self) -> None:
        """Go on with what was left when this connection had had its share of a tick."""
        waiting = self._ticks.waiting
        waiting.discard(self)
        if self._connection.transport is None or self.is_held_back or self._is_choked():
            return
        self._connection.data_received(b"")
        transport = self._connection.transport
        is_held = self in waiting or self.is_held_back
        if transport is not None and not is_held and not transport.is_closing():
            transport.resume_reading()
            self.read_or_not()

    def hold_back(self, is_held: bool) -> None:
        transport = self._connection.transport
        self.is_held_back = is_held
        if not is_held:
            self.read_since_ms = self._ticks.clock()
            self.wait_for_turn()
        elif transport is not None and transport.is_reading() and not transport.is_closing():
            transport.pause_reading()

    def read_or_not(self) -> None:
        """Whoever asks for more and more answers (pings, mistakes) and reads none is not read any more either."""
        transport = self._connection.transport
        if transport is None or self.is_held_back or self in self._ticks.waiting or transport.is_closing():
            return
        is_choked = self._is_choked()
        if is_choked and transport.is_reading():
            transport.pause_reading()
        elif not is_choked and not transport.is_reading():
            transport.resume_reading()

    def _is_choked(self) -> bool:
        transport = self._connection.transport
        return transport is not None and transport.get_write_buffer_size() > CHOKE * self._write_limit_bytes

    def on_fault(self, error: Exception) -> None:
        self._connection.on_fault(error)
