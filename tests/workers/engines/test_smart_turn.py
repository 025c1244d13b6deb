"""The end-of-turn stage: when it asks, what it shows the model, and that the features are those of the model's makers."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import recordings
from tests.model_builders import build_piper_voice
from tests.neural_cases import make, model, speech_and_pauses
from voiceserver_workers.engine import Audio, Item, Output
from voiceserver_workers.engines.smart_turn import PRE_SPEECH_MS, SmartTurn
from voiceserver_workers.engines.smart_turn_model import TurnModel, log_mel, model_path
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, pack_turn, unpack_speech, unpack_turn

RATE_HZ = 16000
NOTHING: Audio = np.empty(0, np.float32)
SILENCE: Audio = np.zeros(RATE_HZ, np.float32)


class Ear:
    """The turn model, remembering what it was shown."""

    def __init__(self, inner: TurnModel, answers: Iterable[float] = ()) -> None:
        self.inner = inner
        self.shown: list[Audio] = []
        self.answers = iter(answers)

    def probability(self, audio: Audio) -> float:
        self.shown.append(audio)
        return next(self.answers, self.inner.probability(audio))


def turn_engine(**params: Any) -> tuple[SmartTurn, Ear]:
    engine = make("smart_turn", {"model": model("turn.onnx"), **params})
    assert isinstance(engine, SmartTurn)
    ear = Ear(engine._model)
    engine._model = ear  # type: ignore[assignment]
    return engine, ear


def hear(engine: SmartTurn, stream: int, audio: Audio, chunk: int = 320) -> list[tuple[str, Any]]:
    """Everything told about ``audio``: ("TURN", (speech_end, at, probability)) and ("SPEECH", end of its windows)."""
    engine.open(stream, StreamParams())
    told: list[tuple[str, Any]] = []
    for start in range(0, len(audio), chunk):
        part = audio[start : start + chunk]
        end_ms = (start + len(part)) * 1000 / RATE_HZ
        output = engine.step([Item(stream, 0, part, None, end_ms)])[0]
        told += story(output)
        while output.more:
            output = engine.step([Item(stream, 0, NOTHING, None, end_ms, is_continued=True)])[0]
            told += story(output)
    return told


def story(output: Output) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = []
    for kind, payload in output.pieces:
        assert isinstance(payload, bytes)
        if kind == ResultKind.TURN:
            told.append(("TURN", unpack_turn(payload)))
        else:
            start_ms, window_ms, probabilities = unpack_speech(payload)
            told.append(("SPEECH", start_ms + window_ms * len(probabilities)))
    return told


def turns(told: Sequence[tuple[str, Any]]) -> list[tuple[float, float, float]]:
    return [value for kind, value in told if kind == "TURN"]


def test_a_turn_crosses_the_ring_whole() -> None:
    assert unpack_turn(pack_turn(1234.5, 1440.0, 0.25)) == (1234.5, 1440.0, 0.25)


@pytest.mark.parametrize("chunk", [320, 16000])
def test_each_pause_is_judged_once_and_before_any_window_after_it(chunk: int) -> None:
    engine, _ = turn_engine()
    told = hear(engine, 1, speech_and_pauses(), chunk)
    found = turns(told)
    # The last pause is longer than a second, and judged once all the same.
    assert len(found) >= 2
    for speech_end_ms, at_ms, _ in found:
        assert 200 <= at_ms - speech_end_ms < 232
    for before, (kind, value) in itertools.pairwise(told):
        if kind == "TURN":
            assert before == ("SPEECH", value[1])


def test_how_audio_was_cut_up_changes_nothing() -> None:
    engine, _ = turn_engine()
    audio = speech_and_pauses()
    small, large = turns(hear(engine, 1, audio, 320)), turns(hear(engine, 2, audio, 16000))
    assert [(end, at) for end, at, _ in small] == [(end, at) for end, at, _ in large]
    assert [p for *_, p in small] == pytest.approx([p for *_, p in large], abs=1e-6)


def test_silence_is_never_asked_about() -> None:
    engine, ear = turn_engine()
    assert turns(hear(engine, 1, np.concatenate([SILENCE] * 5))) == []
    assert ear.shown == []


def test_a_longer_pause_can_be_asked_for() -> None:
    engine, _ = turn_engine(pause_ms=400)
    for speech_end_ms, at_ms, _ in turns(hear(engine, 1, speech_and_pauses())):
        assert 400 <= at_ms - speech_end_ms < 432


def test_the_model_is_shown_the_turn_from_before_its_first_word_to_the_pause() -> None:
    engine, ear = turn_engine()
    audio = np.concatenate((SILENCE, speech_and_pauses()))
    told = hear(engine, 1, audio)
    speech_end_ms, at_ms, probability = turns(told)[0]
    shown = ear.shown[0]
    end = round(at_ms * RATE_HZ / 1000)
    np.testing.assert_allclose(shown, audio[end - len(shown) : end], atol=1 / 32768)
    assert len(shown) * 1000 / RATE_HZ > speech_end_ms - 1500 - PRE_SPEECH_MS
    assert len(shown) < end
    assert probability == pytest.approx(ear.inner.probability(shown), abs=1e-6)


def test_after_a_turn_that_sounded_complete_the_next_one_starts_anew() -> None:
    engine, ear = turn_engine()
    once = np.concatenate((speech_and_pauses()[8000:40000], SILENCE, SILENCE))
    ear.answers = iter([0.9] * 9)
    hear(engine, 1, np.concatenate((SILENCE, once, once)))
    assert len(ear.shown[-1]) <= len(ear.shown[0]) + RATE_HZ // 10
    engine, ear = turn_engine()
    ear.answers = iter([0.1] * 9)
    hear(engine, 1, np.concatenate((SILENCE, once, once)))
    assert len(ear.shown[-1]) > len(ear.shown[0]) + RATE_HZ


def test_a_step_asks_the_model_once_and_who_waits_longest_is_next() -> None:
    engine, ear = turn_engine()
    audio = speech_and_pauses()
    streams = list(range(1, 5))
    for stream in streams:
        engine.open(stream, StreamParams())
    served: list[int] = []
    for start in range(0, len(audio), 320):
        part = audio[start : start + 320]
        end_ms = (start + len(part)) * 1000 / RATE_HZ
        waiting = dict.fromkeys(streams, False)
        while waiting:
            asked = len(ear.shown)
            items = [
                Item(stream, 0, NOTHING if is_continued else part, None, end_ms, is_continued=is_continued)
                for stream, is_continued in waiting.items()
            ]
            outputs = dict(zip(waiting, engine.step(items), strict=True))
            assert len(ear.shown) - asked <= 1
            served += [stream for stream, output in outputs.items() if turns(story(output))]
            waiting = {stream: True for stream, output in outputs.items() if output.more}
    assert served[:4] == streams
    assert len(served) % 4 == 0


def test_an_idle_caller_costs_half_a_second_of_memory_and_a_talker_eight() -> None:
    engine, _ = turn_engine()
    hear(engine, 1, np.concatenate([SILENCE] * 20))
    assert len(engine._streams[1].heard) <= 2 * (RATE_HZ * 0.6)
    speech = recordings.goforward().audio[8000:36000]
    hear(engine, 2, np.concatenate([speech] * 12))
    assert len(engine._streams[2].heard) <= 2 * (RATE_HZ * 8.1)


@recordings.spoken_by_people
def test_features_have_the_shape_of_whisper_and_silence_comes_first() -> None:
    speech = recordings.goforward().audio
    features = log_mel(speech)
    assert features.shape == (80, 800)
    assert features.dtype == np.float32
    frames = len(speech) // 160
    # Silence is the floor: two units (eighty decibels by four) under the loudest.
    np.testing.assert_allclose(features[:, : 800 - frames - 3], features.min(), atol=0.15)
    assert features.max() - features.min() == pytest.approx(2.0, abs=1e-3)
    long = np.concatenate([speech] * 5)
    np.testing.assert_array_equal(log_mel(long), log_mel(long[-8 * RATE_HZ :]))


@pytest.mark.parametrize(("hz", "mel"), [(200, 3.0), (800, 12.0), (2000, 15 + np.log(2) / np.log(6.4) * 27)])
def test_a_tone_is_loudest_in_its_mel(hz: float, mel: float) -> None:
    tone = np.sin(2 * np.pi * hz * np.arange(8 * RATE_HZ) / RATE_HZ).astype(np.float32)
    # 82 edges over the mels up to 8 kHz, the first at 0.
    spacing = (15 + np.log(8) / np.log(6.4) * 27) / 81
    assert abs(int(log_mel(tone)[:, 400].argmax()) + 1 - mel / spacing) <= 1.0


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    voice = build_piper_voice(tmp_path)
    with pytest.raises(ValueError, match=r"model: .* not input_features"):
        TurnModel(voice)
    rubbish = tmp_path / "rubbish.onnx"
    rubbish.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"model: .*rubbish"):
        TurnModel(rubbish)


def test_without_pipecat_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pipecat-ai"):
        model_path("pipecat")
