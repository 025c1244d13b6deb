"""One connection: the thin shell between a socket, a codec, a session and its streams.

It decides nothing. Bytes come in through ``data_received``, time through ``on_deadline``; after each, ``_pump`` moves what can
move, and the outbox leaves in one write per tick. There is no task, queue or timer of its own, and while it idles it
holds a session and nothing else.

::

    HEAD ---> OPEN ---> CLOSING ---> gone          OPEN has a session; TOLD is a refused browser that is
      |-----> TOLD ------^                         given a second to read why
      |-----> CLOSING (a plain HTTP answer)
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, cast

from voiceserver.events.events import ErrorEvent
from voiceserver.transport.ticks import LONG_TURN_MS
from voiceserver.transport.upgrade import LINGER_MS, TOLD_MS, Door
from voiceserver.transport.websocket import ReceiveBuffer
from voiceserver.wire.frames import PING, build_head

if TYPE_CHECKING:
    from voiceserver.session.session import Session
    from voiceserver.transport.http import Upgrade
    from voiceserver.transport.services import Services

# For the peer's half of a closing handshake, and for the last bytes to leave.
CLOSE_TIMEOUT_MS: Final = 2_000.0
CHOKE: Final = 4  # times the write limit
REST: Final = 3.0  # times a long turn: whoever keeps the loop busy has a quarter of it
_PING: Final = build_head(PING, 0)
KEEP_ALIVE_LATER_MS: Final = 5_000.0  # how often a call without a connection is passed over


class Connection(Door, asyncio.Protocol):
    """Bytes of one socket, and time."""

    __slots__ = (
        "_close_by_ms",
        "_held_ms",
        "_outbox",
        "_ping_ms",
        "_transport",
    )

    def __init__(self, services: Services, head: bytes = b"") -> None:
        """head: what came before another process handed the connection on."""
        super().__init__(services)
        self._receive_buffer = ReceiveBuffer(head) if head else None
        self._transport: asyncio.Transport | None = None
        self._outbox: list[bytes] | None = None
        self._close_by_ms = math.inf  # times in monotonic ms; 0 is "not so"
        self._ping_ms = self._held_ms = 0.0

    # ------------------------------------------------------------------------------------------------ the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        services = self._services
        self._transport = cast("asyncio.Transport", transport)
        services.state.connections[self] = None
        services.metrics.connections.inc()
        self._opened_ms = now_ms = services.ticks.clock()
        services.timers.expect_by(now_ms + services.config.server.handshake_timeout_ms, self)

    @property
    def data_received(self) -> Connection:
        """What a transport calls with what it has read. uvloop keeps it: a bound method would cost every connection 80 bytes."""
        return self

    def __call__(self, data: bytes) -> None:  # hot
        services = self._services
        services.ticks.now_ms = now_ms = services.ticks.clock()
        try:
            if self._codec is None:
                self.receive_head(data, now_ms)
            elif not self._is_ended:
                if self.feed(data):
                    self._heard_ms = now_ms
                self._pump(now_ms)
                if self._held_ms:
                    self._listen_or_not()
        except Exception as error:
            self.on_fault(error)

    def wait_for_turn(self) -> None:
        services = self._services
        if self._transport is not None and self not in services.ticks.waiting:
            if self._transport.is_reading():
                self._transport.pause_reading()
            spent_ms = services.ticks.clock() - services.ticks.now_ms
            services.ticks.take_turn_later(self, spent_ms * REST if spent_ms > LONG_TURN_MS else 0.0)

    def has_had_enough(self) -> bool:
        return self._services.ticks.clock() - self._services.ticks.now_ms > LONG_TURN_MS

    def take_turn(self) -> None:
        """Go on with what was left when this connection had had its share of a tick."""
        waiting = self._services.ticks.waiting
        if self not in waiting:  # another socket by now
            return
        waiting.discard(self)
        if self._transport is None or self._is_held_back or self._is_choked():
            return
        self.data_received(b"")
        transport = self._transport
        is_held = self in waiting or self._is_held_back
        if transport is not None and not is_held and not transport.is_closing():
            transport.resume_reading()
            if self._held_ms:
                self._listen_or_not()

    def hold_back(self, is_held: bool) -> None:
        transport = self._transport
        if transport is None:  # whoever comes back is held back then
            self._is_held_back = False
            return
        self._is_held_back = is_held
        if not is_held:  # and what it sent meanwhile was not late: we did not read it
            self._be_patient(self._services.ticks.clock())
            self.wait_for_turn()
        elif transport.is_reading() and not transport.is_closing():
            transport.pause_reading()

    def _be_patient(self, now_ms: float) -> None:
        self._heard_ms = self._active_ms = now_ms
        self._ping_ms = 0.0

    def _listen_or_not(self) -> None:
        """Whoever asks for more and more answers (pings, mistakes) and reads none is not read any more either."""
        transport = self._transport
        if (
            transport is None
            or self._is_held_back
            or self in self._services.ticks.waiting
            or transport.is_closing()
        ):
            return
        is_choked = self._is_choked()
        if is_choked and transport.is_reading():
            transport.pause_reading()
        elif not is_choked and not transport.is_reading():
            transport.resume_reading()

    def _is_choked(self) -> bool:
        transport = self._transport
        limit = CHOKE * self._services.config.server.write_limit_bytes
        return transport is not None and transport.get_write_buffer_size() > limit

    def connection_lost(self, exc: Exception | None) -> None:
        services = self._services
        now_ms = services.ticks.now_ms = services.ticks.clock()
        self._leave_socket()
        if self._ticket is None and self._codec is not None:
            services.places.admission.lingering -= 1
        session = self.session_made()
        if session is not None and self.detach(session, now_ms):
            self._start_over()
            return
        self.leave_places(now_ms)
        if session is not None:
            session.disconnect(now_ms)
            self._pump(now_ms)
            self._account(session, now_ms)
            self._session = None
        self.restart()  # the wheels may hold this connection for a while, and what it read is worth nothing
        self._codec = self._streams = None

    def _leave_socket(self) -> None:
        services = self._services
        self._transport = None
        self._outbox = None
        services.state.connections.pop(self, None)
        services.metrics.connections.dec()
        if self._codec is not None:
            services.state.leave()

    def _start_over(self) -> None:
        """Be ready for another socket."""
        self.restart()
        self._is_ended = self._is_held_back = False
        self._services.ticks.waiting.discard(self)
        self._close_by_ms = math.inf
        self._ping_ms = self._held_ms = 0.0

    def hand_on(self, process: int, data: bytes) -> bool:
        transport, handoff = self._transport, self._services.handoff
        if transport is None or handoff is None or not handoff.hand_on(transport, process, data):
            return False
        self._services.metrics.calls_handed_on.inc()
        self._is_ended, self._receive_buffer = True, None
        self.connection_lost(None)
        return True

    def go_on_over(self, other: Door, upgrade: Upgrade, now_ms: float) -> None:
        assert isinstance(other, Connection)
        services, session, transport, claim = (
            self._services,
            self.session_made(),
            other._transport,
            upgrade.resume,
        )
        assert session is not None and transport is not None and claim is not None  # noqa: PT018
        if self._transport is not None:  # broken, and nobody has told us; or another client has the token
            self._say_taken_over(self._transport)
            if self.is_kept_if_lost(session):
                self.connection_lost(None)
            else:  # nothing was said that could be lost
                self._leave_socket()
                self._start_over()
        services.state.connections.pop(other, None)
        services.state.connections[self] = None
        other._transport, self._transport = None, transport
        transport.set_protocol(self)
        self.limit_writes()
        services.state.join()
        if upgrade.ticket is not None:
            self._ticket = upgrade.ticket
            upgrade.ticket.owner = self
        self._heard_ms = self._active_ms = now_ms
        self.write(upgrade.data)
        self.attach(session, claim.after, now_ms)
        if upgrade.ticket is not None and upgrade.ticket.is_waiting:
            session.waiting(upgrade.ticket.position, upgrade.ticket.estimate_ms, now_ms)
        self.on_outage(now_ms, is_back=True)
        self._pump(now_ms)

    def _say_taken_over(self, transport: asyncio.Transport) -> None:
        """The last words on a socket that another one takes the place of."""
        if not self.is_closing and self._codec is not None:
            message = "The session goes on over another connection, which came with its token."
            self.write_frames(self._codec.encode(ErrorEvent(code="session_taken_over", message=message)))
            self.close(1000, "session_taken_over")
            self.flush()
            self.restart()
        self._transport = None
        transport.set_protocol(asyncio.Protocol())  # which hears nothing
        if transport.can_write_eof():
            transport.write_eof()
        else:  # TLS has no half-closed state
            transport.close()
        self._services.ticks.call_later(CLOSE_TIMEOUT_MS, transport.abort)

    def pause_writing(self) -> None:
        now_ms = self._services.ticks.clock()
        self._held_ms = now_ms
        session = self.session_made()
        if session is not None:
            session.hold_output(True, now_ms)
        self.wake_at(now_ms + self._services.config.server.slow_reader_timeout_ms)

    def resume_writing(self) -> None:
        self._held_ms = 0.0
        now_ms = self._services.ticks.now_ms = self._services.ticks.clock()
        if self.has_partial_message:  # or messages that waited until answers had left
            self.wait_for_turn()
        else:
            self._listen_or_not()
        if self._session is not None:
            self._session.hold_output(False, now_ms)
            self._pump(now_ms)

    # ------------------------------------------------------------------------------------------------ messages out

    def write(self, data: bytes) -> None:  # hot
        if self._transport is None:
            return
        if self._outbox is None:
            self._outbox = [data]
            self._services.ticks.flush_later(self)
        else:
            self._outbox.append(data)

    def part(self, session: Session, now_ms: float) -> None:
        """The session is over: begin the closing handshake, if the peer did not."""
        session.events_to_send()
        self.leave_places(now_ms)
        if self._transport is None or self.is_closing:
            return
        if self._close_by_ms == math.inf:  # a phone has yet to hear what was said last
            linger_ms = min(self._codec.linger_ms, LINGER_MS) if self._codec is not None else 0.0
            self._close_by_ms = now_ms + (
                max(linger_ms, TOLD_MS) if session.close_code == 1013 else linger_ms
            )
        if now_ms < self._close_by_ms:
            self.wake_at(self._close_by_ms)
            return
        self.close(session.close_code, session.close_reason)
        self.close_by(now_ms + CLOSE_TIMEOUT_MS)

    def end_stream(self) -> None:
        """Say our last, then wait a little for the peer's end: to close on unread bytes would reset the connection, and
        the peer would lose what we said."""
        self._is_ended = True
        self._services.ticks.flush_later(self)
        self.close_by(self._services.ticks.clock() + CLOSE_TIMEOUT_MS)

    def flush(self) -> None:  # hot
        outbox, transport = self._outbox, self._transport
        self._outbox = None
        if transport is None:
            return
        if outbox:
            transport.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))
        if self._is_ended and transport.can_write_eof():
            transport.write_eof()
        elif self._is_ended:  # TLS has no half-closed state
            transport.close()

    # ------------------------------------------------------------------------------------------------------- time

    def wake_at(self, due_ms: float) -> None:  # hot
        if due_ms < self._armed_ms:
            self._armed_ms = due_ms
            self._services.timers.wake_at(due_ms, self)

    def close_by(self, due_ms: float) -> None:
        self._close_by_ms = due_ms
        self.wake_at(due_ms)

    def on_deadline(self, now_ms: float) -> None:
        session = self._session
        if now_ms < self._armed_ms:
            return
        self._armed_ms = math.inf
        if self._transport is None:
            if session is not None and self.is_detached:
                self.serve_detached(session, now_ms)
            return
        if session is not None and not session.is_closed and not self.is_closing:
            self._serve_deadline(session, now_ms)
        elif now_ms < self._close_by_ms and self._codec is not None:
            self.wake_at(self._close_by_ms)
        elif self._is_ended or self.is_closing:
            self.abort()
        elif session is not None:
            self.part(session, now_ms)
        else:
            self.close(1013, "at_capacity")
            self.close_by(now_ms + CLOSE_TIMEOUT_MS)

    def _serve_deadline(self, session: Session, now_ms: float) -> None:
        if self._held_ms:
            give_up_ms = self._held_ms + self._services.config.server.slow_reader_timeout_ms
            if now_ms >= give_up_ms:
                self._services.metrics.count_error("slow_reader")
                session.fail("slow_reader", "What was sent was not read in time.", 1008, now_ms)
                # The reason is behind what is unread, for one who reads on within CLOSE_TIMEOUT_MS.
                self._pump(now_ms)
                return
            self.wake_at(give_up_ms)
        if now_ms >= session.deadline_ms:
            session.handle_timer(now_ms)
        self._pump(now_ms)

    def keep(self, now_ms: float) -> None:
        server = self._services.config.server
        due_ms = math.inf
        if server.ping_interval_ms:
            due_ms = self._heard_ms + server.ping_interval_ms
            if self._ping_ms:
                due_ms = self._ping_ms + server.ping_timeout_ms
        if server.idle_timeout_ms:
            due_ms = min(due_ms, self._active_ms + server.idle_timeout_ms)
        if server.max_session_ms:
            due_ms = min(due_ms, self._opened_ms + server.max_session_ms)
        if self._session is not None and self._session.key:
            due_ms = min(due_ms, now_ms + self._services.auth.talk_check_ms(self._session.key))
        self._services.timers.keep_at(due_ms, self)

    def on_keepalive(self, now_ms: float) -> None:
        session, server = self._session, self._services.config.server
        if self.is_detached or (self._is_ended and self._transport is not None):
            self._services.timers.keep_at(now_ms + KEEP_ALIVE_LATER_MS, self)
            return
        if self._transport is None or (session.is_closed if session is not None else not self._seed):
            return
        if self._is_held_back:
            self._be_patient(now_ms)
        if self._ping_ms and self._heard_ms >= self._ping_ms:
            self._ping_ms = 0.0
        end = self._reason_to_end(session, now_ms)
        if end is not None:
            session = self.session_made()
            assert session is not None
            session.fail(*end, now_ms)
        elif self._ping_ms and now_ms >= self._ping_ms + server.ping_timeout_ms:
            if session is not None and self.is_kept_if_lost(session):
                self.abort()  # perhaps only this connection is gone
            else:
                self.fail(1011, "ping timeout")
        elif (
            server.ping_interval_ms
            and not self._ping_ms
            and now_ms >= self._heard_ms + server.ping_interval_ms
        ):
            self._ping_ms = now_ms
            self.write(_PING if self._replay_buffer is None else self._replay_buffer.ask(is_always=True))
        self._pump(now_ms)
        self.keep(now_ms)

    def _reason_to_end(self, session: Session | None, now_ms: float) -> tuple[str, str, int] | None:
        """Why this call has lasted long enough: error code, words, close code."""
        server = self._services.config.server
        if session is not None and session.key:
            received_ms = session.accounting().received_ms
            self._services.auth.note(session.key, session.session_id, received_ms)
        if session is not None and session.key and self._services.auth.talk_left_ms(session.key) <= 0:
            return "key_talk_exhausted", "This API key has talked as long as it may today.", 1008
        if server.max_session_ms and now_ms >= self._opened_ms + server.max_session_ms:
            return "session_expired", f"A session may last {server.max_session_ms} ms.", 1000
        if server.idle_timeout_ms and now_ms >= self._active_ms + server.idle_timeout_ms:
            return "idle_timeout", f"Nothing was said for {server.idle_timeout_ms} ms.", 1000
        return None

    # ------------------------------------------------------------------------------------------------------- ends

    def drain(self, within_ms: float) -> None:
        """The server is going: finish the turn in progress within ``within_ms``, then close with 1012."""
        now_ms = self._services.ticks.clock()
        session = self.session_made()
        if session is not None:
            session.drain(within_ms, now_ms)
            self._pump(now_ms)
        elif self._codec is not None:
            self.close(1012, "draining")
            self.close_by(now_ms + CLOSE_TIMEOUT_MS)

    def abort(self) -> None:
        self._is_ended = True
        if self._transport is not None:
            self._transport.abort()

    def limit_writes(self) -> None:
        assert self._transport is not None
        self._transport.set_write_buffer_limits(self._services.config.server.write_limit_bytes)

    def peer(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{peer[0]}:{peer[1]}" if peer else "unknown"

    def address(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return cast("str", peer[0]) if peer else ""
