"""What each client event does to a session: one function an event, in a table. Each checks first, then changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.session import deadlines, turns
from voiceserver.session.history import History, check_key
from voiceserver.session.option_changes import changed, with_tools
from voiceserver.session.turn_table import check_event

if TYPE_CHECKING:
    from voiceserver.session.state import SessionState

REPLY_QUEUE = 8
_ALLOWED_WHILE_DRAINING = (ev.ReplyCancel, ev.ReplyPlayed, ev.SessionClose)


def is_allowed_while_draining(event: ev.ClientEvent, *, is_finishing_turn: bool) -> bool:
    """What ends something; nothing begins any more."""
    ends_turn = isinstance(event, ev.InputCommit) and is_finishing_turn
    return ends_turn or isinstance(event, _ALLOWED_WHILE_DRAINING)


def handle(session: SessionState, event: ev.ClientEvent, now_ms: float) -> None:
    """Raises ProtocolError; the session is unchanged then."""
    of_history = _OF_HISTORY.get(type(event))
    if of_history is not None:
        of_history(session.speech_output.history, event)
    else:
        _HANDLERS[type(event)](session, event, now_ms)


def _update(session: SessionState, event: ev.SessionUpdate, now_ms: float) -> None:
    options = changed(session.options, event, session.settings, session.server_snapshot.voices)
    audio_input, detection = session.audio_input, options.turn_detection
    if event.turn_detection is not msgspec.UNSET and audio_input is not None:
        if audio_input.capturing_turn and (detection is None) != (audio_input.endpointer is None):
            turns.end_turn(session, "commit", now_ms)
        audio_input.detect(detection)
        if audio_input.endpointer is None and audio_input.outbox.backlog:
            turns.hear_by_hand(session, audio_input, now_ms)
    session.options = options
    deadlines.refresh(session)
    session.outgoing.emit(ev.SessionUpdated())


def _commit(session: SessionState, event: ev.InputCommit, now_ms: float) -> None:
    utterance = turns.end_turn(session, "commit", now_ms, creates_reply=event.creates_reply)
    if utterance is None:
        raise ProtocolError("input_empty", "there is no audio to commit")


def _clear(session: SessionState, event: ev.InputClear, now_ms: float) -> None:
    audio_input, transcripts = session.audio_input, session.transcripts
    if audio_input is not None and transcripts is not None and audio_input.capturing_turn:
        check_event(session.stage_of_turn, "cancel")
        transcripts.forget(audio_input.capturing_turn)
        audio_input.capture.discard_turn(audio_input.capturing_turn)
        session.the_stage_streams.reset(session.settings.audio_stage)
        audio_input.clear()
        turns.drop_preemptive(session)
    session.outgoing.emit(ev.InputCleared())


def _append(history: History, event: ev.ItemAppend) -> None:
    check_key(event.item.key, "item.key")
    after_key = event.after_key
    is_gone = event.may_be_gone and after_key != "root" and after_key not in history
    history.append(event.item, "" if is_gone else after_key)


def _delete(history: History, event: ev.ItemDelete) -> None:
    if not event.may_be_gone or event.key in history:
        history.delete(event.key)


def _create(session: SessionState, event: ev.ReplyCreate, now_ms: float) -> None:
    hears = session.settings.audio_stage == "reply"
    event = with_tools(event, session.options)
    if "reply" not in session.settings.stages or (
        hears and (event.is_out_of_band or event.items is not None)
    ):
        raise ProtocolError("reply_unavailable", "this server has no reply engine that takes text")
    reply = session.reply
    if reply is not None and not event.is_out_of_band:
        raise ProtocolError("reply_active", f"the reply of turn {reply.turn} is still in progress")
    if hears:
        if not turns.answer_held(session, event, now_ms):
            message = "this server's reply engine answers what was said, and no turn waits for an answer"
            raise ProtocolError("input_empty", message)
        return
    if session.queue is not None and len(session.queue) >= REPLY_QUEUE:
        raise ProtocolError("reply_queue_full", f"at most {REPLY_QUEUE} replies can wait")
    session.enqueue_reply(event)


def _cancel(session: SessionState, event: ev.ReplyCancel, now_ms: float) -> None:
    if session.reply is None and not session.queue:
        raise ProtocolError("reply_not_active", "no reply is in progress")
    if event.key and session.queue and any(one.key == event.key for one in session.queue):
        session.queue, ended = turns.drop_queue(session.queue, "cancelled", event.key)
        for done in ended:
            session.outgoing.emit(done)
    else:
        turns.stop_reply(session, "cancelled", now_ms)


def _played(session: SessionState, event: ev.ReplyPlayed, now_ms: float) -> None:
    session.speech_output.receive_played(event.turn, event.played_ms, event.is_final)
    cut = session.interrupted
    if cut is not None and cut.reply.turn == event.turn:  # the client knows better where it was cut off
        cut.played_ms = min(event.played_ms, cut.reply.audio_ms)
    deadlines.refresh(session)


def _digit(session: SessionState, event: ev.Digit, now_ms: float) -> None:
    session.outgoing.emit(ev.DigitHeard(digit=event.digit))


_OF_HISTORY: dict[type[object], Callable[[History, Any], None]] = {
    ev.ItemAppend: _append,
    ev.ItemDelete: _delete,
}
_HANDLERS: dict[type[object], Callable[[SessionState, Any, float], None]] = {
    ev.SessionUpdate: _update,
    ev.InputCommit: _commit,
    ev.InputClear: _clear,
    ev.ReplyCreate: _create,
    ev.ReplyCancel: _cancel,
    ev.ReplyPlayed: _played,
    ev.Digit: _digit,
}
