"""A session: one caller's conversation as a pure state machine. Time and bytes are arguments; outputs are pulled.

::

    lifecycle   OPENING -> OPEN -> DRAINING -> CLOSED        (table PHASES; anything else raises IllegalTransition)
    turn        idle -> listening -> thinking -> speaking    (``stage_of_turn``; a barge-in goes back to listening)
    flow        READY <-> BUSY                               (gate.py)

    receive_audio, receive_event, receive_result, lose_stream, handle_timer                     in
    stages_wanted, stages_unwanted, stages_with_requests, next_request, events_to_send, deadline_ms    out

The halves: ``ear`` (listening), ``mouth`` (speaking), ``lanes`` (streams), ``gate`` (busy). They are made when the caller
first needs them, so that an idle session stays small. Rules: audio is never lost unsaid (``accounting``); results of an
older turn are dropped at the door; illegal input raises and changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import Literal

import msgspec

from voiceserver import commands
from voiceserver import events as ev
from voiceserver.books import accounting
from voiceserver.ear import Ear
from voiceserver.errors import IllegalTransition, ProtocolError, Refusal
from voiceserver.gate import BusyGate, Wait
from voiceserver.history import History, chat_messages
from voiceserver.lanes import Lanes
from voiceserver.mouth import Mouth, failure_of
from voiceserver.outbox import Outbox
from voiceserver.reply import Reply
from voiceserver.settings import Facts, Settings
from voiceserver.transcripts import Transcripts, Utterance
from voiceserver.turn import Start, Stop
from workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams, unpack_speech


class Phase(Enum):
    OPENING = "opening"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.OPENING: frozenset({Phase.OPEN, Phase.CLOSED}),
    Phase.OPEN: frozenset({Phase.DRAINING, Phase.CLOSED}),
    Phase.DRAINING: frozenset({Phase.DRAINING, Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}


class Session:
    __slots__ = (
        "_close_by_ms",
        "_events",
        "_facts",
        "_gate",
        "_idle_from_ms",
        "_is_output_held",
        "_last_speech_turn",
        "_mouth",
        "_replied_turn",
        "close_code",
        "close_reason",
        "deadline_ms",
        "ear",
        "input_rate_hz",
        "lanes",
        "options",
        "output_rate_hz",
        "phase",
        "queue",
        "resume_token",
        "session_id",
        "settings",
        "transcripts",
        "turn",
    )

    def __init__(
        self,
        session_id: str,
        settings: Settings,
        facts: Facts,
        *,
        input_rate_hz: int,
        output_rate_hz: int,
        resume_token: str = "",
    ) -> None:
        self.session_id = session_id
        self.input_rate_hz = input_rate_hz
        self.output_rate_hz = output_rate_hz
        self.resume_token = resume_token
        self.phase = Phase.OPENING
        self.close_code = 1000
        self.close_reason = ""
        self.deadline_ms = math.inf  # never later than the next time handle_timer has something to do
        self.turn = 0
        self.settings = settings
        self.options = settings.options
        self.ear: Ear | None = None
        self.transcripts: Transcripts | None = None
        self.lanes: Lanes | None = None
        self.queue: deque[ev.ReplyCreate] | None = (
            None  # replies that wait for a transcript or for another reply
        )
        self._events: list[ev.ServerEvent] = []
        self._facts = facts
        self._mouth: Mouth | None = None
        self._gate: BusyGate | None = None
        self._last_speech_turn = 0
        self._replied_turn = 0
        self._close_by_ms = math.inf
        self._idle_from_ms = math.inf
        self._is_output_held = False

    # ---------------------------------------------------------------------------------------------- lifecycle

    def _move(self, phase: Phase) -> None:
        if phase not in PHASES[self.phase]:
            raise IllegalTransition(f"a session cannot go from {self.phase.value} to {phase.value}")
        self.phase = phase

    @property
    def is_closed(self) -> bool:
        return self.phase is Phase.CLOSED

    @property
    def stage_of_turn(self) -> Literal["idle", "listening", "thinking", "speaking"]:
        if self.ear is not None and self.ear.capturing_turn:
            return "listening"
        reply = self.reply
        if reply is not None:
            return "speaking" if reply.samples_sent else "thinking"
        return "thinking" if self.transcripts else "idle"

    def open(self, now_ms: float) -> None:
        self._move(Phase.OPEN)
        self.emit(
            ev.SessionReady(
                session_id=self.session_id,
                input_rate_hz=self.input_rate_hz,
                output_rate_hz=self.output_rate_hz,
                resume_token=self.resume_token,
                credit_ms=float(self.settings.backpressure.max_backlog_ms),
            )
        )

    def drain(self, within_ms: float, now_ms: float) -> None:
        """The server is going: say so, finish the turn, close with 1012."""
        if self.phase in (Phase.OPEN, Phase.DRAINING):
            self.emit(ev.ServerDraining(deadline_ms=round(within_ms, 1)))
            self.begin_close(1012, "draining", within_ms, now_ms)

    def begin_close(self, code: int, reason: str, within_ms: float, now_ms: float) -> None:
        """Take no more audio, finish the turn in progress, close at ``within_ms`` from now at the latest."""
        self._move(Phase.DRAINING)
        self.close_code, self.close_reason = code, reason
        self._close_by_ms = min(self._close_by_ms, now_ms + within_ms)
        self._after(now_ms)

    def _close_when_done(self, now_ms: float) -> None:
        ear = self.ear
        if now_ms < self._close_by_ms:
            if ear is not None and ear.outbox.backlog:
                return
            if ear is not None and ear.capturing_turn:
                self.end_turn("close", now_ms)
            if self.transcripts or self.reply is not None or self.queue:
                return
        self._close(now_ms)

    def _close(self, now_ms: float) -> None:
        if self._mouth is not None:
            self._mouth.stop("cancelled", now_ms)
        if self.ear is not None:
            self.ear.capture.discard()
            self.ear.outbox.discard()
        self.queue = self.transcripts = None
        self.emit(ev.SessionClosing(reason=self.close_reason or "closed", accounting=self.accounting()))
        self._move(Phase.CLOSED)
        self.deadline_ms = math.inf
        self._check()

    def disconnect(self, now_ms: float) -> None:
        """The connection is gone: nobody hears what comes now, the books are closed all the same."""
        if self.phase is not Phase.CLOSED:
            self.close_code, self.close_reason = 1006, self.close_reason or "disconnected"
            self._close(now_ms)

    def fail(self, code: str, message: str, close_code: int, now_ms: float) -> None:
        """End the session for a reason that the caller is told."""
        if self.phase is not Phase.CLOSED:
            self.emit(ev.ErrorEvent(code=code, message=message, retryable=close_code in (1012, 1013)))
            self.close_code, self.close_reason = close_code, code
            self._close(now_ms)

    # -------------------------------------------------------------------------------------------------- input

    def receive_audio(self, pcm: bytes, now_ms: float) -> None:  # hot
        """PCM16 little-endian mono at ``input_rate_hz``. Raises ProtocolError for half a sample."""
        if len(pcm) & 1:
            raise ProtocolError(
                "audio_misaligned", f"PCM16 has 2 bytes a sample, so {len(pcm)} bytes end in half a sample"
            )
        ear = self.ear
        if ear is None:
            ear = self._make_ear()
        if self.phase is not Phase.OPEN:
            ear.outbox.refuse(len(pcm) >> 1)
            return
        if not ear.outbox.backlog:
            due_ms = now_ms + self.settings.backpressure.busy_after_ms
            if due_ms < self.deadline_ms:
                self.deadline_ms = due_ms
        ear.receive(pcm, now_ms)
        if ear.detector is None:
            if not ear.capturing_turn and self.settings.can_hear:
                self._begin_turn(ear, ear.ms(ear.outbox.consumed_seq), ear.ms(ear.received_seq), now_ms)
            ear.pass_through()
        if ear.outbox.backlog + ear.capture.backlog > ear.limit:
            self._shed(ear, now_ms)
        if self.settings.check_laws:
            self._check()

    def receive_event(self, event: ev.ClientEvent, now_ms: float) -> None:
        """Raises ProtocolError for what is not allowed now; nothing has changed then."""
        if self.phase in (Phase.OPENING, Phase.CLOSED):
            raise ProtocolError("session_not_open", f"the session is {self.phase.value}")
        if self.phase is Phase.DRAINING and not isinstance(event, commands.ALLOWED_WHILE_DRAINING):
            raise ProtocolError(
                "session_draining", "the session is ending: only cancel, played and close are taken"
            )
        commands.handle(self, event, now_ms)
        self._after(now_ms)

    def receive_result(self, stage: str, record: Record, now_ms: float) -> None:  # hot
        """One result of a stage's stream. FAILED ends the turn, not the session."""
        if self.phase is Phase.CLOSED or record.kind == ResultKind.OPENED:
            return
        if stage == "vad":
            self._receive_vad(record, now_ms)
            if not self._events and self._gate is None and self.phase is Phase.OPEN:
                return
        elif stage == self.settings.hears_with:
            self._receive_hearing(stage, record, now_ms)
        elif stage == "tts":
            self.mouth.receive_tts(record, now_ms)
        else:
            self.mouth.receive_reply(record, now_ms)
        self._after(now_ms)

    def _receive_vad(self, record: Record, now_ms: float) -> None:  # hot
        ear = self.ear
        if ear is None:
            return
        if record.kind == ResultKind.SPEECH and ear.detector is not None:
            start_ms, window_ms, probabilities = unpack_speech(record.payload)
            ear.outbox.consume(record.seq)
            for decision in ear.detector.receive(start_ms, window_ms, probabilities):
                if isinstance(decision, Start):
                    self._start_speech(ear, decision, now_ms)
                elif ear.capturing_turn:
                    self._end_speech(ear, decision, now_ms)
        elif record.kind == ResultKind.FAILED:
            code, message = failure_of(record.payload)
            self.emit(ev.ErrorEvent(code=code, message=message, retryable=True))
        if ear.capturing_turn:
            self._lower_deadline(now_ms + self.settings.backpressure.busy_after_ms)
        ear.consume(record.seq)
        if self.settings.check_laws:
            self._check()

    def _receive_hearing(self, stage: str, record: Record, now_ms: float) -> None:
        ear, transcripts = self.ear, self.transcripts
        if ear is None or transcripts is None:
            return
        ear.capture.consume(record.seq)
        is_last = record.kind in (ResultKind.FINAL, ResultKind.FAILED) or (
            stage == "reply" and record.kind == ResultKind.DONE
        )
        if is_last:
            if ear.capturing_turn == record.turn:  # the engine gave up on a turn that is still being spoken
                ear.clear()
            ear.capture.commit_turn(record.turn)
        if stage == "reply":  # speech to speech: the turn is answered by audio
            if is_last:
                transcripts.forget(record.turn)
            self.mouth.receive_reply(record, now_ms)
            return
        finished = transcripts.receive(record)
        if finished is None:
            return
        utterance, text = finished
        self.mouth.history.append(
            ev.HistoryItem(role="user", text=text, turn=utterance.turn, key=f"user:{utterance.turn}")
        )
        if utterance.creates_reply and self.options.replies and self._last_speech_turn <= utterance.turn:
            if self.reply is None:
                self._start_reply(ev.ReplyCreate(), now_ms, utterance)
            else:
                self.enqueue_reply(ev.ReplyCreate())

    # ------------------------------------------------------------------------------------------------ turns

    def _begin_turn(self, ear: Ear, from_ms: float, decided_ms: float, now_ms: float) -> float:
        self.turn += 1
        self._last_speech_turn = self.turn
        if self.transcripts is None:
            self.transcripts = Transcripts(self._events)
        self.transcripts.is_silent = not self.options.transcribes
        self.transcripts.begin(self.turn)
        self._idle_from_ms = math.inf
        self._lower_deadline(now_ms + self.settings.backpressure.busy_after_ms)
        return ear.begin(self.turn, from_ms, decided_ms, now_ms)

    def _start_speech(self, ear: Ear, start: Start, now_ms: float) -> None:
        detection = self.options.turn_detection
        padding_ms = detection.prefix_padding_ms if detection is not None else 0
        begun_ms = self._begin_turn(ear, max(start.at_ms - padding_ms, 0.0), start.decided_ms, now_ms)
        slot = len(self._events)
        interrupted = 0
        if detection is not None and detection.interrupts_reply and self._mouth is not None:
            interrupted = self.stop_reply("interrupted", now_ms)
        # speech.started explains the end of the reply, so it goes before it.
        self._events.insert(
            slot, ev.SpeechStarted(turn=self.turn, at_ms=round(begun_ms, 1), interrupted_turn=interrupted)
        )

    def end_turn(self, reason: Literal["commit", "close"], now_ms: float) -> Utterance | None:
        """End the caller's turn here. None if there is none."""
        ear = self.ear
        if ear is None or not ear.capturing_turn:
            return None
        clock_ms = ear.ms(ear.outbox.consumed_seq)
        stop = ear.detector.stop_now(reason) if ear.detector is not None else None
        return self._end_speech(
            ear, Stop(stop.at_ms if stop is not None else clock_ms, clock_ms, reason), now_ms
        )

    def _end_speech(self, ear: Ear, stop: Stop, now_ms: float) -> Utterance | None:
        assert self.transcripts is not None
        turn = ear.end(stop.decided_ms, now_ms)
        utterance = self.transcripts.latest
        utterance.decided_ms = now_ms
        utterance.end_of_speech_ms = round(stop.at_ms, 1)
        utterance.endpointing_ms = round(stop.decided_ms - stop.at_ms, 1)
        detection = self.options.turn_detection
        utterance.creates_reply = detection is not None and detection.creates_reply
        if ear.detector is not None:
            self.emit(ev.SpeechStopped(turn=turn, at_ms=round(stop.at_ms, 1), reason=stop.reason))
        self.emit(ev.InputCommitted(turn=turn, audio_ms=round(stop.decided_ms, 1)))
        if not self.settings.can_hear:  # listeners: nobody transcribes
            ear.capture.commit_turn(turn)
            self.transcripts.forget(turn)
        elif self.settings.hears_with == "reply":
            self._start_reply(ev.ReplyCreate(), now_ms, utterance)
        return utterance

    # ----------------------------------------------------------------------------------------------- replies

    @property
    def mouth(self) -> Mouth:
        if self._mouth is None:
            self._mouth = Mouth(self._events, History(self.settings.history_items), self.output_rate_hz)
        return self._mouth

    @property
    def reply(self) -> Reply | None:
        return self._mouth.reply if self._mouth is not None else None

    def enqueue_reply(self, create: ev.ReplyCreate) -> None:
        if self.queue is None:
            self.queue = deque()
        self.queue.append(create)

    def stop_reply(self, reason: Literal["interrupted", "cancelled"], now_ms: float) -> int:
        """End the reply in progress (or the playing of the last); its turn, 0 for none."""
        reply = self.reply
        turn = self.mouth.stop(reason, now_ms)
        self.queue = None
        if reply is not None:
            self.the_lanes.reset("reply")
            self.the_lanes.reset("tts")
            if self.settings.hears_with == "reply" and self.ear is not None and self.transcripts is not None:
                self.ear.capture.commit_turn(reply.turn)
                self.transcripts.forget(reply.turn)
        return turn

    def _start_reply(self, create: ev.ReplyCreate, now_ms: float, utterance: Utterance | None = None) -> None:
        is_capturing = self.ear is not None and self.ear.capturing_turn == self.turn
        if utterance is None and (self.turn <= self._replied_turn or is_capturing):
            self.turn += 1
        turn = self.turn if utterance is None else utterance.turn
        self._replied_turn = max(self._replied_turn, turn)
        speaks = (self.options.speaks if create.speaks is None else create.speaks) and self.settings.can_speak
        request = b"" if self.settings.hears_with == "reply" else self._reply_request(turn, create)
        reply = self.mouth.start(turn, create, speaks, request, now_ms)
        self._idle_from_ms = math.inf
        if self.settings.hears_with == "reply":
            reply.ask.mark_sent()
        if utterance is not None and utterance.decided_ms is not None:
            reply.decided_ms = utterance.decided_ms
            reply.end_of_speech_ms = utterance.end_of_speech_ms
            reply.endpointing_ms = utterance.endpointing_ms
            reply.stt_ms = round(now_ms - utterance.decided_ms, 2)

    def _reply_request(self, turn: int, create: ev.ReplyCreate) -> bytes:
        options = self.options
        request: dict[str, object] = {
            "turn": turn,
            "messages": chat_messages(self.mouth.history.items if create.items is None else create.items),
            "instructions": options.instructions if create.instructions is None else create.instructions,
            "tools": options.tools if create.tools is None else create.tools,
            "tool_choice": options.tool_choice if create.tool_choice is None else create.tool_choice,
            "max_output_tokens": options.max_output_tokens
            if create.max_output_tokens is None
            else create.max_output_tokens,
            "temperature": options.temperature if create.temperature is None else create.temperature,
            "language": options.language,
            "context": self._facts,
        }
        return msgspec.json.encode(request)

    def _after(self, now_ms: float) -> None:
        """What follows from any change: replies that waited, recovery, the end of a draining session, the next deadline."""
        if self.phase is Phase.CLOSED:
            return
        if self.queue and self.reply is None and not (self.transcripts and self.transcripts.is_pending):
            self._start_reply(self.queue.popleft(), now_ms)
        mouth = self._mouth
        if mouth is not None and mouth.reply is None and mouth.replies and self._idle_from_ms == math.inf:
            self._idle_from_ms = max(now_ms, mouth.playing_until_ms)
        if self._gate is not None and self._gate.is_busy:
            self._evaluate_gate(now_ms)
        if self.phase is Phase.DRAINING:
            self._close_when_done(now_ms)
        self._lower_deadline(self._next_deadline_ms())
        if self.settings.check_laws:
            self._check()

    # ------------------------------------------------------------------------------------------------ streams

    @property
    def the_lanes(self) -> Lanes:
        if self.lanes is None:
            self.lanes = Lanes(self.settings.stages)
        return self.lanes

    def _outbox(self, stage: str) -> Outbox | None:  # hot
        ear = self.ear
        if stage == "vad":
            return ear.outbox if ear is not None else None
        if stage == self.settings.hears_with:
            return ear.capture if ear is not None else None
        reply = self.reply
        if reply is None:
            return None
        return reply.ask if stage == "reply" else reply.say

    def _needs(self, stage: str) -> bool:  # hot
        if self.phase is Phase.CLOSED:
            return False
        ear = self.ear
        if stage == "vad":
            return ear is not None and ear.detector is not None
        if stage == self.settings.hears_with:
            return (
                ear is not None
                and bool(self.transcripts)
                and (ear.capturing_turn > 0 or not ear.capture.is_empty)
            )
        reply = self.reply
        return reply is not None and (
            stage == "reply" or (reply.speaks and self.settings.hears_with != "reply")
        )

    def stages_wanted(self) -> list[str]:  # hot
        """Stages that need a stream now and have none."""
        if self.ear is None and self._mouth is None:
            return []
        return self.the_lanes.wanted(self._needs)

    def stages_unwanted(self) -> list[str]:  # hot
        """Stages whose stream has nothing more to do, or the wrong thing."""
        return self.lanes.unwanted(self._needs) if self.lanes is not None else []

    def stages_with_requests(self) -> list[str]:  # hot
        """Stages with an open stream and something unsent."""
        if self.lanes is None:
            return []
        ready = self.lanes.sendable(self._outbox)
        if self._is_output_held and "tts" in ready:
            ready.remove("tts")
        return ready

    def stream_params(self, stage: str) -> StreamParams:
        options = self.options
        if stage in ("vad", self.settings.hears_with):
            outbox = self._outbox(stage)
            return StreamParams(
                rate_hz=self.input_rate_hz,
                start_seq=outbox.first_seq if outbox is not None else 0,
                options={"language": options.language} if stage == "stt" and options.language else {},
            )
        wanted: dict[str, str | int | float | bool] = {}
        if stage == "tts":
            wanted = {"language": options.language, "voice": options.voice, "speed": options.speed}
            wanted = {
                name: value for name, value in wanted.items() if value and (name != "speed" or value != 1.0)
            }
        return StreamParams(rate_hz=self.output_rate_hz, options=wanted)

    def stream_opened(self, stage: str, now_ms: float) -> None:
        self.the_lanes.opened(stage)

    def stream_closed(self, stage: str) -> None:
        self.the_lanes.closed(stage)
        outbox = self._outbox(stage)
        if outbox is not None:
            outbox.rewind()

    def stream_refused(self, stage: str, refusal: Refusal, now_ms: float) -> None:
        if refusal.reason == "quarantined":
            self._quarantine(stage, now_ms)
            return
        self.the_lanes.refuse(stage, refusal, now_ms)
        self._lower_deadline(self.the_lanes.retry_ms)

    def retry(self, stage: str) -> None:
        """The pool says that there may be room."""
        if self.lanes is not None:
            self.lanes.retry(stage)

    def _quarantine(self, stage: str, now_ms: float) -> None:
        self.fail(
            "quarantined",
            f"the audio or text of this session made its {stage} worker fail repeatedly",
            1011,
            now_ms,
        )

    def lose_stream(self, stage: str, reason: str, now_ms: float) -> None:
        """The stage's worker is gone. The caller hears it at once; what was not committed goes out again."""
        if self.phase is Phase.CLOSED:
            return
        self.the_lanes.closed(stage)
        if reason == "quarantined":
            self._quarantine(stage, now_ms)
            return
        if not self._needs(stage):
            return
        reply = self.reply
        outbox = self._outbox(stage)
        if reply is not None and (
            stage == "tts" or (stage == "reply" and self.settings.hears_with == "reply")
        ):
            reply.replay_say()
        elif reply is not None and stage == "reply":
            reply.replay_ask()
        if outbox is not None:
            outbox.rewind()
        lag_ms = (
            self.ear.ms(outbox.backlog)
            if self.ear is not None and outbox is not None and stage in ("vad", "stt")
            else None
        )
        retry_ms = float(self.settings.backpressure.busy_after_ms)
        self.emit(
            self._the_gate().announce(
                Wait(stage, reason, now_ms, 0.0, lag_ms, retry_ms, self.turn), self.credit_ms, now_ms
            )
        )
        self._after(now_ms)

    def next_request(self, stage: str) -> tuple[RequestKind, int, int, bytes] | None:  # hot
        outbox = self._outbox(stage)
        entry = outbox.next_unsent() if outbox is not None else None
        return None if entry is None else entry[:4]

    def request_sent(self, stage: str, now_ms: float) -> None:  # hot
        outbox = self._outbox(stage)
        if outbox is not None:
            outbox.mark_sent()

    # ----------------------------------------------------------------------------------------- time and pressure

    def hold_output(self, is_held: bool, now_ms: float) -> None:
        """The transport is above (or back below) its write limit: the reply must not run further ahead."""
        self._is_output_held = is_held

    def _lower_deadline(self, deadline_ms: float) -> None:
        if deadline_ms < self.deadline_ms:
            self.deadline_ms = deadline_ms

    def _next_deadline_ms(self) -> float:
        waits = self._waits()
        gate_ms = (
            self._gate.deadline_ms(waits)
            if self._gate is not None
            else min((w.due_ms for w in waits), default=math.inf)
        )
        retry_ms = self.lanes.retry_ms if self.lanes is not None else math.inf
        return min(self._close_by_ms, gate_ms, retry_ms, self._answer_due_ms(), self._idle_due_ms())

    def _answer_due_ms(self) -> float:
        reply = self.reply
        return (
            reply.asked_ms + self.settings.reply_timeout_ms
            if reply is not None and not reply.has_begun
            else math.inf
        )

    def _idle_due_ms(self) -> float:
        detection = self.options.turn_detection
        if detection is None or detection.idle_timeout_ms is None or self.phase is not Phase.OPEN:
            return math.inf
        return self._idle_from_ms + detection.idle_timeout_ms

    def handle_timer(self, now_ms: float) -> None:
        """Call at ``deadline_ms`` or later; earlier calls do no harm."""
        if self.phase is Phase.CLOSED:
            return
        self.deadline_ms = math.inf
        self._evaluate_gate(now_ms)
        if self.lanes is not None:
            self.lanes.retry_due(now_ms)
        if now_ms >= self._answer_due_ms() and self.reply is not None:
            waited_ms = round(now_ms - self.reply.asked_ms)
            self.the_lanes.reset("reply")
            self.mouth.fail("reply_timeout", f"no answer began within {waited_ms} ms", now_ms=now_ms)
        if now_ms >= self._idle_due_ms():
            commands.caller_is_idle(self)
        self._after(now_ms)

    def idle_handled(self) -> None:
        self._idle_from_ms = math.inf

    def _waits(self) -> list[Wait]:
        waits: list[Wait] = []
        ear, settings = self.ear, self.settings
        for stage in settings.stages:
            outbox = self._outbox(stage)
            oldest_ms = outbox.oldest_at_ms if outbox is not None else None
            if (
                outbox is None
                or oldest_ms is None
                or not self._needs(stage)
                or (stage == "tts" and self._is_output_held)
            ):
                continue
            refusal = self.lanes.refusal(stage) if self.lanes is not None else None
            is_asked = stage == "reply" and settings.hears_with != "reply" and not outbox.has_unsent()
            lag_ms = (
                ear.ms(outbox.backlog) if ear is not None and stage in ("vad", settings.hears_with) else None
            )
            waits.append(
                Wait(
                    stage,
                    "slow" if refusal is None else refusal.reason,
                    oldest_ms,
                    settings.reply_slow_ms if is_asked else float(settings.backpressure.busy_after_ms),
                    lag_ms,
                    0.0 if refusal is None else refusal.retry_after_ms,
                    self.turn,
                )
            )
        return waits

    def _the_gate(self) -> BusyGate:
        if self._gate is None:
            self._gate = BusyGate(self.settings.backpressure)
        return self._gate

    def _shed(self, ear: Ear, now_ms: float) -> None:
        dropped_ms = ear.shed(self.settings.backpressure.max_backlog_ms)
        if dropped_ms:
            self._the_gate().dropped_ms += dropped_ms
            self._evaluate_gate(now_ms)
            self._lower_deadline(self._next_deadline_ms())

    def _evaluate_gate(self, now_ms: float) -> None:
        waits = self._waits()
        if self._gate is None and all(now_ms < wait.due_ms for wait in waits):
            return
        said = self._the_gate().evaluate(waits, self.credit_ms, now_ms)
        if said is not None:
            self.emit(said)

    @property
    def credit_ms(self) -> float:
        """How much audio the client may send before the oldest would be shed."""
        lag_ms = self.ear.lag_ms if self.ear is not None else 0.0
        return max(self.settings.backpressure.max_backlog_ms - lag_ms, 0.0)

    # ------------------------------------------------------------------------------------------------ outputs

    def emit(self, event: ev.ServerEvent) -> None:
        self._events.append(event)

    def events_to_send(self) -> list[ev.ServerEvent]:  # hot
        """Take the events that are to be said, in order."""
        if not self._events:
            return []
        taken = self._events[:]
        self._events.clear()
        return taken

    def accounting(self) -> ev.Accounting:
        return accounting(self.ear, self.settings.hears_with)

    def counters(self) -> dict[str, float]:
        """Every counter of the session, for its closing log line."""
        mouth, books = self._mouth, self.accounting()
        return {
            "turns": self.turn,
            "replies": mouth.replies if mouth is not None else 0,
            "interruptions": mouth.interruptions if mouth is not None else 0,
            "reply_audio_ms": round(mouth.samples_sent * 1000.0 / self.output_rate_hz, 1)
            if mouth is not None
            else 0.0,
            "busy_signals": self._gate.signals if self._gate is not None else 0,
            "received_ms": books.received_ms,
            "consumed_ms": books.consumed_ms,
            "dropped_ms": books.dropped_ms,
            "discarded_ms": books.discarded_ms,
        }

    def _make_ear(self) -> Ear:
        detection = self.options.turn_detection if "vad" in self.settings.stages else None
        self.ear = ear = Ear(self.input_rate_hz, detection, self.settings.backpressure.max_backlog_ms)
        return ear

    def _check(self) -> None:
        if self.ear is not None:
            self.ear.check()
