"""espeak-ng text to speech: audio leaves while the rest of the sentence is still being made.

espeak-ng is one global state per process and synthesis is a call that returns at the end of the text. So one thread
owns it, started with the engine (never in the forkserver), and works off sentences in order. Its callback, every
60 ms of audio, hands over what there is and learns whether the sentence is still wanted; the engine's ``step`` cuts
it into frames of 20 ms and asks for more steps until the sentence is complete.

Same sentence, same samples: a crash replay skips by count what a caller has heard already. espeak-ng keeps pitch flutter,
gain and noise from one sentence to the next and has no call to forget them, so the library is unloaded and loaded
again between sentences (0.5 to 1.5 ms, after the audio is out).
"""

from __future__ import annotations

import difflib
import logging
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache, partial

import numpy as np

from voiceserver_workers import parameters
from voiceserver_workers.audio import Audio, pcm16_to_float
from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.espeak_library import (
    RATE_HZ,
    EspeakError,
    Library,
    Voice,
    variants,
    voice_paths,
)
from voiceserver_workers.ipc.messages import ResultKind, StreamParams
from voiceserver_workers.sentences import check_sentences, speakable

log = logging.getLogger(__name__)

FRAME_SAMPLES = RATE_HZ // 50
# Frames that one step hands out: half a second, so that sentences of several callers come out side by side.
_FRAMES_PER_STEP = 25
# How long a step may wait for the synthesiser: long enough not to spin, short enough to serve others.
_WAIT_S = 0.005
_SWITCH_INTERVAL_S = 0.0005
DEFAULT_VOICE = "en-us"
_SETTINGS = ("voice", "language", "rate", "pitch", "speed")
_RATES_WPM = (80, 450)  # what espeak-ng takes
_SOME_VOICES = ("en-us", "en-gb", "de", "fr", "es", "it")


class Sentence:
    """One text on its way to audio. The thread appends to ``chunks``, the engine takes from it."""

    __slots__ = ("chunks", "has_failed", "is_cancelled", "is_done", "rest", "text", "turn", "voice")

    def __init__(self, text: str, voice: Voice, turn: int) -> None:
        self.text = text
        self.voice = voice
        self.turn = turn
        self.chunks: deque[bytes] = deque()
        self.is_done = False
        self.is_cancelled = False
        self.has_failed = False
        self.rest: Audio = np.empty(0, np.float32)

    def has_news(self) -> bool:
        """A step would hand out something."""
        return self.is_done or bool(self.chunks) or len(self.rest) >= FRAME_SAMPLES

    def frames(self) -> list[Audio]:
        """Complete frames that are ready, at most ``_FRAMES_PER_STEP``; the short last one once all is there."""
        is_done = self.is_done
        if self.chunks and len(self.rest) < FRAME_SAMPLES * _FRAMES_PER_STEP:
            ready = b"".join(self.chunks.popleft() for _ in range(len(self.chunks)))
            self.rest = np.concatenate((self.rest, pcm16_to_float(ready)))
        count = min(len(self.rest) // FRAME_SAMPLES, _FRAMES_PER_STEP)
        frames = [self.rest[i * FRAME_SAMPLES : (i + 1) * FRAME_SAMPLES] for i in range(count)]
        self.rest = self.rest[count * FRAME_SAMPLES :]
        if is_done and not self.chunks and 0 < len(self.rest) < FRAME_SAMPLES and count < _FRAMES_PER_STEP:
            frames.append(self.rest)
            self.rest = self.rest[:0]
        return frames

    def is_spent(self) -> bool:
        return self.is_done and not self.chunks and not len(self.rest)


class Synthesiser:
    """The thread that owns espeak-ng. Sentences are spoken in the order they came; cancelled ones are skipped."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sentences: deque[Sentence] = deque()
        # The callback takes the GIL for microseconds; by default it would wait 5 ms for it while a step is busy.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        threading.Thread(target=self._run, name="espeak", daemon=True).start()

    def put(self, sentence: Sentence) -> None:
        with self._changed:
            self._sentences.append(sentence)
            self._changed.notify_all()

    def wait(self, sentences: Sequence[Sentence], timeout_s: float) -> None:
        """Until one of ``sentences`` has something to hand out."""
        with self._changed:
            self._changed.wait_for(lambda: any(sentence.has_news() for sentence in sentences), timeout_s)

    def _run(self) -> None:
        library = _library()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._sentences)
                sentence = self._sentences.popleft()
            if sentence.is_cancelled:
                continue
            try:
                library = library or Library(sentence.voice)
                library.speak(sentence.text, sentence.voice, partial(self._take, sentence))
                self._finish(sentence)
                library.reload(sentence.voice)
            except EspeakError:
                log.exception("espeak-ng failed")
                library = None
                sentence.has_failed = True
                self._finish(sentence)

    def _take(self, sentence: Sentence, pcm: bytes) -> bool:
        """Called in mid-sentence; False stops the synthesis."""
        if sentence.is_cancelled:
            return False
        with self._changed:
            sentence.chunks.append(pcm)
            self._changed.notify_all()
        return True

    def _finish(self, sentence: Sentence) -> None:
        with self._changed:
            sentence.is_done = True
            self._changed.notify_all()


@cache
def synthesiser() -> Synthesiser:
    """The one of this process."""
    return Synthesiser()


def _library() -> Library | None:
    try:
        return Library(_voice({"voice": DEFAULT_VOICE}, Voice("")))
    except EspeakError:
        log.exception("espeak-ng cannot be loaded")
        return None


class _Stream:
    __slots__ = ("sentences", "voice")

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.sentences: deque[Sentence] = deque()


class Espeak:
    """TTS engine. Stream options are the same as its parameters."""

    def __init__(self, params: Mapping[str, object]) -> None:
        parameters.read("espeak", parameters.EspeakParameters, params)
        self._voice = _configured(params)
        voices = tuple(sorted(voice_paths()))
        languages = tuple(sorted({voice.partition("-")[0] for voice in voices}))
        self.info = EngineInfo(
            "espeak",
            "tts",
            RATE_HZ,
            frame_samples=FRAME_SAMPLES,
            options=_SETTINGS,
            voices=voices,
            languages=languages,
        )
        self._streams: dict[int, _Stream] = {}
        # Loads the library while the worker says hello.
        synthesiser()

    @staticmethod
    def preload(params: Mapping[str, object]) -> None:
        """Index the voices and have the library's pages in memory: the first sentence is as quick as any."""
        if synthesiser.cache_info().currsize:
            return
        Library(_configured(params)).close()

    def open(self, stream: int, params: StreamParams) -> None:
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        for key in params.options:
            if key not in _SETTINGS:
                raise EngineError(
                    "bad_option", f"{key}: espeak has no such option; it has {', '.join(_SETTINGS)}"
                )
        try:
            voice = _voice(params.options, self._voice)
        except ValueError as error:
            raise EngineError("bad_option", str(error)) from None
        self._streams[stream] = _Stream(voice)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        states = [self._streams[item.stream] for item in batch]
        check_sentences(batch)
        for item, state in zip(batch, states, strict=True):
            if item.text is not None and not item.is_continued:
                sentence = Sentence(speakable(item.text), state.voice, item.turn)
                state.sentences.append(sentence)
                if any(map(str.isalnum, sentence.text)):
                    synthesiser().put(sentence)
                else:
                    sentence.is_done = True
        waiting = [state.sentences[0] for state in states if state.sentences]
        if waiting and not any(sentence.has_news() for sentence in waiting):
            synthesiser().wait(waiting, _WAIT_S)
        return [_output(state) for state in states]

    def cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is None:
            return
        for sentence in state.sentences:
            sentence.is_cancelled = sentence.is_cancelled or sentence.turn <= turn
        state.sentences = deque(sentence for sentence in state.sentences if not sentence.is_cancelled)

    def close(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        if state is not None:
            for sentence in state.sentences:
                sentence.is_cancelled = True


def _output(state: _Stream) -> Output:
    if not state.sentences:
        return Output()
    sentence = state.sentences[0]
    pieces = [Piece(ResultKind.AUDIO, frame) for frame in sentence.frames()]
    if sentence.is_spent():
        state.sentences.popleft()
        if sentence.has_failed:
            raise EngineError("tts_failed", "the sentence cannot be spoken")
        pieces.append(Piece(ResultKind.DONE))
    return Output(pieces, more=bool(state.sentences))


def _configured(params: Mapping[str, object]) -> Voice:
    return _voice(params, _voice({"voice": DEFAULT_VOICE}, Voice("")))


def _voice(settings: Mapping[str, object], default: Voice) -> Voice:
    """Raises ValueError naming the key."""
    path = _path_of_language(settings.get("language")) or default.path
    if "voice" in settings:
        path = _path("voice", settings["voice"])
    rate_wpm = _number("rate", settings.get("rate", default.rate_wpm), *_RATES_WPM)
    if "speed" in settings:  # what a session asks of any voice: a factor
        factor = settings["speed"]
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0.25 <= factor <= 4.0:
            raise ValueError(f"speed: must be a number from 0.25 to 4, not {factor!r}")
        rate_wpm = min(max(round(rate_wpm * factor), _RATES_WPM[0]), _RATES_WPM[1])
    return Voice(
        path,
        rate_wpm,
        _number("pitch", settings.get("pitch", default.pitch), 0, 99),
    )


def _path_of_language(language: object) -> str:
    """A voice of the language, or of the language without its country; "" if there is none: it is a hint to all stages, and
    what is heard in a language need not be spoken in it."""
    name = language.lower().replace("_", "-") if isinstance(language, str) else ""
    return voice_paths().get(name) or voice_paths().get(name.partition("-")[0]) or ""


def _path(key: str, value: object) -> str:
    name, plus, variant = value.partition("+") if isinstance(value, str) else ("", "", "")
    path = voice_paths().get(name.lower().replace("_", "-"))
    if path is None:
        near = difflib.get_close_matches(name.lower(), voice_paths(), n=3)
        raise ValueError(f"{key}: espeak has no voice {value!r}; there is {', '.join(near or _SOME_VOICES)}")
    if plus and variant not in variants():
        near = difflib.get_close_matches(variant, variants(), n=3)
        raise ValueError(
            f"{key}: espeak has no variant {variant!r}; there is {', '.join(near or ('f1', 'm1'))}"
        )
    return path + plus + variant


def _number(key: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{key}: must be a number from {low} to {high}, not {value!r}")
    return round(value)
