"""Where a session waits, and what it says about it: every wait has a deadline, every deadline ends in words.

Deadlines have names (``exact``). Each is lowered where its cause changes, and exact after each timer; the session's own is the
earliest. What waits is in ``delays``, and ``evaluate`` says what there is to say of it now. Rule: a caller
whose work is overdue hears of it at the next timer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from voiceserver.events import events as ev
from voiceserver.session import filler
from voiceserver.session.busy import BusyMonitor, StageDelay
from voiceserver.session.stage_streams import Degradation, StageStreams, StreamLoss
from voiceserver.session.state import REPLY, STT, TTS, VAD

if TYPE_CHECKING:
    from voiceserver.session.audio_input import AudioInput
    from voiceserver.session.reply import Reply
    from voiceserver.session.settings import FillerAudio
    from voiceserver.session.speech_output import SpeechOutput
    from voiceserver.session.state import DueName, SessionState
    from voiceserver.session.transcripts import Transcripts


def delays(session: SessionState) -> list[StageDelay]:
    """What is not getting on. A caller in the waiting room waits for a place and nothing else."""
    place, audio_input = session.place, session.audio_input
    if place is not None:
        return [place._replace(lag_ms=audio_input.lag_ms if audio_input is not None else 0.0)]
    found = []
    demand, settings = session.demand(), session.settings
    stage_streams, turn = session.stage_streams, session.turn
    for stage in settings.stages:
        is_needed = demand.get(stage) and not (stage == TTS and session.is_output_held)
        outbox = session.outbox_of(stage) if is_needed else None
        if outbox is None:
            continue
        hears = stage in (VAD, settings.audio_stage)
        lag_ms = audio_input.ms(outbox.backlog) if hears and audio_input is not None else None
        patience_ms = float(settings.backpressure.busy_after_ms)
        refusal = stage_streams.refusal(stage) if stage_streams is not None else None
        stream_loss = stage_streams.stream_loss(stage) if stage_streams is not None else None
        if stream_loss is not None:
            retry_ms = patience_ms if refusal is None else refusal.retry_after_ms
            found.append(_lost(stage, stream_loss, lag_ms, retry_ms, turn))
            continue
        since_ms = outbox.oldest_at_ms
        if since_ms is None:
            speech_output = session.speech_output if session.has_speech_output else None
            since_ms = _silent_since_ms(stage, session.transcripts, speech_output)
            lag_ms, patience_ms = None, settings.reply_slow_ms
        elif stage == REPLY and not hears and not outbox.has_unsent():
            patience_ms = settings.reply_slow_ms
        if since_ms is not None:
            reason, retry_ms = ("slow", 0.0) if refusal is None else (refusal.reason, refusal.retry_after_ms)
            found.append(StageDelay(stage, reason, since_ms, patience_ms, lag_ms, retry_ms, turn))
    if stage_streams is not None:
        degradations = stage_streams.degradations
        found += [_degradation(stage, degradation, turn) for stage, degradation in degradations.items()]
    return found


def _degradation(stage: str, degradation: Degradation, turn: int) -> StageDelay:
    """No wait, but something to hear of all the same: at once, and as long as it lasts."""
    reason = "lighter_engine" if degradation.is_lighter else "no_partials"
    return StageDelay(stage, reason, degradation.since_ms, 0.0, None, turn=turn, step="degraded")


def _lost(stage: str, loss: StreamLoss, lag_ms: float | None, retry_ms: float, turn: int) -> StageDelay:
    """The wait for a stage that lost its worker: the caller hears of it at once."""
    return StageDelay(stage, loss.reason, loss.since_ms, 0.0, lag_ms, retry_ms, turn, step="lost")


def _silent_since_ms(
    stage: str, transcripts: Transcripts | None, speech_output: SpeechOutput | None
) -> float | None:
    """Since when a stage owes an answer for what it has taken; not as long as the caller still hears something."""
    if stage == STT:
        return transcripts.pending_since_ms if transcripts is not None else None
    reply = speech_output.reply if speech_output is not None else None
    if speech_output is None or reply is None or stage == VAD or (stage == TTS and reply.say.is_empty):
        return None
    return max(reply.progress_ms, speech_output.answers_until_ms)


# ------------------------------------------------------------------------------------------------------- deadlines


def busy_due_ms(waiting: Sequence[StageDelay], busy_monitor: BusyMonitor | None) -> float:
    """When the caller must be told that something waits, or told again."""
    if busy_monitor is not None:
        return busy_monitor.deadline_ms(waiting)
    return min((delay.due_ms for delay in waiting), default=math.inf)


def exact(session: SessionState) -> dict[DueName, float]:
    """All deadlines as they are now; one that is not set is left out."""
    settings, stage_streams, cut = session.settings, session.stage_streams, session.interrupted
    audio_input, is_held = session.audio_input, session.is_output_held
    speech_output = session.speech_output if session.has_speech_output else None
    is_open, is_paused = session.is_open, is_held or session.place is not None
    found: dict[DueName, float] = {
        "hear": hearing_due_ms(audio_input, session.hear_until_ms),
        "busy": busy_due_ms(delays(session), session.busy_monitor),
        "retry": stage_streams.retry_ms if stage_streams is not None else math.inf,
        "answer": answer_due_ms(speech_output, settings.reply_timeout_ms, is_paused=is_paused),
        "quiet": quiet_due_ms(audio_input, settings.audio_grace_ms, is_output_held=is_held),
        "idle": idle_due_ms(session.options.turn_detection, session.idle_from_ms, is_open=is_open),
        "resume": cut.settles_ms if cut is not None else math.inf,
        "filler": math.inf,
        "close": session.deadlines.get("close", math.inf),
    }
    if speech_output is not None and settings.fillers is not None:
        is_unwanted = session.is_filler_unwanted
        found["filler"] = filler_due_ms(speech_output.reply, settings.fillers, is_unwanted=is_unwanted)
    return {name: due_ms for name, due_ms in found.items() if due_ms < math.inf}


def refresh(session: SessionState) -> None:
    """Make each deadline exact. Between two timers they are only lowered, each where its cause changes."""
    session.deadlines = exact(session)
    session.deadline_ms = min(session.deadlines.values(), default=math.inf)


def check(found: Mapping[DueName, float], deadline_ms: float, busy_from_ms: float) -> None:
    """Raises AssertionError for a deadline that was not lowered when its cause changed. ``found``: exact. ``deadline_ms``: the
    session's. What waits is looked at again at ``busy_from_ms`` or before: a stage that owes a transcript counts as late only
    while it has nothing else to take."""
    for name, due_ms in found.items():
        due_ms = max(due_ms, busy_from_ms) if name == "busy" else due_ms
        if due_ms < deadline_ms:
            raise AssertionError(f"{name} is due at {due_ms}, and the session at {deadline_ms}")


def heard_due_ms(
    audio_input: AudioInput | None,
    transcripts: Transcripts | None,
    busy_after_ms: float,
    audio_grace_ms: float,
    *,
    is_output_held: bool,
) -> float:  # hot
    """The deadline of a session that ``only_listens``."""
    if audio_input is None:
        return math.inf
    heard_ms = audio_input.outbox.oldest_at_ms if audio_input.endpointer is not None else None
    captured_ms = audio_input.capture.oldest_at_ms if transcripts else None
    if heard_ms is None or (captured_ms is not None and captured_ms < heard_ms):
        heard_ms = captured_ms
    late_ms = math.inf if heard_ms is None else heard_ms + busy_after_ms
    return min(late_ms, quiet_due_ms(audio_input, audio_grace_ms, is_output_held=is_output_held))


def quiet_due_ms(
    audio_input: AudioInput | None, audio_grace_ms: float, *, is_output_held: bool
) -> float:  # hot
    """When the caller's turn is ended because no audio comes any more. A caller who is away may come back and go on."""
    if audio_input is None or is_output_held:
        return math.inf
    return audio_input.quiet_due_ms(audio_grace_ms)


def answer_due_ms(speech_output: SpeechOutput | None, reply_timeout_ms: float, *, is_paused: bool) -> float:
    """When a reply that does not get on is given up. ``is_paused``: the caller waits for a place, or takes no more now."""
    reply = speech_output.reply if speech_output is not None else None
    if speech_output is None or reply is None or is_paused:
        return math.inf
    return max(reply.progress_ms, reply.alive_ms, speech_output.answers_until_ms) + reply_timeout_ms


def hearing_due_ms(audio_input: AudioInput | None, hear_until_ms: float) -> float:
    """When the turn of a caller in a draining server is ended, spoken out or not."""
    is_limited = hear_until_ms > -math.inf and audio_input is not None and audio_input.capturing_turn
    return hear_until_ms if is_limited else math.inf


def filler_due_ms(reply: Reply | None, fillers: FillerAudio, *, is_unwanted: bool) -> float:
    """When the caller should hear the next filler."""
    if reply is None or is_unwanted or not filler.is_wanted(reply):
        return math.inf
    return filler.due_ms(reply, fillers)


def idle_due_ms(detection: ev.TurnDetection | None, idle_from_ms: float, *, is_open: bool) -> float:
    """When a caller who has not spoken since ``idle_from_ms`` is spoken to."""
    if detection is None or detection.idle_timeout_ms is None or not is_open:
        return math.inf
    return idle_from_ms + detection.idle_timeout_ms


def give_up_reply(speech_output: SpeechOutput, now_ms: float) -> Reply | None:
    """``answer_due_ms`` has come: the reply that failed by it."""
    reply = speech_output.reply
    if reply is not None:
        waited_ms = round(now_ms - max(reply.progress_ms, reply.alive_ms))
        what = "the answer stopped" if reply.has_begun else "no answer began"
        message = f"{what} for {waited_ms} ms (session.reply_timeout_ms)"
        speech_output.fail("reply_timeout", message, now_ms=now_ms)
    return reply


# --------------------------------------------------------------------------------------------------------- signals


def evaluate(session: SessionState, now_ms: float) -> None:
    waiting = delays(session)
    if session.busy_monitor is None and all(now_ms < delay.due_ms for delay in waiting):
        return
    is_retreating = session.server_snapshot.degrade_level > 0
    busy_monitor = session.the_busy_monitor
    was_degraded = busy_monitor.is_degraded
    said = busy_monitor.evaluate(waiting, session.credit_ms, now_ms, is_retreating=is_retreating)
    if busy_monitor.is_degraded and not was_degraded and session.settings.audio_stage == STT:
        _stop_partials(session.audio_input, session.stage_streams, now_ms)
    if said is not None:
        _tell(session, said)


def announce(session: SessionState, delay: StageDelay, now_ms: float) -> None:
    _tell(session, session.the_busy_monitor.announce(delay, session.credit_ms, now_ms))


def note_service(session: SessionState, stage: str, is_lighter: bool, now_ms: float) -> None:
    """The stage has a new stream. If that does less than it could, the caller hears so at the next timer."""
    is_final_only = stage == STT and session.goes_without_partials
    if stage == STT and session.transcripts is not None:
        session.transcripts.skips_partials = is_final_only
    if is_lighter or is_final_only:
        degradation = Degradation(now_ms, not is_final_only, is_lighter)
        session.the_stage_streams.serve_degraded(stage, degradation)
        session.lower_deadline("busy", now_ms)
        if is_lighter and session.busy_monitor is not None and session.busy_monitor.is_busy:
            # The next signal would be due in a second.
            announce(session, _degradation(stage, degradation, session.turn), now_ms)


def _stop_partials(audio_input: AudioInput | None, stage_streams: StageStreams | None, now_ms: float) -> None:
    """This caller is degraded in the middle of a turn: tell stt too, so that it does not do what nobody reads."""
    if audio_input is None or stage_streams is None or not stage_streams.is_opened(STT):
        return
    if STT not in stage_streams.degradations:
        audio_input.skip_partials(now_ms)


def degraded(stage_streams: StageStreams | None, busy_monitor: BusyMonitor) -> tuple[str, ...]:
    """What this caller goes without now; see ``ServerBusy``."""
    degradations = stage_streams.degradations if stage_streams is not None else {}
    is_without = busy_monitor.is_degraded or any(not one.has_partials for one in degradations.values())
    lighter = (f"{stage} engine" for stage, one in degradations.items() if one.is_lighter)
    return (*(("partials",) if is_without else ()), *lighter)


def _tell(session: SessionState, said: ev.ServerBusy | ev.ServerReady) -> None:
    busy_monitor = session.the_busy_monitor
    goes_without = degraded(session.stage_streams, busy_monitor)
    if isinstance(said, ev.ServerBusy):
        said = msgspec.structs.replace(said, degraded=goes_without) if goes_without else said
    else:
        session.gone = ""  # "ready" ends all that was told
    session.outgoing.emit(said)
    if session.transcripts is not None:
        session.transcripts.skips_partials = "partials" in goes_without
    if not isinstance(said, ev.ServerBusy) or not session.options.audible_busy or not said.is_late:
        return
    reply = session.reply
    if busy_monitor.cued_position != said.position and (reply is None or not reply.samples_sent):
        busy_monitor.cued_position = said.position
        session.outgoing.emit(ev.BusyCue(cue="waiting" if said.position else "busy", position=said.position))


def _say_again(stage: str, reply: Reply | None, *, hears: bool) -> None:
    """The stage's stream is gone, and what the reply has not had from it is for the next one."""
    if reply is not None and (stage == TTS or (stage == REPLY and hears)):
        reply.replay_say()
    elif reply is not None and stage == REPLY:
        reply.replay_ask()


def lose(session: SessionState, stage: str, reason: str, now_ms: float) -> None:
    """The stage's worker is gone: the caller hears it at once (but not of a stream that has "moved"), and what was not
    committed goes out again."""
    outbox, hears = session.outbox_of(stage), stage in (VAD, session.settings.audio_stage)
    _say_again(stage, session.reply, hears=hears)
    if outbox is not None:
        outbox.rewind()
    if reason == "moved":
        return
    until_seq = outbox.consumed_seq if outbox is not None and hears else 0
    stage_streams, audio_input = session.the_stage_streams, session.audio_input
    stage_streams.lose(stage, StreamLoss(reason, now_ms, until_seq))
    stream_loss, refusal = stage_streams.stream_loss(stage), stage_streams.refusal(stage)
    if outbox is not None and stream_loss is not None:
        lag_ms = audio_input.ms(outbox.backlog) if hears and audio_input is not None else None
        patience_ms = float(session.settings.backpressure.busy_after_ms)
        retry_ms = patience_ms if refusal is None else refusal.retry_after_ms
        announce(session, _lost(stage, stream_loss, lag_ms, retry_ms, session.turn), now_ms)


def bound(session: SessionState, audio_input: AudioInput, now_ms: float) -> None:
    """Much audio waits. Of a live caller the oldest beyond the bound goes, and the caller hears how much; one who is ahead
    of the clock loses nothing and is read no further (``AudioInput.holds_back``)."""
    if audio_input.holds_back(now_ms):
        session.is_settled = False
        return
    is_late = audio_input.capture.backlog > 0
    dropped_ms = audio_input.shed(session.settings.backpressure.max_backlog_ms)
    if dropped_ms:
        session.is_settled = False
        session.the_busy_monitor.dropped_ms += dropped_ms
        session.the_busy_monitor.dropped_stage = session.settings.audio_stage if is_late else VAD.value
        evaluate(session, now_ms)
        refresh(session)
