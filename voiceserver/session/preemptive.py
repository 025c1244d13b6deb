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

from voiceserver.events.events import ReplyCreate
from voiceserver.session.outbox import ENTRY_BYTES, Outbox
from voiceserver.session.sentences import spoken_pieces
from voiceserver.session.settings import SessionOptions, SessionSettings
from voiceserver.session.spoken_text import SpokenText
from voiceserver.session.stage import Stage
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams

if TYPE_CHECKING:
    from voiceserver.session.reply import Reply
    from voiceserver.session.speech_output import SpeechOutput

TTS = Stage.TTS
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
        for piece in spoken_pieces(text, self._words.language):
            shown = self._words.answer_in(piece)
            if shown and self._words.add(shown) and self._words.spoken[-1]:
                self.first_seq, spoken = len(self._words.spoken), self._words.spoken[-1].encode()
                self.say.append(RequestKind.DATA, self.turn, self.first_seq, spoken, 1, now_ms)
                return

    @property
    def memory_bytes(self) -> int:
        held = sum(ENTRY_BYTES + len(record.payload) for _, record in self.held)
        return self.ask.memory_bytes + len(self.request_key.request) + held

    def answers(self, turn: int, request_key: RequestKey, create: ReplyCreate) -> bool:
        """Whether it is what is asked for now."""
        return self.turn == turn and not create.is_out_of_band and self.request_key == request_key

    def give_to(self, speech_output: SpeechOutput, reply: Reply, now_ms: float) -> None:
        """``reply`` was just started: it has what this one has, from now on."""
        if not self.ask.has_unsent():
            reply.ask.mark_sent()
        speech_output.replies_ahead += 1
        is_sent = self.first_seq > 0 and not self.say.has_unsent()
        for stage, record in self.held:
            if stage == TTS:
                speech_output.receive_tts(record, now_ms)
                continue
            speech_output.receive_reply(record, now_ms)
            first = reply.say.next_unsent()
            if is_sent and first is not None and first.seq == self.first_seq:
                reply.say.mark_sent()


def is_answerable(text: str, options: SessionOptions, settings: SessionSettings) -> bool:
    """Whether an answer to ``text`` is sure to be wanted if the turn ends here."""
    detection = options.turn_detection
    return (
        settings.preemptive
        and settings.has_words(text)
        and options.replies
        and detection is not None
        and detection.creates_reply
    )


def request_key(fields: dict[str, object], speaks: bool, voice: StreamParams) -> RequestKey:
    return RequestKey(msgspec.json.encode(fields), speaks, voice)
