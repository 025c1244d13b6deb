"""Neutral events to frames: what is said on the Realtime wire, in its golden order.

::

    speech_started > speech_stopped > committed > item.added > item.done > transcription.delta* > transcription.completed

Rules: one item id a turn, in every event about it; a transcript's delta is never taken back; no delta of a response after its
``response.done``; what this wire has no word for is left unsaid, except busy, which is always said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from voiceserver.events import events as ev
from voiceserver.wire import Frame
from voiceserver.wire.openai import errors
from voiceserver.wire.openai.audio import INPUT_TOKEN_MS
from voiceserver.wire.openai.dialect import Dialect, Writer
from voiceserver.wire.openai.items import Conversation, Item, Part
from voiceserver.wire.openai.responses import Response, ResponseOptions
from voiceserver.wire.openai.settings import WireSettings, describe_session

REMEMBERED_TURNS: Final = 64
REMEMBERED_CREATES: Final = 16
VENDOR: Final = "voiceserver."


class RateLimit(NamedTuple):
    """One line of ``rate_limits.updated``; ``name`` is "requests" or "tokens"."""

    name: str
    limit: int
    remaining: int
    reset_seconds: float


class HeardTurn:
    """What was said about one turn of the caller."""

    __slots__ = ("audio_ms", "is_announced", "is_committed", "item_id", "partial", "sent_text", "started_ms")

    def __init__(self, item_id: str) -> None:
        self.item_id = item_id
        self.is_announced = False  # speech_started went out and speech_stopped did not
        self.is_committed = False
        self.started_ms = 0.0
        self.audio_ms = 0.0
        self.partial = ""
        self.sent_text = ""  # of the transcript, in deltas


class Outbound:
    """The half of a connection that speaks. ``settings`` and ``conversation`` are changed by the half that listens."""

    __slots__ = (
        "_turns",
        "_unanswered_ms",
        "awaited_response",
        "commits",
        "conversation",
        "conversation_id",
        "creates",
        "has_spoken",
        "has_vendor_events",
        "is_conversation_told",
        "rate_limits",
        "responses",
        "session_id",
        "settings",
        "updates",
        "writer",
    )

    def __init__(
        self, seed: str, dialect: Dialect, settings: WireSettings, conversation: Conversation
    ) -> None:
        self.writer = Writer(seed, dialect)
        self.settings = settings
        self.conversation = conversation
        self.conversation_id = f"conv_{seed}"
        self.session_id = f"sess_{seed}"
        self.is_conversation_told = False
        self.has_vendor_events = False
        self.rate_limits: tuple[RateLimit, ...] = ()
        self.has_spoken = False  # audio of a reply is in the conversation: the voice is frozen
        self.responses: dict[int, Response] = {}
        self.creates: dict[str, ResponseOptions] = {}
        self.awaited_response = ""  # created by the client and not begun yet
        # To be told when the session agrees; a name of "": not at all.
        self.updates: list[tuple[str, WireSettings]] = []
        # Commits by hand on their way: ms of audio, and the item if the client put the audio into one itself.
        self.commits: list[tuple[float, str]] = []
        self._turns: dict[int, HeardTurn] = {}
        self._unanswered_ms = 0.0

    def encode(self, event: ev.ServerEvent) -> list[Frame]:  # hot
        encoder = _ENCODERS.get(type(event))
        return encoder(self, event) if encoder is not None else []

    def set_talk_limit(self, daily_ms: float, left_ms: float, reset_s: float) -> None:
        daily, left = round(daily_ms / INPUT_TOKEN_MS), round(left_ms / INPUT_TOKEN_MS)
        self.rate_limits = (RateLimit("tokens", daily, left, round(reset_s, 3)),)

    @property
    def active_response(self) -> Response | None:
        """The one that writes the conversation."""
        return next((one for one in self.responses.values() if not one.is_out_of_band), None)

    def error(self, fields: dict[str, object]) -> list[Frame]:
        return [self.writer.frame("error", {"error": fields})]

    def item_frames(self, item: Item, previous_id: str | None) -> list[Frame]:
        """A whole item at once: added and done (beta: created)."""
        fields = {"previous_item_id": previous_id, "item": item.describe(self.writer)}
        added = self.writer.frame("conversation.item.added", fields)
        return (
            [added] if self.writer.is_beta else [added, self.writer.frame("conversation.item.done", fields)]
        )

    # ------------------------------------------------------------------------------------------------- session

    def _session(self, name: str, settings: WireSettings) -> str:
        shown = describe_session(settings, self.session_id, self.writer.is_beta)
        return self.writer.frame(name, {"session": shown})

    def _tell_conversation(self) -> list[Frame]:
        if self.is_conversation_told:
            return []
        self.is_conversation_told = True
        shown = {"id": self.conversation_id, "object": "realtime.conversation"}
        return [self.writer.frame("conversation.created", {"conversation": shown})]

    def _ready(self, event: ev.SessionReady) -> list[Frame]:
        is_beta_transcription = self.writer.is_beta and self.settings.is_transcription
        name = "transcription_session.created" if is_beta_transcription else "session.created"
        self.session_id = event.session_id or self.session_id  # the one of the server's log
        frames: list[Frame] = [self._session(name, self.settings)]
        if event.resume_token:
            self.conversation_id = event.resume_token
        if event.is_resumed:  # the id is a new one
            self.is_conversation_told = False
        if self.writer.is_beta or event.is_resumed:
            frames += self._tell_conversation()
        if event.is_resumed:
            previous: str | None = None
            for item in self.conversation.in_order():
                fields = {"previous_item_id": previous, "item": item.describe(self.writer)}
                frames.append(self.writer.frame("conversation.item.created", fields))
                previous = item.id
        return frames

    def _updated(self, event: ev.SessionUpdated) -> list[Frame]:
        name, settings = self.updates.pop(0) if self.updates else ("session.updated", self.settings)
        if not name:
            return []
        frames: list[Frame] = [self._session(name, settings)]
        return frames + self._tell_conversation() if settings.resumes else frames

    # ------------------------------------------------------------------------------------------ what is heard

    def _turn(self, turn: int, item_id: str = "") -> HeardTurn:
        heard = self._turns.get(turn)
        if heard is None:
            heard = self._turns[turn] = HeardTurn(item_id or self.writer.new_id("item"))
            if len(self._turns) > REMEMBERED_TURNS:
                del self._turns[next(iter(self._turns))]
        return heard

    def _speech_started(self, event: ev.SpeechStarted) -> list[Frame]:
        heard = self._turn(event.turn)
        heard.started_ms = event.at_ms
        self.awaited_response = ""  # the session forgets what was asked for and not begun
        if self.settings.turn_detection is None:
            return []
        heard.is_announced = True
        fields = {"audio_start_ms": round(event.at_ms), "item_id": heard.item_id}
        return [self.writer.frame("input_audio_buffer.speech_started", fields)]

    def _speech_stopped(self, event: ev.SpeechStopped) -> list[Frame]:
        heard = self._turn(event.turn)
        heard.audio_ms = max(event.at_ms - heard.started_ms, 0.0)
        if not heard.is_announced:
            return []
        heard.is_announced = False
        fields = {"audio_end_ms": round(event.at_ms), "item_id": heard.item_id}
        return [self.writer.frame("input_audio_buffer.speech_stopped", fields)]

    def _committed(self, event: ev.InputCommitted) -> list[Frame]:
        audio_ms, item_id = 0.0, ""
        if self.commits and self.settings.turn_detection is None:
            audio_ms, item_id = self.commits.pop(0)
        heard = self._turn(event.turn, item_id)
        heard.audio_ms = heard.audio_ms or audio_ms
        return self._commit(event.turn, heard, is_told=not item_id)

    def _commit(self, turn: int, heard: HeardTurn, is_told: bool = True) -> list[Frame]:
        if heard.is_committed:
            return []
        heard.is_committed = True
        self._unanswered_ms += heard.audio_ms
        item = Item(heard.item_id, "message", "user", key=f"user:{turn}", turn=turn)
        part = Part("input_audio", None)
        part.is_hidden = self.settings.transcription is None
        item.parts.append(part)
        previous = self.conversation.add(item)
        frames: list[Frame] = []
        if is_told:
            fields = {"previous_item_id": previous, "item_id": item.id}
            frames.append(self.writer.frame("input_audio_buffer.committed", fields))
        frames += self.item_frames(item, previous)
        return frames + self._delta(heard, heard.partial) if heard.partial else frames

    def _cleared(self, event: ev.InputCleared) -> list[Frame]:
        return [self.writer.frame("input_audio_buffer.cleared", {})]

    def _idle(self, event: ev.InputIdle) -> list[Frame]:
        """The silence is an item of its own, as on the service; the history of the session knows nothing of it."""
        item = Item(self.writer.new_id("item"), "message", "user")
        item.parts.append(Part("input_audio", None if self.settings.transcription is None else ""))
        span = {"audio_start_ms": round(event.from_ms), "audio_end_ms": round(event.to_ms)}
        previous = self.conversation.add(item)
        return [
            self.writer.frame("input_audio_buffer.timeout_triggered", {**span, "item_id": item.id}),
            self.writer.frame(
                "input_audio_buffer.committed", {"previous_item_id": previous, "item_id": item.id}
            ),
            *self.item_frames(item, previous),
        ]

    # ------------------------------------------------------------------------------------------- transcripts

    def _delta(self, heard: HeardTurn, text: str) -> list[Frame]:
        if (
            self.settings.transcription is None
            or len(text) <= len(heard.sent_text)
            or not text.startswith(heard.sent_text)
        ):
            return []
        fields = {"item_id": heard.item_id, "content_index": 0, "delta": text[len(heard.sent_text) :]}
        heard.sent_text = text
        return [self.writer.frame("conversation.item.input_audio_transcription.delta", fields)]

    def _partial(self, event: ev.TranscriptPartial) -> list[Frame]:
        heard = self._turn(event.turn)
        heard.partial = event.text
        # A conversation's client looks the item up on hearing of it, so there it has to exist first.
        if heard.is_committed or self.settings.is_transcription:
            return self._delta(heard, event.text)
        return []

    def _final(self, event: ev.TranscriptFinal) -> list[Frame]:
        heard = self._turn(event.turn)
        frames = self._commit(event.turn, heard)
        item = self.conversation.get(heard.item_id)
        if item is not None and item.parts:
            item.parts[0].text = event.text
        if self.settings.transcription is None:
            return frames
        frames += self._delta(heard, event.text)
        seconds = (event.audio_ms or heard.audio_ms) / 1000.0
        fields = {
            "item_id": heard.item_id,
            "content_index": 0,
            "transcript": event.text,
            "usage": {"type": "duration", "seconds": round(seconds, 3)},
        }
        frames.append(self.writer.frame("conversation.item.input_audio_transcription.completed", fields))
        return frames

    def _failed(self, event: ev.TranscriptFailed) -> list[Frame]:
        heard = self._turn(event.turn)
        frames = self._commit(event.turn, heard)
        if self.settings.transcription is None:
            return frames
        error = {"type": "transcription_error", "code": event.code, "message": event.message, "param": None}
        fields = {"item_id": heard.item_id, "content_index": 0, "error": error}
        frames.append(self.writer.frame("conversation.item.input_audio_transcription.failed", fields))
        return frames

    # ----------------------------------------------------------------------------------------------- replies

    def expect_response(self, response_id: str, options: ResponseOptions) -> None:
        """The client asked for it; ``ReplyStarted`` with this key begins it."""
        self.creates[response_id] = options
        if not options.is_out_of_band:
            self.awaited_response = response_id
        if len(self.creates) > REMEMBERED_CREATES:
            del self.creates[next(iter(self.creates))]

    def forget_response(self, response_id: str) -> None:
        self.creates.pop(response_id, None)
        if self.awaited_response == response_id:
            self.awaited_response = ""

    def _reply_started(self, event: ev.ReplyStarted) -> list[Frame]:
        heard = self._turns.get(event.turn)
        frames = self._commit(event.turn, heard) if heard is not None else []
        response = self._begin(event.turn, event.key, event.speaks, event.is_out_of_band)
        return [*frames, response.created()]

    def _begin(self, turn: int, key: str, speaks: bool, is_out_of_band: bool) -> Response:
        options = self.creates.get(key)
        response_id = key
        if options is None:
            options, response_id = ResponseOptions(self.settings), self.writer.new_id("resp")
        self.forget_response(key)
        options.speaks = speaks
        options.is_out_of_band = is_out_of_band
        response = Response(response_id, turn, options, self.writer, self.conversation, self.conversation_id)
        if not is_out_of_band:
            response.heard_ms, self._unanswered_ms = self._unanswered_ms, 0.0
        self.responses[turn] = response
        return response

    def _reply_text(self, event: ev.ReplyText) -> list[Frame]:
        response = self.responses.get(event.turn)
        return response.text(event.text) if response is not None and event.text else []

    def _filler(self, event: ev.ReplyFiller) -> list[Frame]:
        response = self.responses.get(event.turn)
        return response.filler(event.text) if response is not None else []

    def _reply_audio(self, event: ev.ReplyAudio) -> list[Frame]:  # hot
        response = self.responses.get(event.turn)
        if response is None or not response.speaks:
            return []
        if not response.is_out_of_band:
            self.has_spoken = True
        return response.audio(event.pcm)

    def _tool_call(self, event: ev.ReplyToolCall) -> list[Frame]:
        response = self.responses.get(event.turn)
        return response.tool_call(event) if response is not None else []

    def _reply_done(self, event: ev.ReplyDone) -> list[Frame]:
        response = self.responses.pop(event.turn, None)
        frames: list[Frame] = []
        if response is None:
            options = self.creates.get(event.key)
            if options is None:
                return []
            response = self._begin(event.turn, event.key, options.speaks, options.is_out_of_band)
            del self.responses[event.turn]
            frames.append(response.created())
        frames += response.done(event)
        limits = [limit._asdict() for limit in self.rate_limits]
        return [*frames, self.writer.frame("rate_limits.updated", {"rate_limits": limits})]

    # ------------------------------------------------------------------------------------------- the server

    def _busy(self, event: ev.ServerBusy) -> list[Frame]:
        if errors.is_loss(event):
            return self.error(errors.describe_busy(event))
        return [self.writer.frame("rate_limits.updated", errors.describe_limit(event))]

    def _server_ready(self, event: ev.ServerReady) -> list[Frame]:
        return self._vendor("server.ready", {"stage": event.stage, "credit_ms": event.credit_ms})

    def _draining(self, event: ev.ServerDraining) -> list[Frame]:
        frames: list[Frame] = [self.writer.frame("rate_limits.updated", errors.describe_draining(event))]
        return frames + self._vendor("server.draining", {"deadline_ms": event.deadline_ms})

    def _closing(self, event: ev.SessionClosing) -> list[Frame]:
        return self._vendor("session.closing", {"reason": event.reason, "accounting": event.accounting})

    def _digit(self, event: ev.DigitHeard) -> list[Frame]:
        return self._vendor("input.digit", {"digit": event.digit})

    def _playback_stop(self, event: ev.PlaybackStop) -> list[Frame]:
        return self._vendor(
            "playback.stop", {"played_ms": event.played_ms}
        )  # speech_started says it to all others

    def _vendor(self, name: str, fields: dict[str, object]) -> list[Frame]:
        """Only to clients that asked: some validate every event and take one they do not know for a fault."""
        return [self.writer.frame(VENDOR + name, fields)] if self.has_vendor_events else []

    def _error(self, event: ev.ErrorEvent) -> list[Frame]:
        return self.error(errors.describe_error(event))


_ENCODERS: Final[dict[type, Callable[[Outbound, Any], list[Frame]]]] = {
    ev.ReplyAudio: Outbound._reply_audio,
    ev.SessionReady: Outbound._ready,
    ev.SessionUpdated: Outbound._updated,
    ev.SpeechStarted: Outbound._speech_started,
    ev.SpeechStopped: Outbound._speech_stopped,
    ev.InputCommitted: Outbound._committed,
    ev.InputCleared: Outbound._cleared,
    ev.InputIdle: Outbound._idle,
    ev.TranscriptPartial: Outbound._partial,
    ev.TranscriptFinal: Outbound._final,
    ev.TranscriptFailed: Outbound._failed,
    ev.ReplyStarted: Outbound._reply_started,
    ev.ReplyText: Outbound._reply_text,
    ev.ReplyFiller: Outbound._filler,
    ev.ReplyToolCall: Outbound._tool_call,
    ev.ReplyDone: Outbound._reply_done,
    ev.PlaybackStop: Outbound._playback_stop,
    ev.DigitHeard: Outbound._digit,
    ev.ServerBusy: Outbound._busy,
    ev.ServerReady: Outbound._server_ready,
    ev.ServerDraining: Outbound._draining,
    ev.SessionClosing: Outbound._closing,
    ev.ErrorEvent: Outbound._error,
}
