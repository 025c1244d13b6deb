"""The pump: what moves between a codec, a session and its streams. Nothing of it knows a socket or a loop.

After every input ``_pump`` is the only mover: requests to the streams, events through the codec to ``write``. Subclassed by
``voiceserver.transport.connection``, which adds the socket and time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from voiceserver.errors import ProtocolError, Refusal
from voiceserver.events.events import BusyCue, ReplyAudio, ReplyDone, ServerBusy
from voiceserver.transport.websocket import Framing
from voiceserver.wire import Audio
from voiceserver.wire.decoding import event_id_of
from voiceserver.wire.frames import build_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from voiceserver.capacity.admission import Ticket
    from voiceserver.events.events import Accounting, ClientEvent
    from voiceserver.pool import LossReason, Stream
    from voiceserver.session.outbox import Outbox
    from voiceserver.session.session import Session
    from voiceserver.transport.services import Services
    from voiceserver.wire import Codec, Frame
    from voiceserver_workers.ipc.messages import Record

_VIOLATIONS: Final = {
    1002: "websocket_protocol",
    1007: "invalid_utf8",
    1009: "message_too_big",
    1011: "ping_timeout",
}


class Pump(Framing):
    """One caller's session and streams. A ``StreamOwner`` for the pools. Without a session it moves nothing."""

    __slots__ = (
        "_active_ms",
        "_armed_ms",
        "_codec",
        "_services",
        "_is_held_back",
        "_opened_ms",
        "_session",
        "_speech",
        "_streams",
        "_ticket",
    )

    def __init__(self, services: Services) -> None:
        super().__init__(services.config.server.max_message_bytes)
        self._services = services
        self._codec: Codec | None = None
        self._session: Session | None = None
        self._streams: dict[str, Stream] | None = None
        self._ticket: Ticket | None = None
        self._speech: Ticket | None = None  # where only speech takes a talker's place
        self._is_held_back = False  # no longer read: it is ahead of the clock
        self._opened_ms = 0.0
        self._active_ms = 0.0  # when a message last went either way
        self._armed_ms = math.inf  # when the wheel will look at this connection

    # ------------------------------------------------------------------------------------------------------- hooks

    def wake_at(self, due_ms: float) -> None:
        """Have ``_pump`` called with the session's timer handled at ``due_ms`` or earlier."""
        raise NotImplementedError

    def session_made(self) -> Session | None:
        """The session, made now if nothing has needed it yet; None where there can be none."""
        return self._session

    def tell_later(self, payload: bytes) -> None:
        """A text message of a caller who was refused: on some wires nothing can be told before it."""
        raise NotImplementedError

    def hold_back(self, is_held: bool) -> None:
        """Read the caller no further, or go on reading."""
        raise NotImplementedError

    def part(self, session: Session, now_ms: float) -> None:
        """The session is over: begin the closing handshake if the peer did not."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop the connection with all that is unsent."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------- messages in

    def receive_binary(self, payload: bytes) -> None:  # hot
        session, codec = self._session or self.session_made(), self._codec
        if session is None or codec is None:
            return
        now_ms = self._active_ms = self._services.ticks.now_ms
        try:
            if codec.binary_is_pcm:
                if payload:
                    session.receive_audio(payload, now_ms)
                return
            if session.is_closed:
                return
            for item in codec.receive_binary(payload):
                if type(item) is Audio:
                    session.receive_audio(item.pcm, now_ms)
                else:
                    session.receive_event(item, now_ms)  # type: ignore[arg-type]
        except ProtocolError as error:
            self._complain(error)

    def receive_run(self, payloads: list[bytes]) -> None:  # hot
        session, codec = self._session or self.session_made(), self._codec
        if session is None or codec is None:
            return
        if not codec.binary_is_pcm:
            super().receive_run(payloads)
            return
        odd = 0
        for payload in payloads:
            odd |= len(payload)
        if odd & 1:
            super().receive_run(payloads)
            return
        # What came together is taken as one piece: it costs one place in the outbox and the ring, and one answer.
        now_ms = self._active_ms = self._services.ticks.now_ms
        session.receive_audio(payloads[0] if len(payloads) == 1 else b"".join(payloads), now_ms)

    def receive_text(self, payload: bytes) -> None:
        session, codec = self._session or self.session_made(), self._codec
        if session is None or session.is_closed:
            if session is None:
                self.tell_later(payload)
            return
        assert codec is not None
        self._active_ms = self._services.ticks.now_ms
        if codec.has_opening:  # what its client token says comes first, and fails alone
            try:
                self._receive_items(session, codec, codec.opening_events())
            except ProtocolError as error:
                self._complain(error)
        try:
            self._receive_items(session, codec, codec.receive_text(payload))
        except ProtocolError as error:
            error.event_id = error.event_id or event_id_of(payload)
            self._complain(error)
        self._say(session, codec)

    def _receive_items(self, session: Session, codec: Codec, items: Sequence[ClientEvent | Audio]) -> None:
        session.input_rate_hz = codec.input_rate_hz  # which a wire may settle by its first messages
        session.output_rate_hz = codec.output_rate_hz
        for item in items:
            if isinstance(item, Audio):
                session.receive_audio(item.pcm, self._services.ticks.now_ms)
            else:
                session.receive_event(item, self._services.ticks.now_ms)

    def _complain(self, error: ProtocolError) -> None:
        """Answer a client's mistake; the connection goes on unless the error says otherwise."""
        assert self._codec is not None
        self._services.metrics.count_error(error.code)
        self._queue(self._codec.encode_protocol_error(error))
        if (session := self._session) is not None:  # the codec may have taken a change of format back
            session.input_rate_hz = self._codec.input_rate_hz
            session.output_rate_hz = self._codec.output_rate_hz
            if error.close_code is not None:
                session.fail(error.code, str(error), error.close_code, self._services.ticks.now_ms)
                if error.param:
                    session.close_reason = f"{error.code}: {error.param}"

    def receive_close(self, code: int, reason: str) -> None:
        session = self.session_made()
        if session is not None:
            session.close_reason = session.close_reason or "client_left"
            session.disconnect(self._services.ticks.now_ms)
            session.close_code = code

    def receive_violation(self, code: int, reason: str) -> None:
        """The last word before the close frame: what was wrong, and the accounts."""
        name = _VIOLATIONS.get(code, "connection_failed")
        self._services.metrics.count_error(name)
        session, codec = self.session_made(), self._codec
        if session is None or codec is None or session.is_closed:
            return
        message = f"The connection must end: {reason}."
        if code == 1009:
            message = f"A message may have at most {self.max_message_bytes} bytes: {reason}."
        session.fail(name, message, code, self._services.ticks.now_ms)
        self._say(session, codec)

    # ------------------------------------------------------------------------------------------------ the streams

    def on_result(self, stage: str, record: Record) -> bool:  # hot
        session = self._session
        if session is None:
            return False
        try:
            session.receive_result(stage, record, self._services.ticks.clock())
        except Exception as error:
            self.on_fault(error)
            return True
        if stage != "vad" or not session.is_settled or session.outgoing or self._is_held_back:
            return True
        # Most that vad finds is that nothing has changed: the books are written, and there is nothing to move.
        audio_input = session.audio_input
        return audio_input is None or audio_input.capture.has_unsent() or session.deadline_ms < self._armed_ms

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        if self._streams is not None:
            self._streams.pop(stage, None)
        if self._session is not None:
            self._session.lose_stream(stage, reason, self._services.ticks.clock())

    def on_room(self, stage: str) -> None:
        if self._session is not None:
            self._session.retry(stage)

    def on_tick(self) -> None:  # hot
        services = self._services
        services.ticks.now_ms = now_ms = services.ticks.clock()
        try:
            self._pump(now_ms)
        except Exception as error:
            self.on_fault(error)

    def _pump(self, now_ms: float) -> None:  # hot
        """Move everything that can move. The only mover."""
        session = self._session
        if session is None:
            return
        if session.is_settled and not self._is_held_back:
            self._move_audio(session, now_ms)
            return
        session.is_settled = True
        while True:
            unwanted, wanted = session.stages_unwanted(), session.stages_wanted()
            if not unwanted and not wanted:
                break
            for stage in unwanted:
                self._close_stream(session, stage)
            for stage in wanted:
                self._open_stream(session, stage, now_ms)
        if self._streams:
            for stage in session.stages_with_requests():
                outbox = session.outbox_of(stage)
                if outbox is not None:
                    self._send_requests(session, stage, outbox, self._streams[stage], now_ms)
        assert self._codec is not None
        if not self.is_closing:
            self._say(session, self._codec)
        audio_input = session.audio_input
        is_held = (
            audio_input is not None
            and audio_input.is_held_back
            and not session.is_closed
            and audio_input.holds_back(now_ms)
        )
        if is_held != self._is_held_back:
            self.hold_back(is_held)
        if session.is_closed:
            self.part(session, now_ms)
            return
        due_ms = session.deadline_ms
        if due_ms < self._armed_ms:
            self.wake_at(max(due_ms, now_ms + 1.0))

    def _move_audio(self, session: Session, now_ms: float) -> None:  # hot
        """The short way: nothing but audio came or went, so the streams are those that are wanted."""
        if session.settings.check_laws and (session.stages_unwanted() or session.stages_wanted()):
            raise AssertionError("a settled session wants other streams than it has")
        streams = self._streams
        if streams is not None:
            for stage, stream in streams.items():
                if stage != "tts" or not session.is_output_held:
                    outbox = session.outbox_of(stage)
                    if outbox is not None and outbox.has_unsent():
                        self._send_requests(session, stage, outbox, stream, now_ms)
            if not session.is_settled:  # a request was too big
                self._pump(now_ms)
                return
        if session.outgoing and not self.is_closing:
            assert self._codec is not None
            self._say(session, self._codec)
        due_ms = session.deadline_ms
        if due_ms < self._armed_ms:
            self.wake_at(max(due_ms, now_ms + 1.0))

    # ------------------------------------------------------------------------------------------------- the places

    def on_place(self, ticket: Ticket, now_ms: float) -> None:
        """A ticket of ours has moved. For ``Services``."""
        session = self.session_made()
        if session is None or session.is_closed:
            return
        if ticket.is_waiting:
            session.waiting(ticket.position, ticket.estimate_ms, now_ms)
        elif ticket.state == "expired":
            message = "No place became free in time; please try again later."
            retry_after_ms = round(self._services.places.admission.retry_after_ms, 1)
            session.fail("waiting_timeout", message, 1013, now_ms, retry_after_ms)
        else:
            session.admitted(now_ms)
        self._pump(now_ms)
        if ticket is self._speech and not ticket.is_waiting and not self._is_heard(session):
            self._leave_speech(now_ms)

    def leave_places(self, now_ms: float) -> None:
        """Give back what this caller holds, and what it stands in line for. Idempotent."""
        self._services.places.forget(self)
        if self._ticket is not None:
            self._ticket.release(now_ms)
            self._services.places.changed()
        self._leave_speech(now_ms)

    def _leave_speech(self, now_ms: float) -> None:
        if self._speech is not None:
            self._speech.release(now_ms)
            self._speech = None
            self._services.places.changed()

    def _is_heard(self, session: Session) -> bool:
        return self._streams is not None and session.settings.audio_stage in self._streams

    def _may_talk(self, session: Session, stage: str, now_ms: float) -> bool:
        """Whether there is a place for this speech; otherwise the session knows now that it waits."""
        if self._speech is None:
            tenant = self._ticket.tenant if self._ticket is not None else ""
            got = self._services.places.admission.try_talk(now_ms, tenant=tenant)
            if isinstance(got, Refusal):
                session.stream_refused(stage, got, now_ms)
                return False
            self._speech = got
            got.owner = self
        if self._speech.is_waiting:
            session.waiting(self._speech.position, self._speech.estimate_ms, now_ms)
            return False
        return True

    # ------------------------------------------------------------------------------------------------ the streams

    def _open_stream(self, session: Session, stage: str, now_ms: float) -> None:
        if (
            self._services.places.admission.holds_speech
            and stage == session.settings.audio_stage
            and not self._may_talk(session, stage, now_ms)
        ):
            return
        pool = self._services.places.pools.get(stage)
        got: Stream | Refusal = Refusal("no_workers", 1_000.0, stage)
        if pool is not None:
            got = pool.try_open(self, session.stream_params(stage), key=session.session_id)
        if isinstance(got, Refusal):
            session.stream_refused(stage, got, now_ms)
            return
        if self._streams is None:
            self._streams = {}
        self._streams[stage] = got
        session.stream_opened(stage, now_ms, is_lighter=got.is_lighter)

    def _close_stream(self, session: Session, stage: str) -> None:
        streams = self._streams
        if streams is not None:
            stream = streams.pop(stage, None)
            if stream is not None:
                stream.close()
            if not streams:
                self._streams = None
        session.stream_closed(stage)
        if self._speech is not None and stage == session.settings.audio_stage:
            self._leave_speech(self._services.ticks.now_ms)

    def _send_requests(
        self, session: Session, stage: str, outbox: Outbox, stream: Stream, now_ms: float
    ) -> None:  # hot
        try:
            outbox.send_to(stream.send)
        except ValueError:
            request = outbox.next_unsent()
            size = len(request.payload) if request is not None else 0
            message = f"One request of {size} bytes is more than the {stage} stage can take."
            session.fail("request_too_big", message, 1009, now_ms)

    # ------------------------------------------------------------------------------------------------ messages out

    def _say(self, session: Session, codec: Codec) -> None:  # hot
        own = codec.frames_to_send()
        if own:
            self._queue(own)
        events = session.events_to_send()
        if events:
            self._active_ms = self._services.ticks.now_ms
            observe = self._services.metrics.observe
            for event in events:
                observe(event)
                if type(event) is ServerBusy:
                    self._services.places.note_busy(self, event)
                elif type(event) is ReplyDone:
                    if session.key and codec.traits.tells_talk_limit:
                        received_ms = session.accounting().received_ms
                        self._services.auth.note(session.key, session.session_id, received_ms)
                        limit = self._services.auth.talk_limit(session.key)
                        if limit is not None:
                            codec.set_talk_limit(*limit)
                elif type(event) is BusyCue:
                    self._say_aloud(event, codec)
                self._queue(codec.encode(event))

    def _say_aloud(self, cue: BusyCue, codec: Codec) -> None:
        if codec.traits.plays_earcons:
            pcm = self._services.announcements.earcons.audio_of(cue, codec.output_rate_hz)
            self._queue(codec.encode(ReplyAudio(turn=0, pcm=pcm)))

    def accounting(self) -> Accounting | None:
        """What became of this caller's audio so far; None where there was none."""
        session = self._session
        return session.accounting() if session is not None and session.audio_input is not None else None

    def _queue(self, frames: list[Frame]) -> None:  # hot
        self.write_frames(frames)

    def write_frames(self, frames: list[Frame]) -> None:  # hot
        """Without counting them among those that a resumed caller may have missed."""
        for frame in frames:
            self.write(build_frame(frame))

    def on_fault(self, error: Exception) -> None:
        """A bug was met while serving this caller. The caller is told; nobody else notices."""
        self._services.log.error("connection fault", exc_info=error)
        try:
            session = self.session_made()
            if session is not None:
                now_ms = self._services.ticks.clock()
                session.fail("internal_error", "Something went wrong in the server.", 1011, now_ms)
                self._pump(now_ms)
                return
        except Exception as second:
            self._services.log.error("connection fault while closing", exc_info=second)
        self.abort()

    def _account(self, session: Session, now_ms: float) -> None:
        services, codec = self._services, self._codec
        assert codec is not None
        books = session.accounting()
        services.metrics.count_closed(codec.traits.name, session.close_code, books)
        if session.key:
            services.auth.leave(session.key, books.received_ms, session.session_id)
        services.log.info(
            "session closed",
            session=session.session_id,
            wire=codec.traits.name,
            code=session.close_code,
            reason=session.close_reason,
            seconds=round((now_ms - self._opened_ms) / 1000.0, 3),
            **session.counters(),
        )
