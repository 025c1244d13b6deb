"""The speaking half of a session: at most one reply in progress, what is still being heard of the last, and the history.

::

    start --> [ask outbox: reply] --TEXT--> [say outbox: tts] --AUDIO--> caller     finish: exactly one ReplyDone
                                                                                    interrupt: cut the history to what was heard
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from voiceserver.events.events import (
    ErrorEvent,
    HistoryItem,
    PlaybackStop,
    ReplyAudio,
    ReplyCreate,
    ReplyDone,
    ReplyFiller,
    ReplyStarted,
    ReplyText,
    ReplyToolCall,
)
from voiceserver.session.event_queue import EventQueue
from voiceserver.session.history import History
from voiceserver.session.reply import Ending, Reason, Reply, ToolCall
from voiceserver.session.scripts import ScriptWatch
from voiceserver.session.sentences import spoken_pieces
from voiceserver.session.settings import ServerSnapshot
from voiceserver_workers.ipc.messages import (
    Failure,
    Finish,
    Record,
    RequestKind,
    ResultKind,
    decode_failure,
    decode_finish,
    decode_tool_piece,
)

SCRIPT_UNSUPPORTED: Final = "script_unsupported"
SilentEnding = Literal["no_answer", "try_again"]
_FINAL_CODES = frozenset({"empty_reply", "reply_rejected", "text_too_long"})  # asking again would not help
FINISH_REASONS: dict[str, Reason] = {"length": "limited", "content_filter": "filtered"}


class SpeechOutput:
    __slots__ = (
        "_cut",
        "_events",
        "_played_ms",
        "_playing",
        "_scripts",
        "fillers",
        "history",
        "interruptions",
        "language",
        "output_rate_hz",
        "replies",
        "replies_ahead",
        "reply",
        "samples_sent",
        "silent_ending",
    )

    def __init__(
        self, events: EventQueue, history_items: int, output_rate_hz: int, server: ServerSnapshot
    ) -> None:
        self._events = events
        self.output_rate_hz = output_rate_hz  # of the next reply
        self.language = ""  # of the next reply, BCP 47; "" unknown
        self._scripts = ScriptWatch(server)
        self.history = History(history_items)
        self.reply: Reply | None = None
        self._playing: Reply | None = None  # the last reply that had audio
        self._cut: Reply | None = (
            None  # the last that was cut off: the client may still say how much it played
        )
        self._played_ms: float | None = None  # what the client told of it
        self.replies = 0
        self.replies_ahead = 0  # of them those that were begun at a pause, before the turn was over
        self.interruptions = 0
        self.fillers = 0
        # What to say of the last reply, because nothing of it was heard.
        self.silent_ending: SilentEnding | None = None
        self.samples_sent = 0  # of replies; fillers are none

    def start(self, turn: int, create: ReplyCreate, speaks: bool, request: bytes, now_ms: float) -> Reply:
        reply = self._begin(turn, create, speaks, now_ms)
        reply.ask.append(RequestKind.DATA, turn, 1, request, 1, now_ms)
        reply.request = request
        return reply

    def resume(
        self, turn: int, old: Reply, texts: list[tuple[str, str]], request: bytes, now_ms: float
    ) -> Reply:
        """Say the rest of a reply that was cut off for nothing: ``texts`` (shown, spoken), then what the reply stage had not said
        yet, which it is asked by ``request`` (empty: it was through)."""
        create = ReplyCreate(is_out_of_band=old.create.is_out_of_band)
        reply = self._begin(turn, create, old.speaks, now_ms)
        for text, spoken in texts:
            self._show(reply, reply.add_text(text, now_ms, spoken))
        if request:
            reply.continue_from(old, request, now_ms)
        else:
            reply.is_finished_asking, reply.ending = True, old.ending
        return reply

    @property
    def kept_replies(self) -> list[Reply]:
        """Those in memory: the one in progress, the last that was heard, the last that was cut off; one may be there twice."""
        return [reply for reply in (self.reply, self._playing, self._cut) if reply is not None]

    @property
    def memory_bytes(self) -> int:
        """Of the history, and of each reply that is kept."""
        replies = {id(reply): reply for reply in self.kept_replies}
        return self.history.memory_bytes + sum(reply.memory_bytes for reply in replies.values())

    def _begin(self, turn: int, create: ReplyCreate, speaks: bool, now_ms: float) -> Reply:
        reply = Reply(turn, create, speaks, self.output_rate_hz, now_ms, self.language)
        reply.plays_from_ms = self.playing_until_ms
        self.reply = reply
        self.replies += 1
        started = ReplyStarted(turn=turn, key=create.key, speaks=speaks, is_out_of_band=create.is_out_of_band)
        self._events.emit(started)
        return reply

    # ------------------------------------------------------------------------------------------------ results

    def receive_reply(self, record: Record, now_ms: float) -> None:
        """A result of the reply stage. Results of another turn were cancelled: they are dropped at the door."""
        reply = self.reply
        if reply is None or record.turn != reply.turn:
            return
        reply.ask.consume(1)
        reply.alive_ms = now_ms
        if record.kind == ResultKind.CONSUMED:
            return
        reply.progress_ms = now_ms
        try:
            self._take(reply, record, now_ms)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fail("engine_failed", "the engine gave a malformed answer", now_ms=now_ms)

    def _take(self, reply: Reply, record: Record, now_ms: float) -> None:
        kind = record.kind
        if kind == ResultKind.TEXT:
            self._text(reply, record.payload.decode(), now_ms)
        elif kind == ResultKind.AUDIO:  # a speech-to-speech engine needs no tts
            self._audio(reply, 1, record.payload, now_ms)
        elif kind == ResultKind.TOOL:
            self._tool(reply, record.payload)
        elif kind == ResultKind.DONE:
            finish = decode_finish(record.payload) if record.payload else Finish()
            self._show(reply, reply.finish_text(now_ms))
            reply.is_finished_asking = True
            reply.ending = Ending(FINISH_REASONS.get(finish.finish_reason, "completed"))
            if finish.usage is not None:
                reply.usage = finish.usage
            reply.ask.commit(1)
            self._finish_if_complete(now_ms)
        elif kind == ResultKind.FAILED:
            self._show(reply, reply.finish_text(now_ms))
            reply.ending = Ending("failed", *failure_of(record.payload))
            reply.is_finished_asking = True
            reply.ask.commit(1)
            # What came before is said first.
            self._finish_if_complete(now_ms)

    def receive_tts(self, record: Record, now_ms: float) -> None:
        reply = self.reply
        if reply is None or record.turn != reply.turn:
            return
        reply.progress_ms = now_ms
        if record.kind == ResultKind.AUDIO:
            self._audio(reply, record.seq, record.payload, now_ms)
        elif record.kind == ResultKind.DONE:
            reply.finish_sentence(record.seq)
            self._finish_if_complete(now_ms)
        elif record.kind == ResultKind.FAILED:
            self.fail(*failure_of(record.payload), now_ms=now_ms)

    def _text(self, reply: Reply, text: str, now_ms: float) -> None:
        for piece in spoken_pieces(text, reply.words.language) if reply.speaks else [text]:
            self._show(reply, reply.receive_text(piece, now_ms))

    def _show(self, reply: Reply, text: str) -> None:
        if text:
            self._events.emit(ReplyText(turn=reply.turn, text=text))
            if not text.isascii() and reply.needs_tts and (script := self._scripts.look(text)):
                message = f"The voice cannot say text in the {script} script; the text is shown all the same."
                self._events.emit(ErrorEvent(code=SCRIPT_UNSUPPORTED, message=message, retryable=False))

    def _audio(self, reply: Reply, sentence: int, pcm: bytes, now_ms: float) -> None:  # hot
        pcm = reply.receive_audio(sentence, pcm, now_ms)
        if pcm:
            self.samples_sent += len(pcm) >> 1
            self._send(reply, pcm)

    def fill(self, reply: Reply, text: str, pcm: bytes, now_ms: float) -> None:
        """Something to hear while the reply is late."""
        self.fillers += 1
        reply.receive_filler(len(pcm) >> 1, now_ms)
        audio_ms = round(len(pcm) * 500.0 / reply.output_rate_hz, 1)
        self._events.emit(ReplyFiller(turn=reply.turn, text=text, audio_ms=audio_ms))
        self._send(reply, pcm)

    def _send(self, reply: Reply, pcm: bytes) -> None:  # hot
        if self._playing is not reply:
            self._playing = reply
            self._played_ms = None
        self._events.emit(ReplyAudio(turn=reply.turn, pcm=pcm))

    def _tool(self, reply: Reply, payload: bytes) -> None:
        delta = decode_tool_piece(payload)
        call = reply.tool_calls.setdefault(delta.index, ToolCall())
        call.call_id = call.call_id or delta.call_id
        is_new = not call.name
        call.name = call.name or delta.name
        is_whole = not call.arguments and _is_whole(delta.arguments)
        arguments = call.receive(delta.arguments)
        if is_whole:  # told once, at the end of the reply
            arguments = ""
        if not arguments and not is_new:
            return
        self._events.emit(
            ReplyToolCall(
                turn=reply.turn,
                index=delta.index,
                call_id=call.call_id,
                name=call.name,
                arguments=arguments,
            )
        )

    # ------------------------------------------------------------------------------------------------- endings

    def _finish_if_complete(self, now_ms: float) -> None:
        reply = self.reply
        if reply is None or not reply.is_complete:
            return
        reason, code, message = reply.ending
        if reason == "failed":
            self.fail(code, message, now_ms=now_ms)
        elif reason == "completed" and _is_empty(reply):
            self.fail("empty_reply", "the answer has neither text nor a sound", now_ms=now_ms)
        else:
            self._finish(reply, reason)

    def fail(self, code: str, message: str, *, now_ms: float) -> None:
        reply = self.reply
        if reply is not None:
            self._finish(reply, "failed", code, message, reply.audio_ms if reply.speaks else None)

    def stop(self, reason: Literal["interrupted", "cancelled"], now_ms: float) -> int:
        """Barge-in or a cancel: the turn of the reply that was cut off, 0 if nothing was being said or heard.

        The order on the wire is the caller's: call it after the event that explains it.
        """
        reply, playing = self.reply, self._playing
        is_playing = playing is not None and playing is not reply and now_ms < self.playing_until_ms
        if playing is not None and is_playing and reason == "interrupted":
            self._stop_playing(playing, now_ms)
        if reply is not None:
            if reason == "interrupted":
                self.interruptions += 1
            heard_ms = self.played_ms(now_ms) if self._playing is reply else 0.0
            self._finish(reply, reason, heard_ms=heard_ms if reply.speaks else None)
            self._playing, self._cut = None, reply
            return reply.turn
        if playing is None or not is_playing or reason == "cancelled":
            return 0
        self.interruptions += 1
        return playing.turn

    def _stop_playing(self, playing: Reply, now_ms: float) -> None:
        played_ms = self.played_ms(now_ms)
        self._playing, self._cut = None, playing
        self.history.cut(playing.turn, playing.heard_text(played_ms))
        self._events.emit(PlaybackStop(turn=playing.turn, played_ms=round(played_ms, 1)))

    def _finish(
        self, reply: Reply, reason: Reason, code: str = "", message: str = "", heard_ms: float | None = None
    ) -> None:
        self.reply = None
        for index, call in sorted(reply.tool_calls.items()):
            if reason in ("completed", "limited"):
                done = ReplyToolCall(reply.turn, index, call.call_id, call.name, call.arguments, is_done=True)
                self._events.emit(done)
        text = reply.text if heard_ms is None else reply.heard_text(heard_ms)
        if not reply.create.is_out_of_band:
            items = reply.history_items() if reason in ("completed", "limited") else []
            if not items and text.strip():
                items = [
                    HistoryItem(
                        role="assistant", text=text.strip(), turn=reply.turn, key=f"reply:{reply.turn}"
                    )
                ]
            for item in items:
                self.history.record(item)
        reply.ask.discard()
        reply.say.discard()
        if reply.samples_sent <= reply.filler_samples:  # it made no sound
            self.silent_ending = _silent_ending(reply, reason, code)
        self._events.emit(
            ReplyDone(
                turn=reply.turn,
                reason=reason,
                timings=reply.timings(),
                text=reply.text.strip(),
                code=code,
                message=message,
                key=reply.create.key,
                input_tokens=reply.usage.prompt_tokens,
                output_tokens=reply.usage.completion_tokens,
            )
        )

    # ------------------------------------------------------------------------------------------------ playback

    @property
    def playing_until_ms(self) -> float:
        """When a client that plays without a pause has played everything that was sent."""
        playing = self._playing
        if playing is None or not playing.samples_sent:
            return -math.inf
        audio_ms = playing.audio_ms
        if self._played_ms is not None and self._played_ms >= audio_ms:
            return -math.inf
        return playing.plays_from_ms + audio_ms

    @property
    def answers_until_ms(self) -> float:
        """The same, but a filler is no answer."""
        playing = self._playing
        if playing is not None and playing is self.reply and not playing.has_spoken:
            return -math.inf
        return self.playing_until_ms

    def played_ms(self, now_ms: float) -> float:
        """How much of the last reply was heard: what the client told, else an estimate by time."""
        playing = self._playing
        if playing is None or not playing.samples_sent:
            return 0.0
        if self._played_ms is not None:
            return min(self._played_ms, playing.audio_ms)
        return min(max(now_ms - playing.plays_from_ms, 0.0), playing.audio_ms)

    def heard(self, now_ms: float) -> tuple[Reply, float] | None:
        """What a barge-in would cut off now, and how much of it was heard."""
        reply, playing = self.reply, self._playing
        if reply is not None:
            return reply, self.played_ms(now_ms) if playing is reply else 0.0
        if playing is not None and now_ms < self.playing_until_ms:
            return playing, self.played_ms(now_ms)
        return None

    def receive_played(self, turn: int, played_ms: float, is_final: bool) -> None:
        playing, cut = self._playing, self._cut
        if cut is not None and cut.turn == turn:
            self.history.cut(turn, cut.heard_text(played_ms))
        if playing is None or playing.turn != turn:
            return
        self._played_ms = played_ms
        if is_final and self.reply is None:
            self.history.cut(turn, playing.heard_text(played_ms))
            self._playing = None


def _is_whole(arguments: str) -> bool:
    try:
        return type(msgspec.json.decode(arguments)) is dict
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False


def _is_empty(reply: Reply) -> bool:
    """Nothing came of it: neither text nor a sound nor a tool call. A thumb is an answer to who reads; who only listens is told
    (``_silent_ending``)."""
    return not (reply.text.strip() or reply.has_spoken or reply.tool_calls)


def _silent_ending(reply: Reply, reason: Reason, code: str) -> SilentEnding | None:
    """What a caller who only listens must be told of a reply that ended without a sound; None: nothing."""
    is_to_be_heard = reply.speaks and not reply.create.is_out_of_band and not reply.tool_calls
    if not is_to_be_heard or reason in ("interrupted", "cancelled"):
        return None
    return "no_answer" if reason != "failed" or code in _FINAL_CODES else "try_again"


def failure_of(payload: bytes) -> tuple[str, str]:
    try:
        failure = decode_failure(payload)
    except msgspec.DecodeError:
        failure = Failure()
    return failure.code, failure.message
