"""Speech to text with a model that hears windows, not streams; its partials are never taken back.

The model is shown the whole utterance again at intervals, and once more at its end. What two hypotheses in a row agree on is
told (local agreement), and every later hypothesis has to begin with it, so a transcript always continues its partials::

    audio ...... decode: "so my"   decode: "so my fellow"        decode: "so my fellow Americans"
    told                           "so my"                       "so my fellow"

Local agreement: Liu et al., "Low-Latency Sequence-to-Sequence Speech Recognition and Translation by Partial Hypothesis
Selection", Interspeech 2020.

When the caller pauses, the transcript is made ahead; if only silence follows, the end of the utterance finds it ready.

An utterance longer than the model's context is cut at its quietest place of the last seconds, and the parts are joined.

A step makes one call of at most ``batch_size`` windows, those that wait longest and utterances that ended first; the
others ask for ``more``. So an answer may come later under load, but what is in it depends on its own stream only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np

from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

RATE_HZ: Final = 16000
# The language of a stream whose language the model is to find.
AUTO: Final = "auto"
# Detected afresh until this much is heard.
_DETECT_MS = 3000
# An utterance under this has no words in it.
_MIN_SAMPLES = RATE_HZ // 10
_CUT_WITHIN_SAMPLES = 5 * RATE_HZ
_CUT_SAMPLES = RATE_HZ // 5
_LEVEL_SAMPLES = RATE_HZ * 30 // 1000
# By how many steps an utterance that ended goes before one that goes on.
_WAITS_STEPS: Mapping[Want, int] = {"partial": 4, "ahead": 2}
_NO_AUDIO: Audio = np.empty(0, np.float32)

Want = Literal["nothing", "partial", "ahead", "part", "final"]
# Token ids.
Word = tuple[int, ...]


class Job(NamedTuple):
    """One window: float32 audio at 16 kHz, at most the context; the language, "auto" to detect it; tokens to begin with."""

    audio: Audio
    language: str
    prefix: Word = ()


class Heard(NamedTuple):
    """words: token ids, word by word, the job's prefix among them. language: that of the words."""

    words: list[Word]
    language: str


class WindowModel(Protocol):
    """context_samples: the longest window that the model is shown."""

    @property
    def context_samples(self) -> int: ...

    def hear(self, jobs: Sequence[Job], beam_size: int) -> list[Heard]:
        """One hypothesis for each job, in order."""

    def text(self, words: Sequence[Word], language: str) -> str:
        """The words as people write them."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the model is shown the utterance.

    interval_ms: audio between two partial hypotheses.
    interval_share: what is added to it, as a share of the utterance so far, because a longer window costs more.
    batch_size: windows in one call.
    beam_size: of all but partials.
    silence_db: RMS level, in dB of full scale, below which nobody speaks.
    settle_ms: an utterance that is as long at a pause is settled there, and what follows is heard apart, because a shorter
        window costs less; 0: never.
    """

    interval_ms: int
    interval_share: float
    batch_size: int
    beam_size: int
    silence_db: float
    settle_ms: int = 0

    def interval_samples(self, heard_samples: int) -> int:
        return self.interval_ms * RATE_HZ // 1000 + int(self.interval_share * heard_samples)

    def is_silent(self, audio: Audio) -> bool:
        return is_silent(audio, self.silence_db)


def is_silent(audio: Audio, silence_db: float) -> bool:
    """Nothing in ``audio`` is as loud as ``silence_db`` for 30 ms."""
    count = len(audio) // _LEVEL_SAMPLES
    if not count:
        return True
    blocks = audio[: count * _LEVEL_SAMPLES].reshape(count, _LEVEL_SAMPLES)
    loudest = float(np.sqrt(np.mean(blocks * blocks, axis=1)).max())
    return bool(loudest < 10.0 ** (silence_db / 20.0))


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
    since step ``wanted_step``. ready: what was heard in the first ``ready_samples``, as good as a final hypothesis. The
    words agreed on were said in the first ``agreed_samples``."""

    __slots__ = (
        "agreed_samples",
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
        self.decoded_samples = self.ready_samples = self.agreed_samples = 0
        self.ready: Heard | None = None
        self.agreement = LocalAgreement()


class WindowEngine(ABC):
    """Base of an stt engine over a ``WindowModel``. A subclass says in ``language_of`` what it takes of a session."""

    def __init__(self, info: EngineInfo, model: WindowModel, schedule: Schedule) -> None:
        self.info = info
        self._model = model
        self._schedule = schedule
        self._streams: dict[int, _Stream] = {}
        self._steps = 0

    @abstractmethod
    def language_of(self, options: Mapping[str, object]) -> str:
        """The language of a stream with ``options``, which are among ``info.options``. Raises ValueError naming the option."""

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            if key not in self.info.options:
                known = ", ".join(self.info.options)
                raise EngineError("bad_option", f"{key}: {self.info.name} has no such option; it has {known}")
        try:
            language = self.language_of(params.options)
        except ValueError as error:
            raise EngineError("bad_option", str(error)) from None
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        self._streams[stream] = _Stream(language)

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
        due = due[: self._schedule.batch_size]
        is_optional = bool(due) and all(states[index].want == "partial" for index in due)
        by_beam: dict[int, list[int]] = {}
        for index in due:
            by_beam.setdefault(self._beam_size(states[index]), []).append(index)
        for beam_size, group in by_beam.items():
            self._decode([states[index] for index in group], [outputs[index] for index in group], beam_size)
        for output, state in zip(outputs, states, strict=True):
            output.more = state.want != "nothing"
            output.is_optional = is_optional
        return outputs

    def _beam_size(self, state: _Stream) -> int:
        return 1 if state.want == "partial" else self._schedule.beam_size

    def _is_ready(self, state: _Stream) -> bool:
        """Nobody spoke since the last good hypothesis."""
        return state.ready is not None and self._schedule.is_silent(state.audio[state.ready_samples :])

    def _want(self, state: _Stream, *, is_final_only: bool = False) -> None:
        """Which decode is due, if any. A pause, or the end of the utterance, overtakes a partial that still waits."""
        heard, was = len(state.audio), state.want
        if is_final_only and was == "partial":
            state.want = was = "nothing"
        is_settled = state.is_pausing and 0 < self._schedule.settle_ms * RATE_HZ // 1000 <= heard
        if heard > self._model.context_samples or (is_settled and not state.is_ending):
            state.want = "part"
        elif state.is_ending:
            state.want = "final"
        elif state.is_pausing and not self._is_ready(state):
            state.want = "ahead"
        elif heard - state.decoded_samples >= self._schedule.interval_samples(heard) and not is_final_only:
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
            if len(audio) >= _MIN_SAMPLES and not self._schedule.is_silent(audio):
                prefix = tuple(token for word in state.agreement.agreed for token in word)
                jobs.append(Job(audio, state.language, prefix))
                speaking.append(state)
        found = dict(zip(map(id, speaking), self._model.hear(jobs, beam_size) if jobs else (), strict=True))
        for state, end, output in zip(states, ends, outputs, strict=True):
            self._take(state, end, found.get(id(state)), output)

    def _end(self, state: _Stream) -> int:
        is_over = len(state.audio) > self._model.context_samples
        return self._cut(state.audio, state.agreed_samples) if is_over else len(state.audio)

    def _cut(self, audio: Audio, agreed_samples: int) -> int:
        """The quietest place of the last seconds of the context, behind the words that are agreed on: what follows the cut
        is heard again."""
        stop = self._model.context_samples
        start = max(stop - min(_CUT_WITHIN_SAMPLES, stop // 2), agreed_samples)
        if stop - start < _CUT_SAMPLES:
            return stop
        power = np.add.reduceat(audio[start:stop] ** 2, np.arange(0, stop - start, _CUT_SAMPLES))
        return start + int(np.argmin(power)) * _CUT_SAMPLES + _CUT_SAMPLES // 2

    def _take(self, state: _Stream, end: int, heard: Heard | None, output: Output) -> None:
        want, state.want = state.want, "nothing"
        if heard is not None and state.language == AUTO and len(state.audio) >= _DETECT_MS * RATE_HZ // 1000:
            state.language = heard.language
        if want in ("partial", "ahead"):
            state.is_pausing = False
            before, state.decoded_samples = state.decoded_samples, end
            state.ready_samples = end
            state.ready = heard if want == "ahead" or self._schedule.beam_size == 1 else None
            if heard is not None and state.agreement.receive(heard.words):
                state.agreed_samples = before
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
        state.is_pausing = False
        state.audio = state.audio[end:].copy()
        state.start_part()
        self._want(state)

    def _joined(self, state: _Stream, words: Sequence[Word], spoken: str) -> str:
        tail = self._model.text(words, spoken)
        return f"{state.text} {tail}" if state.text and tail else state.text or tail


def _priority(state: _Stream) -> int:
    return state.wanted_step + _WAITS_STEPS.get(state.want, 0)
