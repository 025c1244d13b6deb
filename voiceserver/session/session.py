"""A session: one caller's conversation as a pure state machine. Time and bytes are arguments; outputs are pulled.

::

    lifecycle   OPENING -> OPEN -> DRAINING -> CLOSED        (table PHASES; anything else raises IllegalTransition)
    turn        idle -> listening -> thinking -> speaking    (``stage_of_turn``; a barge-in goes back to listening)
    flow        READY <-> BUSY                               (``busy``)

    receive_audio, receive_event, receive_result, lose_stream, handle_timer                     in
    streams_to_change, stages_with_requests, outbox_of, events_to_send, deadline_ms             out

What it remembers is in ``state``, what a turn leads to in ``turns``, what it says of waiting in ``deadlines``, what a client
may ask in ``requests``. Rules: audio is never lost unsaid (``accounting``); results of an older turn are dropped at
the door; illegal input raises and changes nothing.
"""

from __future__ import annotations

import math

from voiceserver.errors import IllegalTransition, ProtocolError, Refusal
from voiceserver.events import events as ev
from voiceserver.session import deadlines, requests, turns
from voiceserver.session.audio_input import AudioInput
from voiceserver.session.busy import StageDelay
from voiceserver.session.speech_output import failure_of
from voiceserver.session.state import REPLY, STT, TTS, VAD, Phase, SessionState
from voiceserver_workers.ipc.messages import Record, ResultKind, StreamParams, unpack_speech, unpack_turn

__all__ = ["Phase", "Session"]

SPEECH = int(ResultKind.SPEECH)
OPENED = int(ResultKind.OPENED)
AUDIO = int(ResultKind.AUDIO)
TEXT = int(ResultKind.TEXT)
DONE = int(ResultKind.DONE)
OPEN, CLOSED = Phase.OPEN, Phase.CLOSED  # a look-up on an Enum costs more than the rest of a test
HEARING_SHARE = 0.5  # of the time to drain: in it a caller may end the sentence; the rest is for the answer

PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.OPENING: frozenset({Phase.OPEN, Phase.CLOSED}),
    Phase.OPEN: frozenset({Phase.DRAINING, Phase.CLOSED}),
    Phase.DRAINING: frozenset({Phase.DRAINING, Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}


class Session(SessionState):
    __slots__ = ()

    # ---------------------------------------------------------------------------------------------- lifecycle

    def _move(self, phase: Phase) -> None:
        if phase not in PHASES[self.phase]:
            raise IllegalTransition(f"a session cannot go from {self.phase.value} to {phase.value}")
        self.phase = phase
        self.is_closed = phase is CLOSED

    def open(self, now_ms: float) -> None:
        self._move(Phase.OPEN)
        self.outgoing.emit(
            ev.SessionReady(
                session_id=self.session_id,
                input_rate_hz=self.input_rate_hz,
                output_rate_hz=self.output_rate_hz,
                resume_token=self.resume_token,
                credit_ms=float(self.settings.backpressure.max_backlog_ms),
            )
        )

    def waiting(self, position: int, estimate_ms: float, now_ms: float) -> None:
        """The caller has place ``position`` in the waiting room: no stage works for it, it hears so now and regularly."""
        if self.phase is Phase.CLOSED:
            return
        place = self.place
        since_ms = now_ms if place is None else place.since_ms
        self.place = StageDelay(
            "admission", "waiting", since_ms, 0.0, 0.0, estimate_ms, self.turn, position, "waiting"
        )
        if place is None or place.position != position:
            deadlines.announce(self, deadlines.delays(self)[0], now_ms)
        self._after(now_ms, refreshes=True)

    def admitted(self, now_ms: float) -> None:
        """The caller may talk now; what it said while waiting is taken first."""
        if self.place is not None:
            self.place = None
            if self.reply is not None:
                self.reply.progress_ms = now_ms
            self._after(now_ms, refreshes=True)

    def drain(self, within_ms: float, now_ms: float) -> None:
        """The server is going: say so, finish the turn, close with 1012."""
        if self.phase in (Phase.OPEN, Phase.DRAINING):
            self.outgoing.emit(ev.ServerDraining(deadline_ms=round(within_ms, 1)))
            if self.options.audible_busy and self.reply is None:
                self.outgoing.emit(ev.BusyCue(cue="draining"))
            if self.audio_input is not None:
                self.hear_until_ms = now_ms + within_ms * HEARING_SHARE
            self.begin_close(1012, "draining", within_ms, now_ms)

    def begin_close(self, code: int, reason: str, within_ms: float, now_ms: float) -> None:
        """Finish the turn in progress, take no more audio, close at ``within_ms`` from now at the latest."""
        self._move(Phase.DRAINING)
        self.close_code, self.close_reason = code, reason
        self.lower_deadline("close", now_ms + within_ms)
        self._after(now_ms, refreshes=True)

    def _close_when_done(self, now_ms: float) -> None:
        audio_input = self.audio_input
        turns.drop_held(self)
        if now_ms < self.deadlines["close"] and self.place is None:  # who waits for a place is kept no longer
            if audio_input is not None and audio_input.capturing_turn:
                if now_ms < self.hear_until_ms or (
                    self.hear_until_ms == -math.inf and audio_input.outbox.backlog
                ):
                    return
                turns.end_turn(self, "close", now_ms)
            if audio_input is not None and audio_input.outbox.backlog:
                return
            if self.transcripts or self.reply is not None or self.queue:
                return
        self._close(now_ms)

    def _close(self, now_ms: float) -> None:
        turns.give_up_transcripts(self, now_ms)
        if self._speech_output is not None:
            self._speech_output.stop("cancelled", now_ms)
        if self.busy_monitor is not None and self.busy_monitor.dropped_ms:
            deadlines.announce(
                self, StageDelay(self.busy_monitor.dropped_stage, "shed", now_ms, 0.0, 0.0), now_ms
            )
        if self.audio_input is not None:
            self.audio_input.capture.discard()
            self.audio_input.outbox.discard()
        self.queue = self.transcripts = self.interrupted = self.place = self.preemptive_reply = None
        self.outgoing.emit(
            ev.SessionClosing(reason=self.close_reason or "closed", accounting=self.accounting())
        )
        self._move(Phase.CLOSED)
        self.deadlines = {}
        self.deadline_ms = math.inf
        self.is_settled = False
        self._check(now_ms)

    def rest(self, now_ms: float) -> None:
        """The caller has been away for a while: give back the streams that have nothing to do for it."""
        self.is_resting = True
        self._after(now_ms)

    def resume(self, token: str, now_ms: float) -> ev.SessionReady:
        """The caller is back; what to tell it first. ``token``: for the next time."""
        self.resume_token = token
        self.is_resting = False
        self.hold_output(False, now_ms)
        audio_input = self.audio_input
        return ev.SessionReady(
            session_id=self.session_id,
            input_rate_hz=self.input_rate_hz,
            output_rate_hz=self.output_rate_hz,
            resume_token=token,
            credit_ms=self.credit_ms,
            is_resumed=True,
            received_ms=audio_input.ms(audio_input.received_seq) if audio_input is not None else 0.0,
        )

    def disconnect(self, now_ms: float) -> None:
        """The connection is gone: nobody hears what comes now, the books are closed all the same."""
        if self.phase is not Phase.CLOSED:
            self.close_code, self.close_reason = 1006, self.close_reason or "disconnected"
            self._close(now_ms)

    def fail(
        self, code: str, message: str, close_code: int, now_ms: float, retry_after_ms: float = 0.0
    ) -> None:
        """End the session for a reason that the caller is told."""
        if self.phase is not Phase.CLOSED:
            is_retryable = close_code in (1012, 1013)
            self.outgoing.emit(
                ev.ErrorEvent(
                    code=code, message=message, retryable=is_retryable, retry_after_ms=retry_after_ms
                )
            )
            if self.options.audible_busy:
                self.outgoing.emit(ev.BusyCue(cue="failed"))
            self.close_code, self.close_reason = close_code, code
            self._close(now_ms)

    # -------------------------------------------------------------------------------------------------- input

    def receive_audio(self, pcm: bytes, now_ms: float) -> None:  # hot
        """PCM16 little-endian mono at ``input_rate_hz``. Raises ProtocolError for half a sample."""
        if len(pcm) & 1:
            if self.phase is CLOSED:
                return
            raise ProtocolError(
                "audio_misaligned", f"PCM16 has 2 bytes a sample, so {len(pcm)} bytes end in half a sample"
            )
        audio_input = self.audio_input
        if audio_input is None or self.phase is not OPEN:
            if self.phase is CLOSED:
                return
            self.is_settled = False
            audio_input = audio_input or self._make_audio_input()
            if self.phase is not OPEN and not self.is_finishing_turn(now_ms):
                audio_input.outbox.refuse(len(pcm) >> 1)
                return
        if not audio_input.outbox.backlog:
            due_ms = now_ms + self.settings.backpressure.busy_after_ms
            if due_ms < self.deadline_ms:
                self.lower_deadline("busy", due_ms)
        audio_input.receive(pcm, now_ms)
        if audio_input.endpointer is None and turns.hear_by_hand(self, audio_input, now_ms):
            self.is_settled = False
            if not self.is_well:
                deadlines.refresh(self)
        if (audio_input.outbox.backlog + audio_input.capture.backlog) * 2 > audio_input.limit:
            deadlines.bound(self, audio_input, now_ms)
        if self.settings.check_laws:
            self._check(now_ms)

    def receive_event(self, event: ev.ClientEvent, now_ms: float) -> None:
        """Raises ProtocolError for what is not allowed now; nothing has changed then."""
        if self.phase in (Phase.OPENING, Phase.CLOSED):
            raise ProtocolError("session_not_open", f"the session is {self.phase.value}")
        if self.phase is Phase.DRAINING and not requests.is_allowed_while_draining(
            event, is_finishing_turn=self.is_finishing_turn(now_ms)
        ):
            raise ProtocolError(
                "session_draining", "the session is ending: only cancel, played and close are taken"
            )
        if type(event) is ev.SessionClose:
            self.begin_close(1000, "client", self.settings.close_timeout_ms, now_ms)
            return
        requests.handle(self, event, now_ms)
        self._after(now_ms)

    def receive_result(self, stage: str, record: Record, now_ms: float) -> None:  # hot
        """One result of a stage's stream. FAILED ends the turn, not the session."""
        if record.kind == OPENED or self.phase is CLOSED:
            return
        audio_input = self.audio_input
        if stage == VAD:
            if audio_input is None:
                return
            self._receive_vad(audio_input, record, now_ms)
            if not self.outgoing and self.phase is OPEN and self.is_well:
                if self.settings.check_laws:
                    self._check(now_ms)
                return
            self.lower_deadline("busy", self._heard_due_ms())  # what is captured may be old
        elif stage == self.settings.audio_stage:
            if audio_input is not None:
                is_alone = (
                    self.is_settled
                    and stage == STT
                    and self.phase is OPEN
                    and self.preemptive_reply is None
                    and turns.is_partial(audio_input, record)
                    and self.is_well
                )
                turns.receive_hearing(self, audio_input, stage, record, now_ms)
                # What is left may have waited for longer: speech counts as waiting only since it was found.
                self.lower_deadline("busy", self._heard_due_ms())
                self.lower_deadline("busy", now_ms + self.settings.backpressure.busy_after_ms)
                if is_alone:
                    return
        else:
            self._receive_answer(stage, record, now_ms)
            if stage == TTS and record.kind == AUDIO and self.is_settled and self.busy_monitor is None:
                return
        if self.busy_monitor is not None and self.stage_streams is not None:
            self.stage_streams.found(stage, record.seq)
        self._after(now_ms)

    def _receive_vad(self, audio_input: AudioInput, record: Record, now_ms: float) -> None:  # hot
        if record.kind == SPEECH and audio_input.endpointer is not None:
            start_ms, window_ms, probabilities = unpack_speech(record.payload)
            decisions = audio_input.endpointer.receive(start_ms, window_ms, probabilities)
            if decisions:
                self.is_settled = False
                audio_input.outbox.consume(record.seq)
                for decision in decisions:
                    turns.decide(self, audio_input, decision, now_ms)
        elif record.kind == ResultKind.TURN and audio_input.endpointer is not None:
            _, at_ms, probability = unpack_turn(record.payload)
            for decision in audio_input.endpointer.receive_turn(at_ms, probability):
                turns.decide(self, audio_input, decision, now_ms)
            quiet_ms = self.settings.audio_grace_ms
            due_ms = deadlines.quiet_due_ms(audio_input, quiet_ms, is_output_held=self.is_output_held)
            self.lower_deadline("quiet", due_ms)
        elif record.kind == ResultKind.FAILED:
            code, message = failure_of(record.payload)
            self.outgoing.emit(ev.ErrorEvent(code=code, message=message, retryable=True))
        audio_input.consume(record.seq)

    def _receive_answer(self, stage: str, record: Record, now_ms: float) -> None:
        speech_output = self._speech_output
        if self.stage_streams is not None and stage in self.stage_streams.cancelled:
            return
        reply = speech_output.reply if speech_output is not None else None
        if speech_output is None or reply is None:
            if self.preemptive_reply is not None:
                found = self.preemptive_reply
                if record.turn == found.turn and not found.hold(stage, record, now_ms):
                    turns.drop_preemptive(self)
            return
        if stage == TTS:
            speech_output.receive_tts(record, now_ms)
        else:
            speech_output.receive_reply(record, now_ms)
            if record.kind == TEXT or record.kind == DONE:  # tts may have something to say
                self.lower_deadline("busy", now_ms + self.settings.backpressure.busy_after_ms)
        if speech_output.reply is not reply:
            turns.reply_done(self, reply)
            if record.kind == ResultKind.FAILED:
                turns.abandon(self, reply)

    def _after(self, now_ms: float, *, refreshes: bool = False) -> None:
        """What follows from any change: replies that waited, recovery, the end of a draining session. ``refreshes``: the causes
        of deadlines have changed in a way that is not followed one by one."""
        self.is_settled = False
        if self.phase is CLOSED:
            return
        speech_output = self._speech_output
        is_free = speech_output is None or speech_output.reply is None
        if self.queue and is_free and not (self.transcripts and self.transcripts.is_pending):
            turns.start_reply(self, self.queue.popleft(), now_ms)
            speech_output = self._speech_output
        if speech_output is not None and speech_output.silent_ending is not None:
            ending, speech_output.silent_ending = speech_output.silent_ending, None
            turns.announce(self, ending)
        if (
            self.idle_from_ms == math.inf
            and speech_output is not None
            and speech_output.reply is None
            and speech_output.replies
            and not self.transcripts
        ):
            self.idle_from_ms = max(now_ms, speech_output.playing_until_ms)
            detection = self.options.turn_detection
            is_open = self.phase is OPEN
            self.lower_deadline("idle", deadlines.idle_due_ms(detection, self.idle_from_ms, is_open=is_open))
        if self.busy_monitor is not None and self.busy_monitor.is_busy:
            deadlines.evaluate(self, now_ms)
            refreshes = True
        elif self.stage_streams is not None and not self.stage_streams.is_well:
            refreshes = True
        if self.settings.fillers is not None and speech_output is not None:
            reply, is_unwanted = speech_output.reply, self.is_filler_unwanted
            due_ms = deadlines.filler_due_ms(reply, self.settings.fillers, is_unwanted=is_unwanted)
            self.lower_deadline("filler", due_ms)
        if self.phase is Phase.DRAINING:
            self._close_when_done(now_ms)
        if refreshes and not self.is_closed:
            deadlines.refresh(self)
        if self.settings.check_laws:
            self._check(now_ms)

    # ------------------------------------------------------------------------------------------------ streams

    def streams_to_change(self) -> tuple[list[str], list[str]]:  # hot
        """Stages whose stream has nothing more to do, or the wrong thing; and stages that need a stream and have none."""
        demand, stage_streams = self.demand(), self.stage_streams
        if stage_streams is None:
            if not demand or self.place is not None:
                return [], []
            stage_streams = self.the_stage_streams
        unwanted, wanted = stage_streams.to_change(demand)
        return unwanted, wanted if self.place is None else []

    def stages_with_requests(self) -> list[str]:  # hot
        """Stages with an open stream and something unsent."""
        if self.stage_streams is None:
            return []
        ready = self.stage_streams.sendable(self.outbox_of)
        if self.is_output_held and TTS in ready:
            ready.remove(TTS)
        return ready

    def stream_params(self, stage: str) -> StreamParams:
        options = self.options
        if stage in (VAD, self.settings.audio_stage):
            outbox = self.outbox_of(stage)
            return StreamParams(
                rate_hz=self.input_rate_hz,
                start_seq=outbox.first_seq if outbox is not None else 0,
                options={"language": options.language} if stage == STT and options.language else {},
                output_rate_hz=self.output_rate_hz if stage == REPLY else 0,
                is_final_only=stage == STT and self.goes_without_partials,
                is_live=self.audio_input is None or not self.audio_input.is_held_back,
            )
        return (
            self.options.voice_params(self.output_rate_hz)
            if stage == TTS
            else StreamParams(rate_hz=self.output_rate_hz)
        )

    def stream_opened(self, stage: str, now_ms: float, *, is_lighter: bool = False) -> None:
        """``is_lighter``: on the stage's lighter engine."""
        self.is_settled = False
        stage_streams = self.stage_streams or self.the_stage_streams
        was_lost = stage_streams.opened(stage)
        if is_lighter or stage == STT:
            deadlines.note_service(self, stage, is_lighter, now_ms)
        outbox = self.outbox_of(stage) if was_lost else None
        if outbox is not None and not outbox.has_unsent():
            stage_streams.found(stage, outbox.consumed_seq)
            self._after(now_ms)

    def stream_closed(self, stage: str) -> None:
        stage_streams = self.stage_streams or self.the_stage_streams
        if stage_streams.closed(stage) and self.phase is not CLOSED:
            self.lower_deadline("busy", 0.0)  # served in full again: say so at the next timer
        outbox = self.outbox_of(stage)
        if outbox is not None:
            outbox.rewind()

    def stream_refused(self, stage: str, refusal: Refusal, now_ms: float) -> None:
        if refusal.reason == "quarantined":
            self._quarantine(stage, now_ms)
            return
        self.the_stage_streams.refuse(stage, refusal, now_ms)
        self.lower_deadline("retry", self.the_stage_streams.retry_ms)

    def retry(self, stage: str) -> None:
        """The pool says that there may be room."""
        self.is_settled = False
        if self.stage_streams is not None:
            self.stage_streams.retry(stage)

    def _quarantine(self, stage: str, now_ms: float) -> None:
        message = f"the audio or text of this session made its {stage} worker fail repeatedly"
        self.fail("quarantined", message, 1011, now_ms)

    def lose_stream(self, stage: str, reason: str, now_ms: float) -> None:
        """The stage's worker is gone. The caller hears it at once; what was not committed goes out again."""
        self.the_stage_streams.closed(stage)
        self.is_settled = False
        if self.phase is CLOSED:
            return
        if reason == "quarantined":
            self._quarantine(stage, now_ms)
            return
        if self.preemptive_reply is not None and stage in (REPLY, TTS):
            turns.drop_preemptive(self)
        if self.demand().get(stage):
            deadlines.lose(self, stage, reason, now_ms)
            self._after(now_ms, refreshes=True)

    # ----------------------------------------------------------------------------------------- time and pressure

    def hold_output(self, is_held: bool, now_ms: float) -> None:
        """The transport is above (or back below) its write limit: the reply must not run further ahead."""
        self.is_output_held = is_held
        self.is_settled = False
        if is_held:
            return
        if self.reply is not None:
            self.reply.progress_ms = now_ms
        self._after(now_ms, refreshes=True)

    def handle_timer(self, now_ms: float) -> None:
        """Call at ``deadline_ms`` or later; earlier calls do no harm."""
        if self.phase is CLOSED:
            return
        if self.is_settled and self.only_listens:
            # Audio comes all the time, so this is what nearly all timers find: it was taken, and newer audio waits.
            due_ms = self._heard_due_ms()
            if self.settings.check_laws and due_ms != min(deadlines.exact(self).values(), default=math.inf):
                raise AssertionError(f"due at {deadlines.exact(self)}, and not at {due_ms}")
            if now_ms < due_ms:
                self.deadlines = {"busy": due_ms}
                self.deadline_ms = due_ms
                return
        deadlines.evaluate(self, now_ms)
        if self.stage_streams is not None:
            self.stage_streams.retry_due(now_ms)
        self._handle_reply_due(now_ms)
        if self.interrupted is not None and now_ms >= self.interrupted.settles_ms:
            turns.settle_interruption(self, now_ms)
        grace_ms, is_held = self.settings.audio_grace_ms, self.is_output_held
        quiet_due_ms = deadlines.quiet_due_ms(self.audio_input, grace_ms, is_output_held=is_held)
        if now_ms >= quiet_due_ms:
            turns.end_quiet(self, quiet_due_ms, now_ms)
        detection = self.options.turn_detection
        if now_ms >= deadlines.idle_due_ms(detection, self.idle_from_ms, is_open=self.phase is OPEN):
            self._handle_idle()
        self._after(now_ms, refreshes=True)

    def _handle_reply_due(self, now_ms: float) -> None:
        """Give the reply up, or fill its silence, if it is time."""
        speech_output = self._speech_output
        if speech_output is None or speech_output.reply is None:
            return
        timeout_ms, is_paused = self.settings.reply_timeout_ms, self.is_output_held or self.place is not None
        if now_ms >= deadlines.answer_due_ms(speech_output, timeout_ms, is_paused=is_paused):
            failed = deadlines.give_up_reply(speech_output, now_ms)
            if failed is not None:
                turns.abandon(self, failed)
        reply, fillers = speech_output.reply, self.settings.fillers
        if reply is None or fillers is None:
            return
        if now_ms >= deadlines.filler_due_ms(reply, fillers, is_unwanted=self.is_filler_unwanted):
            text, pcm = fillers.audio(reply.fillers, reply.output_rate_hz, self.options.language)
            speech_output.fill(reply, text, pcm, now_ms)

    def _handle_idle(self) -> None:
        """``idle_timeout_ms`` passed without speech after a reply: say so, and have the agent speak up."""
        detection, audio_input = self.options.turn_detection, self.audio_input
        clock_ms = audio_input.ms(audio_input.received_seq) if audio_input is not None else 0.0
        idle_ms = float(detection.idle_timeout_ms or 0) if detection is not None else 0.0
        self.idle_from_ms = math.inf
        self.outgoing.emit(
            ev.InputIdle(from_ms=round(max(clock_ms - idle_ms, 0.0), 1), to_ms=round(clock_ms, 1))
        )
        if self.options.replies and self.reply is None:
            self.enqueue_reply(ev.ReplyCreate())

    def _heard_due_ms(self) -> float:  # hot
        return deadlines.heard_due_ms(
            self.audio_input,
            self.transcripts,
            self.settings.backpressure.busy_after_ms,
            self.settings.audio_grace_ms,
            is_output_held=self.is_output_held,
        )

    # ------------------------------------------------------------------------------------------------ outputs

    def events_to_send(self) -> list[ev.ServerEvent]:  # hot
        """Take the events that are to be said, in order."""
        return self.outgoing.take() if self.outgoing else []

    def _make_audio_input(self) -> AudioInput:
        detection = self.options.turn_detection if "vad" in self.settings.stages else None
        self.audio_input = audio_input = AudioInput(
            self.input_rate_hz,
            detection,
            self.settings.backpressure.max_backlog_ms,
            captures=self.settings.can_hear,
        )
        return audio_input

    def _check(self, now_ms: float) -> None:
        if self.phase is not CLOSED:
            busy_from_ms = now_ms + self.settings.backpressure.busy_after_ms
            deadlines.check(deadlines.exact(self), self.deadline_ms, busy_from_ms)
        if self.audio_input is not None:
            self.audio_input.check()
