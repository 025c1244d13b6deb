"""A call: one caller's session, its codec, streams and places. It survives its connection.

::

    connected --connection lost--> detached --attach(connection)--> connected
        |                             '--give_up--> over
        '--connection lost, nothing to keep--> over

After every input ``move`` moves what can move: requests to the streams, events through the codec to the connection. It decides
nothing, and knows no socket and no loop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from voiceserver.transport.call_messages import TALK_EXHAUSTED, CallConnection, CallMessages
from voiceserver.transport.call_streams import CallStreams
from voiceserver.transport.places import CallPlaces
from voiceserver.transport.timers import Alarm

if TYPE_CHECKING:
    from voiceserver.capacity.admission import Ticket
    from voiceserver.pool import LossReason
    from voiceserver.session.session import Session
    from voiceserver.transport.services import Services
    from voiceserver.wire import Codec
    from voiceserver_workers.ipc.messages import Record

TOLD_MS: Final = 1_500.0  # how long a refused browser, or a caller who waited in vain, has to read why
LINGER_MS: Final = 6_000.0  # the longest last word that a phone is given time to play


class Call:
    """A ``StreamOwner`` for the pools. ``opened_ms``: when it began."""

    __slots__ = (
        "_alarm",
        "_is_held_back",
        "_services",
        "codec",
        "messages",
        "opened_ms",
        "places",
        "session",
        "streams",
    )

    def __init__(
        self,
        services: Services,
        codec: Codec,
        session: Session,
        connection: CallConnection,
        *,
        ticket: Ticket | None,
        opened_ms: float,
        unkept: int = 0,
    ) -> None:
        """unkept: messages that the caller was sent before it had a session."""
        self._services = services
        self.codec = codec
        self.session = session
        self.opened_ms = opened_ms
        self.messages = CallMessages(services, codec, session, connection, unkept)
        self.places = CallPlaces(services.places)
        if ticket is not None:
            self.places.take(ticket, self)
        self.streams = CallStreams(services, session, self.places)
        self._alarm = Alarm(services.timers, self)
        self._is_held_back = False  # it is ahead of the clock and not read

    @property
    def active_ms(self) -> float:
        """When a message last went either way."""
        return self.messages.active_ms

    @property
    def connection(self) -> CallConnection | None:
        """None: the call is detached."""
        return self.messages.connection

    # ------------------------------------------------------------------------------------------------ the streams

    def on_result(self, stage: str, record: Record) -> bool:  # hot
        session = self.session
        try:
            session.receive_result(stage, record, self._services.ticks.clock())
        except Exception as error:
            self.on_fault(error)
            return True
        if stage != "vad" or not session.is_settled or session.outgoing or self._is_held_back:
            return True
        # Most that vad finds is that nothing has changed: the accounts are written, and there is nothing to move.
        audio_input = session.audio_input
        return (
            audio_input is None
            or audio_input.capture.has_unsent()
            or session.deadline_ms < self._alarm.due_ms
        )

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        self.streams.lose(stage)
        self.session.lose_stream(stage, reason, self._services.ticks.clock())

    def on_room(self, stage: str) -> None:
        self.session.retry(stage)

    def on_tick(self) -> None:  # hot
        services = self._services
        services.ticks.now_ms = now_ms = services.ticks.clock()
        try:
            self.move(now_ms)
        except Exception as error:
            self.on_fault(error)

    def on_place(self, ticket: Ticket, now_ms: float) -> None:
        """A ticket of ours has moved. For ``Places``."""
        session, places = self.session, self.places
        if session.is_closed:
            return
        if ticket.is_waiting:
            session.waiting(ticket.position, ticket.estimate_ms, now_ms)
        elif ticket.state == "expired":
            message = "No place became free in time; please try again later."
            retry_after_ms = round(self._services.places.admission.retry_after_ms, 1)
            session.fail("waiting_timeout", message, 1013, now_ms, retry_after_ms)
        else:
            session.admitted(now_ms)
        self.move(now_ms)
        is_heard = self.streams.is_open(session.settings.audio_stage)
        if ticket is places.speech and not ticket.is_waiting and not is_heard:
            places.leave_speech(now_ms)

    # ----------------------------------------------------------------------------------------------------- moving

    def move(self, now_ms: float) -> None:  # hot
        """Move everything that can move. The only mover."""
        session = self.session
        if session.is_settled and not self._is_held_back:
            # Nothing but audio came or went, so the streams are those that are wanted.
            self.streams.send_audio(now_ms)
            if session.is_settled:  # otherwise a request was too big
                if session.outgoing:
                    self._send_events(now_ms)
                due_ms = session.deadline_ms
                if due_ms < self._alarm.due_ms:
                    self._alarm.wake_at(max(due_ms, now_ms + 1.0))
                return
        session.is_settled = True
        self.streams.follow(self, now_ms)
        self._send_events(now_ms)
        self._hold_back_or_not(now_ms)
        if session.is_closed:
            self.part(now_ms)
            return
        self._alarm.wake_at(max(session.deadline_ms, now_ms + 1.0))

    def _send_events(self, now_ms: float) -> None:  # hot
        connection = self.messages.connection
        if connection is None:
            self.messages.send_events()
            self._weigh(now_ms)
        elif not connection.frames.is_closing:
            self.messages.send_events()

    def _weigh(self, now_ms: float) -> None:
        """What nobody hears is bounded, for this call and for all."""
        store, session_id = self._services.sessions.store, self.session.session_id
        replay_buffer = self.messages.replay_buffer
        if store.detached_call(session_id) is None or not replay_buffer.has_grown():
            return
        if replay_buffer.is_full:
            store.end(session_id, "too_much_unheard", now_ms)
        else:
            store.weigh(session_id, self, now_ms)

    def _hold_back_or_not(self, now_ms: float) -> None:
        """Read a caller no further whose audio is ahead of the clock."""
        audio_input, connection = self.session.audio_input, self.messages.connection
        if connection is None:  # whoever comes back is held back then
            return
        is_held = (
            audio_input is not None
            and audio_input.is_held_back
            and not self.session.is_closed
            and audio_input.holds_back(now_ms)
        )
        if is_held != self._is_held_back:
            self._is_held_back = is_held
            connection.flow.hold_back(is_held)

    def part(self, now_ms: float) -> None:
        """The session is over: begin the closing handshake, if the peer did not."""
        session, connection = self.session, self.messages.connection
        session.events_to_send()
        self.places.leave(self, now_ms)
        if connection is None or connection.frames.is_closing:
            return
        linger_ms = min(self.codec.linger_ms, LINGER_MS)  # a phone has yet to hear what was said last
        if session.close_code == 1013:
            linger_ms = max(linger_ms, TOLD_MS)
        if connection.close_by_ms == math.inf and linger_ms:
            connection.close_by(now_ms + linger_ms)
        if connection.close_by_ms == math.inf or now_ms >= connection.close_by_ms:
            connection.close(session.close_code, session.close_reason)

    # ------------------------------------------------------------------------------------------------------- time

    def on_deadline(self, now_ms: float) -> None:
        connection = self.messages.connection
        if connection is None:
            self._serve_detached(now_ms)
        elif not self.session.is_closed and not connection.frames.is_closing:
            if now_ms >= self.session.deadline_ms:
                self.session.handle_timer(now_ms)
            self.move(now_ms)

    def _serve_detached(self, now_ms: float) -> None:
        """Time passes for a call that nobody listens to."""
        store, session = self._services.sessions.store, self.session
        detached = store.detached_call(session.session_id)
        if detached is None:
            return
        if now_ms >= detached.keep_until_ms:
            store.end(session.session_id, "expired", now_ms)
            return
        if now_ms >= session.deadline_ms:
            session.handle_timer(now_ms)
        if now_ms >= detached.hold_until_ms and not session.is_resting:
            self.places.leave(self, now_ms)
            session.rest(now_ms)
        self.move(now_ms)
        if store.detached_call(session.session_id) is not None:
            store.weigh(session.session_id, self, now_ms)
        self._alarm.wake_at(detached.keep_until_ms if session.is_resting else detached.hold_until_ms)

    # ------------------------------------------------------------------------------------------------- connections

    @property
    def is_worth_keeping(self) -> bool:
        """Whether the call is kept if its connection is lost now."""
        session, connection = self.session, self.messages.connection
        if not session.resume_token or self._services.state.is_ending:
            return False
        is_used = (
            session.audio_input is not None
            or session.has_speech_output
            or session.options is not session.settings.options
        )
        if session.is_closed:  # said, and perhaps not heard
            is_told = connection is not None and connection.frames.has_peer_closed
            is_used = is_used and session.close_code == 1000 and not is_told
        return is_used and self.codec.is_resumable

    def lose_connection(self, now_ms: float, *, is_kept: bool) -> None:
        """The connection is gone. is_kept: keep the call for whoever shows its token; otherwise end it."""
        session, store = self.session, self._services.sessions.store
        self.messages.connection = None
        self._is_held_back = False
        if not is_kept:
            store.forget(session.session_id)
            self._end(now_ms)
            return
        self.messages.replay_buffer.mark_cut()
        session.hold_output(True, now_ms)
        store.detach(session.session_id, self, now_ms)
        detached = store.detached_call(session.session_id)
        if detached is not None:
            self.move(now_ms)
            self._alarm.wake_at(detached.hold_until_ms)

    def attach(self, connection: CallConnection, token: str, after: int | None, now_ms: float) -> None:
        """The caller is back, with ``token`` and ``after`` messages received (None: it does not count). Say what it missed."""
        session, messages, services = self.session, self.messages, self._services
        messages.connection = connection
        messages.active_ms = now_ms
        services.sessions.store.attach(session.session_id)
        services.metrics.count_resumed()
        ready = session.resume(services.sessions.store.next_token(session.session_id, token), now_ms)
        messages.send_uncounted(
            self.codec.encode(msgspec.structs.replace(ready, received_events=messages.replay_buffer.heard))
        )
        messages.replay(after)

    def release_connection(self) -> None:
        """Another connection came with the token: the one before says so and ends."""
        connection = self.messages.connection
        if connection is None:
            return
        if not connection.frames.is_closing:
            self.messages.send_taken_over()
            connection.close(1000, "session_taken_over")
        connection.leave()
        connection.end_stream()
        self.messages.replay_buffer.mark_cut()
        self.messages.connection = None
        self._is_held_back = False

    def give_up(self, reason: str, now_ms: float) -> None:
        """Nobody came back. For ``SessionStore``."""
        self._services.metrics.count_given_up(reason)
        self.session.close_reason = self.session.close_reason or reason
        self._end(now_ms)

    def _end(self, now_ms: float) -> None:
        self.places.leave(self, now_ms)
        self.session.disconnect(now_ms)
        self.move(now_ms)
        self._account(now_ms)
        self._alarm.stop()

    # -------------------------------------------------------------------------------------------------- the server

    def on_outage(self, now_ms: float, *, is_back: bool = False) -> None:
        """A stage has no worker, or has one again. is_back: the caller resumes, and hears it all the same."""
        connection, session = self.messages.connection, self.session
        if connection is not None and not connection.frames.is_closing:
            self._services.outage.tell_session(session, is_back=is_back)
            self.move(now_ms)

    def talk_exhausted(self) -> tuple[str, str, int] | None:
        """Error code, words and close code when the caller's API key has talked as long as it may."""
        session, auth = self.session, self._services.auth
        if not session.key:
            return None
        auth.note(session.key, session.session_id, session.accounting().received_ms)
        if auth.talk_left_ms(session.key) > 0:
            return None
        return TALK_EXHAUSTED

    def on_fault(self, error: Exception) -> None:
        """A bug was met while serving this caller. The caller is told; nobody else notices."""
        self._services.log.error("connection fault", exc_info=error)
        try:
            now_ms = self._services.ticks.clock()
            self.session.fail("internal_error", "Something went wrong in the server.", 1011, now_ms)
            self.move(now_ms)
        except Exception as second:
            self._services.log.error("connection fault while closing", exc_info=second)
            connection = self.messages.connection
            if connection is not None:
                connection.abort()

    def _account(self, now_ms: float) -> None:
        services, session, name = self._services, self.session, self.codec.traits.name
        accounting = session.accounting()
        services.metrics.count_closed(name, session.close_code, accounting)
        if session.key:
            services.auth.leave(session.key, accounting.received_ms, session.session_id)
        services.log.info(
            "session closed",
            session=session.session_id,
            wire=name,
            code=session.close_code,
            reason=session.close_reason,
            seconds=round((now_ms - self.opened_ms) / 1000.0, 3),
            **session.counters(),
        )
