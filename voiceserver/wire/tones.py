"""The signals of a telephone that need no engine, as mu-law at 8 kHz."""

from __future__ import annotations

import array
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from voiceserver.wire.samples import G711_BYTES_PER_MS, G711_RATE_HZ, MULAW_SILENCE, pcm_to_mulaw

# The busy tone of North America.
BUSY_HZ: Final = (480, 620)
# The special information tone, which begins the announcement that a call failed.
FAILED_HZ: Final = (950, 1400, 1800)
# Of 32768, that is -21 dBFS: easy to hear, and not loud.
_PEAK: Final = 3_000


def tone(frequencies_hz: Sequence[int], ms: int) -> bytes:
    """The sum of sines. It begins at zero, and ends there too if ``ms`` is a whole number of their common period."""
    # One period is computed; the rest are copies.
    period = G711_RATE_HZ // math.gcd(G711_RATE_HZ, *frequencies_hz)
    peak = _PEAK / len(frequencies_hz)
    waves = (
        sum(math.sin(2.0 * math.pi * hz * at / G711_RATE_HZ) for hz in frequencies_hz) for at in range(period)
    )
    samples = array.array("h", (round(peak * wave) for wave in waves))
    if sys.byteorder == "big":
        samples.byteswap()
    count = ms * G711_BYTES_PER_MS
    return (pcm_to_mulaw(samples.tobytes()) * (count // period + 1))[:count]


@functools.cache
def tones() -> Mapping[str, bytes]:
    """``busy``: half a second of busy tone and of silence. ``failed``: three rising notes."""
    busy = tone(BUSY_HZ, 500) + MULAW_SILENCE * (500 * G711_BYTES_PER_MS)
    failed = b"".join(tone((hz,), 200) for hz in FAILED_HZ)
    return {"busy": busy, "failed": failed}
