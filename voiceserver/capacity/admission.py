"""Admission: who may come in, who waits, who is refused. Looked at and reserved in one step, released exactly once.

::

    try_enter --> admitted (a place)
              --> waiting  (a place in the bounded waiting room; ``news`` tells of each change of it)
              --> Refusal  (with an honest time to ask again)

There is no ``await`` between the look and the reservation because there is no ``await`` here at all; and a place belongs
to a ``Ticket``, which gives it back once however often it is asked to. Order: who is in stays in, whatever becomes of the
limit; then resumed calls; then new ones as they came. A tenant who holds its share of the places, or half the waiting
room, gets no more while others could come.
"""

from __future__ import annotations

import math
from typing import Final, Literal, Protocol

from voiceserver.errors import Refusal

# Callers that cannot see a 503 are let in for a second to be told; no more of them than this at once.
MAX_LINGERING: Final = 1_000
MAX_RETRY_MS: Final = 60_000.0
REFRESH_MS: Final = 1_000.0  # how old an estimate in the waiting room may become
_SMOOTHING: Final = 0.2

State = Literal["admitted", "waiting", "expired", "released"]
Kind = Literal["new", "resumed", "speech"]  # the first two are connections


class Claimant(Protocol):
    """Who holds a ticket, and wants to hear of it."""

    def on_place(self, ticket: Ticket, now_ms: float) -> None: ...


class StageDelay:
    """A place in the waiting room. ``position`` counts from 1; ``estimate_ms``: until it is let in."""

    __slots__ = ("estimate_ms", "position", "since_ms")

    def __init__(self, since_ms: float) -> None:
        self.since_ms = since_ms
        self.position = 0
        self.estimate_ms = 0.0


_NOT_WAITING: Final = StageDelay(0.0)


class Ticket:
    """One caller's claim. ``position`` and ``estimate_ms`` are those of a ``StageDelay``, and 0 for one who does not wait."""

    # There is a ticket for every caller: what only those who wait need is not kept for all.
    __slots__ = ("_admission", "kind", "owner", "state", "tenant", "wait")

    def __init__(self, admission: Admission, tenant: str, kind: Kind) -> None:
        self._admission = admission
        self.tenant = tenant
        self.kind = kind
        self.state: State = "admitted"
        self.wait = _NOT_WAITING
        self.owner: Claimant | None = None  # for whoever tells the news

    @property
    def position(self) -> int:
        return self.wait.position

    @property
    def estimate_ms(self) -> float:
        return self.wait.estimate_ms

    @property
    def is_connection(self) -> bool:
        return self.kind != "speech"

    @property
    def is_resumed(self) -> bool:
        return self.kind == "resumed"

    @property
    def is_waiting(self) -> bool:
        return self.state == "waiting"

    def release(self, now_ms: float) -> None:
        """Give the place back. Idempotent."""
        if self.state != "released":
            was, self.state, self.wait = self.state, "released", _NOT_WAITING
            self.owner = None
            self._admission._release(self, was, now_ms)


class Admission:
    """Places of one server process.

    max_connections: sockets at once; max_talkers: places for talkers at the beginning, which ``set_limit`` changes; 0 is no
    limit for either. hold: what takes a talker's place, a "connection" or only "speech" (then ``try_talk`` asks for it).
    room: callers that may wait; share: the part of the places and of the room that one tenant may have, 1 for all.
    """

    def __init__(
        self,
        max_connections: int,
        max_talkers: int,
        hold: str,
        retry_after_ms: float,
        *,
        room: int = 0,
        waiting_timeout_ms: float = 60_000.0,
        share: float = 1.0,
    ) -> None:
        self._max_connections = max_connections
        self._limit = max_talkers
        self._holds_connection = hold == "connection"
        self._retry_after_ms = retry_after_ms
        self._room_size = room
        self._timeout_ms = waiting_timeout_ms
        self._share = share
        self._connections = 0
        self._talkers = 0
        self._held: dict[str, int] = {}  # places by tenant
        self._room: list[Ticket] = []  # next one first
        self._news: list[Ticket] = []
        self._turnover_ms = 0.0  # between two places becoming free; 0 before it was measured
        self._freed_ms = math.nan
        self._refreshed_ms = -math.inf
        self.refused = 0  # callers, ever
        self.lingering = 0  # refused callers that are being told

    @property
    def taken(self) -> int:
        """Callers with a place, and those that wait for one."""
        return self._connections

    @property
    def talkers(self) -> int:
        return self._talkers

    @property
    def waiting(self) -> int:
        return len(self._room)

    @property
    def limit(self) -> int:
        """Talkers at once; 0 is no limit."""
        return self._limit

    @property
    def holds_speech(self) -> bool:
        """Whether a talker's place is taken by speech, with ``try_talk``, and not at the door."""
        return not self._holds_connection

    @property
    def free(self) -> int | None:
        """Places left for new callers; None for no limit."""
        free = [self._max_connections - self._connections] if self._max_connections else []
        if self._limit and self._holds_connection:
            free.append(self._limit - self._talkers)
        return max(min(free), 0) if free else None

    @property
    def retry_after_ms(self) -> float:
        """When a caller that is refused now would find a place, before jitter."""
        if not self._turnover_ms:
            return self._retry_after_ms
        wait_ms = self._turnover_ms * (len(self._room) + 1)
        return min(max(wait_ms, self._retry_after_ms), MAX_RETRY_MS)

    # ------------------------------------------------------------------------------------------------------- asking

    def try_enter(
        self, now_ms: float, *, tenant: str = "", is_resumed: bool = False, can_wait: bool = True
    ) -> Ticket | Refusal:
        """A place for a connection, or one in the waiting room, or when to ask again. tenant "": nobody in particular,
        who has no share to stay within."""
        if self._max_connections and self._connections >= self._max_connections:
            return self._refuse("at_capacity")
        ticket = Ticket(self, tenant, "resumed" if is_resumed else "new")
        if self._holds_connection:
            refusal = self._seat(ticket, now_ms, can_wait)
            if refusal is not None:
                return refusal
        self._connections += 1
        return ticket

    def try_talk(self, now_ms: float, *, tenant: str = "") -> Ticket | Refusal:
        """A talker's place for a connection that is in already and begins to speak (hold "speech")."""
        ticket = Ticket(self, tenant, "speech")
        return self._seat(ticket, now_ms, True) or ticket

    def _seat(self, ticket: Ticket, now_ms: float, can_wait: bool) -> Refusal | None:
        # Nobody is passed by: while a place is free, those in the room are there for more than their share only.
        if self._has_place(ticket.tenant):
            self._take(ticket)
            return None
        if not can_wait or len(self._room) >= self._room_size:
            return self._refuse("at_capacity")
        of_tenant = sum(one.tenant == ticket.tenant for one in self._room)
        if ticket.tenant and self._share < 1 and of_tenant >= max(self._room_size // 2, 1):
            return self._refuse("tenant_share")
        ticket.state, ticket.wait = "waiting", StageDelay(now_ms)
        at = len(self._room)
        if ticket.is_resumed:
            at = next((index for index, one in enumerate(self._room) if not one.is_resumed), at)
        self._room.insert(at, ticket)
        self._number(now_ms)
        return None

    def _refuse(self, reason: str) -> Refusal:
        self.refused += 1
        return Refusal(reason, self.retry_after_ms)

    def _has_place(self, tenant: str) -> bool:
        if not self._limit:
            return True
        if self._talkers >= self._limit:
            return False
        return not tenant or self._held.get(tenant, 0) < self._share_of(self._limit)

    def _share_of(self, places: int) -> int:
        return max(math.ceil(places * self._share), 1) if self._share < 1 else places

    def _take(self, ticket: Ticket) -> None:
        ticket.state, ticket.wait = "admitted", _NOT_WAITING
        self._talkers += 1
        if ticket.tenant:
            self._held[ticket.tenant] = self._held.get(ticket.tenant, 0) + 1

    # ------------------------------------------------------------------------------------------------------- leaving

    def _release(self, ticket: Ticket, was: State, now_ms: float) -> None:
        if ticket.is_connection:
            self._connections -= 1
        if was == "waiting":
            self._room.remove(ticket)
        elif was == "admitted" and (self._holds_connection or not ticket.is_connection):
            self._talkers -= 1
            held = self._held.get(ticket.tenant, 0) - 1
            if held > 0:
                self._held[ticket.tenant] = held
            else:
                self._held.pop(ticket.tenant, None)
            self._note_freed(now_ms)
        self._let_in(now_ms)
        self._number(now_ms)

    def _note_freed(self, now_ms: float) -> None:
        """A place became free: measure how often that happens while there is somebody to want it."""
        if self._limit and self._talkers + 1 >= self._limit and not math.isnan(self._freed_ms):
            gap_ms = min(max(now_ms - self._freed_ms, 1.0), MAX_RETRY_MS)
            self._turnover_ms += (gap_ms - self._turnover_ms) * (_SMOOTHING if self._turnover_ms else 1.0)
        self._freed_ms = now_ms

    def set_limit(self, limit: int, now_ms: float) -> None:
        """Who is in stays in; more may come in, or fewer than leave."""
        if limit != self._limit:
            self._limit = limit
            self._let_in(now_ms)
            self._number(now_ms)

    def tick(self, now_ms: float) -> None:
        """Send away who has waited too long, and bring the estimates up to date. Call it a few times a second."""
        for ticket in [one for one in self._room if now_ms - one.wait.since_ms >= self._timeout_ms]:
            self._room.remove(ticket)
            ticket.state, ticket.wait = "expired", _NOT_WAITING
            self._news.append(ticket)
        if self._room and now_ms >= self._refreshed_ms + REFRESH_MS:
            self._number(now_ms, is_refresh=True)

    def _let_in(self, now_ms: float) -> None:
        for ticket in tuple(self._room):
            if self._limit and self._talkers >= self._limit:
                return
            if self._has_place(ticket.tenant):
                self._room.remove(ticket)
                self._take(ticket)
                self._news.append(ticket)

    # ----------------------------------------------------------------------------------------------------- the room

    def _number(self, now_ms: float, *, is_refresh: bool = False) -> None:
        if is_refresh or not self._room:
            self._refreshed_ms = now_ms
        for position, ticket in enumerate(self._room, 1):
            wait = ticket.wait
            is_moved = wait.position != position
            wait.position = position
            wait.estimate_ms = self._estimate_ms(position, now_ms)
            if is_moved or is_refresh:
                self._news.append(ticket)

    def _estimate_ms(self, position: int, now_ms: float) -> float:
        """From the measured turnover; the time since the last place became free counts, as long as it is not longer."""
        if not self._turnover_ms:
            return min(self._retry_after_ms * position, MAX_RETRY_MS)
        since_ms = now_ms - self._freed_ms
        # Longer without a free place than usual: things have become slower, and what was measured no longer holds.
        first_ms = self._turnover_ms - since_ms if since_ms < self._turnover_ms else since_ms
        return max(first_ms, 0.0) + self._turnover_ms * (position - 1)

    def news(self) -> list[Ticket]:
        """Take the tickets whose state, position or estimate has changed: each once, with what is true now."""
        if not self._news:
            return self._news
        taken = dict.fromkeys(self._news)
        self._news = []
        return [ticket for ticket in taken if ticket.state != "released"]
