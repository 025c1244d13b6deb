"""The door: from a connection's first byte to an open call, or to a plain HTTP answer.

A caller who comes in is greeted at once, and its session is made with the first thing that needs one (``session_made``): most
callers of a large server are silent, and until they speak they hold a few random bytes, which are their session's
name and token. No socket and no loop here (``voiceserver.transport.connection``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from voiceserver.capacity import outage
from voiceserver.errors import ProtocolError
from voiceserver.transport.handshake import HEAD_END, MAX_HEAD_BYTES, BadRequest, body_length, is_tls_hello
from voiceserver.transport.http import (
    CALL_IS_ELSEWHERE,
    OtherProcess,
    Response,
    Upgrade,
    error_response,
    refusal_events,
)
from voiceserver.transport.session_store import Resumable
from voiceserver.transport.websocket import ReceiveBuffer

if TYPE_CHECKING:
    from voiceserver.errors import Refusal
    from voiceserver.events.events import ServerEvent
    from voiceserver.session.session import Session
    from voiceserver.transport.services import Services

TOLD_MS: Final = 1_500.0  # how long a refused browser, or a caller who waited in vain, has to read why
LINGER_MS: Final = 6_000.0  # the longest last word that a phone is given time to play


class Door(Resumable):
    """A connection as it begins. ``Connection`` adds the socket and time."""

    __slots__ = ("_heard_ms", "_is_ended", "_seed")

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._is_ended = False  # nothing more is written after what the outbox holds
        self._heard_ms = 0.0
        self._seed = b""  # of a session that is not made yet

    # ------------------------------------------------------------------------------------------------------- hooks

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError

    def go_on_over(self, other: Door, upgrade: Upgrade, now_ms: float) -> None:
        """The caller of this call is back, on the connection ``other``: take its socket."""
        raise NotImplementedError

    def hand_on(self, process: int, data: bytes) -> bool:
        """Give the socket, with the request that came on it, to another process of this server. False: it cannot take it."""
        raise NotImplementedError

    def limit_writes(self) -> None:
        """Have the transport tell when its buffer is full."""
        raise NotImplementedError

    def keep(self, now_ms: float) -> None:
        """Begin to look after the call: pings, and the bounds of its time."""
        raise NotImplementedError

    def close_by(self, due_ms: float) -> None:
        """End the connection at ``due_ms`` at the latest."""
        raise NotImplementedError

    def peer(self) -> str:
        """``address:port`` of the other end."""
        raise NotImplementedError

    def address(self) -> str:
        """Of the other end, without its port."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- the handshake

    def receive_head(self, data: bytes, now_ms: float) -> None:
        receive_buffer = self._receive_buffer
        if self._is_ended:
            return
        if receive_buffer is None:
            if is_tls_hello(data):
                self._services.log.warning("a client speaks TLS to the plain port", peer=self.peer())
                self.abort()
                return
            end = data.find(HEAD_END) + len(HEAD_END)
            if end == len(data) <= MAX_HEAD_BYTES and data.startswith(b"GET "):
                self._ask(data, b"", b"", now_ms)  # all of it in one read and nothing else, as nearly always
                return
            receive_buffer = self._receive_buffer = ReceiveBuffer()
        receive_buffer += data
        end = receive_buffer.find(HEAD_END)
        if end < 0 and len(receive_buffer) <= MAX_HEAD_BYTES:
            return
        if not 0 <= end <= MAX_HEAD_BYTES:
            self._answer(error_response(431, "request_too_large", "The request head is too large."))
            return
        end += len(HEAD_END)
        try:
            length = body_length(bytes(receive_buffer[:end]))
        except BadRequest as error:
            self._answer(error_response(error.status, error.code, error.message))
            return
        if len(receive_buffer) < end + length:
            return
        body_end = end + length
        self._receive_buffer = None
        self._ask(
            bytes(receive_buffer[:end]),
            bytes(receive_buffer[end:body_end]),
            bytes(receive_buffer[end:]),
            now_ms,
        )

    def _ask(self, head: bytes, body: bytes, rest: bytes, now_ms: float) -> None:
        """Have the router answer a whole request. ``rest``: all that came after its head."""
        answer = self._services.router.answer(head, now_ms, self.address(), body)
        if isinstance(answer, Response):
            self._answer(answer)
            return
        if isinstance(answer, OtherProcess):
            if not self.hand_on(answer.process, head + rest):
                self._answer(CALL_IS_ELSEWHERE)
            return
        call: Door = self
        if answer.resume is not None and answer.refusal is None:
            call = cast("Door", answer.resume.call)
            call.go_on_over(self, answer, now_ms)
        else:
            self._open(answer, now_ms)
        if rest:
            call.data_received(rest)

    def _answer(self, response: Response) -> None:
        self._receive_buffer = None
        self._services.metrics.count_http(response.status)
        self.write(response.to_bytes())
        if response.refused:
            self._count_refused(response.refused)
        self.end_stream()

    def _count_refused(self, reason: str) -> None:
        services = self._services
        services.metrics.count_refused(reason)
        services.metrics.refusal.observe((services.ticks.clock() - services.ticks.now_ms) / 1000.0)

    def _open(self, upgrade: Upgrade, now_ms: float) -> None:
        services = self._services
        self._codec = codec = upgrade.codec
        self._ticket = ticket = upgrade.ticket
        self.max_message_bytes = codec.traits.max_message_bytes or self.max_message_bytes
        services.state.join()
        self._heard_ms = self._active_ms = self._opened_ms = now_ms
        self.write(upgrade.data)
        if upgrade.refusal is not None:
            self._tell(upgrade.refusal, now_ms)
            return
        self.limit_writes()
        services.metrics.count_opened(codec.traits.name)
        is_waiting = ticket is not None and ticket.is_waiting
        if ticket is not None:
            ticket.owner = self
        if codec.traits.is_shared and not is_waiting and not upgrade.key:
            self._seed = seed = services.sessions.store.new_seed(self)
            self._greet(services.sessions.greeting(codec, seed))
        else:
            self._begin(upgrade, now_ms)
        if not services.outage.is_whole:
            self.on_outage(now_ms)
        self.keep(now_ms)

    def _begin(self, upgrade: Upgrade, now_ms: float) -> None:
        """Make the session at once: it has a place in the waiting room, a key's account or a wire with a state of its own."""
        services, codec, ticket = self._services, upgrade.codec, upgrade.ticket
        self._session = session = services.sessions.make(codec)
        if upgrade.key:
            session.key = upgrade.key
            services.auth.enter(session.key)
        session.open(now_ms)
        if session.resume_token:
            services.sessions.store.add(session.session_id, self)
            for event in session.events_to_send():
                self._greet(event)
        if ticket is not None and ticket.is_waiting:
            session.waiting(ticket.position, ticket.estimate_ms, now_ms)
        self._pump(now_ms)

    def _greet(self, event: ServerEvent) -> None:
        assert self._codec is not None
        self.write_frames(self._codec.encode(event))

    def session_made(self) -> Session | None:
        seed, codec = self._seed, self._codec
        if seed and codec is not None:
            services, self._seed = self._services, b""
            self._session = session = services.sessions.make(codec, seed)
            session.open(services.ticks.now_ms)
            session.events_to_send()  # was said by ``_open``
            session.gone = services.outage.silent.pop(self, "")
            services.sessions.store.grow(seed, session.session_id, self)
        return self._session

    def _tell(self, refusal: Refusal, now_ms: float) -> None:
        services = self._services
        services.places.admission.lingering += 1
        self._count_refused(refusal.reason)
        assert self._codec is not None
        is_spoken = self._codec.traits.tells_refusal
        for event in refusal_events(refusal, is_spoken=is_spoken):
            self._queue(self._codec.encode(event))
        self.close_by(now_ms + TOLD_MS)

    def on_outage(self, now_ms: float, *, is_back: bool = False) -> None:
        """A stage has no worker, or has one again. For ``Services``. is_back: the caller resumes, and hears it all the same."""
        services, session, codec = self._services, self._session, self._codec
        if codec is None or self.is_closing or self._is_ended:
            return
        if session is not None:
            outage.tell(session, services.outage.missing_for(session.options), is_back=is_back)
            self._pump(now_ms)
        elif self._seed:
            event = services.outage.next_for_silent(self)
            if event is not None:
                self._shared += 1
                self._active_ms = now_ms
                services.metrics.observe(event)
                self.write(services.outage.frame_of(event, codec))

    def on_unopened(self, now_ms: float) -> None:
        """No complete request came in time, if none came."""
        if self._codec is None and not self._is_ended:
            self._answer(error_response(408, "handshake_timeout", "No complete request came in time."))

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
            linger_ms = min(codec.linger_ms, LINGER_MS)
            self.close_by(self._services.ticks.now_ms + max(TOLD_MS, linger_ms))
