"""A Whisper model behind CTranslate2, loaded through faster-whisper: a batch of audio in, a batch of hypotheses out.

Windows of several callers go through encoder and decoder in one call. Each is as long as the context (30 s, as in
training), so what one caller gets does not depend on how long another has spoken. A hypothesis may be made to begin with
tokens that were told already. Guards against what Whisper invents where nobody speaks:

- audio under a level is not shown to the model at all
- a hypothesis is dropped where the model itself finds no speech and is not sure of its words
- one that repeats itself (it compresses too well) is made again with repetitions forbidden
- it can have no more tokens than anybody says in that time
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import ctranslate2
import faster_whisper
import msgspec
import numpy as np
from faster_whisper.tokenizer import _LANGUAGE_CODES, Tokenizer

from voiceserver_workers import models, parameters
from voiceserver_workers.engine import Audio
from voiceserver_workers.engines.windows import AUTO, RATE_HZ, Heard, Job, Word

LANGUAGES = frozenset(_LANGUAGE_CODES)
_HOP_SAMPLES = 160
_FRAME_SAMPLES = 400
_MAX_TOKENS = 224
# Nobody speaks faster: 14 tokens a second, and some for the beginning.
_TOKENS_PER_S, _MIN_TOKENS = 14, 16
_COMPRESSION_LIMIT = 2.4
_UNSURE_LOG_PROBABILITY = -1.0
_FORBIDDEN_REPEAT = 3
_MARKS = {"cpu": "int8", "cuda": "float16"}


@dataclass(frozen=True, slots=True)
class Settings:
    """``WhisperParameters`` of which the language is known."""

    model: str
    device: str
    compute_type: str
    beam_size: int
    language: str
    cpu_threads: int
    context_s: int
    decode_interval_ms: int
    batch_size: int
    no_speech_threshold: float
    silence_db: float

    @classmethod
    def read(cls, params: Mapping[str, object]) -> Settings:
        """Raises ValueError naming the key."""
        given = parameters.read("whisper", parameters.WhisperParameters, params)
        language("language", given.language)
        return cls(**msgspec.structs.asdict(given))


class _Decoding(NamedTuple):
    """is_cut: it went on beyond ``tokens``, so its last word may be half of one."""

    tokens: list[int]
    is_cut: bool
    log_probability: float
    no_speech: float


class WhisperModel:
    """Raises ValueError, naming the key, for a model that cannot be had."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        device, _, index = settings.device.partition(":")
        folder = _model_folder(settings.model)
        _check_device(settings, device, index)
        try:
            loaded = faster_whisper.WhisperModel(
                str(folder),
                device=device,
                device_index=int(index or 0),
                compute_type=settings.compute_type or _MARKS[device],
                cpu_threads=settings.cpu_threads,
                local_files_only=True,
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"model: {settings.model} cannot be loaded: {error}") from None
        self._model = loaded.model
        self._hf_tokenizer = loaded.hf_tokenizer
        self._features = faster_whisper.feature_extractor.FeatureExtractor(feature_size=self._model.n_mels)
        self._tokenizers: dict[str, Tokenizer] = {}
        self.context_samples = settings.context_s * RATE_HZ
        self.is_multilingual: bool = self._model.is_multilingual

    def tokenizer(self, language: str) -> Tokenizer:
        found = self._tokenizers.get(language)
        if found is None:
            found = self._tokenizers[language] = Tokenizer(
                self._hf_tokenizer, self.is_multilingual, "transcribe", language
            )
        return found

    def text(self, words: Sequence[Word], language: str) -> str:
        decoded: str = self.tokenizer(language).decode([token for word in words for token in word])
        return decoded.strip()

    def hear(self, jobs: Sequence[Job], beam_size: int) -> list[Heard]:
        """One call of the model for all of ``jobs``; a second one for those that repeat themselves."""
        languages = [job.language for job in jobs]
        features = np.stack([self._log_mel(job.audio) for job in jobs])
        encoded = self._model.encode(ctranslate2.StorageView.from_array(features))
        if AUTO in languages and self.is_multilingual:
            detected = self._model.detect_language(encoded)
            for index, found in enumerate(detected):
                if languages[index] == AUTO:
                    languages[index] = found[0][0].strip("<|>")
        elif not self.is_multilingual:
            languages = ["en"] * len(jobs)
        decodings = self._generate(encoded, jobs, languages, beam_size)
        looping = [
            index for index, decoding in enumerate(decodings) if self._repeats(decoding, languages[index])
        ]
        if looping:
            again = self._model.encode(ctranslate2.StorageView.from_array(features[looping]))
            better = self._generate(
                again,
                [jobs[index] for index in looping],
                [languages[index] for index in looping],
                beam_size,
                _FORBIDDEN_REPEAT,
            )
            for index, decoding in zip(looping, better, strict=True):
                decodings[index] = decoding
        return [
            self._heard(job, decoding, language)
            for job, decoding, language in zip(jobs, decodings, languages, strict=True)
        ]

    def _generate(
        self,
        encoded: ctranslate2.StorageView,
        jobs: Sequence[Job],
        languages: Sequence[str],
        beam_size: int,
        no_repeat: int = 0,
    ) -> list[_Decoding]:
        prompts = []
        for job, language in zip(jobs, languages, strict=True):
            tokenizer = self.tokenizer(language)
            prompts.append([*tokenizer.sot_sequence, tokenizer.no_timestamps, *job.prefix])
        results = self._model.generate(
            encoded,
            prompts,
            beam_size=beam_size,
            max_length=_MAX_TOKENS,
            no_repeat_ngram_size=no_repeat,
            return_scores=True,
            return_no_speech_prob=True,
        )
        decodings = []
        for job, result in zip(jobs, results, strict=True):
            tokens = result.sequences_ids[0]
            # As Whisper counts: over the tokens and the end of text.
            log_probability = result.scores[0] * len(tokens) / (len(tokens) + 1)
            seconds = len(job.audio) / RATE_HZ
            limit = max(int(_MIN_TOKENS + _TOKENS_PER_S * seconds), len(job.prefix))
            decodings.append(
                _Decoding(tokens[:limit], len(tokens) > limit, log_probability, result.no_speech_prob)
            )
        return decodings

    def _repeats(self, decoding: _Decoding, language: str) -> bool:
        text = self.tokenizer(language).decode(decoding.tokens).encode()
        return len(text) > _COMPRESSION_LIMIT * len(zlib.compress(text))

    def _heard(self, job: Job, decoding: _Decoding, language: str) -> Heard:
        tokenizer = self.tokenizer(language)
        is_nothing = decoding.no_speech > self._settings.no_speech_threshold
        tokens: Sequence[int] = decoding.tokens
        if is_nothing and decoding.log_probability < _UNSURE_LOG_PROBABILITY:
            tokens = job.prefix
        tokens = [token for token in tokens if token < tokenizer.eot]
        _, split = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
        words = [tuple(word) for word in split if word and word[0] != tokenizer.eot]
        is_half = decoding.is_cut and sum(map(len, words)) > len(job.prefix)
        return Heard(words[:-1] if is_half else words, language)

    def _log_mel(self, audio: Audio) -> Audio:
        """(mels, frames of the context): the spectrum of ``audio`` and of silence after it."""
        frames = self.context_samples // _HOP_SAMPLES
        # Half a frame of silence reaches into the last frames of speech; beyond it silence is a constant.
        room = self.context_samples - len(audio)
        spectrum = self._features(audio, padding=min(_FRAME_SAMPLES, room))[:, :frames]
        # log10 of the floor as Whisper has it: eighty decibels under the loudest, but nothing under 1e-10.
        loudest = float(spectrum.max()) * 4.0 - 4.0
        features = np.full((len(spectrum), frames), (max(loudest - 8.0, -10.0) + 4.0) / 4.0, np.float32)
        features[:, : spectrum.shape[1]] = spectrum
        return features


def language(key: str, value: object) -> str:
    """A language code of Whisper ("en", "en-US" is taken for it) or "auto". Raises ValueError naming ``key``."""
    code = value.lower().replace("_", "-").partition("-")[0] if isinstance(value, str) else ""
    if code != AUTO and code not in LANGUAGES:
        raise ValueError(f'{key}: must be "auto" or a language code of Whisper such as "en", not {value!r}')
    return code


def _check_device(settings: Settings, device: str, index: str) -> None:
    if device == "cuda":
        count = ctranslate2.get_cuda_device_count()
        if not (index or "0").isdigit() or int(index or 0) >= count:
            raise ValueError(f"device: there is no {settings.device} here ({count} CUDA devices)")
    supported = ctranslate2.get_supported_compute_types(device)
    if settings.compute_type and settings.compute_type not in {*supported, "auto", "default"}:
        raise ValueError(
            f"compute_type: {device} has {', '.join(sorted(supported))}, not {settings.compute_type!r}"
        )


@cache
def _model_folder(name: str) -> Path:
    """Where the model is, after a download if need be."""
    if not name:
        raise ValueError(
            "model: which one? A folder with a CTranslate2 Whisper model, packaged:base, packaged:tiny.en, or a name such as "
            f"{', '.join(faster_whisper.available_models()[:6])}"
        )
    kind, _, packaged = name.partition(":")
    if kind == "packaged":
        return models.weights("model", f"whisper-{packaged}")
    path = Path(name).expanduser()
    if path.is_dir():
        for needed in ("model.bin", "tokenizer.json"):
            if not (path / needed).is_file():
                raise ValueError(f"model: {name} has no {needed}, so it is no CTranslate2 Whisper model")
        return path
    is_hub_id = name.count("/") == 1 and name[0] not in "./~"
    if name not in faster_whisper.available_models() and not is_hub_id:
        raise ValueError(
            f"model: there is no folder {name}, and it is no name of a Whisper model; "
            f"those are {', '.join(faster_whisper.available_models())}"
        )
    return _download(name)


def _download(name: str) -> Path:
    """From the local cache of the hub if it is there, else over the network. Raises ValueError."""
    try:
        return Path(faster_whisper.download_model(name, local_files_only=True))
    except Exception:  # whatever it is, the cache does not have it
        try:
            return Path(faster_whisper.download_model(name))
        except Exception as error:  # each HTTP library and each kind of proxy has errors of its own
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise ValueError(
                f"model: {name!r} is not in the local cache and cannot be downloaded from the Hugging Face hub ({reason}); "
                "give the path of a folder with a CTranslate2 Whisper model (model.bin, tokenizer.json)"
            ) from None
