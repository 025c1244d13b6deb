"""Moonshine speech to text: English, on the CPU, no network; it writes punctuation and capitals (see ``windows``).

Partials come from the growing utterance, decoded again at intervals that stretch with its length, because each costs as much as
all that was said so far; under pressure the server asks for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voiceserver_workers.engine import EngineInfo
from voiceserver_workers.engines.moonshine_model import LANGUAGE, MoonshineModel
from voiceserver_workers.engines.moonshine_weights import cache_of, prepared, tokenizer_path
from voiceserver_workers.engines.sentence_voice import number, whole_number
from voiceserver_workers.engines.windows import RATE_HZ, Schedule, WindowEngine

_SETTLE_MS = 6000


@dataclass(frozen=True, slots=True)
class Settings:
    """cache: folder for the converted weights; the user's by default. threads: of one decode. decode_interval_ms: audio
    between partial hypotheses at the start of an utterance. decode_interval_share: what is added to it, as a share of the
    utterance so far. silence_db: RMS level, in dB of full scale, below which nobody speaks."""

    cache: Path
    threads: int = 1
    decode_interval_ms: int = 400
    decode_interval_share: float = 0.2
    silence_db: float = -55.0

    @classmethod
    def read(cls, params: Mapping[str, object]) -> Settings:
        """Raises ValueError naming the key."""
        known = cls.__slots__
        for key in params:
            if key not in known:
                raise ValueError(f"{key}: moonshine has no such parameter; it has {', '.join(known)}")
        return cls(
            cache_of(params),
            whole_number("threads", params.get("threads", 1), 1, 64),
            whole_number("decode_interval_ms", params.get("decode_interval_ms", 400), 100, 30_000),
            number("decode_interval_share", params.get("decode_interval_share", 0.2), 0.0, 2.0),
            number("silence_db", params.get("silence_db", -55.0), -120.0, 0.0),
        )

    def load(self) -> MoonshineModel:
        """Converts the weights first, where that was not done. Raises ValueError naming ``model``."""
        model = _loaded.get((self.cache, self.threads))
        if model is None:
            model = MoonshineModel(prepared(self.cache), tokenizer_path(), self.threads)
            _loaded[self.cache, self.threads] = model
        return model


# A model keeps nothing of an utterance, so all engines of a process use one.
_loaded: dict[tuple[Path, int], MoonshineModel] = {}


class Moonshine(WindowEngine):
    """STT engine. Params: see ``Settings``. Stream options: language, which must be English."""

    def __init__(self, params: Mapping[str, object]) -> None:
        settings = Settings.read(params)
        schedule = Schedule(
            settings.decode_interval_ms,
            settings.decode_interval_share,
            batch_size=1,
            beam_size=1,
            silence_db=settings.silence_db,
            settle_ms=_SETTLE_MS,
        )
        info = EngineInfo("moonshine", "stt", RATE_HZ, works_ahead=True, options=("language",))
        super().__init__(info, settings.load(), schedule)

    @staticmethod
    def preload(params: Mapping[str, object]) -> None:
        """Load the weights once; with one thread onnxruntime starts none, so workers may be forked from it."""
        settings = Settings.read(params)
        if settings.threads == 1:
            settings.load()

    def language_of(self, options: Mapping[str, object]) -> str:
        value = options.get("language", LANGUAGE)
        if not isinstance(value, str) or value.lower().replace("_", "-").partition("-")[0] != LANGUAGE:
            raise ValueError(f"language: moonshine understands en, not {value!r}")
        return LANGUAGE
