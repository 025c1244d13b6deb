"""G.711 to PCM16 and back: near the original, and stable from then on."""

from __future__ import annotations

import array
import math
from collections.abc import Callable

import pytest

from voiceserver.wire.samples import alaw_to_pcm, mulaw_to_pcm, pcm_to_alaw, pcm_to_mulaw


@pytest.mark.parametrize(("encode", "decode"), [(pcm_to_mulaw, mulaw_to_pcm), (pcm_to_alaw, alaw_to_pcm)])
def test_g711_is_near_and_stable(encode: Callable[[bytes], bytes], decode: Callable[[bytes], bytes]) -> None:
    samples = array.array("h", (int(16_000 * math.sin(0.345 * at)) for at in range(8_000)))
    coded = encode(samples.tobytes())
    assert len(coded) == len(samples)
    near = array.array("h", decode(coded))
    assert max(abs(a - b) for a, b in zip(near, samples, strict=True)) < 0.02 * 32_768
    assert encode(near.tobytes()) == coded
