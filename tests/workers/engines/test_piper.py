"""Piper on a voice that the tests build: the same samples each time, speed, speakers, sentences, cancelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.neural_cases import make, model
from voiceserver_workers.engine import Audio, Engine, EngineError, Item
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

NOTHING: Audio = np.empty(0, np.float32)


def piper(**params: Any) -> Engine:
    return make("piper", {"voice": str(Path(model("piper-two"))), **params})


def say(engine: Engine, stream: int, text: str, **options: str | int | float | bool) -> list[Audio]:
    """Audio, one piece a sentence."""
    engine.open(stream, StreamParams(options=options))
    output = engine.step([Item(stream, 1, NOTHING, text)])[0]
    pieces = list(output.pieces)
    while output.more:
        output = engine.step([Item(stream, 1, NOTHING, is_continued=True)])[0]
        pieces += output.pieces
    engine.close(stream)
    assert pieces[-1].kind == ResultKind.DONE
    audio = [piece.payload for piece in pieces[:-1]]
    assert all(isinstance(part, np.ndarray) for part in audio)
    return audio  # type: ignore[return-value]


def test_the_voice_itself_is_never_the_same_twice_and_ours_always_is() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model("piper-two"))
    given = {
        "input": np.array([[1, 20, 30, 2]]),
        "input_lengths": np.array([4]),
        "scales": np.array([0.667, 1.0, 0.8], np.float32),
        "sid": np.array([0]),
    }
    first, second = (session.run(None, given)[0].reshape(-1) for _ in range(2))
    count = min(len(first), len(second))
    assert np.abs(first[:count] - second[:count]).max() > 1e-4
    engine = piper()
    text = "The quick brown fox. It jumps."
    for one, other in zip(say(engine, 1, text), say(piper(), 1, text), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(say(engine, 2, text), say(engine, 3, text), strict=True):
        np.testing.assert_array_equal(one, other)


def test_noise_is_still_there_and_can_be_turned_off() -> None:
    with_noise, without = (say(piper(noise=n, noise_w=0.0), 1, "Hello.") for n in (None, 0.0))
    difference = with_noise[0] - without[0]
    # 0.667 of a hundredth, as the voice's configuration says.
    assert np.std(difference) == pytest.approx(0.00667, rel=0.05)


def test_draws_of_numbers_become_a_table_with_their_mean_scale_shape_and_type() -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from voiceserver_workers.engines.piper_voice import steady

    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("RandomNormalLike", ["like"], ["one"], mean=5.0, scale=2.0),
            helper.make_node("RandomNormal", [], ["two"], shape=[3, 100_000], dtype=kinds.DOUBLE),
        ],
        "draws",
        [helper.make_tensor_value_info("like", kinds.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("one", kinds.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("two", kinds.DOUBLE, [3, 100_000]),
        ],
    )
    drawn = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    session = onnxruntime.InferenceSession(steady(drawn).SerializeToString())
    given = {"like": np.zeros((5000, 4), np.float32)}
    (one, two), (again, _) = session.run(None, given), session.run(None, given)
    np.testing.assert_array_equal(one, again)
    assert one.shape == (5000, 4)
    assert two.shape == (3, 100_000)
    assert (one.dtype, two.dtype) == (np.float32, np.float64)
    assert (one.mean(), one.std()) == (pytest.approx(5.0, abs=0.05), pytest.approx(2.0, abs=0.05))
    assert (two.mean(), two.std()) == (pytest.approx(0.0, abs=0.05), pytest.approx(1.0, abs=0.05))


def test_a_model_without_draws_is_left_as_it_is() -> None:
    onnx = pytest.importorskip("onnx")
    from voiceserver_workers.engines.piper_voice import steady

    turn = onnx.load(model("turn.onnx"))
    before = turn.SerializeToString()
    assert steady(turn).SerializeToString() == before


def test_twice_the_speed_is_half_the_length() -> None:
    engine = piper()
    normal, fast = say(engine, 1, "Hello there."), say(engine, 2, "Hello there.", speed=2.0)
    assert len(fast[0]) / len(normal[0]) == pytest.approx(0.5, abs=0.01)
    slow = piper(speed=0.5)
    assert len(say(slow, 1, "Hello there.")[0]) / len(normal[0]) == pytest.approx(2.0, abs=0.01)


def test_a_session_names_a_speaker_as_its_voice_where_speakers_have_names() -> None:
    engine = piper(noise=0.0, noise_w=0.0)
    assert (engine.info.voices, "voice" in engine.info.options) == (("speaker0", "speaker1"), True)
    second, by_voice = (
        say(engine, 1, "Hello.", speaker="speaker1"),
        say(engine, 2, "Hello.", voice="speaker1"),
    )
    np.testing.assert_array_equal(second[0], by_voice[0])
    with pytest.raises(EngineError, match="voice: the voice has no 'nobody'; it has speaker0, speaker1"):
        engine.open(3, StreamParams(options={"voice": "nobody"}))
    alone = make("piper", {"voice": str(Path(model("piper")))})
    assert (alone.info.voices, alone.info.options) == ((), ("speed", "speaker"))


def test_each_session_has_its_speaker_by_name_or_number() -> None:
    engine = piper(noise=0.0, noise_w=0.0)
    default, first, second, named = (
        say(engine, stream, "Hello.", **options)[0]
        for stream, options in enumerate(({}, {"speaker": 0}, {"speaker": 1}, {"speaker": "speaker1"}), 1)
    )
    np.testing.assert_array_equal(default, first)
    np.testing.assert_array_equal(second, named)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(say(piper(noise=0.0, noise_w=0.0, speaker=1), 1, "Hello.")[0], second)


def test_each_sentence_leaves_when_it_is_made() -> None:
    engine = piper()
    engine.open(1, StreamParams())
    outputs = [engine.step([Item(1, 1, NOTHING, "One is here. Two is here. Three is here.")])[0]]
    while outputs[-1].more:
        outputs.append(engine.step([Item(1, 1, NOTHING, is_continued=True)])[0])
    kinds = [[piece.kind for piece in output.pieces] for output in outputs]
    assert kinds == [[ResultKind.AUDIO], [ResultKind.AUDIO], [ResultKind.AUDIO, ResultKind.DONE]]


def test_callers_take_turns_sentence_by_sentence() -> None:
    engine = piper()
    waiting = {1: "One is here. Two is here. Three is here.", 2: "Only one.", 3: "Three. Four."}
    for stream in waiting:
        engine.open(stream, StreamParams())
    items = [Item(stream, 1, NOTHING, text) for stream, text in waiting.items()]
    served: list[int] = []
    while items:
        outputs = engine.step(items)
        made = [item.stream for item, output in zip(items, outputs, strict=True) if output.pieces]
        assert len(made) == 1
        served += made
        items = [
            Item(item.stream, 1, NOTHING, is_continued=True)
            for item, output in zip(items, outputs, strict=True)
            if output.more
        ]
    assert served == [1, 2, 3, 1, 3, 1]


def test_a_cancel_stops_after_the_sentence_that_is_out() -> None:
    engine = piper()
    engine.open(1, StreamParams())
    assert engine.step([Item(1, 1, NOTHING, "One is here. Two is here. Three is here.")])[0].more
    engine.cancel(1, 1)
    output = engine.step([Item(1, 1, NOTHING, is_continued=True)])[0]
    assert (output.pieces, output.more) == ([], False)
    assert engine.step([Item(1, 2, NOTHING, "Again.")])[0].pieces[0].kind == ResultKind.AUDIO


@pytest.mark.parametrize("text", ["", "...", "?!", "\x07\x00"])
def test_where_nothing_can_be_said_the_sentence_is_done_at_once(text: str) -> None:
    assert say(piper(), 1, text) == []


def test_a_text_beyond_reason_is_refused_and_the_stream_lives_on() -> None:
    engine = piper()
    engine.open(1, StreamParams())
    with pytest.raises(EngineError) as caught:
        engine.step([Item(1, 1, NOTHING, "a" * 5000)])
    assert caught.value.code == "text_too_long"
    assert engine.step([Item(1, 1, NOTHING, "Hello.")])[0].pieces[0].kind == ResultKind.AUDIO


def test_a_voice_without_espeak_is_spelled_by_its_letters(tmp_path: Path) -> None:
    from tests.model_builders import build_piper_voice

    voice = build_piper_voice(tmp_path, phoneme_type="text", rate_hz=16000)
    engine = make("piper", {"voice": str(voice)})
    assert engine.info.rate_hz == 16000
    assert len(say(engine, 1, "abc")) == 1


def test_a_voice_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    for text, reason in (("{}", "configuration"), ("[", "configuration"), ("good", "no Piper voice")):
        path = tmp_path / "bad.onnx"
        path.write_bytes(b"not a model")
        good = Path(model("piper-two") + ".json").read_text()
        Path(f"{path}.json").write_text(good if text == "good" else text)
        with pytest.raises(ValueError, match=f"voice: .*{reason}"):
            make("piper", {"voice": str(path)})
    strange = json.loads(Path(model("piper-two") + ".json").read_text())
    strange["inference"]["length_scale"] = 0
    Path(f"{path}.json").write_text(json.dumps(strange))
    with pytest.raises(ValueError, match="length_scale"):
        make("piper", {"voice": str(path)})
