"""What all connections of one loop share: the clock, the timer wheels, the flush at the end of a tick, pools and policy.

One loop timer drives every wheel, and one callback per tick writes what all connections queued.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from voiceserver.announcements.earcons import Earcons
from voiceserver.announcements.fillers import fillers_from
from voiceserver.capacity.admission import Admission
from voiceserver.capacity.controller import CapacityController
from voiceserver.capacity.outage import Outage, slices
from voiceserver.config.schema import Config
from voiceserver.events.events import Accounting, ServerBusy, SessionReady
from voiceserver.observability.metrics import Metrics
from voiceserver.pool import Pool, StreamOwner, speech_voices
from voiceserver.session.session import Session
from voiceserver.session.settings import ServerSnapshot, SessionSettings
from voiceserver.transport.http import Router
from voiceserver.transport.session_store import SessionStore, new_seed
from voiceserver.transport.timers import Wheel
from voiceserver.wire import Codec
from voiceserver_workers import registry

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from voiceserver.server.auth import Auth
    from voiceserver.server.multiprocess.handoff import Handoff

DEADLINE_TICK_MS = 2.0
KEEPALIVE_TICK_MS = 250.0


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """The three things that a hub asks of an event loop."""

    def call_soon(self, callback: Callable[[], None]) -> object: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer: ...


class Member(Protocol):
    """A connection, as the hub sees it."""

    def flush(self) -> None: ...

    def take_turn(self) -> None: ...

    def on_deadline(self, now_ms: float) -> None: ...

    def on_keepalive(self, now_ms: float) -> None: ...

    def on_unopened(self, now_ms: float) -> None: ...

    def on_outage(self, now_ms: float) -> None: ...

    def on_fault(self, error: Exception) -> None: ...

    def drain(self, within_ms: float) -> None: ...

    def abort(self) -> None: ...

    def books(self) -> Accounting | None: ...


def monotonic_ms() -> float:
    return time.monotonic() * 1000.0


def _guard(member: Member, call: Callable[..., None], *args: float) -> None:
    """A fault in one connection ends that connection and nothing else."""
    try:
        call(*args)
    except Exception as error:
        member.on_fault(error)


class Services:
    __slots__ = (
        "_deadlines",
        "_dirty",
        "_has_news",
        "_keepalives",
        "_loop",
        "_round",
        "_timer",
        "_timer_due_ms",
        "_turns",
        "_unopened",
        "admission",
        "auth",
        "session_store",
        "clock",
        "config",
        "connections",
        "handoff",
        "earcons",
        "server_snapshot",
        "controller",
        "log",
        "metrics",
        "now_ms",
        "on_empty",
        "outage",
        "pools",
        "router",
        "sessions",
        "fillers",
        "settings",
        "waiting",
    )

    def __init__(
        self,
        loop: Loop,
        config: Config,
        *,
        pools: Mapping[str, Pool],
        admission: Admission,
        router: Router,
        metrics: Metrics,
        log: FilteringBoundLogger,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        self._loop = loop
        self.config = config
        takes_audio = registry.takes_audio(config.stages.reply.engine)
        self.fillers = fillers_from(config.session)
        self.settings = SessionSettings.from_config(
            config, fillers=self.fillers, reply_takes_audio=takes_audio
        )
        self.server_snapshot = ServerSnapshot()
        self.pools = pools
        self.admission = admission
        self.router = router
        self.auth: Auth | None = None  # set where callers need keys
        self.metrics = metrics
        self.log = log
        self.clock = clock
        self.session_store = SessionStore(config.session.resume_window_ms)
        self.handoff: Handoff | None = None  # with the other processes, where there are some
        router.claim = self.session_store.claim
        metrics.calls_detached.set_function(lambda: self.session_store.detached)
        self.now_ms = clock()  # of the callback that runs; each one sets it first
        self.connections: dict[Member, None] = {}  # a set takes twice the memory at 15,000
        self.sessions = 0  # upgraded connections
        self.on_empty: Callable[[], None] | None = None
        self.controller: CapacityController | None = None
        self.earcons: Earcons | None = None
        self.outage = Outage(pools, config.backpressure.busy_after_ms)
        self._round: Iterator[Sequence[Member]] | None = None  # of those who are told of an outage
        self._has_news = False
        self._dirty: list[Member] = []
        self._turns: list[Member] = []
        self.waiting: set[Member] = set()  # for their turn to go on reading
        self._deadlines: Wheel[Member] = Wheel(DEADLINE_TICK_MS)
        self._keepalives: Wheel[Member] = Wheel(KEEPALIVE_TICK_MS)
        self._unopened: Wheel[Member] = Wheel(KEEPALIVE_TICK_MS)
        self._timer: Timer | None = None
        self._timer_due_ms = math.inf

    def make_session(self, codec: Codec, seed: bytes = b"") -> Session:
        """seed: of ``SessionStore.new_seed``, which is used up with this."""
        seed = seed or new_seed()
        self.server_snapshot.voices = speech_voices(self.pools)
        return Session(
            self.session_store.session_id_of(seed),
            self.settings,
            self.server_snapshot,
            input_rate_hz=codec.input_rate_hz,
            output_rate_hz=codec.output_rate_hz,
            resume_token=self.session_store.token_of(seed) if codec.traits.resume_parameter else "",
        )

    def greeting(self, codec: Codec, seed: bytes) -> SessionReady:
        """What ``make_session`` of the same seed would say first."""
        return SessionReady(
            session_id=self.session_store.session_id_of(seed),
            input_rate_hz=codec.input_rate_hz,
            output_rate_hz=codec.output_rate_hz,
            resume_token=self.session_store.token_of(seed),
            credit_ms=float(self.settings.backpressure.max_backlog_ms),
        )

    def has_talked_enough(self, session: Session) -> bool:
        """Whether the API key of a session allows no more audio today."""
        if self.auth is None or not session.key:
            return False
        self.auth.note(session.key, session.session_id, session.accounting().received_ms)
        return self.auth.talk_left_ms(session.key) <= 0

    def tell_limits(self, session: Session, codec: Codec) -> None:
        """What the session's API key may still send today, to a wire that has words for it."""
        if self.auth is not None and session.key and codec.traits.tells_talk_limit:
            self.auth.note(session.key, session.session_id, session.accounting().received_ms)
            limit = self.auth.talk_limit(session.key)
            if limit is not None:
                codec.set_talk_limit(*limit)

    def join(self) -> None:
        """One more connection was upgraded."""
        self.sessions += 1

    def leave(self) -> None:
        """An upgraded connection is gone."""
        self.sessions -= 1
        if not self.sessions and self.on_empty is not None:
            self.on_empty()

    # -------------------------------------------------------------------------------------------------- admission

    def place_freed(self) -> None:
        """A ticket was released or the limit moved: tell those whom that concerns, after this tick's callbacks."""
        if not self._has_news:
            self._has_news = True
            self._loop.call_soon(self._tell_news)

    def _tell_news(self) -> None:
        self._has_news = False
        self.now_ms = now_ms = self.clock()
        for ticket in self.admission.news():
            owner = ticket.owner
            if owner is not None:
                try:
                    owner.on_place(ticket, now_ms)
                except Exception as error:
                    self.log.error("admission fault", exc_info=error)

    def forget(self, caller: StreamOwner) -> None:
        """A caller leaves: it stands in line for nothing any more."""
        for pool in self.pools.values():
            pool.forget(caller)

    def live_books(self) -> Iterator[Accounting]:
        """The books of the open sessions that have heard something."""
        for books in (
            *(member.books() for member in self.connections),
            *(call.books() for call in self.session_store.kept()),
        ):
            if books is not None:
                yield books

    def note_busy(self, caller: object, event: ServerBusy) -> None:
        if self.controller is not None and event.lag_ms:  # else the caller waits for nothing
            self.controller.note_busy(id(caller), event, self.now_ms)

    # ---------------------------------------------------------------------------------------------------- outages

    def look_for_outage(self) -> None:
        """Call a few times in ``busy_after_ms``: a stage without workers is told to all, a slice of them in each tick."""
        known, is_starting = set(self.outage.gone), not self.outage.was_whole
        if not self.outage.look(self.clock()):
            return
        if self.outage.gone.keys() != known and not is_starting:
            if self.outage.gone:
                self.log.warning("stages without workers", stages=sorted(self.outage.gone))
            else:
                self.log.info("all stages have workers")
        is_under_way = self._round is not None
        self._round = slices(list(self.connections))
        if not is_under_way:
            self._loop.call_soon(self._tell_of_outage)

    def _tell_of_outage(self) -> None:
        members = next(self._round, None) if self._round is not None else None
        if members is None:
            self._round = None
            return
        self.now_ms = now_ms = self.clock()
        for member in members:
            _guard(member, member.on_outage, now_ms)
        self._loop.call_soon(self._tell_of_outage)

    # -------------------------------------------------------------------------------------------- end of the tick

    def flush_later(self, member: Member) -> None:  # hot
        """Have ``member.flush`` called once this tick's callbacks are through."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(member)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for member in dirty:
            _guard(member, member.flush)

    def take_turn_later(self, member: Member, rest_ms: float = 0.0) -> None:
        """Have ``member.take_turn`` called after the others had theirs, and not before ``rest_ms`` are over; until it takes it,
        it is among those ``waiting``."""
        self.waiting.add(member)
        if rest_ms:
            self._loop.call_later(rest_ms / 1000.0, lambda: _guard(member, member.take_turn))
            return
        if not self._turns:
            self._loop.call_soon(self._take_turns)
        self._turns.append(member)

    def _take_turns(self) -> None:
        turns, self._turns = self._turns, []
        for member in turns:
            _guard(member, member.take_turn)

    # ----------------------------------------------------------------------------------------------------- timers

    def wake_at(self, due_ms: float, member: Member) -> None:  # hot
        self._deadlines.schedule(due_ms, member)
        if due_ms < self._timer_due_ms:
            self._arm()

    def keep_at(self, due_ms: float, member: Member) -> None:
        self._keepalives.schedule(due_ms, member)
        if due_ms < self._timer_due_ms:
            self._arm()

    def expect_by(self, due_ms: float, member: Member) -> None:
        """Have ``member.on_unopened`` called at ``due_ms``."""
        self._unopened.schedule(due_ms, member)
        if due_ms < self._timer_due_ms:
            self._arm()

    def _arm(self) -> None:
        due_ms = min(self._deadlines.next_due_ms, self._keepalives.next_due_ms, self._unopened.next_due_ms)
        if due_ms >= self._timer_due_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_ms = due_ms
        # In whole milliseconds, as the loop counts them: it rounds, and a timer a moment early would go off again and again.
        delay_ms = math.ceil(due_ms - self.clock())
        self._timer = self._loop.call_later(max(delay_ms, 0) / 1000.0, self._on_timer)

    def _on_timer(self) -> None:
        self.now_ms = now_ms = self.clock()
        self._timer = None
        # Nobody needs to arm the timer while it is being served.
        self._timer_due_ms = -math.inf
        for member in self._deadlines.take_due(now_ms):
            _guard(member, member.on_deadline, now_ms)
        for member in self._keepalives.take_due(now_ms):
            _guard(member, member.on_keepalive, now_ms)
        for member in self._unopened.take_due(now_ms):
            _guard(member, member.on_unopened, now_ms)
        self._timer_due_ms = math.inf
        self._arm()

    def call_later(self, delay_ms: float, callback: Callable[[], None]) -> None:
        """For what no connection looks after any more."""
        self._loop.call_later(delay_ms / 1000.0, callback)

    def stop(self) -> None:
        """Cancel the loop timer. Nothing is due any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_due_ms = -math.inf
