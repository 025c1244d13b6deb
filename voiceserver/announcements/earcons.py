"""What is said aloud to callers that asked for ``audible_busy``: lines spoken once at the start, and a tone where there is none.

Rule: never a stage's work while the server is busy.
"""

from __future__ import annotations

import functools
import math
from array import array
from typing import TYPE_CHECKING, Final

from voiceserver.announcements.spoken_lines import SpokenLines
from voiceserver.wire.request import line_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from voiceserver.events.events import BusyCue
    from voiceserver.pool import Pool

TONE_HZ: Final = 440.0
TONE_MS: Final = 250
TONE_AMPLITUDE: Final = 6_000
_RAMP_MS: Final = 10


class Earcons:
    """``lines``: by cue, and ``waiting_N`` for place N; rate_hz: of the lines, the server's own output rate."""

    def __init__(self, lines: Mapping[str, str], rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._lines = SpokenLines(lines, rate_hz, bytes)

    @property
    def made(self) -> Mapping[str, bytes]:
        return self._lines.made

    def want(self, language: str) -> None:
        """A caller has this language, BCP 47."""
        self._lines.want(language)

    def make(self, pool: Pool | None) -> None:
        """Have the lines spoken. May be called again for what is missing."""
        self._lines.make(pool)

    def audio_of(self, cue: BusyCue, rate_hz: int, language: str = "") -> bytes:
        """PCM16 little-endian mono at ``rate_hz``."""
        spoken = line_of(self.made, cue.cue, cue.position, language)
        return spoken if spoken and rate_hz == self._rate_hz else tone(rate_hz)


@functools.lru_cache(maxsize=8)
def tone(rate_hz: int) -> bytes:
    """A short beep without clicks."""
    samples, ramp = rate_hz * TONE_MS // 1000, rate_hz * _RAMP_MS // 1000
    pcm = array("h")
    for at in range(samples):
        loud = TONE_AMPLITUDE * min(at / ramp, (samples - at) / ramp, 1.0)
        pcm.append(int(loud * math.sin(2 * math.pi * TONE_HZ * at / rate_hz)))
    return pcm.tobytes()
