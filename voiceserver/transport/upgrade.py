"""From a connection's first byte to an open call, or to a plain HTTP answer.

A caller is greeted at once, and its call is made with the first thing that needs a session (``SilentCaller``): most callers of a
large server are silent, and until they speak they hold a few random bytes, which are their session's name and token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from voiceserver.errors import ProtocolError
from voiceserver.transport.call import LINGER_MS, TOLD_MS, Call
from voiceserver.transport.call_messages import CallConnection, name_of_violation
from voiceserver.transport.handshake import HEAD_END, MAX_HEAD_BYTES, BadRequest, body_length, is_tls_hello
from voiceserver.transport.http import (
    CALL_IS_ELSEWHERE,
    OtherProcess,
    Response,
    Upgrade,
    error_response,
    refusal_events,
)
from voiceserver.transport.websocket import FrameReceiver
from voiceserver.wire import Codec, Frame, read_text
from voiceserver.wire.frames import build_frame

if TYPE_CHECKING:
    import asyncio

    from voiceserver.capacity.admission import Ticket
    from voiceserver.errors import Refusal
    from voiceserver.transport.services import Services


class PendingCaller(FrameReceiver, Protocol):
    """A caller on an upgraded connection who has no call."""

    codec: Codec
    active_ms: float
    opened_ms: float

    def begin(self) -> Call | None:
        """Its call, made now; None if there can be none."""

    def on_outage(self, now_ms: float) -> None: ...

    def leave(self) -> None:
        """Its connection is gone, and it has no call."""


class OpeningConnection(CallConnection, Protocol):
    """What an opening asks of its connection; ``voiceserver.transport.connection.Connection`` is one."""

    services: Services
    call: Call | None
    pending: PendingCaller | None

    @property
    def transport(self) -> asyncio.Transport | None: ...

    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def open(self, caller: Call | PendingCaller, now_ms: float) -> None:
        """The handshake is done: whose messages the connection brings from now on."""

    def drain(self, within_ms: float) -> None: ...

    def on_keepalive(self, now_ms: float) -> None: ...

    def on_unopened(self, now_ms: float) -> None: ...

    def on_fault(self, error: Exception) -> None: ...

    def keep(self, now_ms: float) -> None:
        """Begin to look after the caller: pings, and the bounds of its time."""

    def make_call(self) -> Call | None: ...


class SilentCaller:
    """A caller who was greeted and has sent nothing: the seed of its session, and no more.

    ``active_ms``: when a message last went either way. On a wire without state (``is_shared``).
    """

    # There is one for every idle connection.
    __slots__ = ("_connection", "_seed", "_ticket", "active_ms", "codec", "opened_ms")

    def __init__(
        self, connection: OpeningConnection, codec: Codec, seed: bytes, ticket: Ticket | None, now_ms: float
    ) -> None:
        self._connection = connection
        self._seed = seed
        self._ticket = ticket
        self.codec = codec
        self.active_ms = self.opened_ms = now_ms

    def make_call(self) -> Call:
        call = self._connection.make_call()
        assert call is not None
        return call

    def begin(self) -> Call:
        services = self._connection.services
        session = services.sessions.make(self.codec, self._seed)
        session.open(services.ticks.now_ms)
        session.events_to_send()  # was sent with the greeting
        notices = services.outage.forget_silent(self)
        session.gone = notices.stage
        call = Call(
            services,
            self.codec,
            session,
            self._connection,
            ticket=self._ticket,
            opened_ms=self.opened_ms,
            unkept=notices.sent,
        )
        services.sessions.store.grow(self._seed, session.session_id, call)
        return call

    def receive_binary(self, payload: bytes) -> None:
        self.make_call().messages.receive_binary(payload)

    def receive_run(self, payloads: list[bytes]) -> bool:
        return self.make_call().messages.receive_run(payloads)

    def receive_text(self, payload: bytes) -> None:
        self.make_call().messages.receive_text(payload)

    def receive_pong(self, payload: bytes) -> None: ...

    def receive_close(self, code: int, reason: str) -> None:
        self.make_call().messages.receive_close(code, reason)

    def receive_violation(self, code: int, reason: str) -> None:
        self.make_call().messages.receive_violation(code, reason)

    def on_outage(self, now_ms: float) -> None:
        services = self._connection.services
        event = services.outage.next_for_silent(self)
        if event is not None:
            self.active_ms = now_ms
            services.metrics.observe(event)
            self._connection.write(services.outage.frame_of(event, self.codec))

    def leave(self) -> None:
        services = self._connection.services
        services.sessions.store.forget_silent(self._seed)
        if self._ticket is not None:
            self._ticket.release(services.ticks.now_ms)
            services.places.changed()


class RefusedCaller:
    """A caller who is told why there is no place: over an upgraded connection, because it would not understand an HTTP 503."""

    __slots__ = ("_connection", "active_ms", "codec", "opened_ms")

    def __init__(self, connection: OpeningConnection, codec: Codec, now_ms: float) -> None:
        self._connection = connection
        self.codec = codec
        self.active_ms = self.opened_ms = now_ms
        connection.services.places.admission.lingering += 1

    def tell(self, refusal: Refusal, now_ms: float) -> None:
        for event in refusal_events(refusal, is_spoken=self.codec.traits.tells_refusal):
            self._send(self.codec.encode(event))
        self._connection.close_by(now_ms + TOLD_MS)

    def _send(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._connection.write(build_frame(frame))

    def begin(self) -> None: ...

    def receive_binary(self, payload: bytes) -> None: ...

    def receive_run(self, payloads: list[bytes]) -> bool:
        return True

    def receive_text(self, payload: bytes) -> None:
        """On some wires nothing can be told before the caller's first message."""
        try:
            read_text(self.codec, payload)
        except ProtocolError:
            return
        frames = self.codec.frames_to_send()
        if frames:
            self._send(frames)
            linger_ms = min(self.codec.linger_ms, LINGER_MS)
            self._connection.close_by(self._connection.services.ticks.now_ms + max(TOLD_MS, linger_ms))

    def receive_pong(self, payload: bytes) -> None: ...

    def receive_close(self, code: int, reason: str) -> None: ...

    def receive_violation(self, code: int, reason: str) -> None:
        self._connection.services.metrics.count_error(name_of_violation(code))

    def on_outage(self, now_ms: float) -> None: ...

    def leave(self) -> None:
        self._connection.services.places.admission.lingering -= 1


class Opening:
    """One connection's request, until it is answered. ``feed`` reads it."""

    __slots__ = ("_connection", "_receive_buffer", "_services")

    def __init__(self, connection: OpeningConnection, head: bytes = b"") -> None:
        """head: what came before another process handed the connection on."""
        self._services = connection.services
        self._connection = connection
        self._receive_buffer = bytearray(head)

    # ---------------------------------------------------------------------------------------------- the handshake

    def feed(self, data: bytes, now_ms: float) -> None:
        receive_buffer = self._receive_buffer
        if not receive_buffer:
            if is_tls_hello(data):
                peer = self._peer()
                where = f"{peer[0]}:{peer[1]}" if peer else "unknown"
                self._services.log.warning("a client speaks TLS to the plain port", peer=where)
                self._connection.abort()
                return
            end = data.find(HEAD_END) + len(HEAD_END)
            if end == len(data) <= MAX_HEAD_BYTES and data.startswith(b"GET "):
                self._ask(data, b"", b"", now_ms)  # all of it in one read and nothing else, as nearly always
                return
        receive_buffer += data
        end = receive_buffer.find(HEAD_END)
        if end < 0 and len(receive_buffer) <= MAX_HEAD_BYTES:
            return
        if not 0 <= end <= MAX_HEAD_BYTES:
            self.answer(error_response(431, "request_too_large", "The request head is too large."))
            return
        end += len(HEAD_END)
        try:
            length = body_length(bytes(receive_buffer[:end]))
        except BadRequest as error:
            self.answer(error_response(error.status, error.code, error.message))
            return
        if len(receive_buffer) >= end + length:
            head, body, rest = receive_buffer[:end], receive_buffer[end : end + length], receive_buffer[end:]
            self._ask(bytes(head), bytes(body), bytes(rest), now_ms)

    def _peer(self) -> tuple[str, int] | None:
        transport = self._connection.transport
        peer: tuple[str, int] | None = transport.get_extra_info("peername") if transport is not None else None
        if not peer:
            return None
        return peer[0].removeprefix("::ffff:"), peer[1]  # of IPv4, on a socket for both families

    def _ask(self, head: bytes, body: bytes, rest: bytes, now_ms: float) -> None:
        """Have the router answer a whole request. ``rest``: all that came after its head."""
        peer = self._peer()
        address = peer[0] if peer else ""
        answer = self._services.router.answer(head, now_ms, address, body)
        if isinstance(answer, Response):
            self.answer(answer)
            self._services.caller_log.answered(answer, head, address, now_ms)
        elif isinstance(answer, OtherProcess):
            self._hand_on(answer.process, head + rest)
        else:
            self._upgrade(answer, now_ms)
            if rest:
                self._connection.data_received(rest)

    def answer(self, response: Response) -> None:
        self._services.metrics.count_http(response.status)
        self._connection.write(response.to_bytes())
        if response.refused:
            self._count_refused(response.refused)
        self._connection.end_stream()

    def _count_refused(self, reason: str) -> None:
        services = self._services
        services.metrics.count_refused(reason)
        services.metrics.observe_refusal((services.ticks.clock() - services.ticks.now_ms) / 1000.0)

    def _hand_on(self, process: int, data: bytes) -> None:
        """Give the socket, with the request that came on it, to another process of this server."""
        transport, handoff = self._connection.transport, self._services.handoff
        if transport is None or handoff is None or not handoff.hand_on(transport, process, data):
            self.answer(CALL_IS_ELSEWHERE)
            return
        self._services.metrics.count_handed_on()
        self._connection.connection_lost(None)

    # --------------------------------------------------------------------------------------------------- the upgrade

    def _upgrade(self, upgrade: Upgrade, now_ms: float) -> None:
        services, connection = self._services, self._connection
        if upgrade.refusal is not None:
            refused = RefusedCaller(connection, upgrade.codec, now_ms)
            connection.open(refused, now_ms)
            connection.write(upgrade.data)
            self._count_refused(upgrade.refusal.reason)
            refused.tell(upgrade.refusal, now_ms)
            services.caller_log.told(upgrade, now_ms)
            return
        transport = connection.transport
        if transport is not None:
            transport.set_write_buffer_limits(services.config.server.write_limit_bytes)
        if upgrade.resume is not None:
            self._resume(upgrade, now_ms)
            return
        services.metrics.count_opened(upgrade.codec.traits.name)
        connection.write(upgrade.data)
        is_waiting = upgrade.ticket is not None and upgrade.ticket.is_waiting
        if upgrade.codec.traits.is_shared and not is_waiting and not upgrade.key:
            self._greet(upgrade, now_ms)
        else:
            self._begin(upgrade, now_ms)
        if not services.outage.is_whole:
            services.outage.tell(connection, now_ms)
        connection.keep(now_ms)

    def _greet(self, upgrade: Upgrade, now_ms: float) -> None:
        """Send what the session would say first, and make it later."""
        sessions, codec, connection = self._services.sessions, upgrade.codec, self._connection
        seed = sessions.store.new_seed()
        silent = SilentCaller(connection, codec, seed, upgrade.ticket, now_ms)
        sessions.store.add_silent(seed, silent)
        connection.open(silent, now_ms)
        ready = sessions.greeting(codec, seed)
        for frame in codec.encode(ready):
            connection.write(build_frame(frame))
        self._services.caller_log.opened(upgrade, ready.session_id)

    def _begin(self, upgrade: Upgrade, now_ms: float) -> None:
        """Make the session at once: it has a place in the waiting room, a key's account or a wire with a state of its own."""
        services, codec, ticket = self._services, upgrade.codec, upgrade.ticket
        session = services.sessions.make(codec)
        if upgrade.key:
            session.key = upgrade.key
            services.auth.enter(session.key)
        session.open(now_ms)
        call = Call(services, codec, session, self._connection, ticket=ticket, opened_ms=now_ms)
        self._connection.open(call, now_ms)
        if session.resume_token:
            services.sessions.store.add(session.session_id, call)
            for event in session.events_to_send():
                call.messages.send_uncounted(codec.encode(event))
        if ticket is not None and ticket.is_waiting:
            session.waiting(ticket.position, ticket.estimate_ms, now_ms)
        call.move(now_ms)
        services.caller_log.opened(upgrade, session.session_id)

    def _resume(self, upgrade: Upgrade, now_ms: float) -> None:
        """The caller of a call is back on this connection, perhaps before we know that the one before is broken."""
        target, ticket, connection = upgrade.resume, upgrade.ticket, self._connection
        assert target is not None
        call = cast("Call", target.call)
        call.release_connection()
        connection.open(call, now_ms)
        if ticket is not None:
            call.places.take(ticket, call)
        connection.write(upgrade.data)
        call.attach(connection, target.token, target.after, now_ms)
        if ticket is not None and ticket.is_waiting:
            call.session.waiting(ticket.position, ticket.estimate_ms, now_ms)
        call.on_outage(now_ms, is_back=True)
        call.move(now_ms)
        connection.keep(now_ms)
        self._services.caller_log.opened(upgrade, call.session.session_id, is_resumed=True)
