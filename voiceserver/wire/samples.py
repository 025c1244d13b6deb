"""Sample formats of the wires, to and from PCM16 little-endian mono.

========  =============================================
mu-law    G.711, the telephones of America and Japan
A-law     G.711, those of the rest of the world
float32   little-endian, -1..1
uint8     128 is silence
========  =============================================

There is no numpy in the server's process: each function is a few calls of C for a whole message.
"""

from __future__ import annotations

import array
import struct
import sys
import warnings
from typing import Final

with warnings.catch_warnings():
    # The standard library's copy says on import that 3.13 drops it; audioop-lts takes its place there.
    warnings.simplefilter("ignore", DeprecationWarning)
    import audioop

G711_RATE_HZ: Final = 8_000
G711_BYTES_PER_MS: Final = 8
MULAW_SILENCE: Final = b"\xff"

# Added to a number, it leaves that number in units of 2**-15 in the low bits of the double: a conversion without a branch.
_FIXED: Final = 1.5 * 2.0**37
_LOW_HALF: Final = 0 if sys.byteorder == "little" else 1


def mulaw_to_pcm(mulaw: bytes) -> bytes:  # hot
    return audioop.ulaw2lin(mulaw, 2)


def pcm_to_mulaw(pcm: bytes) -> bytes:  # hot
    """``pcm``: whole samples."""
    return audioop.lin2ulaw(pcm, 2)


def alaw_to_pcm(alaw: bytes) -> bytes:  # hot
    return audioop.alaw2lin(alaw, 2)


def pcm_to_alaw(pcm: bytes) -> bytes:  # hot
    """``pcm``: whole samples."""
    return audioop.lin2alaw(pcm, 2)


def float32_to_pcm(data: bytes) -> bytes:  # hot
    """Samples beyond -1..1 are clipped, and what is not finite is silent. 0.06 us a sample: 0.1 % of a core for a caller."""
    numbers = struct.unpack(f"<{len(data) >> 2}f", data)
    doubles = struct.pack(f"={len(numbers)}d", *[number + _FIXED for number in numbers])
    # 32 bits hold -65536..65536, and audioop saturates what is made larger.
    fixed = array.array("i", doubles)[_LOW_HALF::2]
    return _little_endian(audioop.lin2lin(audioop.mul(fixed, 4, 65536.0), 4, 2))


def uint8_to_pcm(data: bytes) -> bytes:
    return _little_endian(audioop.lin2lin(audioop.bias(data, 1, -128), 1, 2))


def _little_endian(pcm: bytes) -> bytes:
    return pcm if sys.byteorder == "little" else audioop.byteswap(pcm, 2)
