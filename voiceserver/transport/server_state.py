"""What one server process knows of all its connections: which are open, how many are upgraded, whether the server drains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from voiceserver.session.session import Session
from voiceserver.transport.activity import Activity
from voiceserver.transport.timers import Member
from voiceserver.transport.unopened import UnopenedConnections

_LAG_SMOOTHING: Final = 0.2


class OpenCaller(Protocol):
    def on_outage(self, now_ms: float) -> None: ...


class OpenCall(OpenCaller, Protocol):
    @property
    def session(self) -> Session: ...


class OpenConnection(Member, Protocol):
    """A connection, as the server sees it that ends or counts all of them. ``pending``: a caller that has no call (yet)."""

    @property
    def call(self) -> OpenCall | None: ...

    @property
    def pending(self) -> OpenCaller | None: ...

    def drain(self, within_ms: float) -> None: ...

    def abort(self) -> None: ...


class ServerState:
    """``sessions``: upgraded connections; ``unopened``: the others. ``is_draining``: no new session is let in. ``is_ending``: nor
    does one that is lost come back. ``is_measuring``: the engines are measured before the first caller. ``loop_lag_ms``: how late
    the event loop runs what is due, smoothed. ``port``: the port that is listened on; 0 before that."""

    __slots__ = (
        "_on_empty",
        "activity",
        "connections",
        "is_draining",
        "is_ending",
        "is_measuring",
        "loop_lag_ms",
        "port",
        "sessions",
        "unopened",
    )

    def __init__(self, unopened: UnopenedConnections | None = None) -> None:
        self.activity = Activity()
        self.unopened = UnopenedConnections() if unopened is None else unopened
        # A set takes twice the memory at 15,000 connections.
        self.connections: dict[OpenConnection, None] = {}
        self.sessions = 0
        self.is_draining = False
        self.is_ending = False
        self.is_measuring = False
        self.loop_lag_ms = 0.0
        self.port = 0
        self._on_empty: Callable[[], None] | None = None

    def listen_on(self, port: int) -> None:
        self.port = port

    def join(self) -> None:
        """One more connection was upgraded."""
        self.sessions += 1
        if self.activity.is_resting:
            self.activity.note()

    def leave(self) -> None:
        """An upgraded connection is gone."""
        self.sessions -= 1
        if not self.sessions and self._on_empty is not None:
            self._on_empty()

    def note_loop_lag(self, lag_ms: float) -> None:
        self.loop_lag_ms += (lag_ms - self.loop_lag_ms) * _LAG_SMOOTHING

    def begin_measuring(self) -> None:
        self.is_measuring = True

    def end_measuring(self) -> None:
        """The engines are measured, or a caller came first."""
        self.is_measuring = False

    def begin_drain(self, *, leaves_calls: bool = False) -> None:
        """``leaves_calls``: those in progress go on for now, also over another connection."""
        self.is_draining = True
        self.is_ending = not leaves_calls

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the last upgraded connection leaves; at once if there is none."""
        self._on_empty = callback
        if not self.sessions:
            callback()
