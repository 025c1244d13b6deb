"""Turns that were captured and wait for their transcript, oldest first. Partials only grow; a final comes once."""

from __future__ import annotations

from collections import deque

from voiceserver.events import ServerEvent, TranscriptFailed, TranscriptFinal, TranscriptPartial
from voiceserver.mouth import failure_of
from workers.ipc.messages import Record, ResultKind


class Utterance:
    """``decided_ms``: wall time of the end-of-turn decision, None while it is being spoken."""

    __slots__ = ("creates_reply", "decided_ms", "end_of_speech_ms", "endpointing_ms", "partial", "turn")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.partial = ""
        self.decided_ms: float | None = None
        self.end_of_speech_ms = 0.0
        self.endpointing_ms = 0.0
        self.creates_reply = False


class Transcripts:
    __slots__ = ("_events", "_waiting", "is_silent")

    def __init__(self, events: list[ServerEvent]) -> None:
        self._events = events
        self._waiting: deque[Utterance] = deque()
        self.is_silent = False  # the client asked for no transcripts

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

    def forget(self, turn: int) -> None:
        self._waiting = deque(one for one in self._waiting if one.turn != turn)

    def receive(self, record: Record) -> tuple[Utterance, str] | None:
        """A result of stt. The finished utterance and its text, once per turn; None otherwise. A failure finishes without one."""
        utterance = next((one for one in self._waiting if one.turn == record.turn), None)
        if utterance is None:
            return None
        if record.kind == ResultKind.TEXT:
            text = record.payload.decode()
            if len(text) > len(utterance.partial) and text.startswith(utterance.partial):
                utterance.partial = text
                if not self.is_silent:
                    self._events.append(TranscriptPartial(turn=record.turn, text=text))
            return None
        if record.kind == ResultKind.FAILED:
            code, message = failure_of(record.payload)
            self.forget(record.turn)
            self._events.append(TranscriptFailed(turn=record.turn, code=code, message=message))
            return None
        if record.kind != ResultKind.FINAL:
            return None
        self.forget(record.turn)
        text = record.payload.decode().strip()
        if not self.is_silent:
            self._events.append(TranscriptFinal(turn=utterance.turn, text=text))
        return utterance, text
