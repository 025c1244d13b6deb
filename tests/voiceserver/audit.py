"""Listens to everything a session says and holds it to what was promised, event by event."""

from __future__ import annotations

from collections.abc import Callable

from voiceserver.events import events as ev


class Audit:
    """``audio_of``: what tts makes of a sentence, to know whether a reply was spoken once, whole and in order."""

    def __init__(self, audio_of: Callable[[str], bytes]) -> None:
        self._audio_of = audio_of
        self.open_replies: dict[int, bytes] = {}
        self.texts: dict[int, list[str]] = {}
        self.fillers: dict[int, list[str]] = {}  # the first so many pieces of a reply's audio
        self.done: dict[int, str] = {}
        self.partials: dict[int, str] = {}
        self.finals: dict[int, str] = {}
        self.failed: set[int] = set()
        self.started: set[int] = set()
        self.stopped: set[int] = set()
        self.dropped_ms = 0.0
        self.signals = 0
        self.is_busy = False  # by what was said last
        self.degraded: tuple[str, ...] = ()  # what the last signal said that this caller goes without
        self.times_lighter = 0
        self.closing: ev.SessionClosing | None = None

    def take(self, event: ev.ServerEvent) -> None:
        assert self.closing is None, f"{event} after the close"
        if isinstance(event, ev.ReplyStarted):
            assert event.turn not in self.texts, "a turn is answered once"
            assert not self.open_replies, "one reply at a time"
            self.open_replies[event.turn] = b""
            self.texts[event.turn] = []
        elif isinstance(event, ev.ReplyText):
            assert event.turn in self.open_replies
            self.texts[event.turn].append(event.text)
        elif isinstance(event, ev.ReplyFiller):
            said = self.fillers.setdefault(event.turn, [])
            assert event.text not in said, "a filler twice"
            assert self.open_replies[event.turn] == self._pcm(said), "a filler into the answer"
            said.append(event.text)
            assert event.audio_ms > 0
        elif isinstance(event, ev.ReplyAudio):
            self.open_replies[event.turn] += event.pcm
        elif isinstance(event, ev.ReplyDone):
            self._done(event)
        elif isinstance(event, ev.TranscriptPartial):
            assert "partials" not in self.degraded, "a partial of a caller who was told that there are none"
            assert event.turn not in self.finals
            assert event.text.startswith(self.partials.get(event.turn, "")), "a transcript was retracted"
            self.partials[event.turn] = event.text
        elif isinstance(event, ev.TranscriptFinal | ev.TranscriptFailed):
            assert event.turn not in self.finals
            assert event.turn not in self.failed
            if isinstance(event, ev.TranscriptFinal):
                self.finals[event.turn] = event.text
            else:
                self.failed.add(event.turn)
        elif isinstance(event, ev.SpeechStarted):
            assert event.turn not in self.started
            self.started.add(event.turn)
        elif isinstance(event, ev.SpeechStopped):
            assert event.turn in self.started
            assert event.turn not in self.stopped
            self.stopped.add(event.turn)
        elif isinstance(event, ev.ServerBusy):
            self.dropped_ms += event.dropped_ms
            self.signals += 1
            self.is_busy = True
            self.degraded = event.degraded
            self.times_lighter += event.reason == "lighter_engine"
        elif isinstance(event, ev.ServerReady):
            assert self.is_busy, "ready, and nothing was said to be busy"
            self.is_busy = False
            self.degraded = ()
        elif isinstance(event, ev.SessionClosing):
            assert not self.open_replies, "a reply that never ends"
            is_heard = event.reason not in ("disconnected", "client_left")
            owed = self.stopped - self.finals.keys() - self.failed
            assert not (is_heard and owed), f"turns {owed} have neither a transcript nor a word about it"
            self.closing = event

    def _done(self, event: ev.ReplyDone) -> None:
        assert event.turn not in self.done, "a reply ends once"
        self.done[event.turn] = event.reason
        pcm = self.open_replies.pop(event.turn)
        sentences = [text.strip() for text in self.texts[event.turn]]
        assert event.text == "".join(self.texts[event.turn]).strip()
        assert len(set(sentences)) == len(sentences), "a sentence twice"
        fillers = self.fillers.get(event.turn, [])
        expected = self._pcm(fillers + sentences)
        assert len(pcm) >= len(self._pcm(fillers)), "a filler that was told and not heard"
        assert expected.startswith(pcm), "said twice, or out of order"
        if event.reason == "completed" and len(pcm) > len(self._pcm(fillers)):
            assert pcm == expected, "a reply that is called complete and is not"

    def _pcm(self, texts: list[str]) -> bytes:
        return b"".join(self._audio_of(text) for text in texts)
