"""hibari neural text to speech: English, on the CPU, no network, Apache-2.0 code and weights.

Its model makes a sentence in some 16 ms for each second of speech. A long sentence is cut once, behind its first clause, so
that the caller hears the beginning early. The silence before the first sound, about 0.3 s in the model's output, is
trimmed, and so is what is left of it at the end.

Same sentence, same samples: the model draws noise, and each part draws it from the same seed. A replay after a crash
skips by count what a caller has heard.

The voice ``heart`` is inside the package. Others are used where their files are in hibari's cache; nothing is downloaded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from hibari import SAMPLE_RATE
from hibari import Hibari as Model
from hibari.voices import VOICES, voice_path

from voiceserver_workers import parameters
from voiceserver_workers.engine import Audio, EngineInfo
from voiceserver_workers.engines.sentence_voice import SentenceVoice, number

RATE_HZ: Final = SAMPLE_RATE
DEFAULT_VOICE: Final = "heart"
_PARAMS = ("voice", "speed", "threads")
_OPTIONS = ("speed", "voice")
# A sentence shorter than this is one part; a clause shorter than that is none of its own.
_LONG_CHARS, _CLAUSE_CHARS = 48, 16
_CLAUSE = re.compile(r"[,;:—–]\s+")
# What counts as sound, of full scale, and how much is kept before the first and after the last of it.
_SOUND_LEVEL = 0.006
_LEAD_SAMPLES = RATE_HZ * 30 // 1000
_CLAUSE_TAIL_SAMPLES = RATE_HZ * 120 // 1000
_SENTENCE_TAIL_SAMPLES = RATE_HZ * 300 // 1000
_NOISE_SEED = 0

_models: dict[tuple[str, int], Model] = {}


@dataclass(frozen=True, slots=True)
class Manner:
    """voice: one of the voices that are here. speed: 1.0 as trained, 2.0 twice as fast."""

    voice: str
    speed: float


@dataclass(frozen=True, slots=True)
class Part:
    """phonemes: of one clause or sentence. is_end: the sentence ends with it."""

    phonemes: str
    is_end: bool


class Hibari(SentenceVoice[Manner, Part]):
    """TTS engine. Stream options: speed, voice."""

    def __init__(self, params: Mapping[str, object]) -> None:
        super().__init__()
        self._threads, self._manner = _read(params)
        self.info = EngineInfo(
            "hibari", "tts", RATE_HZ, options=_OPTIONS, voices=voices_here(), languages=("en",)
        )
        self._model(self._manner.voice)

    @staticmethod
    def preload(params: Mapping[str, object]) -> None:
        """Load the voice once; with one thread onnxruntime starts none, so workers may be forked from it."""
        threads, manner = _read(params)
        if threads == 1:
            _load(manner.voice, threads)

    def manner_of(self, options: Mapping[str, object]) -> Manner:
        manner = self._manner
        if "speed" in options:
            manner = replace(manner, speed=number("speed", options["speed"], 0.25, 4.0))
        if "voice" in options:
            manner = replace(manner, voice=_voice("voice", options["voice"]))
        return manner

    def cut(self, text: str, manner: Manner) -> Iterable[Part]:
        model = self._model(manner.voice)
        for sentence in model.split_sentences(text):
            clauses = first_clause_apart(sentence)
            for index, clause in enumerate(clauses, 1):
                for phonemes in model.phonemize(clause):
                    yield Part(phonemes, index == len(clauses))

    def say(self, part: Part, manner: Manner) -> Audio:
        model = self._model(manner.voice)
        random = np.random.default_rng(_NOISE_SEED)
        audio = np.asarray(model.from_ids(model.ids(part.phonemes), manner.speed, random), np.float32)
        return trimmed(audio, _SENTENCE_TAIL_SAMPLES if part.is_end else _CLAUSE_TAIL_SAMPLES)

    def _model(self, voice: str) -> Model:
        return _load(voice, self._threads)


def voices_here() -> tuple[str, ...]:
    """The voices whose files are on this machine, the one of the package first."""
    return tuple(sorted((name for name in VOICES if _is_here(name)), key=lambda name: name != DEFAULT_VOICE))


def first_clause_apart(sentence: str) -> tuple[str, ...]:
    """A long sentence as its first clause and the rest; a short one as it is. Joined by a space they are the sentence."""
    if len(sentence) >= _LONG_CHARS:
        for comma in _CLAUSE.finditer(sentence, _CLAUSE_CHARS - 1):
            rest = sentence[comma.end() :]
            if len(rest) >= _CLAUSE_CHARS:
                return sentence[: comma.end()].rstrip(), rest
            break
    return (sentence,)


def trimmed(audio: Audio, tail_samples: int) -> Audio:
    """``audio`` (n,) from 30 ms before its first sound to ``tail_samples`` after its last; empty where there is none."""
    sound = np.flatnonzero(np.abs(audio) > _SOUND_LEVEL)
    if not sound.size:
        return audio[:0]
    return np.clip(audio[max(0, sound[0] - _LEAD_SAMPLES) : sound[-1] + tail_samples], -1.0, 1.0)


def _load(voice: str, threads: int) -> Model:
    model = _models.get((voice, threads))
    if model is None:
        model = _models[voice, threads] = Model(
            voice, model=voice_path(voice, download_missing=False), threads=threads
        )
        # The pronouncing dictionary is read on first use.
        model.phonemize("Hello.")
    return model


def _read(params: Mapping[str, object]) -> tuple[int, Manner]:
    given = parameters.read("hibari", parameters.HibariParameters, params)
    return given.threads, Manner(_voice("voice", given.voice), given.speed)


def _voice(key: str, value: object) -> str:
    if not isinstance(value, str) or value not in voices_here():
        raise ValueError(f"{key}: hibari has no voice {value!r} here; it has {', '.join(voices_here())}")
    return value


def _is_here(name: str) -> bool:
    try:
        return bool(voice_path(name, download_missing=False))
    except FileNotFoundError:
        return False
