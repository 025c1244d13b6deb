"""Whisper speech to text: 99 languages, batched over utterances, with partials that are never taken back (see ``windows``)."""

from __future__ import annotations

from collections.abc import Mapping

from voiceserver_workers.engine import EngineInfo
from voiceserver_workers.engines.whisper_model import Settings, WhisperModel, language
from voiceserver_workers.engines.windows import AUTO, RATE_HZ, Schedule, WindowEngine


class Whisper(WindowEngine):
    """STT engine. A model has to be named. Stream options: language ("en", "auto")."""

    def __init__(self, params: Mapping[str, object]) -> None:
        settings = Settings.read(params)
        self._language = settings.language
        model = WhisperModel(settings)
        self._is_multilingual = model.is_multilingual
        schedule = Schedule(
            settings.decode_interval_ms, 0.0, settings.batch_size, settings.beam_size, settings.silence_db
        )
        info = EngineInfo("whisper", "stt", RATE_HZ, works_ahead=True, options=("language",))
        super().__init__(info, model, schedule)

    def language_of(self, options: Mapping[str, object]) -> str:
        if "language" not in options:
            return self._language
        wanted = language("language", options["language"])
        if not self._is_multilingual and wanted not in ("en", AUTO):
            raise ValueError(f"language: this model understands en only, not {options['language']!r}")
        return wanted
