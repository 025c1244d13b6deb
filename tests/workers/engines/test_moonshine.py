"""Moonshine: words of people's recordings, partials that the transcript goes on from, nothing made of noise, and its weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("moonshine_cpp", reason="pip install 'voiceserver[moonshine]'")
pytest.importorskip("onnx", reason="pip install 'voiceserver[moonshine]'")

from tests import recordings
from tests.neural_cases import make, moonshine_cache
from voiceserver_workers.engine import Audio, Engine, Item
from voiceserver_workers.engines import moonshine_weights
from voiceserver_workers.engines.moonshine_model import pieces_of, repeats, without_silence
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

RATE_HZ = 16000
CHUNK = RATE_HZ // 10


def moonshine(**params: int | float) -> Engine:
    return make("moonshine", {"cache": moonshine_cache(), **params})


def transcribe(engine: Engine, audio: Audio, *, is_final_only: bool = False) -> list[str]:
    """All that was told of one utterance, the transcript last. Audio comes in chunks of 100 ms."""
    engine.open(1, StreamParams())
    items = [
        Item(1, 1, audio[at : at + CHUNK], is_final_only=is_final_only) for at in range(0, len(audio), CHUNK)
    ]
    told = []
    for item in [*items, Item(1, 1, audio[:0], is_flush=True)]:
        output = engine.step([item])[0]
        told += output.pieces
        while output.more:
            output = engine.step([Item(1, 1, audio[:0], is_continued=True, is_final_only=is_final_only)])[0]
            told += output.pieces
    engine.close(1)
    assert [piece.kind for piece in told[:-1]] == [ResultKind.TEXT] * (len(told) - 1)
    assert told[-1].kind == ResultKind.FINAL
    return [str(piece.payload) for piece in told]


@recordings.spoken_by_people
@pytest.mark.parametrize("name", recordings.names())
def test_people_are_understood_word_by_word(name: str) -> None:
    recording = recordings.recording(name)
    told = transcribe(moonshine(), recording.audio)
    assert recordings.plain(told[-1]) == recording.words
    assert len(told) > 1
    for partial, later in itertools.pairwise(told):
        assert later.startswith(partial)


@recordings.spoken_by_people
def test_people_who_talk_on_and_on_are_understood() -> None:
    parts = [
        recordings.recording(name) for name in ("jfk.flac", "austen-0890.wav", "austen-0930.wav", "jfk.flac")
    ]
    pause = np.zeros(RATE_HZ // 4, np.float32)
    told = transcribe(moonshine(), np.concatenate([part for one in parts for part in (one.audio, pause)]))
    assert recordings.plain(told[-1]) == " ".join(part.words for part in parts)


def test_a_server_under_pressure_gets_the_transcript_only() -> None:
    assert len(transcribe(moonshine(), recordings.goforward().audio, is_final_only=True)) == 1


def test_partials_are_rarer_the_longer_the_utterance_is() -> None:
    from voiceserver_workers.engines.windows import Schedule

    schedule = Schedule(400, 0.1, 1, 1, -55.0)
    assert schedule.interval_samples(0) == RATE_HZ * 400 // 1000
    assert schedule.interval_samples(10 * RATE_HZ) == RATE_HZ * 1400 // 1000


def _hum() -> Audio:
    return (0.2 * np.sin(2 * np.pi * 100 * np.arange(3 * RATE_HZ) / RATE_HZ)).astype(np.float32)


@pytest.mark.parametrize(
    "make_audio",
    [
        lambda: np.zeros(2 * RATE_HZ, np.float32),
        lambda: np.random.default_rng(1).standard_normal(3 * RATE_HZ).astype(np.float32) * 0.05,
        _hum,
        lambda: (np.random.default_rng(2).random(3 * RATE_HZ) < 0.001).astype(np.float32) * 0.5,
    ],
    ids=["silence", "noise", "hum", "clicks"],
)
def test_nothing_is_made_of_what_is_no_speech(make_audio: Callable[[], Audio]) -> None:
    assert transcribe(moonshine(), make_audio()) == [""]


@recordings.spoken_by_people
def test_silence_around_the_speech_and_a_quiet_voice_change_no_word() -> None:
    recording = recordings.recording("austen-0890.wav")
    silence = np.zeros(RATE_HZ, np.float32)
    for audio in (np.concatenate((silence, recording.audio, silence)), recording.audio * np.float32(0.05)):
        assert recordings.plain(transcribe(moonshine(), audio)[-1]) == recording.words


@given(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from([0.0, 0.001, 0.01]))
def test_the_same_speech_is_shown_alike_whatever_silence_or_noise_came_with_it(
    before: int, after: int, noise: float
) -> None:
    line = np.random.default_rng(3).standard_normal(RATE_HZ * 3).astype(np.float32) * np.float32(noise)
    begin, end = RATE_HZ, RATE_HZ * 2
    line[begin:end] += np.sin(np.arange(RATE_HZ) / 3, dtype=np.float32)
    # A soft click while nobody speaks.
    line[begin - 5000] += 0.15
    found = without_silence(line[begin - 3600 - before : end + 3600 + after])
    whole = without_silence(line)
    assert np.array_equal(found, whole)
    # 50 ms are found as soon as a little of them is sound.
    assert RATE_HZ <= len(found) <= RATE_HZ + RATE_HZ * (50 + 60 + 50 + 150) // 1000


def test_what_is_too_short_for_the_model_is_filled_with_silence() -> None:
    assert len(without_silence(np.ones(10, np.float32))) == RATE_HZ // 10


@given(st.lists(st.integers(0, 3), max_size=30))
def test_a_loop_is_the_same_four_tokens_three_times(tokens: list[int]) -> None:
    assert repeats(tokens) == (len(tokens) >= 12 and tokens[-12:] == tokens[-4:] * 3)


@given(st.lists(st.binary(max_size=300)))
def test_pieces_of_the_vocabulary_are_read_by_their_length(pieces: list[bytes]) -> None:
    def length(count: int) -> bytes:
        return bytes([count]) if count < 128 else bytes([128 + count % 128, count // 128])

    assert list(pieces_of(b"".join(length(len(piece)) + piece for piece in pieces))) == pieces


class TestWeights:
    """The converted files: made once, checked each time, made anew where they are not whole."""

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The folders that were made, with two small files in place of the weights."""
        folders: list[Path] = []

        def make_small(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for name in moonshine_weights.MODELS:
                (folder / f"{name}.onnx").write_bytes(name.encode())
            (folder / moonshine_weights.MANIFEST).write_text(moonshine_weights.sums_of(folder))
            folders.append(folder)

        monkeypatch.setattr(moonshine_weights, "_make_in_process", make_small)
        return folders

    def test_they_are_made_once(self, tmp_path: Path, made: list[Path]) -> None:
        assert moonshine_weights.prepared(tmp_path) == moonshine_weights.prepared(tmp_path)
        assert len(made) == 1

    @pytest.mark.parametrize("harm", ["changed", "missing", "no manifest", "half a manifest"])
    def test_files_that_are_not_whole_are_made_anew(
        self, tmp_path: Path, made: list[Path], harm: str
    ) -> None:
        folder = moonshine_weights.prepared(tmp_path)
        manifest = folder / moonshine_weights.MANIFEST
        match harm:
            case "changed":
                (folder / "decoder.onnx").write_bytes(b"decodes")
            case "missing":
                (folder / "encoder.onnx").unlink()
            case "no manifest":
                manifest.unlink()
            case _:
                manifest.write_text(manifest.read_text()[:20])
        moonshine_weights.prepared(tmp_path)
        assert len(made) == 2
        assert moonshine_weights.is_whole(folder)

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path: Path, made: list[Path]) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"model: .*cannot be written .*set cache"):
            moonshine_weights.prepared(tmp_path / "file")

    def test_another_version_of_the_wheel_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in moonshine_weights.SOURCES:
            (tmp_path / name).write_bytes(b"other weights")
        monkeypatch.setattr(moonshine_weights, "source_folder", lambda: tmp_path)
        with pytest.raises(ValueError, match=r"model: encoder_model.ort .* is not that of version 0\.1\.4"):
            moonshine_weights.make(tmp_path / "out")

    def test_a_missing_wheel_is_named_with_the_command_that_helps(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(moonshine_weights, "PACKAGE", "no_such_package")
        with pytest.raises(
            ValueError, match=r"model: .*not installed \(pip install 'voiceserver\[moonshine\]'\)"
        ):
            moonshine_weights.source_folder()

    def test_a_failed_conversion_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(moonshine_weights.sys, "executable", "/bin/false")
        with pytest.raises(ValueError, match=r"model: .* could not be converted"):
            moonshine_weights.prepared(tmp_path / "cache")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["moonshine-base-en-int8-1.lock"]
