"""The messages of one call: from its connection through the codec to the session, and back.

What a resumed caller may have missed is kept in the replay buffer; a busy signal is about its moment, so one that nobody
could hear is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from voiceserver.errors import ProtocolError
from voiceserver.events.events import (
    BusyCue,
    ClientEvent,
    ErrorEvent,
    ReplyAudio,
    ReplyDone,
    ServerBusy,
    ServerReady,
    SessionUpdate,
)
from voiceserver.events.json_values import FEW_BYTES
from voiceserver.session.session import Session
from voiceserver.session.speech_output import SCRIPT_UNSUPPORTED
from voiceserver.transport.replay_buffer import ASK_BYTES, ReplayBuffer
from voiceserver.wire import Audio, Codec, Frame, read_text
from voiceserver.wire.decoding import event_id_of
from voiceserver.wire.frames import PING, build_frame, build_head

if TYPE_CHECKING:
    from voiceserver.events.events import ServerEvent
    from voiceserver.transport.services import Services

EMPTY_PING: Final = build_head(PING, 0)
# Error code, words and close code when the caller's API key has talked as long as it may.
TALK_EXHAUSTED: Final = ("key_talk_exhausted", "This API key has talked as long as it may today.", 1008)
_VIOLATIONS: Final = {
    1002: "websocket_protocol",
    1007: "invalid_utf8",
    1009: "message_too_big",
    1011: "ping_timeout",
}


class Frames(Protocol):
    @property
    def is_closing(self) -> bool: ...

    @property
    def has_peer_closed(self) -> bool: ...


class ReadFlow(Protocol):
    def hold_back(self, is_held: bool) -> None: ...


class CallConnection(Protocol):
    """What a call asks of its connection; ``voiceserver.transport.connection.Connection`` is one. ``close_by_ms``: when it ends
    at the latest, infinity for open."""

    close_by_ms: float

    @property
    def frames(self) -> Frames: ...

    @property
    def flow(self) -> ReadFlow: ...

    def write(self, data: bytes) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def close_by(self, due_ms: float) -> None: ...

    def leave(self) -> None: ...

    def end_stream(self) -> None: ...

    def abort(self) -> None: ...


class CallMessages:
    """A ``FrameReceiver``. ``connection`` None: the call is detached. ``active_ms``: when a message last went either way."""

    __slots__ = (
        "_codec",
        "_replay_buffer",
        "_services",
        "_session",
        "_talked_ms",
        "active_ms",
        "connection",
    )

    def __init__(
        self,
        services: Services,
        codec: Codec,
        session: Session,
        connection: CallConnection,
        unkept: int,
    ) -> None:
        """unkept: messages that were sent before there was a session, and are not kept."""
        self._services = services
        self._codec = codec
        self._session = session
        self.connection: CallConnection | None = connection
        self.active_ms = services.ticks.now_ms
        self._replay_buffer = ReplayBuffer(unkept) if unkept else None
        self._talked_ms = 0.0  # audio that came to the door of a session with a key

    @property
    def replay_buffer(self) -> ReplayBuffer:
        if self._replay_buffer is None:
            self._replay_buffer = ReplayBuffer()
        return self._replay_buffer

    def ping(self) -> bytes:
        """A ping frame, which asks how far the caller is where its messages are kept."""
        return self._replay_buffer.ask(is_always=True) if self._replay_buffer is not None else EMPTY_PING

    # ---------------------------------------------------------------------------------------------------------- in

    def receive_binary(self, payload: bytes) -> None:  # hot
        session, codec = self._session, self._codec
        now_ms = self.active_ms = self._services.ticks.now_ms
        try:
            if codec.binary_is_pcm:
                if payload and (not session.key or self._may_talk(payload)):
                    session.receive_audio(payload, now_ms)
                return
            if session.is_closed:
                return
            for item in codec.receive_binary(payload):
                if type(item) is Audio:
                    if not session.key or self._may_talk(item.pcm):
                        session.receive_audio(item.pcm, now_ms)
                else:
                    session.receive_event(item, now_ms)  # type: ignore[arg-type]
        except ProtocolError as error:
            self._complain(error)

    def receive_run(self, payloads: list[bytes]) -> bool:  # hot
        if not self._codec.binary_is_pcm:
            return False
        odd = 0
        for payload in payloads:
            odd |= len(payload)
        if odd & 1:
            return False
        # What came together is taken as one piece: it costs one place in the outbox and the ring, and one answer.
        now_ms = self.active_ms = self._services.ticks.now_ms
        pcm = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        if not self._session.key or self._may_talk(pcm):
            self._session.receive_audio(pcm, now_ms)
        return True

    def _may_talk(self, pcm: bytes) -> bool:
        """For audio at the door, of a session with a key: whether the key has so much left. If not, the session ends."""
        session, auth = self._session, self._services.auth
        if session.is_closed:
            return False
        self._talked_ms += (len(pcm) >> 1) * 1000.0 / session.input_rate_hz
        if auth.take_talk(session.key, session.session_id, self._talked_ms) < 0:
            session.fail(*TALK_EXHAUSTED, self._services.ticks.now_ms)
            return False
        return True

    def receive_text(self, payload: bytes) -> None:
        session, codec = self._session, self._codec
        if self._services.sessions.store.window_ms > 0 and codec.is_resumable:
            self.replay_buffer.heard += 1
        if session.is_closed:
            return
        self.active_ms = self._services.ticks.now_ms
        if codec.has_opening:  # what its client token says comes first, and fails alone
            try:
                self._receive_items(codec.opening_events())
            except ProtocolError as error:
                self._complain(error)
        try:
            # A short message is not counted, which saves a call for each.
            is_short = len(payload) <= FEW_BYTES
            self._receive_items(codec.receive_text(payload) if is_short else read_text(codec, payload))
        except ProtocolError as error:
            error.event_id = error.event_id or event_id_of(payload)
            self._complain(error)
        self.send_events()

    def _receive_items(self, items: Sequence[ClientEvent | Audio]) -> None:
        session, now_ms = self._session, self._services.ticks.now_ms
        self._take_rates()  # which a wire may settle by its first messages
        for item in items:
            if not isinstance(item, Audio):
                session.receive_event(item, now_ms)
                if type(item) is SessionUpdate and session.options.language:
                    self._services.announcements.want(session.options.language)
            elif not session.key or self._may_talk(item.pcm):
                session.receive_audio(item.pcm, now_ms)

    def _take_rates(self) -> None:
        self._session.input_rate_hz = self._codec.input_rate_hz
        self._session.output_rate_hz = self._codec.output_rate_hz

    def _complain(self, error: ProtocolError) -> None:
        """Answer a client's mistake; the connection goes on unless the error says otherwise."""
        session = self._session
        self._services.metrics.count_error(error.code)
        self.send(self._codec.encode_protocol_error(error))
        self._take_rates()  # the codec may have taken a change of format back
        if error.close_code is not None:
            session.fail(error.code, str(error), error.close_code, self._services.ticks.now_ms)
            if error.param:
                session.close_reason = f"{error.code}: {error.param}"

    def receive_pong(self, payload: bytes) -> None:
        replay_buffer = self._replay_buffer
        if replay_buffer is not None and len(payload) == 8:
            replay_buffer.acknowledge(int.from_bytes(payload, "big"))
            # The ping came after the newest token.
            self._services.sessions.store.note_arrival(self._session.session_id)

    def receive_close(self, code: int, reason: str) -> None:
        session = self._session
        session.close_reason = session.close_reason or "client_left"
        session.disconnect(self._services.ticks.now_ms)
        session.close_code = code

    def receive_violation(self, code: int, reason: str) -> None:
        """The last word before the close frame: what was wrong, and the accounts."""
        name = name_of_violation(code)
        self._services.metrics.count_error(name)
        session = self._session
        if session.is_closed:
            return
        message = f"The connection must end: {reason}."
        if code == 1009:
            limit = self._codec.traits.max_message_bytes or self._services.config.server.max_message_bytes
            message = f"A message may have at most {limit} bytes: {reason}."
        session.fail(name, message, code, self._services.ticks.now_ms)
        self.send_events()

    # --------------------------------------------------------------------------------------------------------- out

    def send_events(self) -> None:  # hot
        """Encode and send what the session and the codec have to say."""
        session, codec = self._session, self._codec
        if self.connection is None:
            session.outgoing[:] = [event for event in session.outgoing if is_worth_keeping(event)]
        own = codec.frames_to_send()
        if own:
            self.send(own)
        events = session.events_to_send()
        if events:
            self.active_ms = self._services.ticks.now_ms
            observe = self._services.metrics.observe
            for event in events:
                observe(event)
                if type(event) is ServerBusy:
                    self._services.places.note_busy(self, event)
                elif type(event) is ReplyDone:
                    self._tell_talk_limit()
                elif type(event) is ErrorEvent:
                    if event.code == SCRIPT_UNSUPPORTED:
                        self._services.caller_log.cannot_say(event.message)
                elif type(event) is BusyCue:
                    self._play(event)
                self.send(codec.encode(event))

    def _tell_talk_limit(self) -> None:
        session, codec, auth = self._session, self._codec, self._services.auth
        if session.key and codec.traits.tells_talk_limit:
            auth.note(session.key, session.session_id, session.accounting().received_ms)
            limit = auth.talk_limit(session.key)
            if limit is not None:
                codec.set_talk_limit(*limit)

    def _play(self, cue: BusyCue) -> None:
        codec = self._codec
        if codec.traits.plays_earcons:
            pcm = self._services.announcements.earcons.audio_of(
                cue, codec.output_rate_hz, self._session.options.language
            )
            self.send(codec.encode(ReplyAudio(turn=0, pcm=pcm)))

    def send(self, frames: list[Frame]) -> None:  # hot
        codec, connection = self._codec, self.connection
        if not self._session.resume_token or not codec.is_resumable:
            self.send_uncounted(frames)
            return
        replay_buffer = self.replay_buffer
        for frame in frames:
            data = build_frame(frame)
            replay_buffer.add(data)
            if connection is not None:
                connection.write(data)
        if replay_buffer.size > ASK_BYTES and connection is not None:
            replay_buffer.forget_oldest()
            asked = replay_buffer.ask()
            if asked:
                connection.write(asked)

    def send_uncounted(self, frames: list[Frame]) -> None:  # hot
        """Without counting them among those that a resumed caller may have missed."""
        connection = self.connection
        if connection is not None:
            for frame in frames:
                connection.write(build_frame(frame))

    def replay(self, after: int | None) -> None:
        """Send what a caller missed that has received ``after`` messages (None: it does not count)."""
        replay_buffer, connection = self.replay_buffer, self.connection
        assert connection is not None
        received = replay_buffer.cut if after is None else after
        missing = replay_buffer.acknowledged - max(received, replay_buffer.base)
        for data in replay_buffer.after(received):
            connection.write(data)
        if missing > 0:
            message = f"{missing} messages before these are no longer kept."
            self.send(self._codec.encode(ErrorEvent(code="messages_lost", message=message)))
        connection.write(replay_buffer.ask(is_always=True))

    def send_taken_over(self) -> None:
        """The last message to a connection whose call goes on over another one."""
        message = "The session goes on over another connection, which came with its token."
        self.send_uncounted(self._codec.encode(ErrorEvent(code="session_taken_over", message=message)))

    @property
    def memory_bytes(self) -> int:
        """About what the codec, the session and the messages that are kept cost."""
        kept = self._replay_buffer.memory_bytes if self._replay_buffer is not None else 0
        return kept + self._codec.memory_bytes + self._session.memory_bytes


def name_of_violation(code: int) -> str:
    """What the close code of a broken standard is called in errors and metrics."""
    return _VIOLATIONS.get(code, "connection_failed")


def is_worth_keeping(event: ServerEvent) -> bool:
    """Whether somebody who is away should hear of it later: a busy signal is about now, but for what was dropped."""
    return not isinstance(event, ServerBusy | ServerReady) or (
        isinstance(event, ServerBusy) and event.dropped_ms > 0
    )
