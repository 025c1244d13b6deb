"""Piper neural text to speech, sentence by sentence.

Piper is GPLv3, so it is an optional extra, and imported in a worker process only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from voiceserver_workers import parameters
from voiceserver_workers.engine import Audio, EngineInfo
from voiceserver_workers.engines.piper_voice import Manner, Voice
from voiceserver_workers.engines.sentence_voice import SentenceVoice, number

_OPTIONS = ("speed", "speaker", "voice")


class Piper(SentenceVoice[Manner, list[int]]):
    """TTS engine. Stream options: speed, speaker, and voice, a
    speaker's name for a session, where speakers have names."""

    def __init__(self, params: Mapping[str, object]) -> None:
        super().__init__()
        given = parameters.read("piper", parameters.PiperParameters, params)
        manner = Manner(given.speed, None, given.noise, given.noise_w)
        self._voice = Voice(given.voice, threads=given.threads, use_cuda=given.device == "cuda")
        if given.speaker is not None:
            manner = replace(manner, speaker=self._voice.speaker(given.speaker))
        self._manner = manner
        names = self._voice.speaker_names
        options = _OPTIONS if names else _OPTIONS[:2]
        self.info = EngineInfo("piper", "tts", self._voice.rate_hz, options=options, voices=names)

    def manner_of(self, options: Mapping[str, object]) -> Manner:
        manner = self._manner
        for key, value in options.items():
            if key == "speed":
                manner = replace(manner, speed=number("speed", value, 0.25, 4.0))
            else:
                manner = replace(manner, speaker=self._voice.speaker(value, key))
        return manner

    def cut(self, text: str, manner: Manner) -> Iterable[list[int]]:
        return self._voice.sentences(text)

    def say(self, part: list[int], manner: Manner) -> Audio:
        return self._voice.say(part, manner)
