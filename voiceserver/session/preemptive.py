"""A reply that is asked for at a pause, before it is sure that the caller has ended: the guess.

::

    PAUSE --TEXT of stt--> guess: reply and tts work, what they say is held
      caller goes on, other words, anything else --> dropped without a trace
      turn ends, the request would be the same   --> adopted: the held results are received as if they came now

Rule: a guess says nothing, changes no history and is waited for by nobody. Adopted is only what would have been asked for
to the byte, so a caller cannot tell that it was a guess, except by the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from voiceserver.events import events as ev
from voiceserver.session.history import chat_messages
from voiceserver.session.outbox import Outbox
from voiceserver.session.sentences import spoken_pieces
from voiceserver.session.settings import normalise
from voiceserver.session.spoken_text import SpokenText
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams

if TYPE_CHECKING:
    from voiceserver.session.audio_input import AudioInput
    from voiceserver.session.reply import Reply
    from voiceserver.session.state import SessionState

PREEMPTIVE_PER_TURN = 3  # somebody who pauses often costs no more than this
HELD_BYTES = 1 << 20  # of results; a guess that grows beyond is given up


class RequestKey(NamedTuple):
    """All that an answer follows from, but for ``ServerSnapshot``, which may be a few hundred ms old."""

    request: bytes
    speaks: bool
    voice: StreamParams


class PreemptiveReply:
    """``turn``: that it would answer. ``ask``, ``say``: as of a Reply; only the first sentence is said ahead."""

    __slots__ = (
        "_held_bytes",
        "_words",
        "ask",
        "request_key",
        "held",
        "is_finished_asking",
        "first_seq",
        "say",
        "turn",
    )

    def __init__(
        self, turn: int, request_key: RequestKey, request: bytes, language: str, now_ms: float
    ) -> None:
        self.turn = turn
        self.request_key = request_key
        self.ask = Outbox()
        self.say = Outbox()
        self.ask.append(RequestKind.DATA, turn, 1, request, 1, now_ms)
        self.is_finished_asking = False
        self.held: list[tuple[str, Record]] = []
        self._held_bytes = 0
        self._words = SpokenText(language)
        self.first_seq = 0  # the number of the sentence that is said ahead; 0: none yet

    def hold(self, stage: str, record: Record, now_ms: float) -> bool:
        """False: it came to nothing, or to too much."""
        self._held_bytes += len(record.payload)
        if record.kind == ResultKind.FAILED or self._held_bytes > HELD_BYTES:
            return False
        self.held.append((stage, record))
        if stage == "reply":
            self.is_finished_asking = self.is_finished_asking or record.kind == ResultKind.DONE
            if record.kind == ResultKind.TEXT and self.request_key.speaks and not self.say.received:
                self._say_first(record.payload.decode(errors="replace"), now_ms)
        return True

    def _say_first(self, text: str, now_ms: float) -> None:
        """The first sentence that has a word for the voice, by the number that it will have in the reply."""
        for piece in spoken_pieces(text):
            shown = self._words.answer_in(piece)
            if shown and self._words.add(shown) and self._words.spoken[-1]:
                self.first_seq, spoken = len(self._words.spoken), self._words.spoken[-1].encode()
                self.say.append(RequestKind.DATA, self.turn, self.first_seq, spoken, 1, now_ms)
                return

    def needs(self, stage: str) -> bool:
        return not self.is_finished_asking if stage == "reply" else self.request_key.speaks


def receive_text(session: SessionState, audio_input: AudioInput, record: Record, now_ms: float) -> None:
    """A text of stt. If it says what was heard up to the pause that still lasts, the answer to it is begun."""
    if record.kind != ResultKind.TEXT or not audio_input.answers_pause(record.turn, record.seq):
        return
    text = record.payload.decode(errors="replace").strip()
    if not _may_preempt(session, text):
        return
    request_key, request = _asked_for(session, record.turn, text)
    preemptive_reply = session.preemptive_reply
    if preemptive_reply is not None:
        if preemptive_reply.request_key == request_key:
            return
        drop(session)
    if session.preemptive_count < PREEMPTIVE_PER_TURN:
        session.preemptive_count += 1
        session.preemptive_reply = PreemptiveReply(
            record.turn, request_key, request, session.options.language, now_ms
        )


def _may_preempt(session: SessionState, text: str) -> bool:
    """Only where the answer is sure to be wanted if the turn ends here, and nobody else needs the worker more."""
    detection, words = session.options.turn_detection, normalise(text)
    transcripts = session.transcripts
    return (
        session.settings.preemptive
        and bool(words)
        and words not in session.settings.backchannels
        and session.is_open
        and session.reply is None
        and not session.queue
        and session.place is None
        and session.options.replies
        and detection is not None
        and detection.creates_reply
        and transcripts is not None
        and not transcripts.is_pending
        and not (session.busy_monitor is not None and session.busy_monitor.is_busy)
        and session.server_snapshot.degrade_level == 0
    )


def _asked_for(session: SessionState, turn: int, text: str) -> tuple[RequestKey, bytes]:
    user = ev.HistoryItem(role="user", text=text, turn=turn, key=f"user:{turn}")
    history = session.speech_output.history.with_record(user)
    fields = request_fields(session, turn, ev.ReplyCreate(), history)
    return _request_key(session, fields, session.speaks(ev.ReplyCreate())), encode_request(session, fields)


def _request_key(session: SessionState, fields: dict[str, object], speaks: bool) -> RequestKey:
    return RequestKey(msgspec.json.encode(fields), speaks, session.voice_params())


def take(
    session: SessionState, turn: int, fields: dict[str, object], speaks: bool, create: ev.ReplyCreate
) -> PreemptiveReply | None:
    """The guess, if it is what is asked for now; else there is none any more."""
    preemptive_reply = session.preemptive_reply
    if preemptive_reply is None:
        return None
    if (
        preemptive_reply.turn != turn
        or create.is_out_of_band
        or preemptive_reply.request_key != _request_key(session, fields, speaks)
    ):
        drop(session)
        return None
    session.preemptive_reply = None
    session.preemptive_count = 0
    return preemptive_reply


def adopt(session: SessionState, reply: Reply, preemptive_reply: PreemptiveReply, now_ms: float) -> None:
    """``reply`` was just started: it has what the guess has, from now on."""
    if not preemptive_reply.ask.has_unsent():
        reply.ask.mark_sent()
    session.speech_output.replies_ahead += 1
    is_sent = preemptive_reply.first_seq > 0 and not preemptive_reply.say.has_unsent()
    for stage, record in preemptive_reply.held:
        if stage == "tts":
            session.speech_output.receive_tts(record, now_ms)
            continue
        session.speech_output.receive_reply(record, now_ms)
        first = reply.say.next_unsent()
        if is_sent and first is not None and first.seq == preemptive_reply.first_seq:
            reply.say.mark_sent()


def receive(
    session: SessionState, preemptive_reply: PreemptiveReply, stage: str, record: Record, now_ms: float
) -> None:
    if record.turn == preemptive_reply.turn and not preemptive_reply.hold(stage, record, now_ms):
        drop(session)


def drop(session: SessionState) -> None:
    """What the stages do for it is worthless; nobody hears of it."""
    if session.preemptive_reply is not None:
        session.preemptive_reply = None
        session.is_settled = False
        session.the_stage_streams.reset("reply")
        session.the_stage_streams.reset("tts")


def request_fields(
    session: SessionState, turn: int, create: ev.ReplyCreate, history: tuple[ev.HistoryItem, ...]
) -> dict[str, object]:
    """What the reply stage is asked; ``history`` unless the client gave its own items."""
    options, limit = session.options, create.max_output_tokens
    return {
        "turn": turn,
        "messages": chat_messages(history if create.items is None else create.items),
        "instructions": options.instructions if create.instructions is None else create.instructions,
        "tools": options.tools if create.tools is None else create.tools,
        "tool_choice": options.tool_choice if create.tool_choice is None else create.tool_choice,
        "max_output_tokens": options.max_output_tokens if limit is None else limit,
        "temperature": options.temperature if create.temperature is None else create.temperature,
        "language": options.language,
    }


def encode_request(session: SessionState, fields: dict[str, object]) -> bytes:
    return msgspec.json.encode({**fields, "context": session.server_snapshot})


def encode_again(request: bytes, turn: int) -> bytes:
    """The same request as one of ``turn``."""
    return msgspec.json.encode({**msgspec.json.decode(request, type=dict[str, msgspec.Raw]), "turn": turn})
