"""Recordings as the wire wants them: any file that soundfile reads, in PCM16 mono at the session's rate."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from voiceserver.installation import missing, missing_message

BYTES_PER_SAMPLE = 2
FULL_SCALE = 32_767
_HEAD_BYTES = 65_536  # in which the chunk of samples has to begin
_MOST = 0xFFFFFFFF


class BadRecording(Exception):
    """A file that cannot be spoken. The message names it and says why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """name of the file; pcm: PCM16 little-endian mono at ``rate_hz``; origin: what the file itself was; warning: what was wrong
    with it, in one line that names it ("": nothing)."""

    name: str
    pcm: bytes
    rate_hz: int
    origin: str = ""
    warning: str = ""

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
        samples, file_rate_hz = soundfile.read(_mended(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, OSError) as error:
        raise BadRecording(f"{path}: not a sound file that can be read ({error})") from error
    if not len(samples):
        raise BadRecording(f"{path}: holds no audio")
    no_numbers = int(np.count_nonzero(~np.isfinite(samples)))
    if no_numbers:
        samples = np.where(np.isfinite(samples), samples, 0.0)
    mono = samples.mean(axis=1)
    if file_rate_hz != rate_hz:
        mono = soxr.resample(mono, file_rate_hz, rate_hz)
    pcm = (np.clip(mono, -1.0, 1.0) * FULL_SCALE).astype("<i2").tobytes()
    channels = samples.shape[1]
    shape = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    warning = (
        f"{path}: {no_numbers} of {samples.size} samples are no numbers; they are silence here"
        if no_numbers
        else ""
    )
    return Recording(path.name, pcm, rate_hz, f"{file_rate_hz / 1000:g} kHz {shape}", warning)


def _mended(path: Path) -> Path | BytesIO:
    """A WAV file whose sizes are 0 or wrong, as a recorder leaves them that is killed or cannot go back: the same with the sizes
    that it has. Any other file as it is. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return path
        size = path.stat().st_size
        at = 12
        while at + 8 <= len(head):
            name, length = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
            if name == b"data":
                break
            at += 8 + length + (length & 1)
        else:
            return path
        rest = size - at - 8
        if 0 < length <= rest or rest <= 0:
            return path
        file.seek(0)
        data = bytearray(file.read())
    data[4:8] = min(size - 8, _MOST).to_bytes(4, "little")
    data[at + 4 : at + 8] = min(rest, _MOST).to_bytes(4, "little")
    return BytesIO(bytes(data))


def write_wav(path: Path, pcm: bytes, rate_hz: int) -> None:
    """PCM16 mono. Raises OSError."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(BYTES_PER_SAMPLE)
        file.setframerate(rate_hz)
        file.writeframes(pcm)
