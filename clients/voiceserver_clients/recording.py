"""Recordings as the wire wants them: any file that soundfile reads, in PCM16 mono at the session's rate."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

from voiceserver.installation import missing, missing_message

BYTES_PER_SAMPLE = 2
FULL_SCALE = 32_767


class BadRecording(Exception):
    """A file that cannot be spoken. The message names it and says why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """name of the file; pcm: PCM16 little-endian mono at ``rate_hz``; origin: what the file itself was."""

    name: str
    pcm: bytes
    rate_hz: int
    origin: str = ""

    @property
    def duration_ms(self) -> float:
        return len(self.pcm) / BYTES_PER_SAMPLE * 1000 / self.rate_hz


def read_recording(path: Path, rate_hz: int) -> Recording:
    """Decode, mix to mono, resample. Raises BadRecording."""
    lacking = missing(("numpy", "soundfile", "soxr"))
    if lacking:
        raise BadRecording(missing_message("sound files need", lacking, ("clients",)))
    import numpy as np
    import soundfile
    import soxr

    if path.is_dir():
        raise BadRecording(f"{path}: is a directory, not a sound file")
    if not path.is_file():
        raise BadRecording(f"{path}: no such file")
    try:
        samples, file_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise BadRecording(f"{path}: not a sound file that can be read ({error})") from error
    if not len(samples):
        raise BadRecording(f"{path}: holds no audio")
    mono = samples.mean(axis=1)
    if file_rate_hz != rate_hz:
        mono = soxr.resample(mono, file_rate_hz, rate_hz)
    pcm = (np.clip(mono, -1.0, 1.0) * FULL_SCALE).astype("<i2").tobytes()
    channels = samples.shape[1]
    shape = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    return Recording(path.name, pcm, rate_hz, f"{file_rate_hz / 1000:g} kHz {shape}")


def write_wav(path: Path, pcm: bytes, rate_hz: int) -> None:
    """PCM16 mono. Raises OSError."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(BYTES_PER_SAMPLE)
        file.setframerate(rate_hz)
        file.writeframes(pcm)
