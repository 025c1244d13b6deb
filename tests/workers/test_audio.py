"""Audio at the borders of a worker: exact where it can be, and no trace of how it was cut up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_workers.audio import (
    Audio,
    Resampler,
    float_to_pcm16,
    pcm16_to_float,
)

RATES = [
    (8000, 16000),
    (48000, 16000),
    (44100, 16000),
    (24000, 16000),
    (22050, 16000),
    (22050, 8000),
    (22050, 24000),
]


def tone(hz: float, rate_hz: int, seconds: float = 1.0) -> Audio:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def loudness(audio: Audio) -> float:
    return float(np.sqrt(np.mean(audio[len(audio) // 4 : -len(audio) // 4] ** 2)))


@given(st.lists(st.integers(-32768, 32767), max_size=50))
def test_pcm16_survives_the_round_trip(samples: list[int]) -> None:
    pcm = np.array(samples, "<i2").tobytes()
    assert float_to_pcm16(pcm16_to_float(pcm)) == pcm


def test_floats_are_between_minus_one_and_one() -> None:
    audio = pcm16_to_float(np.array([-32768, 0, 32767], "<i2").tobytes())
    assert audio.dtype == np.float32
    assert audio.tolist() == [-1.0, 0.0, 32767 / 32768]


def test_too_loud_is_clipped_and_never_wraps() -> None:
    pcm = float_to_pcm16(np.array([1.0, 7.0, -1.0, -7.0], np.float32))
    assert np.frombuffer(pcm, "<i2").tolist() == [32767, 32767, -32768, -32768]


def test_half_a_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="multiple"):
        pcm16_to_float(b"\0\0\0")


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_how_audio_is_cut_up_makes_no_difference(from_hz: int, to_hz: int) -> None:
    audio = tone(440, from_hz)
    whole = Resampler(from_hz, to_hz)
    at_once = np.concatenate((whole.process(audio), whole.flush()))
    cut = Resampler(from_hz, to_hz)
    chunk = from_hz // 50
    parts = [cut.process(audio[start : start + chunk]) for start in range(0, len(audio), chunk)]
    np.testing.assert_allclose(np.concatenate((*parts, cut.flush())), at_once, atol=1e-6)


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_a_second_stays_a_second_and_a_tone_its_loudness(from_hz: int, to_hz: int) -> None:
    resampler = Resampler(from_hz, to_hz)
    audio = np.concatenate((resampler.process(tone(440, from_hz)), resampler.flush()))
    assert abs(len(audio) - to_hz) <= 2
    assert loudness(audio) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(48000, 16000), (24000, 16000), (22050, 8000)])
def test_what_lies_above_the_new_band_is_not_folded_into_it(from_hz: int, to_hz: int) -> None:
    resampler = Resampler(from_hz, to_hz)
    audio = np.concatenate((resampler.process(tone(to_hz * 0.62, from_hz)), resampler.flush()))
    assert loudness(audio) < 0.001


def test_equal_rates_pass_untouched() -> None:
    resampler = Resampler(16000, 16000)
    audio = tone(440, 16000)
    assert resampler.process(audio) is audio
    assert len(resampler.flush()) == 0
    resampler.reset()


@pytest.mark.parametrize("forget", ["flush", "reset"])
def test_after_flush_or_reset_it_starts_afresh(forget: str) -> None:
    used, fresh = Resampler(48000, 16000), Resampler(48000, 16000)
    used.process(tone(3000, 48000))
    getattr(used, forget)()
    np.testing.assert_array_equal(used.process(tone(440, 48000)), fresh.process(tone(440, 48000)))
    np.testing.assert_array_equal(used.flush(), fresh.flush())
