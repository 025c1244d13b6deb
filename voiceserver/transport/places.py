"""The places of one server: admission, and how a caller hears that its place in the line has changed; and those of one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from voiceserver.capacity.admission import Admission, Ticket
from voiceserver.capacity.controller import CapacityController
from voiceserver.errors import Refusal
from voiceserver.events.events import ServerBusy
from voiceserver.pool import Pool, StreamOwner
from voiceserver.transport.ticks import Ticks


class FaultLog(Protocol):
    def error(self, event: str, *, exc_info: Exception) -> object: ...


class Places:
    __slots__ = ("_has_news", "_log", "_ticks", "admission", "controller", "pools")

    def __init__(
        self,
        admission: Admission,
        controller: CapacityController,
        pools: Mapping[str, Pool],
        ticks: Ticks,
        log: FaultLog,
    ) -> None:
        self.admission = admission
        self.controller = controller
        self.pools = pools
        self._ticks = ticks
        self._log = log
        self._has_news = False

    def changed(self) -> None:
        """A ticket was released or the limit has moved: tell the callers concerned after the callbacks of this tick."""
        if not self._has_news:
            self._has_news = True
            self._ticks.call_soon(self._tell_news)

    def _tell_news(self) -> None:
        self._has_news = False
        now_ms = self._ticks.read_clock()
        for ticket in self.admission.news():
            owner = ticket.owner
            if owner is not None:
                try:
                    owner.on_place(ticket, now_ms)
                except Exception as error:
                    self._log.error("admission fault", exc_info=error)

    def forget(self, caller: StreamOwner) -> None:
        """The caller leaves: take it out of every pool's line."""
        for pool in self.pools.values():
            pool.forget(caller)

    def note_busy(self, caller: object, event: ServerBusy) -> None:
        # Without a lag the caller waits for nothing.
        if event.lag_ms:
            self.controller.note_busy(id(caller), event, self._ticks.now_ms)


class PlaceOwner(StreamOwner, Protocol):
    """A call, as admission sees it."""

    def on_place(self, ticket: Ticket, now_ms: float) -> None: ...


class CallPlaces:
    """What one caller holds, and what it stands in line for. ``ticket``: of its call; ``speech``: of what it says now, where only
    speech takes a talker's place."""

    # The owner is an argument: if it were kept, only the garbage collector could let a call go.
    __slots__ = ("_places", "speech", "ticket")

    def __init__(self, places: Places) -> None:
        self._places = places
        self.ticket: Ticket | None = None
        self.speech: Ticket | None = None

    def take(self, ticket: Ticket, owner: PlaceOwner) -> None:
        """``owner``: hears when the ticket moves."""
        self.ticket = ticket
        ticket.owner = owner

    @property
    def has_place(self) -> bool:
        """Whether the caller has not given its place back."""
        return self.ticket is not None and self.ticket.state in ("admitted", "waiting")

    def try_talk(self, owner: PlaceOwner, now_ms: float) -> Ticket | Refusal | None:
        """A place for speech, or in the line for one. None: speech takes no place of its own."""
        admission = self._places.admission
        if not admission.holds_speech:
            return None
        if self.speech is None:
            tenant = self.ticket.tenant if self.ticket is not None else ""
            got = admission.try_talk(now_ms, tenant=tenant)
            if isinstance(got, Refusal):
                return got
            self.speech = got
            got.owner = owner
        return self.speech

    def leave(self, owner: PlaceOwner, now_ms: float) -> None:
        """Give everything back. Idempotent."""
        self._places.forget(owner)
        if self.ticket is not None:
            self.ticket.release(now_ms)
            self._places.changed()
        self.leave_speech(now_ms)

    def leave_speech(self, now_ms: float) -> None:
        if self.speech is not None:
            self.speech.release(now_ms)
            self.speech = None
            self._places.changed()
