"""Turns that were captured and wait for their transcript, oldest first. Partials only grow; a final comes once."""

from __future__ import annotations

from collections import deque

from voiceserver.events.events import TranscriptFailed, TranscriptFinal, TranscriptPartial
from voiceserver.session.event_queue import EventQueue
from voiceserver.session.speech_output import failure_of
from voiceserver_workers.ipc.messages import Record, ResultKind


class Utterance:
    """``decided_ms``: wall time of the end-of-turn decision, None while it is being spoken."""

    __slots__ = (
        "creates_reply",
        "decided_ms",
        "end_of_speech_ms",
        "endpointing_ms",
        "has_final",
        "partial",
        "preemptive_count",
        "turn",
    )

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.partial = ""
        self.decided_ms: float | None = None
        self.end_of_speech_ms = 0.0
        self.endpointing_ms = 0.0
        self.creates_reply = False
        self.has_final = False
        self.preemptive_count = 0  # preemptive replies that were begun at its pauses


class Transcripts:
    __slots__ = ("_events", "_waiting", "held_turn", "is_silent", "skips_partials")

    def __init__(self, events: EventQueue) -> None:
        self._events = events
        self._waiting: deque[Utterance] = deque()
        self.is_silent = False  # the client asked for no transcripts
        self.skips_partials = False  # the server is degraded
        self.held_turn = (
            0  # one that has ended, and is answered if the client asks (speech to speech); 0: none
        )

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def begin(self, turn: int) -> Utterance:
        utterance = Utterance(turn)
        self._waiting.append(utterance)
        return utterance

    @property
    def latest(self) -> Utterance:
        return self._waiting[-1]

    @property
    def is_pending(self) -> bool:
        """A turn has ended and its transcript is not here yet."""
        return any(one.decided_ms is not None for one in self._waiting)

    @property
    def pending_since_ms(self) -> float | None:
        """When the oldest turn ended whose transcript is not here yet."""
        return self._waiting[0].decided_ms if self._waiting else None

    @property
    def pending_turns(self) -> list[int]:
        """Turns that have ended and whose transcript is not here yet."""
        return [one.turn for one in self._waiting if one.decided_ms is not None and not one.has_final]

    def give_up(self, turn: int, code: str, message: str) -> None:
        """There will be no transcript of ``turn``."""
        self.forget(turn)
        if not self.is_silent:
            self._events.emit(TranscriptFailed(turn=turn, code=code, message=message))

    def find(self, turn: int) -> Utterance | None:  # hot
        for one in self._waiting:
            if one.turn == turn:
                return one
        return None

    def forget(self, turn: int) -> None:
        self._waiting = deque(one for one in self._waiting if one.turn != turn)

    def receive(self, record: Record, *, is_last: bool = True) -> str | None:
        """A result of stt. The text when it is the final one, which comes once per turn; None otherwise.

        ``is_last`` False: the turn goes on after its final transcript (speech to speech).
        """
        utterance = self.find(record.turn)
        if utterance is None:
            return None
        if record.kind == ResultKind.TEXT:
            self._partial(utterance, record.payload.decode(errors="replace"))
        elif record.kind == ResultKind.FAILED:
            code, message = failure_of(record.payload)
            self.forget(record.turn)
            self._events.emit(TranscriptFailed(turn=record.turn, code=code, message=message))
        elif record.kind == ResultKind.FINAL and not utterance.has_final:
            utterance.has_final = True
            if is_last:
                self.forget(record.turn)
            text = record.payload.decode(errors="replace").strip()
            if not self.is_silent:
                self._events.emit(TranscriptFinal(turn=utterance.turn, text=text))
            return text
        return None

    def _partial(self, utterance: Utterance, text: str) -> None:
        if len(text) > len(utterance.partial) and text.startswith(utterance.partial):
            utterance.partial = text
            if not self.is_silent and not self.skips_partials:
                self._events.emit(TranscriptPartial(turn=utterance.turn, text=text))
