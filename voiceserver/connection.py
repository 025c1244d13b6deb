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

from voiceserver.errors import ProtocolError
from voiceserver.events import BusyCue, ErrorEvent, ServerBusy, ServerEvent
from voiceserver.handshake import HEAD_END, MAX_BODY_BYTES, MAX_HEAD_BYTES, body_length, is_tls_hello
from voiceserver.http import Response, Upgrade, error_response, refusal_message
from voiceserver.resume import Resumable
from voiceserver.wire.frames import PING, build_frame, build_head

if TYPE_CHECKING:
    from voiceserver.errors import Refusal
    from voiceserver.hub import Hub
    from voiceserver.session import Session

# For the peer's half of a closing handshake, and for the last bytes to leave.
CLOSE_TIMEOUT_MS: Final = 2_000.0
CHOKE: Final = 4  # times the write limit
TOLD_MS: Final = 1_500.0  # how long a refused browser has to read why
LINGER_MS: Final = 6_000.0  # the longest last word that a phone is given time to play
_PING: Final = build_head(PING, 0)
KEEP_ALIVE_LATER_MS: Final = 5_000.0  # how often a call without a connection is passed over


class Connection(Resumable, asyncio.Protocol):
    """Bytes of one socket, and time."""

    __slots__ = (
        "_close_by_ms",
        "_heard_ms",
        "_held_ms",
        "_is_ended",
        "_is_waiting",
        "_outbox",
        "_ping_ms",
        "_transport",
    )

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._transport: asyncio.Transport | None = None
        self._outbox: list[bytes] | None = None
        self._is_ended = False  # nothing more is written after what the outbox holds
        self._is_waiting = False  # for its turn to go on reading
        self._close_by_ms = math.inf  # times in monotonic ms; 0 is "not so"
        self._heard_ms = 0.0
        self._ping_ms = self._held_ms = 0.0

    # ------------------------------------------------------------------------------------------------ the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        hub = self._hub
        self._transport = cast("asyncio.Transport", transport)
        hub.connections.add(self)
        hub.metrics.connections.inc()
        self._opened_ms = now_ms = hub.clock()
        self.wake_at(now_ms + hub.config.server.handshake_timeout_ms)

    def data_received(self, data: bytes) -> None:  # hot
        hub = self._hub
        hub.now_ms = now_ms = hub.clock()
        if self._codec is None:
            self._receive_head(data, now_ms)
        elif not self._is_ended:
            if self.feed(data):
                self._heard_ms = now_ms
            self._pump(now_ms)
            if self._held_ms:
                self._listen_or_not()

    def wait_for_turn(self) -> None:
        if self._transport is not None and not self._is_waiting:
            self._is_waiting = True
            if self._transport.is_reading():
                self._transport.pause_reading()
            self._hub.take_turn_later(self)

    def take_turn(self) -> None:
        """Go on with what was left when this connection had had its share of a tick."""
        self._is_waiting = False
        if self._transport is None:
            return
        self.data_received(b"")
        transport = self._transport
        if transport is not None and not self._is_waiting and not transport.is_closing():
            transport.resume_reading()
            if self._held_ms:
                self._listen_or_not()

    def _listen_or_not(self) -> None:
        """Whoever asks for more and more answers (pings, mistakes) and reads none is not read any more either."""
        transport = self._transport
        if transport is None or self._is_waiting or transport.is_closing():
            return
        is_choked = transport.get_write_buffer_size() > CHOKE * self._hub.config.server.write_limit_bytes
        if is_choked and transport.is_reading():
            transport.pause_reading()
        elif not is_choked and not transport.is_reading():
            transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        hub = self._hub
        now_ms = hub.now_ms = hub.clock()
        self._transport = None
        self._outbox = None
        hub.connections.discard(self)
        hub.metrics.connections.dec()
        if self._codec is not None:
            hub.leave()
        if self._ticket is None and self._codec is not None:
            hub.admission.lingering -= 1
        session = self._session
        if session is not None and self.detach(session, now_ms):
            self.restart()
            self._is_ended = self._is_waiting = False
            self._close_by_ms = math.inf
            self._ping_ms = self._held_ms = 0.0
            return
        self.leave_places(now_ms)
        if session is not None:
            session.disconnect(now_ms)
            self._pump(now_ms)
            self._account(session, now_ms)
            self._session = None

    def go_on_over(self, other: Connection, upgrade: Upgrade, now_ms: float) -> None:
        """The caller of this call is back, on the connection ``other``: take its socket."""
        hub, session, transport, claim = self._hub, self._session, other._transport, upgrade.claim
        assert session is not None and transport is not None and claim is not None  # noqa: PT018
        if self._transport is not None:  # broken, and nobody has told us
            broken, self._transport = self._transport, None
            broken.set_protocol(asyncio.Protocol())
            broken.abort()
            self.connection_lost(None)
        hub.connections.discard(other)
        hub.connections.add(self)
        other._transport, self._transport = None, transport
        transport.set_protocol(self)
        transport.set_write_buffer_limits(hub.config.server.write_limit_bytes)
        hub.join()
        if upgrade.ticket is not None:
            self._ticket = upgrade.ticket
            upgrade.ticket.owner = self
        self._heard_ms = self._active_ms = now_ms
        self.write(upgrade.data)
        self.attach(session, claim.after, now_ms)
        if upgrade.ticket is not None and upgrade.ticket.is_waiting:
            session.waiting(upgrade.ticket.position, upgrade.ticket.estimate_ms, now_ms)
        self._pump(now_ms)

    def pause_writing(self) -> None:
        now_ms = self._hub.clock()
        self._held_ms = now_ms
        if self._session is not None:
            self._session.hold_output(True, now_ms)
        self.wake_at(now_ms + self._hub.config.server.slow_reader_timeout_ms)

    def resume_writing(self) -> None:
        self._held_ms = 0.0
        self._listen_or_not()
        if self._session is not None:
            now_ms = self._hub.clock()
            self._session.hold_output(False, now_ms)
            self._pump(now_ms)

    # ---------------------------------------------------------------------------------------------- the handshake

    def _receive_head(self, data: bytes, now_ms: float) -> None:
        inbox = self._inbox
        if self._is_ended:
            return
        if inbox is None:
            if is_tls_hello(data):
                self._hub.log.warning("a client speaks TLS to the plain port", peer=self._peer())
                self.abort()
                return
            inbox = self._inbox = bytearray()
        inbox += data
        end = inbox.find(HEAD_END)
        if end < 0 and len(inbox) <= MAX_HEAD_BYTES:
            return
        if not 0 <= end <= MAX_HEAD_BYTES:
            self._answer(error_response(431, "request_too_large", "The request head is too large."))
            return
        end += len(HEAD_END)
        length = body_length(bytes(inbox[:end]))
        if not 0 <= length <= MAX_BODY_BYTES:
            self._answer(error_response(413, "request_too_large", "The request body is too large."))
            return
        if len(inbox) < end + length:
            return
        head, body = bytes(inbox[:end]), bytes(inbox[end : end + length])
        answer = self._hub.router.answer(head, now_ms, self._address(), body)
        if isinstance(answer, Response):
            self._answer(answer)
            return
        rest = inbox[end:]
        self._inbox = None
        call: Connection = self
        if answer.claim is not None and answer.refusal is None:
            call = cast("Connection", answer.claim.call)
            call.go_on_over(self, answer, now_ms)
        else:
            self._open(answer, now_ms)
        if rest:
            call.data_received(bytes(rest))

    def _answer(self, response: Response) -> None:
        self._inbox = None
        self._hub.metrics.count_http(response.status)
        if response.status == 503:
            self._hub.metrics.count_refused("http")
        self.write(response.to_bytes())
        self.end_stream()

    def _open(self, upgrade: Upgrade, now_ms: float) -> None:
        hub = self._hub
        self._codec = codec = upgrade.codec
        self._ticket = upgrade.ticket
        self.max_message_bytes = getattr(codec, "max_message_bytes", self.max_message_bytes)
        hub.join()
        self._heard_ms = self._active_ms = self._opened_ms = now_ms
        self._armed_ms = math.inf
        self.write(upgrade.data)
        if upgrade.refusal is not None:
            self._tell(upgrade.refusal, now_ms)
            return
        assert self._transport is not None
        self._transport.set_write_buffer_limits(hub.config.server.write_limit_bytes)
        self._session = session = hub.make_session(codec)
        if hub.auth is not None and upgrade.key:
            session.key = upgrade.key
            hub.auth.enter(session.key)
        hub.metrics.count_opened(codec.name)
        session.open(now_ms)
        if session.resume_token:
            hub.calls.add(session.session_id, self)
            for frame in (one for event in session.events_to_send() for one in codec.encode(event)):
                self.write(build_frame(frame))
        ticket = upgrade.ticket
        if ticket is not None:
            ticket.owner = self
            if ticket.is_waiting:
                session.waiting(ticket.position, ticket.estimate_ms, now_ms)
        self._pump(now_ms)
        self._keep(now_ms)

    def _tell(self, refusal: Refusal, now_ms: float) -> None:
        hub = self._hub
        hub.admission.lingering += 1
        hub.metrics.count_refused(refusal.reason)
        assert self._codec is not None
        if getattr(self._codec, "tells_refusal", False):
            told: tuple[ServerEvent, ...] = (
                ServerBusy("admission", refusal.reason, 0.0, 0.0, refusal.retry_after_ms, step="waiting"),
                BusyCue("draining" if refusal.reason == "draining" else "full"),
            )
        else:
            told = (ErrorEvent(code=refusal.reason, message=refusal_message(refusal), retryable=True),)
        for event in told:
            self._queue(self._codec.encode(event))
        self._close_by(now_ms + TOLD_MS)

    def tell_later(self, payload: bytes) -> None:
        codec = self._codec
        assert codec is not None
        try:
            codec.receive_text(payload)
        except ProtocolError:
            return
        frames = codec.frames_to_send()
        if frames:
            self._queue(frames)
            linger_ms = min(getattr(codec, "linger_ms", 0.0), LINGER_MS)
            self._close_by(self._hub.now_ms + max(TOLD_MS, linger_ms))

    # ------------------------------------------------------------------------------------------------ messages out

    def write(self, data: bytes) -> None:  # hot
        if self._transport is None:
            return
        if self._outbox is None:
            self._outbox = [data]
            self._hub.flush_later(self)
        else:
            self._outbox.append(data)

    def part(self, session: Session, now_ms: float) -> None:
        """The session is over: begin the closing handshake, if the peer did not."""
        session.events_to_send()
        self.leave_places(now_ms)
        if self._transport is None or self.is_closing:
            return
        if self._close_by_ms == math.inf:  # a phone has yet to hear what was said last
            self._close_by_ms = now_ms + min(getattr(self._codec, "linger_ms", 0.0), LINGER_MS)
        if now_ms < self._close_by_ms:
            self.wake_at(self._close_by_ms)
            return
        self.close(session.close_code, session.close_reason)
        self._close_by(now_ms + CLOSE_TIMEOUT_MS)

    def end_stream(self) -> None:
        """Say our last, then wait a little for the peer's end: to close on unread bytes would reset the connection, and
        the peer would lose what we said."""
        self._is_ended = True
        self._hub.flush_later(self)
        self._close_by(self._hub.clock() + CLOSE_TIMEOUT_MS)

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
            self._hub.wake_at(due_ms, self)

    def _close_by(self, due_ms: float) -> None:
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
        elif self._codec is None:
            self._answer(error_response(408, "handshake_timeout", "No complete request came in time."))
        elif session is not None:
            self.part(session, now_ms)
        else:
            self.close(1013, "at_capacity")
            self._close_by(now_ms + CLOSE_TIMEOUT_MS)

    def _serve_deadline(self, session: Session, now_ms: float) -> None:
        if self._held_ms:
            give_up_ms = self._held_ms + self._hub.config.server.slow_reader_timeout_ms
            if now_ms >= give_up_ms:
                session.fail("slow_reader", "What was sent was not read in time.", 1008, now_ms)
                self.abort()
                return
            self.wake_at(give_up_ms)
        if now_ms >= session.deadline_ms:
            session.handle_timer(now_ms)
        self._pump(now_ms)

    def _keep(self, now_ms: float) -> None:
        server = self._hub.config.server
        due_ms = math.inf
        if server.ping_interval_ms:
            due_ms = self._heard_ms + server.ping_interval_ms
            if self._ping_ms:
                due_ms = self._ping_ms + server.ping_timeout_ms
        if server.idle_timeout_ms:
            due_ms = min(due_ms, self._active_ms + server.idle_timeout_ms)
        if server.max_session_ms:
            due_ms = min(due_ms, self._opened_ms + server.max_session_ms)
        self._hub.keep_at(due_ms, self)

    def on_keepalive(self, now_ms: float) -> None:
        session, server = self._session, self._hub.config.server
        if self.is_detached or (self._is_ended and self._transport is not None):
            self._hub.keep_at(now_ms + KEEP_ALIVE_LATER_MS, self)
            return
        if self._transport is None or session is None or session.is_closed:
            return
        if self._ping_ms and self._heard_ms >= self._ping_ms:
            self._ping_ms = 0.0
        if self._hub.has_talked_enough(session):
            session.fail(
                "key_talk_exhausted", "This API key has talked as long as it may today.", 1008, now_ms
            )
        elif server.max_session_ms and now_ms >= self._opened_ms + server.max_session_ms:
            session.fail("session_expired", f"A session may last {server.max_session_ms} ms.", 1000, now_ms)
        elif server.idle_timeout_ms and now_ms >= self._active_ms + server.idle_timeout_ms:
            session.fail("idle_timeout", f"Nothing was said for {server.idle_timeout_ms} ms.", 1000, now_ms)
        elif self._ping_ms and now_ms >= self._ping_ms + server.ping_timeout_ms:
            if self.is_kept_if_lost(session):
                self.abort()  # perhaps only this connection is gone
            else:
                self.fail(1011, "ping timeout")
        elif (
            server.ping_interval_ms
            and not self._ping_ms
            and now_ms >= self._heard_ms + server.ping_interval_ms
        ):
            self._ping_ms = now_ms
            self.write(_PING if self._said is None else self._said.ask(is_always=True))
        self._pump(now_ms)
        self._keep(now_ms)

    # ------------------------------------------------------------------------------------------------------- ends

    def drain(self, within_ms: float) -> None:
        """The server is going: finish the turn in progress within ``within_ms``, then close with 1012."""
        now_ms = self._hub.clock()
        if self._session is not None:
            self._session.drain(within_ms, now_ms)
            self._pump(now_ms)
        elif self._codec is not None:
            self.close(1012, "draining")
            self._close_by(now_ms + CLOSE_TIMEOUT_MS)

    def abort(self) -> None:
        self._is_ended = True
        if self._transport is not None:
            self._transport.abort()

    def _address(self) -> str:
        return self._peer().rpartition(":")[0]

    def _peer(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{peer[0]}:{peer[1]}" if peer else "unknown"
