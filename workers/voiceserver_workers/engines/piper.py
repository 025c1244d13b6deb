"""Piper neural text to speech, sentence by sentence.

Piper is GPLv3, so it is an optional extra, and imported in a worker process only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from voiceserver_workers.engine import Audio, EngineInfo
from voiceserver_workers.engines.piper_voice import Manner, Voice
from voiceserver_workers.engines.sentence_voice import SentenceVoice, number, whole_number

_PARAMS = ("voice", "device", "threads", "speed", "speaker", "noise", "noise_w")
_OPTIONS = ("speed", "speaker", "voice")


class Piper(SentenceVoice[Manner, list[int]]):
    """TTS engine. Params: voice (path of NAME.onnx, NAME.onnx.json beside it), device (cpu, cuda), threads, speed
    (0.25 to 4), speaker (name or number), noise, noise_w (0 to 2). Stream options: speed, speaker, and voice, a
    speaker's name for a session, where speakers have names."""

    def __init__(self, params: Mapping[str, object]) -> None:
        super().__init__()
        for key in params:
            if key not in _PARAMS:
                raise ValueError(f"{key}: piper has no such parameter; it has {', '.join(_PARAMS)}")
        path, device = params.get("voice", ""), params.get("device", "cpu")
        if device not in ("cpu", "cuda"):
            raise ValueError(f'device: must be "cpu" or "cuda", not {device!r}')
        threads = whole_number("threads", params.get("threads", 1), 1, 256)
        manner = Manner(
            number("speed", params.get("speed", 1.0), 0.25, 4.0),
            None,
            _optional("noise", params.get("noise")),
            _optional("noise_w", params.get("noise_w")),
        )
        if not isinstance(path, str):
            raise ValueError(f"voice: must be a path, not {path!r}")
        self._voice = Voice(path, threads=threads, use_cuda=device == "cuda")
        if "speaker" in params:
            manner = replace(manner, speaker=self._voice.speaker(params["speaker"]))
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


def _optional(key: str, value: object) -> float | None:
    return None if value is None else number(key, value, 0.0, 2.0)
