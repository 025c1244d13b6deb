"""What an endpoint says that it spoke, and what it did: bytes in any cut, audio out."""

from __future__ import annotations

import base64
import itertools
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_workers.audio import float_to_pcm16, wav_of
from voiceserver_workers.engine import Audio
from voiceserver_workers.engines.speech_body import BodyError, SpokenBody

RATE_HZ = 24_000
TONE: Audio = (0.5 * np.sin(np.arange(4_800) * 0.05)).astype(np.float32)
PCM = float_to_pcm16(TONE)


def played(body: bytes, content_type: str, *cuts: int, pcm_hz: int = RATE_HZ) -> Audio:
    spoken = SpokenBody(content_type, RATE_HZ, pcm_hz)
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    parts = [spoken.feed(body[start:end]) for start, end in itertools.pairwise(edges)]
    return np.concatenate([*parts, spoken.finish()])


def wav(
    samples: bytes, *, tag: int = 1, bits: int = 16, channels: int = 1, rate_hz: int = RATE_HZ, size: int = -1
) -> bytes:
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * block, block, bits)
    size = len(samples) if size < 0 else size
    return (
        b"RIFF\xff\xff\xff\xffWAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", size)
        + samples
    )


def events(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    told = [{"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()} for piece in pieces]
    return "".join(f"data: {json.dumps(one)}\n\n" for one in [*told, {"type": "speech.audio.done"}]).encode()


@given(
    st.lists(st.integers(0, 1 << 16), max_size=6), st.sampled_from(["pcm", "wav", "events", "wav in events"])
)
def test_any_cut_gives_the_same_samples(cuts: list[int], form: str) -> None:
    body, kind = {
        "pcm": (PCM, "audio/pcm"),
        "wav": (wav(PCM), "audio/wav"),
        "events": (events(PCM, 999), "text/event-stream; charset=utf-8"),
        "wav in events": (events(wav(PCM), 999), "text/event-stream"),
    }[form]
    np.testing.assert_allclose(played(body, kind, *cuts), TONE, atol=1e-4)


@pytest.mark.parametrize(
    ("body", "kind", "seconds"),
    [
        (PCM, "", 0.2),
        (PCM, "application/octet-stream", 0.2),
        (PCM, "audio/L16;rate=48000", 0.1),
        (PCM, "audio/pcm; rate=16000; channels=1", 0.3),
        # A header is believed, and what the content type says beside it is not.
        (wav(PCM, rate_hz=16_000), "audio/pcm;rate=48000", 0.3),
        (wav(PCM, rate_hz=48_000), "application/octet-stream", 0.1),
        (wav_of(TONE, 12_000), "audio/wav", 0.4),
        (wav(PCM, channels=2), "audio/wav", 0.1),
        (wav(PCM, size=0xFFFFFFFF), "audio/wav", 0.2),
        (wav(PCM, size=0), "audio/wav", 0.2),
        # What is behind the samples is no sound.
        (wav(PCM + b"LIST\x04\0\0\0abcd", size=len(PCM)), "audio/wav", 0.2),
        (wav(TONE.tobytes(), tag=3, bits=32), "audio/wav", 0.2),
        (wav(bytes(4_800), bits=8), "audio/wav", 0.2),
    ],
)
def test_the_rate_is_that_of_the_bytes(body: bytes, kind: str, seconds: float) -> None:
    audio = played(body, kind, 7, 50, 1001)
    assert len(audio) / RATE_HZ == pytest.approx(seconds, abs=0.002)
    assert np.abs(audio).max() <= 1.01


def test_pcm_of_another_rate_is_resampled() -> None:
    audio = played(PCM, "audio/pcm", pcm_hz=8_000)
    assert len(audio) == pytest.approx(3 * len(TONE), abs=50)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("body", "kind", "what"),
    [
        (b"ID3\x04" + bytes(100), "audio/pcm", "MP3"),
        (b"OggS" + bytes(100), "", "Ogg"),
        (b"fLaC" + bytes(100), "audio/wav", "FLAC"),
        (b"\xff\xfb" + bytes(100), "audio/mpeg", "MP3"),
        (b'{"error": "no such voice"}', "application/json", "JSON"),
        (b"<html>" + bytes(100), "text/html; charset=utf-8", "a page"),
        (b"RIFF\0\0\0\0AVI fmt " + bytes(100), "audio/wav", "no WAV"),
        (wav(PCM, tag=0x55), "audio/wav", "format 85"),
        (wav(PCM, channels=0), "audio/wav", "cannot be played"),
        (wav(PCM, rate_hz=0), "audio/wav", "a rate that no speech has"),
        (b"RIFF\0\0\0\0WAVEdata\x04\0\0\0abcd" + bytes(100), "audio/wav", "broken header"),
        (b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\x7f" + bytes(70_000), "audio/wav", "without an end"),
        (b"RIFF\0\0\0", "audio/wav", "within the header"),
        (b"data: {torn\n\n", "text/event-stream", "cannot be read"),
        (
            b'data: {"type": "error", "error": {"message": "secret"}}\n\n',
            "text/event-stream",
            "failed in its answer",
        ),
    ],
)
def test_what_is_no_speech_is_refused_by_name(body: bytes, kind: str, what: str) -> None:
    with pytest.raises(BodyError, match=what) as caught:
        played(body, kind, 3, 20)
    assert "secret" not in str(caught.value)


def test_a_rate_that_no_speech_has_is_refused() -> None:
    for rate in ("4000", "1000000", "fast", "-24000", "²"):
        with pytest.raises(BodyError, match="a rate that no speech has"):
            SpokenBody(f'audio/pcm; rate="{rate}"', RATE_HZ, RATE_HZ)


@given(
    st.binary(max_size=300), st.sampled_from(["", "audio/wav", "text/event-stream", "audio/pcm;rate=44100"])
)
def test_garbage_is_audio_or_an_error(body: bytes, kind: str) -> None:
    try:
        audio = played(b"RIFF" + body if len(body) % 2 else body, kind, 5, 40)
    except BodyError:
        return
    assert audio.dtype == np.float32
