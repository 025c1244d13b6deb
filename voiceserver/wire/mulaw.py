"""G.711 mu-law at 8 kHz, the audio of telephones, and the sounds that need no engine."""

from __future__ import annotations

import array
import functools
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Final

with warnings.catch_warnings():
    # The standard library's copy says on import that 3.13 drops it; audioop-lts takes its place there.
    warnings.simplefilter("ignore", DeprecationWarning)
    import audioop

RATE_HZ: Final = 8_000
BYTES_PER_MS: Final = 8
SILENCE: Final = b"\xff"
BUSY_HZ: Final = (480, 620)  # the busy tone of North America
FAILED_HZ: Final = (950, 1400, 1800)  # the three notes of a call that came to nothing
_PEAK: Final = 3_000  # of 32768, -21 dBFS: clear, and no shock in the ear


def to_pcm(mulaw: bytes) -> bytes:  # hot
    """PCM16 little-endian."""
    return audioop.ulaw2lin(mulaw, 2)


def from_pcm(pcm: bytes) -> bytes:  # hot
    """``pcm``: PCM16 little-endian, whole samples."""
    return audioop.lin2ulaw(pcm, 2)


def tone(frequencies_hz: Sequence[int], ms: int) -> bytes:
    """The sum of sines. It begins at zero, and ends there too if ``ms`` is a whole number of their common period."""
    period = RATE_HZ // math.gcd(RATE_HZ, *frequencies_hz)  # samples; one is computed, the rest are copies
    peak = _PEAK / len(frequencies_hz)
    waves = (
        sum(math.sin(2.0 * math.pi * hz * at / RATE_HZ) for hz in frequencies_hz) for at in range(period)
    )
    samples = array.array("h", (round(peak * wave) for wave in waves))
    if sys.byteorder == "big":
        samples.byteswap()
    count = ms * BYTES_PER_MS
    return (from_pcm(samples.tobytes()) * (count // period + 1))[:count]


@functools.cache
def tones() -> Mapping[str, bytes]:
    """What can be said without any engine: ``busy`` is one second of busy tone, ``failed`` three rising notes."""
    busy = tone(BUSY_HZ, 500) + SILENCE * (500 * BYTES_PER_MS)
    failed = b"".join(tone((hz,), 200) for hz in FAILED_HZ)
    return {"busy": busy, "failed": failed}
