"""Audio as it crosses the borders of a worker: PCM16 bytes on the ring, float32 in the engines, any rate on either side.

Everything here runs in a worker; the event loop touches no samples.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import soxr

Audio = npt.NDArray[np.float32]

_FULL_SCALE: Final = 32768.0
_NOTHING: Final[Audio] = np.empty(0, np.float32)


def pcm16_to_float(payload: bytes | bytearray | memoryview) -> Audio:
    """PCM16 little-endian mono -> float32 (n,) in [-1, 1). ValueError if the length is odd."""
    return np.frombuffer(payload, "<i2").astype(np.float32) * np.float32(1 / _FULL_SCALE)


def float_to_pcm16(audio: Audio) -> bytes:
    """Float32 (n,) -> PCM16 little-endian. What is louder than full scale is clipped, never wrapped."""
    scaled = np.rint(audio * np.float32(_FULL_SCALE))
    pcm: bytes = np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
    return pcm


def wav_of(audio: Audio, rate_hz: int) -> bytes:
    """A WAV of float32 (n,): 16 bits, mono."""
    pcm = float_to_pcm16(audio)
    numbers = ((16, 4), (1, 2), (1, 2), (rate_hz, 4), (2 * rate_hz, 4), (2, 2), (16, 2))
    head = b"".join(value.to_bytes(size, "little") for value, size in numbers)
    whole = b"WAVEfmt " + head + b"data" + len(pcm).to_bytes(4, "little") + pcm
    return b"RIFF" + len(whole).to_bytes(4, "little") + whole


class Resampler:
    """One stream's way from one rate to another; chunk boundaries leave no trace in the sound.

    Equal rates pass through untouched. By default a rising rate takes soxr's QQ (cubic, a quarter
    millisecond of delay at 8 kHz) and a falling one LQ (20 ms at 48 to 16 kHz): QQ does not filter, so it would
    fold what lies above the new band, a fricative or a fan, into the voice.
    """

    __slots__ = ("_stream",)

    def __init__(self, from_hz: int, to_hz: int, quality: str | None = None) -> None:
        self._stream = None
        if from_hz != to_hz:
            quality = quality or ("QQ" if from_hz < to_hz else "LQ")
            self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality=quality)

    def process(self, audio: Audio) -> Audio:
        """What can be told so far, given ``audio`` (n,); it may be shorter or longer by the filter's delay."""
        if self._stream is None:
            return audio
        resampled: Audio = self._stream.resample_chunk(audio)
        return resampled

    def flush(self) -> Audio:
        """The rest, held back by the filter. The stream starts afresh after it."""
        if self._stream is None:
            return _NOTHING
        rest: Audio = self._stream.resample_chunk(_NOTHING, last=True)
        self._stream.clear()
        return rest

    def reset(self) -> None:
        """Forget what the filter holds."""
        if self._stream is not None:
            self._stream.clear()
