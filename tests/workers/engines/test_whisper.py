"""Whisper on models that the tests build: what is told when, what is shared in a call, what is not believed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("faster_whisper", reason="pip install 'voiceserver[whisper]'")

from tests import recordings
from tests.neural_cases import make, model
from voiceserver_workers.engine import Audio, Item, Piece
from voiceserver_workers.engines import whisper_model
from voiceserver_workers.engines.whisper import Whisper
from voiceserver_workers.engines.windows import Heard, Job, LocalAgreement
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

RATE_HZ = 16000
NOTHING: Audio = np.empty(0, np.float32)
INTERVAL_MS = 500


def whisper(name: str = "whisper", **params: Any) -> Whisper:
    defaults = {"model": model(name), "context_s": 5, "decode_interval_ms": INTERVAL_MS}
    engine = make("whisper", {**defaults, **params})
    assert isinstance(engine, Whisper)
    return engine


class Calls:
    """Every call of the engine's model, with its jobs."""

    def __init__(self, engine: Whisper) -> None:
        self.jobs: list[list[Job]] = []
        self.beam_sizes: list[int] = []
        self.heard: list[list[Heard]] = []
        self._hear = engine._model.hear
        engine._model.hear = self  # type: ignore[method-assign, assignment]

    def __call__(self, jobs: Sequence[Job], beam_size: int) -> list[Heard]:
        self.jobs.append(list(jobs))
        self.beam_sizes.append(beam_size)
        self.heard.append(self._hear(jobs, beam_size))
        return self.heard[-1]


def speech(seconds: float) -> Audio:
    audio = recordings.goforward().audio
    count = round(seconds * RATE_HZ)
    return np.resize(audio[8000:36000], count)


def finish(engine: Whisper, stream: int, audio: Audio, *, turn: int = 1) -> list[Piece]:
    """One item of audio and the end of the utterance."""
    outputs = [engine.step([Item(stream, turn, audio, is_flush=True)])[0]]
    while outputs[-1].more:
        outputs.append(engine.step([Item(stream, turn, NOTHING, is_flush=True, is_continued=True)])[0])
    return [piece for output in outputs for piece in output.pieces]


def follow(engine: Whisper, stream: int, audio: Audio, chunk: int = 1600) -> list[Piece]:
    """As a caller speaks: chunk by chunk, then the end."""
    pieces: list[Piece] = []
    for start in range(0, len(audio), chunk):
        output = engine.step([Item(stream, 1, audio[start : start + chunk])])[0]
        pieces += output.pieces
        while output.more:
            output = engine.step([Item(stream, 1, NOTHING, is_continued=True)])[0]
            pieces += output.pieces
    return pieces + finish(engine, stream, NOTHING)


def texts(pieces: Sequence[Piece], kind: ResultKind) -> list[str]:
    return [str(piece.payload) for piece in pieces if piece.kind == kind]


# Local agreement


def words(text: str) -> list[tuple[int, ...]]:
    return [tuple(word.encode()) for word in text.split()]


def test_what_two_hypotheses_in_a_row_agree_on_is_agreed() -> None:
    agreement = LocalAgreement()
    assert not agreement.receive(words("so my"))
    assert agreement.receive(words("so my fellow"))
    assert agreement.agreed == words("so my")
    assert not agreement.receive(words("so my yellow americans"))
    assert agreement.receive(words("so my yellow americans ask"))
    assert agreement.agreed == words("so my yellow americans")


def test_a_hypothesis_that_takes_back_what_was_told_adds_nothing() -> None:
    agreement = LocalAgreement()
    for _ in range(2):
        agreement.receive(words("so my"))
    for _ in range(2):
        assert not agreement.receive(words("no my fellow americans"))
    assert agreement.agreed == words("so my")


@given(st.lists(st.lists(st.sampled_from([(1,), (2,), (3, 4)]), max_size=6), max_size=12))
def test_what_was_agreed_is_never_taken_back(hypotheses: list[list[tuple[int, ...]]]) -> None:
    agreement, before = LocalAgreement(), list[tuple[int, ...]]()
    for hypothesis in hypotheses:
        grew = agreement.receive(hypothesis)
        assert agreement.agreed[: len(before)] == before
        assert grew == (len(agreement.agreed) > len(before))
        before = list(agreement.agreed)


# Partials and transcripts


@pytest.mark.parametrize("name", ["whisper", "whisper-deaf", "whisper-multilingual"])
def test_partials_only_grow_and_the_transcript_goes_on_from_them(name: str) -> None:
    engine = whisper(name)
    engine.open(1, StreamParams())
    pieces = follow(engine, 1, speech(4.3))
    partials, finals = texts(pieces, ResultKind.TEXT), texts(pieces, ResultKind.FINAL)
    assert len(finals) == 1
    assert pieces[-1].kind == ResultKind.FINAL
    told = [*partials, *finals]
    for earlier, later in itertools.pairwise(told):
        assert later.startswith(earlier)
    assert len(set(partials)) == len(partials)
    if name == "whisper-deaf":
        assert partials


def test_a_partial_takes_two_looks_and_then_comes_each_interval() -> None:
    # A model that always says the same agrees with itself at the second look.
    engine = whisper("whisper-deaf")
    engine.open(1, StreamParams())
    calls = Calls(engine)
    pieces_after: dict[int, int] = {}
    audio = speech(2.0)
    for start in range(0, len(audio), 1600):
        output = engine.step([Item(1, 1, audio[start : start + 1600])])[0]
        pieces_after[(start + 1600) * 1000 // RATE_HZ] = len(output.pieces)
    assert [len(jobs[0].audio) * 1000 // RATE_HZ for jobs in calls.jobs] == [500, 1000, 1500, 2000]
    assert pieces_after[500] == 0
    assert pieces_after[1000] == 1


def test_partials_that_nobody_reads_are_not_computed() -> None:
    engine = whisper("whisper-deaf")
    engine.open(1, StreamParams())
    calls = Calls(engine)
    audio = speech(2.0)
    for start in range(0, len(audio), 1600):
        is_final_only = start >= RATE_HZ  # from the second second on
        engine.step([Item(1, 1, audio[start : start + 1600], is_final_only=is_final_only)])
    assert [len(jobs[0].audio) * 1000 // RATE_HZ for jobs in calls.jobs] == [500, 1000]
    assert texts(finish(engine, 1, NOTHING), ResultKind.FINAL) != [""]
    assert len(calls.jobs) == 3


def test_a_partial_that_waits_for_its_turn_is_given_up_when_nobody_will_read_it() -> None:
    engine = whisper("whisper-deaf", batch_size=1)
    for stream in (1, 2):
        engine.open(stream, StreamParams())
    calls = Calls(engine)
    outputs = engine.step([Item(stream, 1, speech(1.0)) for stream in (1, 2)])
    assert [output.more for output in outputs] == [False, True]
    (output,) = engine.step([Item(2, 1, NOTHING, is_continued=True, is_final_only=True)])
    assert not output.more
    assert len(calls.jobs) == 1


def test_each_later_hypothesis_begins_with_what_was_told() -> None:
    engine = whisper("whisper-deaf")
    engine.open(1, StreamParams())
    calls = Calls(engine)
    follow(engine, 1, speech(3.0))
    assert calls.jobs[0][0].prefix == ()
    assert calls.jobs[-1][0].prefix
    for jobs, heard in zip(calls.jobs, calls.heard, strict=True):
        said = tuple(token for word in heard[0].words for token in word)
        assert said[: len(jobs[0].prefix)] == jobs[0].prefix


@recordings.spoken_by_people
def test_an_utterance_longer_than_the_context_is_cut_where_it_is_quiet_and_no_audio_is_lost() -> None:
    engine = whisper(decode_interval_ms=30_000)
    engine.open(1, StreamParams())
    calls = Calls(engine)
    audio = speech(11.0)
    audio[round(3.4 * RATE_HZ) : round(3.9 * RATE_HZ)] = 0
    audio[round(6.8 * RATE_HZ) : round(7.3 * RATE_HZ)] = 0
    pieces = finish(engine, 1, audio)
    shown = [jobs[0].audio for jobs in calls.jobs]
    np.testing.assert_array_equal(np.concatenate(shown), audio)
    assert all(len(part) <= 5 * RATE_HZ for part in shown)
    cuts = np.cumsum([len(part) for part in shown])[:-1] / RATE_HZ
    assert any(3.4 <= cut <= 3.9 for cut in cuts)
    assert any(6.8 <= cut <= 7.3 for cut in cuts)
    final = texts(pieces, ResultKind.FINAL)[0]
    for partial in texts(pieces, ResultKind.TEXT):
        assert final.startswith(partial)
    said = [engine._model.text(heard[0].words, "en") for heard in calls.heard]
    assert final == " ".join(said)


# Batches


def test_windows_of_several_callers_go_through_the_model_in_one_call() -> None:
    engine = whisper(batch_size=4)
    calls = Calls(engine)
    for stream in range(6):
        engine.open(stream, StreamParams())
    items = [Item(stream, 1, speech(1.0 + stream / 4)) for stream in range(6)]
    outputs = engine.step(items)
    assert [len(jobs) for jobs in calls.jobs] == [4]
    assert [output.more for output in outputs] == [False] * 4 + [True] * 2
    outputs = engine.step([Item(stream, 1, NOTHING, is_continued=True) for stream in (4, 5)])
    assert [len(jobs) for jobs in calls.jobs] == [4, 2]
    assert not any(output.more for output in outputs)


def test_a_step_is_optional_when_all_of_its_windows_are_for_partials() -> None:
    engine = whisper(batch_size=2)
    for stream in (1, 2):
        engine.open(stream, StreamParams())
    for is_flush, is_optional in ((False, True), (True, False)):
        outputs = engine.step([Item(1, 1, speech(1.0)), Item(2, 1, speech(1.0), is_flush=is_flush)])
        assert [output.is_optional for output in outputs] == [is_optional] * 2
    assert not engine.step([Item(1, 1, NOTHING)])[0].is_optional, "nothing was computed"


def test_an_utterance_that_ended_goes_before_a_partial() -> None:
    engine = whisper(batch_size=1)
    for stream in (1, 2):
        engine.open(stream, StreamParams())
    outputs = engine.step([Item(1, 1, speech(1.0)), Item(2, 1, speech(1.0), is_flush=True)])
    assert [piece.kind for piece in outputs[1].pieces] == [ResultKind.FINAL]
    assert [output.more for output in outputs] == [True, False]


def test_the_end_of_an_utterance_overtakes_its_own_waiting_partial() -> None:
    engine = whisper(batch_size=1)
    for stream in (1, 2):
        engine.open(stream, StreamParams())
    outputs = engine.step([Item(1, 1, speech(1.0)), Item(2, 1, speech(1.0))])
    assert outputs[1].more
    # As when the worker lets the flush come first.
    pieces = finish(engine, 2, NOTHING)
    assert [piece.kind for piece in pieces] == [ResultKind.FINAL]


def test_partials_are_greedy_and_transcripts_take_the_beam() -> None:
    engine = whisper(beam_size=3)
    engine.open(1, StreamParams())
    calls = Calls(engine)
    follow(engine, 1, speech(1.0))
    assert calls.beam_sizes == [1, 1, 3]


# Pauses


def pause(engine: Whisper, stream: int) -> list[Piece]:
    return list(engine.step([Item(stream, 1, NOTHING, is_pause=True)])[0].pieces)


@pytest.mark.parametrize("beam_size", [1, 2])
def test_a_pause_has_the_transcript_ready_when_the_utterance_ends(beam_size: int) -> None:
    engine = whisper(beam_size=beam_size)
    engine.open(1, StreamParams())
    plain = texts(finish(engine, 1, speech(0.4)), ResultKind.FINAL)
    calls = Calls(engine)
    engine.step([Item(1, 1, speech(0.4))])
    pause(engine, 1)
    assert calls.beam_sizes == [beam_size]
    silence = np.zeros(RATE_HZ // 5, np.float32)
    engine.step([Item(1, 1, silence)])
    assert texts(finish(engine, 1, NOTHING), ResultKind.FINAL) == plain
    assert len(calls.jobs) == 1


def test_a_caller_who_goes_on_after_a_pause_is_heard_to_the_end() -> None:
    engine = whisper()
    engine.open(1, StreamParams())
    calls = Calls(engine)
    engine.step([Item(1, 1, speech(0.4))])
    pause(engine, 1)
    engine.step([Item(1, 1, speech(0.3))])
    finish(engine, 1, NOTHING)
    assert [len(jobs[0].audio) for jobs in calls.jobs] == [round(0.4 * RATE_HZ), round(0.7 * RATE_HZ)]


def test_a_second_pause_without_words_between_costs_nothing() -> None:
    engine = whisper()
    engine.open(1, StreamParams())
    calls = Calls(engine)
    engine.step([Item(1, 1, speech(0.4))])
    for _ in range(3):
        pause(engine, 1)
        engine.step([Item(1, 1, np.zeros(1600, np.float32))])
    assert len(calls.jobs) == 1


# What is not believed


def test_silence_is_never_shown_to_the_model() -> None:
    engine = whisper()
    engine.open(1, StreamParams())
    calls = Calls(engine)
    noise = np.random.default_rng(1).normal(0, 1e-4, 3 * RATE_HZ).astype(np.float32)
    pieces = follow(engine, 1, noise)
    assert pieces == [Piece(ResultKind.FINAL, "")]
    assert calls.jobs == []
    assert finish(engine, 1, speech(0.05), turn=2) == [Piece(ResultKind.FINAL, "")]


def test_words_where_the_model_finds_no_speech_and_is_unsure_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    believing, doubting = whisper(), whisper(no_speech_threshold=0.0)
    for engine in (believing, doubting):
        engine.open(1, StreamParams())
    said = texts(finish(believing, 1, speech(1.0)), ResultKind.FINAL)
    assert said != [""]
    # No speech alone is not enough: the model must also be unsure of its words.
    assert texts(finish(doubting, 1, speech(1.0)), ResultKind.FINAL) == said
    monkeypatch.setattr(whisper_model, "_UNSURE_LOG_PROBABILITY", 0.0)
    assert texts(finish(doubting, 1, speech(1.0)), ResultKind.FINAL) == [""]
    assert texts(finish(believing, 1, speech(1.0)), ResultKind.FINAL) == said


def test_a_transcript_that_repeats_itself_is_made_again_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeats(text: str) -> bool:
        said = text.split()
        threes = list(zip(said, said[1:], said[2:], strict=False))
        return len(set(threes)) < len(threes)

    audio = speech(4.5)
    engine = whisper("whisper-deaf", decode_interval_ms=30_000)
    engine.open(1, StreamParams())
    guarded = texts(finish(engine, 1, audio), ResultKind.FINAL)[0]
    monkeypatch.setattr(whisper_model, "_COMPRESSION_LIMIT", 1000.0)
    unguarded = texts(finish(engine, 1, audio, turn=2), ResultKind.FINAL)[0]
    assert repeats(unguarded)
    assert not repeats(guarded)


def test_nobody_says_more_words_than_there_is_time_for() -> None:
    engine = whisper("whisper-deaf", decode_interval_ms=30_000)
    engine.open(1, StreamParams())
    final = texts(finish(engine, 1, speech(0.5)), ResultKind.FINAL)[0]
    # One token a word in this model; the last one may be half a word, so it is left out.
    assert 0 < len(final.split()) < 16 + 0.5 * 14


# Languages


def test_each_session_speaks_its_language() -> None:
    engine = whisper("whisper-multilingual")
    calls = Calls(engine)
    for stream, code in enumerate(("de", "fr-FR", "EN"), 1):
        engine.open(stream, StreamParams(options={"language": code}))
    outputs = engine.step([Item(stream, 1, speech(1.0), is_flush=True) for stream in (1, 2, 3)])
    assert [job.language for job in calls.jobs[0]] == ["de", "fr", "en"]
    assert [heard.language for heard in calls.heard[0]] == ["de", "fr", "en"]
    finals = [output.pieces[0].payload for output in outputs]
    # The same audio: only the language in the prompt differs.
    assert len(set(finals)) > 1


def test_a_language_that_nobody_named_is_detected_and_kept_for_the_utterance() -> None:
    engine = whisper("whisper-multilingual", language="auto")
    engine.open(1, StreamParams())
    calls = Calls(engine)
    follow(engine, 1, speech(4.5))
    asked = [jobs[0].language for jobs in calls.jobs]
    found = [heard[0].language for heard in calls.heard]
    assert set(found) <= {"en", "de", "fr"}
    # Until three seconds are heard; then it stays.
    assert asked[:6] == ["auto"] * 6
    assert set(asked[6:]) == {found[5]}
    engine.step([Item(1, 2, speech(0.6))])
    assert calls.jobs[-1][0].language == "auto"


# Features and loading


def test_features_are_those_of_the_audio_and_silence_to_the_end_of_the_context() -> None:
    engine = whisper(context_s=30)
    audio = recordings.goforward().audio
    padded = np.zeros(30 * RATE_HZ, np.float32)
    padded[: len(audio)] = audio
    expected = engine._model._features(padded, padding=0)[:, :3000]
    found = engine._model._log_mel(audio)
    assert found.shape == (80, 3000)
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=1e-4)
    assert engine._model._log_mel(padded).shape == (80, 3000)


def test_a_model_that_cannot_be_downloaded_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"model: 'nobody/no-such-whisper' .* give the path of a folder"
    ) as caught:
        whisper(model="nobody/no-such-whisper")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model\.bin"):
        whisper(model=str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        whisper(model=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model: .* cannot be loaded"):
        whisper(model=str(tmp_path))


def test_which_model_is_asked_for_where_none_is_given() -> None:
    with pytest.raises(ValueError, match="model: which one"):
        make("whisper", {})


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"device: there is no cuda:77 here"):
        whisper(device="cuda:77")
