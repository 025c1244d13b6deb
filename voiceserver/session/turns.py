"""What a turn leads to: the caller begins and ends to speak, a transcript comes, a reply starts, is cut off, or goes on.

::

    Start --> begin (capture) --Stop, commit--> end --> transcript --> reply
      |                                                    |
      '--> a reply in progress is cut off (barge-in) ------'--> no words came: the reply goes on (false interruption)

Functions over a session, as in ``requests``; the state is the session's. Rule: a turn number is used for one utterance and
for at most one reply.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from voiceserver.events import events as ev
from voiceserver.session.endpointing import Decision, Pause, Resume, Start, Stop
from voiceserver.session.preemptive import (
    PREEMPTIVE_PER_TURN,
    PreemptiveReply,
    is_answerable,
    request_key,
)
from voiceserver.session.reply import Interrupted, Reply, ReplyQueue
from voiceserver.session.reply_request import encode_again, encode_request, request_fields
from voiceserver.session.transcripts import Transcripts, Utterance
from voiceserver.session.turn_table import TurnState, check_event, check_move
from voiceserver_workers.ipc.messages import Record, ResultKind

if TYPE_CHECKING:
    from voiceserver.session.audio_input import AudioInput
    from voiceserver.session.state import SessionState

LOST: Final = 1006  # the close code of a session whose caller has gone without a word
LATE_MS: Final = 100.0  # a timer that is later than this means that the server stood still
# Turns begin at its multiples, where the samples of all usual rates coincide: resampled, the same speech is the same samples.
GRID_MS: Final = 10.0
MOST_PENDING: Final = 32  # turns that have ended and wait for their transcript
_ANSWER: Final = ev.ReplyCreate()  # of whatever was said until it is its turn

_PARTIAL: Final = frozenset({int(ResultKind.TEXT), int(ResultKind.CONSUMED)})

# ------------------------------------------------------------------------------------------------------- the table


def reply_done(session: SessionState, reply: Reply) -> None:
    """``reply`` has come to its end by itself."""
    before: TurnState = "speaking" if reply.samples_sent else "thinking"
    if session.audio_input is not None and session.audio_input.capturing_turn:
        before = "listening"
    check_event(before, "reply_done")
    if session.settings.check_laws:
        check_move(before, "reply_done", session.stage_of_turn)


# ------------------------------------------------------------------------------------------------------ utterances


def begin_turn(
    session: SessionState, audio_input: AudioInput, from_ms: float, decided_ms: float, now_ms: float
) -> float:
    before = check_event(session.stage_of_turn, "start")
    session.turn += 1
    session.last_speech_turn = session.turn
    if session.transcripts is None:
        session.transcripts = Transcripts(session.outgoing)
    session.transcripts.is_silent = not session.options.transcribes
    drop_held(session)
    session.transcripts.begin(session.turn)
    drop_preemptive(session)
    session.idle_from_ms = math.inf
    begun_ms = audio_input.begin(session.turn, from_ms, decided_ms, now_ms)
    session.lower_deadline("busy", now_ms + session.settings.backpressure.busy_after_ms)
    session.lower_deadline("quiet", now_ms + session.settings.audio_grace_ms)
    if session.hear_until_ms > -math.inf:
        session.lower_deadline("hear", session.hear_until_ms)
    if session.settings.check_laws:
        check_move(before, "start", session.stage_of_turn)
    return begun_ms


def hear_by_hand(session: SessionState, audio_input: AudioInput, now_ms: float) -> bool:  # hot
    """Nothing detects turns: all audio belongs to a turn that the client will end. True: it begins or ends here."""
    begins = not audio_input.capturing_turn and session.settings.can_hear
    if begins:
        begin_turn(
            session,
            audio_input,
            audio_input.ms(audio_input.outbox.consumed_seq),
            audio_input.ms(audio_input.received_seq),
            now_ms,
        )
        audio_input.ends_seq = audio_input.received_seq + audio_input.samples(
            session.settings.max_manual_turn_ms
        )
    audio_input.pass_through()
    if audio_input.received_seq >= audio_input.ends_seq and audio_input.capturing_turn:
        end_turn(session, "max_turn", now_ms)
        return True
    return begins


def is_partial(audio_input: AudioInput, record: Record) -> bool:  # hot
    """Whether a result of stt is but another word of what is being said: it is told, and nothing else follows from it."""
    return record.kind in _PARTIAL and record.turn == audio_input.capturing_turn and not audio_input.is_paused


def decide(session: SessionState, audio_input: AudioInput, decision: Decision, now_ms: float) -> None:
    """What the detector found. A pause is only of use to an stt that works ahead."""
    if isinstance(decision, Start):
        if -math.inf < session.hear_until_ms <= now_ms:
            return  # the server is going, and there is no time for another turn
        start_speech(session, audio_input, decision, now_ms)
    elif not audio_input.capturing_turn:
        return
    elif isinstance(decision, Stop):
        end_speech(session, audio_input, decision, now_ms)
    elif isinstance(decision, Pause):
        if session.settings.audio_stage == "stt" and session.settings.can_hear:
            audio_input.pause(decision.decided_ms, now_ms)
    elif isinstance(decision, Resume) and audio_input.is_paused:
        audio_input.resume(decision.decided_ms, now_ms)
        session.lower_deadline("busy", now_ms + session.settings.backpressure.busy_after_ms)
        drop_preemptive(session)


def start_speech(session: SessionState, audio_input: AudioInput, start: Start, now_ms: float) -> None:
    detection = session.options.turn_detection
    padding_ms = detection.prefix_padding_ms if detection is not None else 0
    from_ms = max(start.at_ms - padding_ms, 0.0)
    begun_ms = begin_turn(session, audio_input, from_ms - from_ms % GRID_MS, start.decided_ms, now_ms)
    mark = len(session.outgoing)
    interrupted = 0
    if detection is not None and detection.interrupts_reply and session.has_speech_output:
        heard = session.speech_output.heard(now_ms)
        interrupted = stop_reply(session, "interrupted", now_ms)
        may_go_on = session.settings.resumes_replies(detection)
        session.interrupted = _cut_after(session.interrupted, heard, session.turn, may_go_on=may_go_on)
    # speech.started explains the end of the reply, so it goes before it.
    started = ev.SpeechStarted(turn=session.turn, at_ms=round(begun_ms, 1), interrupted_turn=interrupted)
    session.outgoing.emit_before(mark, started)


def end_turn(
    session: SessionState,
    reason: Literal["commit", "close", "max_turn"],
    now_ms: float,
    *,
    creates_reply: bool | None = None,
) -> Utterance | None:
    """End the caller's turn here. None if there is none. ``creates_reply``: other than the turn detection has it."""
    audio_input = session.audio_input
    if audio_input is None or not audio_input.capturing_turn:
        return None
    clock_ms = audio_input.ms(audio_input.outbox.consumed_seq)
    stop = audio_input.endpointer.stop_now(reason) if audio_input.endpointer is not None else None
    at_ms = stop.at_ms if stop is not None else clock_ms
    return end_speech(
        session, audio_input, Stop(at_ms, clock_ms, reason), now_ms, creates_reply=creates_reply
    )


def end_quiet(session: SessionState, due_ms: float, now_ms: float) -> None:
    """No audio has come since ``awaited_ms`` and the grace is over: the turn ends as on silence. Whatever comes later begins the
    next. A deadline that is noticed late says that the server stood still: audio may wait unread, so the grace begins again."""
    audio_input = session.audio_input
    if audio_input is None or audio_input.endpointer is None:
        return
    if now_ms - due_ms > LATE_MS:
        audio_input.wait_again(now_ms)
        return
    clock_ms = audio_input.ms(audio_input.outbox.consumed_seq)
    stop = audio_input.endpointer.stop_now("silence")
    at_ms = stop.at_ms if stop is not None else clock_ms
    quiet_ms = now_ms - audio_input.awaited_ms
    end_speech(session, audio_input, Stop(at_ms, clock_ms, "silence", quiet_ms), now_ms)


def end_speech(
    session: SessionState,
    audio_input: AudioInput,
    stop: Stop,
    now_ms: float,
    *,
    creates_reply: bool | None = None,
) -> Utterance | None:
    transcripts, detection = session.transcripts, session.options.turn_detection
    assert transcripts is not None
    before = check_event(session.stage_of_turn, "stop")
    if creates_reply is None:
        creates_reply = detection is not None and detection.creates_reply
    hears_itself = session.settings.can_hear and session.settings.audio_stage == "reply"
    is_held = hears_itself and session.options.replies and not creates_reply and stop.reason != "close"
    turn = audio_input.end(stop.decided_ms, now_ms, is_held=is_held)
    utterance = transcripts.latest
    utterance.decided_ms = now_ms
    utterance.end_of_speech_ms = round(stop.at_ms, 1)
    utterance.endpointing_ms = round(stop.decided_ms - stop.at_ms + stop.quiet_ms, 1)
    utterance.creates_reply = creates_reply
    if audio_input.endpointer is not None or stop.reason == "max_turn":
        session.outgoing.emit(ev.SpeechStopped(turn=turn, at_ms=round(stop.at_ms, 1), reason=stop.reason))
    session.outgoing.emit(ev.InputCommitted(turn=turn, audio_ms=round(stop.decided_ms, 1)))
    if session.interrupted is not None and session.interrupted.by_turn == turn:
        session.interrupted.due_ms = now_ms + session.settings.false_interruption_ms
        session.lower_deadline("resume", session.interrupted.due_ms)
    session.lower_deadline("busy", now_ms + session.settings.backpressure.busy_after_ms)
    if not session.settings.can_hear:  # listeners: nobody transcribes
        audio_input.capture.commit_turn(turn)
        transcripts.forget(turn)
    elif is_held:  # the engine answers at the mark of the end, so that is kept back until the client asks
        transcripts.held_turn = turn
        utterance.decided_ms = None
    elif hears_itself and creates_reply and session.options.replies:
        start_reply(session, ev.ReplyCreate(), now_ms, utterance)
    elif hears_itself:
        _drop_turn(audio_input, transcripts, turn)
        session.the_stage_streams.reset("reply")
    else:
        _give_up_oldest(session, audio_input, transcripts, now_ms)
    if session.settings.check_laws:
        check_move(before, "stop", session.stage_of_turn)
    return utterance


def _unheard_ms(audio_input: AudioInput, turn: int) -> float:
    """Audio of ``turn`` that stt has not taken."""
    return round(audio_input.ms(audio_input.capture.backlog_of(turn)), 1)


def _give_up_oldest(
    session: SessionState, audio_input: AudioInput, transcripts: Transcripts, now_ms: float
) -> None:
    """stt is further behind than is worth waiting for."""
    for turn in transcripts.pending_turns[:-MOST_PENDING]:
        utterance = transcripts.find(turn)
        assert utterance is not None
        unheard_ms = _unheard_ms(audio_input, turn)
        if audio_input.capture.give_up_turn(turn):
            session.the_stage_streams.reset("stt")
        message = (
            f"More than {MOST_PENDING} turns wait for their transcripts, so the oldest is given up; "
            f"{unheard_ms:g} ms of it had not been heard."
        )
        transcripts.give_up(turn, "stt_behind", message)
        _finish_utterance(session, utterance, None, now_ms)


def answer_held(session: SessionState, create: ev.ReplyCreate, now_ms: float) -> bool:
    """Have the reply engine that hears for itself answer the turn that waits for it. False: there is none."""
    audio_input, transcripts = session.audio_input, session.transcripts
    if audio_input is None or transcripts is None or not transcripts.held_turn:
        return False
    utterance = transcripts.find(transcripts.held_turn)
    transcripts.held_turn = 0
    assert utterance is not None
    audio_input.release(utterance.turn, now_ms)
    start_reply(session, create, now_ms, utterance)
    return True


def drop_held(session: SessionState) -> None:
    """The client did not ask for an answer to what was said, and now it is too late."""
    audio_input, transcripts = session.audio_input, session.transcripts
    if audio_input is not None and transcripts is not None and transcripts.held_turn:
        turn, transcripts.held_turn = transcripts.held_turn, 0
        _drop_turn(audio_input, transcripts, turn)
        session.the_stage_streams.reset("reply")


def _drop_turn(audio_input: AudioInput, transcripts: Transcripts, turn: int) -> None:
    """Nobody wants the answer that the engine would give."""
    audio_input.capture.commit_turn(turn)
    transcripts.forget(turn)


def give_up_transcripts(session: SessionState, now_ms: float) -> None:
    """The session ends now: say of which turns there will be no transcript, and how much of them stt had not heard."""
    audio_input, transcripts = session.audio_input, session.transcripts
    if audio_input is None or transcripts is None or session.settings.audio_stage != "stt":
        return
    if audio_input.capturing_turn and not session.is_open and session.close_code != LOST:
        end_turn(session, "close", now_ms)
    for turn in transcripts.pending_turns:
        unheard_ms = _unheard_ms(audio_input, turn)
        message = f"The session ended before the transcript was ready; {unheard_ms:g} ms of the turn had not been heard."
        transcripts.give_up(turn, "session_ended", message)


def receive_hearing(
    session: SessionState, audio_input: AudioInput, stage: str, record: Record, now_ms: float
) -> None:
    """A result of the stage that takes a turn's audio."""
    transcripts = session.transcripts
    if transcripts is None:
        return
    turn, kind = record.turn, record.kind
    audio_input.capture.consume(record.seq)
    is_last = kind == ResultKind.FAILED or kind == (ResultKind.DONE if stage == "reply" else ResultKind.FINAL)
    if is_last:
        if audio_input.capturing_turn == turn:  # the engine gave up on a turn that is still being spoken
            end_turn(session, "close", now_ms)
        audio_input.capture.commit_turn(turn)
        is_lighter, has_partials = stage in session.server_snapshot.lighter, not session.goes_without_partials
        # The next turn waits already. Who is behind keeps a stream for turn after turn, and would never come to the lighter
        # engine otherwise, or never back.
        session.the_stage_streams.change_engine(stage, is_lighter=is_lighter, has_partials=has_partials)
    if stage == "reply":  # speech to speech: the turn is answered by audio
        if kind == ResultKind.FINAL:
            transcripts.receive(record, is_last=False)
            return
        if is_last:
            transcripts.forget(turn)
        session.speech_output.receive_reply(record, now_ms)
        return
    utterance = transcripts.find(turn) if is_last else None
    before = check_event(session.stage_of_turn, "final") if utterance is not None else None
    text = transcripts.receive(record)
    if before is not None and session.settings.check_laws:
        check_move(before, "final", session.stage_of_turn)
    _receive_text(session, audio_input, record, now_ms)
    if utterance is not None:
        _finish_utterance(session, utterance, text, now_ms)
        drop_preemptive(session)  # unless it was adopted


def _finish_utterance(session: SessionState, utterance: Utterance, text: str | None, now_ms: float) -> None:
    """``text`` None: it could not be transcribed."""
    cut = session.interrupted
    if cut is not None and cut.since_turn <= utterance.turn:
        if session.settings.has_words(text or ""):
            session.interrupted = None
            if cut.resumed is not None and cut.resumed is session.reply:
                stop_reply(session, "interrupted", now_ms)
        elif utterance.turn == cut.by_turn:
            go_on(session, cut, now_ms)
            session.interrupted = None
            return
        else:
            return
    if text is None:
        if utterance.creates_reply and session.options.replies:
            announce(session, "not_understood")
        return
    item = ev.HistoryItem(role="user", text=text, turn=utterance.turn, key=f"user:{utterance.turn}")
    session.speech_output.history.record(item)
    if utterance.creates_reply and session.options.replies and session.last_speech_turn <= utterance.turn:
        if session.reply is None:
            start_reply(session, _ANSWER, now_ms, utterance)
        elif _ANSWER not in (session.queue or ()):  # one that waits will answer this too
            session.enqueue_reply(_ANSWER)


# --------------------------------------------------------------------------------------------------------- replies


def announce(session: SessionState, cue: Literal["no_answer", "not_understood", "try_again"]) -> None:
    """Say aloud that a turn ended without an answer; not into what the caller says by now."""
    audio_input = session.audio_input
    is_speaking = audio_input is not None and audio_input.capturing_turn > 0
    if session.options.audible_busy and session.is_open and not is_speaking and session.reply is None:
        session.outgoing.emit(ev.BusyCue(cue=cue))


def stop_reply(session: SessionState, reason: Literal["interrupted", "cancelled"], now_ms: float) -> int:
    """End the reply in progress (or the playing of the last); its turn, 0 for none."""
    reply, before = session.reply, check_event(session.stage_of_turn, "cancel")
    turn = session.speech_output.stop(reason, now_ms)
    session.queue, ended = drop_queue(session.queue, reason)
    for done in ended:
        session.outgoing.emit(done)
    if reply is not None:
        abandon(session, reply)
    if reason == "cancelled":
        session.interrupted = None
    if session.settings.check_laws:
        check_move(before, "cancel", session.stage_of_turn)
    return turn


def drop_queue(
    queue: ReplyQueue | None, reason: Literal["interrupted", "cancelled"], key: str = ""
) -> tuple[ReplyQueue | None, list[ev.ReplyDone]]:
    """Give up the replies that wait, or the one of ``key``: those that are left, and what whoever named one hears of its end."""
    left, ended = ReplyQueue(), []
    for create in queue or ():
        if key and create.key != key:
            left.append(create)
        elif create.key:
            ended.append(ev.ReplyDone(turn=0, reason=reason, key=create.key))
    return left or None, ended


def abandon(session: SessionState, reply: Reply) -> None:
    """What the stages are still doing for a reply that is over is worthless."""
    session.the_stage_streams.reset("reply")
    session.the_stage_streams.reset("tts")
    if (
        session.settings.audio_stage == "reply"
        and session.audio_input is not None
        and session.transcripts is not None
    ):
        session.audio_input.capture.commit_turn(reply.turn)
        session.transcripts.forget(reply.turn)


def start_reply(
    session: SessionState, create: ev.ReplyCreate, now_ms: float, utterance: Utterance | None = None
) -> None:
    settings = session.settings
    before = check_event(session.stage_of_turn, "reply_started")
    if utterance is not None:
        turn = utterance.turn
    elif create.is_out_of_band:  # what the caller said is still to be answered
        session.turn += 1
        turn = session.turn
    else:
        session.turn = turn = _next_turn(session.turn, session.replied_turn, session.transcripts)
    session.replied_turn = max(session.replied_turn, turn)
    speaks = session.settings.speaks(create, session.options)
    hears, speech_output = settings.audio_stage == "reply", session.speech_output
    fields = {} if hears else request_fields(turn, create, session.options, speech_output.history.items)
    request = b"" if hears else encode_request(fields, session.server_snapshot)
    preemptive_reply = session.preemptive_reply
    if preemptive_reply is not None:
        key = request_key(fields, speaks, session.options.voice_params(session.output_rate_hz))
        if preemptive_reply.answers(turn, key, create):
            session.preemptive_reply = None
        else:
            drop_preemptive(session)
            preemptive_reply = None
    speech_output.output_rate_hz = session.output_rate_hz
    speech_output.language = session.options.language
    reply = speech_output.start(turn, create, speaks, request, now_ms)
    session.idle_from_ms = math.inf
    session.interrupted = None
    wait_for_answer(session, now_ms)
    if settings.check_laws:
        check_move(before, "reply_started", session.stage_of_turn)
    if hears:
        reply.needs_tts = False
        reply.ask.mark_sent()
    if utterance is not None and utterance.decided_ms is not None:
        reply.decided_ms = utterance.decided_ms
        reply.end_of_speech_ms = utterance.end_of_speech_ms
        reply.endpointing_ms = utterance.endpointing_ms
        reply.stt_ms = round(now_ms - utterance.decided_ms, 2)
    if preemptive_reply is not None:
        preemptive_reply.give_to(speech_output, reply, now_ms)


def wait_for_answer(session: SessionState, now_ms: float) -> None:
    """The caller waits for something new from now on."""
    session.lower_deadline("busy", now_ms + session.settings.backpressure.busy_after_ms)
    session.lower_deadline("answer", now_ms + session.settings.reply_timeout_ms)


def _next_turn(turn: int, replied_turn: int, transcripts: Transcripts | None) -> int:
    """The turn of a reply that is not the answer to an utterance: ``turn``, or the next if that has a reply or may get one."""
    is_taken = transcripts is not None and transcripts.find(turn) is not None
    return turn + 1 if turn <= replied_turn or is_taken else turn


# ---------------------------------------------------------------------------------------------- preemptive replies


def _receive_text(session: SessionState, audio_input: AudioInput, record: Record, now_ms: float) -> None:
    """A text of stt. If it says what was heard up to the pause that still lasts, the answer to it is begun."""
    if record.kind != ResultKind.TEXT or not audio_input.answers_pause(record.turn, record.seq):
        return
    text = record.payload.decode(errors="replace").strip()
    if not is_answerable(text, session.options, session.settings) or not _has_time(session):
        return
    user = ev.HistoryItem(role="user", text=text, turn=record.turn, key=f"user:{record.turn}")
    history = session.speech_output.history.with_record(user)
    fields = request_fields(record.turn, _ANSWER, session.options, history)
    key = request_key(
        fields,
        session.settings.speaks(_ANSWER, session.options),
        session.options.voice_params(session.output_rate_hz),
    )
    preemptive_reply = session.preemptive_reply
    if preemptive_reply is not None:
        if preemptive_reply.request_key == key:
            return
        drop_preemptive(session)
    utterance = session.transcripts.find(record.turn) if session.transcripts is not None else None
    if utterance is not None and utterance.preemptive_count < PREEMPTIVE_PER_TURN:
        utterance.preemptive_count += 1
        request = encode_request(fields, session.server_snapshot)
        session.preemptive_reply = PreemptiveReply(
            record.turn, key, request, session.options.language, now_ms
        )


def _has_time(session: SessionState) -> bool:
    """Nothing else is owed to the caller, and nobody else needs the workers more."""
    transcripts = session.transcripts
    return (
        session.is_open
        and session.reply is None
        and not session.queue
        and session.place is None
        and transcripts is not None
        and not transcripts.is_pending
        and not (session.busy_monitor is not None and session.busy_monitor.is_busy)
        and session.server_snapshot.degrade_level == 0
    )


def drop_preemptive(session: SessionState) -> None:
    """What the stages do for it is worthless; nobody hears of it."""
    if session.preemptive_reply is not None:
        session.preemptive_reply = None
        session.is_settled = False
        session.the_stage_streams.reset("reply")
        session.the_stage_streams.reset("tts")


# --------------------------------------------------------------------------------------------- false interruptions


def _cut_after(
    cut: Interrupted | None, heard: tuple[Reply, float] | None, turn: int, *, may_go_on: bool
) -> Interrupted | None:
    """A reply of which ``heard`` ms were played was cut off by ``turn``, which begins; or nothing was, but there is an older
    ``cut`` of which it is still open whether there were words. Returns the cut that is open now. ``may_go_on``: what was cut
    off without words goes on."""
    if heard is not None:
        return Interrupted(*heard, turn) if may_go_on and heard[0].speaks else None
    return cut if cut is not None and cut.speak_again(turn) else None


def settle_interruption(session: SessionState, now_ms: float) -> None:
    """``due_ms`` has come without a transcript: were there words at all?"""
    cut = session.interrupted
    if cut is None or session.transcripts is None:
        return
    if session.audio_input is not None and session.audio_input.capture.backlog:
        # Nobody has listened to all of it yet: stt is late, which says nothing about words.
        cut.due_ms = now_ms + session.settings.false_interruption_ms
        return
    cut.due_ms = math.inf
    utterance = session.transcripts.find(cut.by_turn)
    # Without partials silence proves nothing; the final transcript will tell.
    if utterance is not None and not utterance.partial and not session.transcripts.skips_partials:
        go_on(session, cut, now_ms)


def go_on(session: SessionState, cut: Interrupted, now_ms: float) -> None:
    """There were no words: the reply goes on from where it was heard. A reply stage that was not through is asked again for the
    rest; the sentences that it gave before are passed over by their number, as after a crash."""
    if cut.resumed is not None or session.reply is not None:
        return
    drop_preemptive(session)
    old = cut.reply
    texts = old.unheard_texts(cut.played_ms)
    if texts or (old.texts_received and not old.is_finished_asking):
        session.turn = turn = _next_turn(session.turn, session.replied_turn, session.transcripts)
        session.replied_turn = max(session.replied_turn, turn)
        request = b"" if old.is_finished_asking else encode_again(old.request, turn)
        cut.resumed = session.speech_output.resume(turn, old, texts, request, now_ms)
        wait_for_answer(session, now_ms)
    elif not old.is_finished_asking:
        start_reply(session, msgspec.structs.replace(old.create, key=""), now_ms)
