"""The three audio formats of the Realtime wire, to and from PCM16. Rule: the formats differ in rate only between PCM and G.711.

========== =========== ============ ========
format     GA          beta         rate
========== =========== ============ ========
PCM16      audio/pcm   pcm16        24000 Hz
mu-law     audio/pcmu  g711_ulaw     8000 Hz
A-law      audio/pcma  g711_alaw     8000 Hz
========== =========== ============ ========
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from voiceserver.errors import ProtocolError
from voiceserver.wire.decoding import decode_base64
from voiceserver.wire.samples import G711_RATE_HZ, alaw_to_pcm, mulaw_to_pcm, pcm_to_alaw, pcm_to_mulaw

PCM_RATE_HZ: Final = 24_000
# The service counts audio as one token a 100 ms in, one a 50 ms out; so do the usage figures here.
INPUT_TOKEN_MS: Final = 100.0
OUTPUT_TOKEN_MS: Final = 50.0
MAX_AUDIO_BYTES: Final = 15 * 1024 * 1024  # of one append, after base64


class AudioFormat(Enum):
    """The value is the GA name."""

    PCM = "audio/pcm"
    ULAW = "audio/pcmu"
    ALAW = "audio/pcma"

    @property
    def rate_hz(self) -> int:
        return PCM_RATE_HZ if self is AudioFormat.PCM else G711_RATE_HZ

    @property
    def beta_name(self) -> str:
        return _BETA_NAMES[self]

    def describe(self) -> dict[str, object]:
        """The GA object of this format."""
        if self is AudioFormat.PCM:
            return {"type": self.value, "rate": PCM_RATE_HZ}
        return {"type": self.value}

    def to_pcm(self, data: bytes) -> bytes:
        """PCM16 little-endian of ``data``; PCM must be whole samples already."""
        if self is AudioFormat.PCM:
            return data
        return mulaw_to_pcm(data) if self is AudioFormat.ULAW else alaw_to_pcm(data)

    def from_pcm(self, pcm: bytes) -> bytes:
        """``pcm`` (PCM16 little-endian, whole samples) in this format."""
        if self is AudioFormat.PCM:
            return pcm
        return pcm_to_mulaw(pcm) if self is AudioFormat.ULAW else pcm_to_alaw(pcm)


_BETA_NAMES: Final = {
    AudioFormat.PCM: "pcm16",
    AudioFormat.ULAW: "g711_ulaw",
    AudioFormat.ALAW: "g711_alaw",
}

FORMATS_BY_NAME: Final = {name: kind for kind in AudioFormat for name in (kind.value, _BETA_NAMES[kind])}


def decode_audio(audio: str, param: str) -> bytes:  # hot
    """The bytes that ``audio`` is in base64. Raises ProtocolError naming ``param``."""
    try:
        data = decode_base64(audio)
    except ValueError:
        text = f"Invalid '{param}': expected base64-encoded audio bytes."
        raise ProtocolError("invalid_value", text, param=param) from None
    if len(data) > MAX_AUDIO_BYTES:
        text = f"Invalid '{param}': at most {MAX_AUDIO_BYTES} bytes of audio, but got {len(data)}."
        raise ProtocolError("string_above_max_length", text, param=param)
    return data
