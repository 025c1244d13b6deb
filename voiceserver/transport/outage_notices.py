"""Who is told that a stage has no worker, or has one again: every caller, a slice of them in each tick of the loop.

A silent caller without a session is told with a frame that is built once for all of its wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from voiceserver.capacity.outage import Outage, slices, tell
from voiceserver.events.events import ServerBusy, ServerReady
from voiceserver.session.session import Session
from voiceserver.session.settings import SessionOptions
from voiceserver.transport.server_state import OpenConnection, ServerState
from voiceserver.transport.ticks import Ticks, guard
from voiceserver.wire import Codec
from voiceserver.wire.frames import build_frame


class OutageLog(Protocol):
    def info(self, event: str) -> object: ...

    def warning(self, event: str, *, stages: list[str]) -> object: ...


class SilentNotices(NamedTuple):
    """The stage that a silent caller knows to be missing, empty for none, and how many notices it was sent."""

    stage: str
    sent: int


_NO_NOTICES: Final = SilentNotices("", 0)


class OutageNotices:
    """``options``: of a caller without a session; ``credit_ms``: what it may send ahead."""

    __slots__ = (
        "_credit_ms",
        "_log",
        "_options",
        "_outage",
        "_round",
        "_shared_frame",
        "_silent",
        "_state",
        "_ticks",
    )

    def __init__(
        self,
        outage: Outage,
        options: SessionOptions,
        credit_ms: float,
        *,
        state: ServerState,
        ticks: Ticks,
        log: OutageLog,
    ) -> None:
        self._outage = outage
        self._options = options
        self._credit_ms = credit_ms
        self._state = state
        self._ticks = ticks
        self._log = log
        # Of connections that are still to be told.
        self._round: Iterator[Sequence[OpenConnection]] | None = None
        self._shared_frame: tuple[ServerBusy | ServerReady, bytes] | None = None
        self._silent: dict[object, SilentNotices] = {}

    @property
    def is_whole(self) -> bool:
        """Whether every stage has a worker."""
        return not self._outage.missing

    def look(self) -> None:
        """Call a few times in ``busy_after_ms``: notice stages that lost their last worker or have one again, and tell it."""
        outage = self._outage
        known, is_starting = set(outage.missing), not outage.was_whole
        if not outage.look(self._ticks.clock()):
            return
        is_under_way = self._round is not None
        self._round = slices(list(self._state.connections))
        if not is_under_way:
            self._ticks.call_soon(self._tell_a_slice)
        if outage.missing.keys() != known and not is_starting:
            if outage.missing:
                self._log.warning("stages without workers", stages=sorted(outage.missing))
            else:
                self._log.info("all stages have workers")

    def _tell_a_slice(self) -> None:
        connections = next(self._round, None) if self._round is not None else None
        if connections is None:
            self._round = None
            return
        now_ms = self._ticks.read_clock()
        try:
            for connection in connections:
                guard(connection, self.tell, connection, now_ms)
        finally:
            self._ticks.call_soon(self._tell_a_slice)

    def tell(self, connection: OpenConnection, now_ms: float) -> None:
        """Tell the caller of one connection."""
        caller = connection.call or connection.pending
        if caller is not None:
            caller.on_outage(now_ms)

    def tell_session(self, session: Session, *, is_back: bool = False) -> None:
        """Have a session say what it goes without. is_back: its caller resumes, and hears it all the same."""
        tell(session, self._outage.missing_for(session.options), is_back=is_back)

    def next_for_silent(self, caller: object) -> ServerBusy | ServerReady | None:
        """What a caller without a session is to be told now; None for nothing. It counts as told."""
        missing = self._outage.missing_for(self._options)
        told = self._silent.get(caller, _NO_NOTICES)
        if missing is None and not told.stage:
            return None
        stage = missing.stage if missing is not None else ""
        self._silent[caller] = SilentNotices(stage, told.sent + 1)
        return (
            missing.signal(self._credit_ms)
            if missing is not None
            else ServerReady(told.stage, self._credit_ms)
        )

    def forget_silent(self, caller: object) -> SilentNotices:
        """What a caller was told that is silent no more."""
        return self._silent.pop(caller, _NO_NOTICES)

    def frame_of(self, event: ServerBusy | ServerReady, codec: Codec) -> bytes:
        """On a wire without state (``is_shared``): the same bytes for all who are told the same."""
        if self._shared_frame is None or self._shared_frame[0] != event:
            self._shared_frame = event, b"".join(build_frame(frame) for frame in codec.encode(event))
        return self._shared_frame[1]
