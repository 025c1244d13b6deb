"""The places of one server: admission, and how a caller hears that its place in the line has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from voiceserver.capacity.admission import Admission
from voiceserver.capacity.controller import CapacityController
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
