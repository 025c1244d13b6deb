"""Moonshine speech to text: English, on the CPU, no network; it writes punctuation and capitals (see ``windows``).

Partials come from the growing utterance, decoded again at intervals that stretch with its length, because each costs as much as
all that was said so far; under pressure the server asks for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voiceserver_workers import parameters
from voiceserver_workers.engine import EngineInfo
from voiceserver_workers.engines.moonshine_model import LANGUAGE, MoonshineModel
from voiceserver_workers.engines.moonshine_weights import cache_of, prepared, tokenizer_path
from voiceserver_workers.engines.windows import RATE_HZ, Schedule, WindowEngine

_SETTLE_MS = 6000


@dataclass(frozen=True, slots=True)
class Settings:
    """``MoonshineParameters`` with the folder of the weights."""

    cache: Path
    threads: int
    decode_interval_ms: int
    decode_interval_share: float
    silence_db: float

    @classmethod
    def read(cls, params: Mapping[str, object]) -> Settings:
        """Raises ValueError naming the key."""
        given = parameters.read("moonshine", parameters.MoonshineParameters, params)
        return cls(
            cache_of(params),
            given.threads,
            given.decode_interval_ms,
            given.decode_interval_share,
            given.silence_db,
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
    """STT engine. Stream options: language, which must be English."""

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
