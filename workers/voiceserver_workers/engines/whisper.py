"""Whisper speech to text, batched over utterances, with partials that are never taken back.

Whisper hears windows, not streams: it is shown the whole utterance again each ``decode_interval_ms``, and once more at
its end. What two hypotheses in a row agree on is told (local agreement), and every later hypothesis has to begin with it,
so a transcript always continues its partials::

    audio ...... decode: "so my"   decode: "so my fellow"        decode: "so my fellow Americans"
    told                           "so my"                       "so my fellow"

When the caller pauses, the transcript is made ahead; if only silence follows, the end of the utterance finds it ready.

An utterance longer than the model's context is cut at its quietest place of the last seconds, and the parts are joined.

A step makes one call of at most ``batch_size`` windows, those that wait longest and utterances that ended first; the
others ask for ``more``. So an answer may come later under load, but what is in it depends on its own stream only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.whisper_model import (
    AUTO,
    RATE_HZ,
    Heard,
    Job,
    Settings,
    WhisperModel,
    Word,
    language,
)
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

# Detected afresh until this much is heard.
_DETECT_MS = 3000
# An utterance under this has no words in it.
_MIN_SAMPLES = RATE_HZ // 10
_CUT_WITHIN_SAMPLES = 5 * RATE_HZ
_CUT_SAMPLES = RATE_HZ // 5
# By how many steps an utterance that ended goes before one that goes on.
_WAITS_STEPS: Mapping[Want, int] = {"partial": 4, "ahead": 2}
_NO_AUDIO: Audio = np.empty(0, np.float32)

Want = Literal["nothing", "partial", "ahead", "part", "final"]


class LocalAgreement:
    """Words that two hypotheses in a row had in common, from the first on. It only grows."""

    __slots__ = ("_last", "agreed")

    def __init__(self) -> None:
        self.agreed: list[Word] = []
        self._last: list[Word] = []

    def receive(self, words: Sequence[Word]) -> bool:
        """The next hypothesis. True: more is agreed on than before."""
        count = 0
        for word, last_word in zip(words, self._last, strict=False):
            if word != last_word:
                break
            count += 1
        self._last = list(words)
        if count <= len(self.agreed) or self._last[: len(self.agreed)] != self.agreed:
            return False
        self.agreed = self._last[:count]
        return True


class _Stream:
    """One caller's utterance. audio: since the last cut; text: what was said before it. want: the decode that is due,
    since step ``wanted_step``. ready: what was heard in the first ``ready_samples``, as good as a final hypothesis."""

    __slots__ = (
        "agreement",
        "audio",
        "decoded_samples",
        "is_ending",
        "is_pausing",
        "language",
        "ready",
        "ready_samples",
        "session_language",
        "text",
        "told",
        "turn",
        "want",
        "wanted_step",
    )

    def __init__(self, session_language: str) -> None:
        self.session_language = session_language
        self.forget()

    def forget(self) -> None:
        """Drop the utterance."""
        self.turn = 0
        self.audio: Audio = _NO_AUDIO
        self.text = ""
        self.told = ""
        self.language = self.session_language
        self.is_ending = self.is_pausing = False
        self.want: Want = "nothing"
        self.wanted_step = 0
        self.start_part()

    def start_part(self) -> None:
        self.decoded_samples = self.ready_samples = 0
        self.ready: Heard | None = None
        self.agreement = LocalAgreement()


class Whisper:
    """STT engine. Params: see ``whisper_model.Settings``; model is needed. Stream options: language ("en", "auto")."""

    def __init__(self, params: Mapping[str, object]) -> None:
        self._settings = Settings.read(params)
        self._model = WhisperModel(self._settings)
        self.info = EngineInfo("whisper", "stt", RATE_HZ, works_ahead=True, options=("language",))
        self._interval_samples = self._settings.decode_interval_ms * RATE_HZ // 1000
        self._streams: dict[int, _Stream] = {}
        self._steps = 0

    def open(self, stream: int, params: StreamParams) -> None:
        wanted = self._settings.language
        for key, value in params.options.items():
            if key != "language":
                raise EngineError("bad_option", f"{key}: whisper has no such option; it has language")
            try:
                wanted = language("language", value)
            except ValueError as error:
                raise EngineError("bad_option", str(error)) from None
            if not self._model.is_multilingual and wanted not in ("en", AUTO):
                raise EngineError("bad_option", f"language: this model understands en only, not {value!r}")
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        self._streams[stream] = _Stream(wanted)

    def cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is not None and state.turn <= turn:
            state.forget()

    def close(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        states = [self._streams[item.stream] for item in batch]
        self._steps += 1
        for item, state in zip(batch, states, strict=True):
            if not item.is_continued:
                state.turn = item.turn
                state.audio = np.concatenate((state.audio, item.audio))
                state.is_ending = state.is_ending or item.is_flush
                state.is_pausing = item.is_pause
            self._want(state, is_final_only=item.is_final_only)
        outputs = [Output() for _ in batch]
        for state, output in zip(states, outputs, strict=True):
            if state.want == "final" and self._is_ready(state):
                self._take(state, len(state.audio), state.ready, output)
        due = [index for index, state in enumerate(states) if state.want != "nothing"]
        due.sort(key=lambda index: _priority(states[index]))
        by_beam: dict[int, list[int]] = {}
        for index in due[: self._settings.batch_size]:
            by_beam.setdefault(self._beam_size(states[index]), []).append(index)
        for beam_size, group in by_beam.items():
            self._decode([states[index] for index in group], [outputs[index] for index in group], beam_size)
        for output, state in zip(outputs, states, strict=True):
            output.more = state.want != "nothing"
        return outputs

    def _beam_size(self, state: _Stream) -> int:
        return 1 if state.want == "partial" else self._settings.beam_size

    def _is_ready(self, state: _Stream) -> bool:
        """Nobody spoke since the last good hypothesis."""
        return state.ready is not None and self._model.is_silent(state.audio[state.ready_samples :])

    def _want(self, state: _Stream, *, is_final_only: bool = False) -> None:
        """Which decode is due, if any. A pause, or the end of the utterance, overtakes a partial that still waits."""
        heard, was = len(state.audio), state.want
        if is_final_only and was == "partial":
            state.want = was = "nothing"
        if heard > self._model.context_samples:
            state.want = "part"
        elif state.is_ending:
            state.want = "final"
        elif state.is_pausing and not self._is_ready(state):
            state.want = "ahead"
        elif heard - state.decoded_samples >= self._interval_samples and not is_final_only:
            state.want = "partial"
        if was == "nothing":
            state.wanted_step = self._steps

    def _decode(self, states: Sequence[_Stream], outputs: Sequence[Output], beam_size: int) -> None:
        """One call of the model for what ``states`` want."""
        jobs: list[Job] = []
        speaking: list[_Stream] = []
        ends = [self._end(state) for state in states]
        for state, end in zip(states, ends, strict=True):
            audio = state.audio[:end]
            if len(audio) >= _MIN_SAMPLES and not self._model.is_silent(audio):
                prefix = tuple(token for word in state.agreement.agreed for token in word)
                jobs.append(Job(audio, state.language, prefix))
                speaking.append(state)
        found = dict(zip(map(id, speaking), self._model.hear(jobs, beam_size) if jobs else (), strict=True))
        for state, end, output in zip(states, ends, outputs, strict=True):
            self._take(state, end, found.get(id(state)), output)

    def _end(self, state: _Stream) -> int:
        return self._cut(state.audio) if state.want == "part" else len(state.audio)

    def _cut(self, audio: Audio) -> int:
        """The quietest place of the last seconds of the context."""
        stop = self._model.context_samples
        start = stop - min(_CUT_WITHIN_SAMPLES, stop // 2)
        power = np.add.reduceat(audio[start:stop] ** 2, np.arange(0, stop - start, _CUT_SAMPLES))
        return start + int(np.argmin(power)) * _CUT_SAMPLES + _CUT_SAMPLES // 2

    def _take(self, state: _Stream, end: int, heard: Heard | None, output: Output) -> None:
        want, state.want = state.want, "nothing"
        if heard is not None and state.language == AUTO and len(state.audio) >= _DETECT_MS * RATE_HZ // 1000:
            state.language = heard.language
        if want in ("partial", "ahead"):
            state.is_pausing = False
            state.decoded_samples = state.ready_samples = end
            state.ready = heard if want == "ahead" or self._settings.beam_size == 1 else None
            if heard is not None and state.agreement.receive(heard.words):
                told = self._joined(state, state.agreement.agreed, heard.language)
                if told != state.told:
                    state.told = told
                    output.pieces.append(Piece(ResultKind.TEXT, told))
            return
        if heard is not None:
            state.text = self._joined(state, heard.words, heard.language)
        elif state.agreement.agreed:
            state.text = state.told
        if want == "final":
            output.pieces.append(Piece(ResultKind.FINAL, state.text))
            state.forget()
            return
        if state.text != state.told:
            state.told = state.text
            output.pieces.append(Piece(ResultKind.TEXT, state.text))
        state.audio = state.audio[end:].copy()
        state.start_part()
        self._want(state)

    def _joined(self, state: _Stream, words: Sequence[Word], spoken: str) -> str:
        said = self._model.text(words, spoken)
        return f"{state.text} {said}" if state.text and said else state.text or said


def _priority(state: _Stream) -> int:
    return state.wanted_step + _WAITS_STEPS.get(state.want, 0)
