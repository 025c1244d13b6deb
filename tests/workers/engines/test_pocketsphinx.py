"""PocketSphinx on people's speech, cut as voice activity detection cuts it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests import recordings
from voiceserver_workers.engine import Audio, Item
from voiceserver_workers.engines.pocketsphinx import RATE_HZ, PocketSphinx
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

PADDING = RATE_HZ * 300 // 1000
NOTHING = np.empty(0, np.float32)


@pytest.fixture(scope="module")
def engine() -> PocketSphinx:
    return PocketSphinx({"decoders": 2})


def cut_at_speech(audio: Audio) -> Audio:
    """From 300 ms before the first loud sample to 500 ms after the last, as far as there is so much."""
    loud = np.flatnonzero(np.abs(audio) > 0.1 * np.abs(audio).max())
    return audio[max(0, loud[0] - PADDING) : loud[-1] + RATE_HZ // 2]


def hear(
    engine: PocketSphinx, stream: int, audio: Audio, chunk: int, turn: int = 1
) -> tuple[list[str], str, tuple[float, float]]:
    """Partials, transcript, and the decoder's own score and probability."""
    partials: list[str] = []
    finals: list[str] = []
    items = [Item(stream, turn, audio[start : start + chunk]) for start in range(0, len(audio), chunk)]
    for item in [*items, Item(stream, turn, NOTHING, is_flush=True)]:
        output = engine.step([item])[0]
        pieces = list(output.pieces)
        while output.more:
            output = engine.step([Item(stream, turn, NOTHING, is_continued=True)])[0]
            pieces += output.pieces
        for kind, payload in pieces:
            assert isinstance(payload, str)
            (finals if kind == ResultKind.FINAL else partials).append(payload)
    assert len(finals) == 1
    hypothesis = engine._streams[stream].decoder.hyp()
    score = (hypothesis.score, hypothesis.prob) if hypothesis is not None else (0.0, 0.0)
    return partials, finals[0], score


def hear_alone(
    engine: PocketSphinx, audio: Audio, chunk: int = 320
) -> tuple[list[str], str, tuple[float, float]]:
    engine.open(1, StreamParams())
    heard = hear(engine, 1, audio, chunk)
    engine.close(1)
    return heard


def edits(words: list[str], heard: list[str]) -> int:
    """Word errors: the least insertions, deletions and substitutions."""
    row = list(range(len(heard) + 1))
    for count, word in enumerate(words, 1):
        corner, row[0] = row[0], count
        for i, other in enumerate(heard, 1):
            corner, row[i] = row[i], min(row[i] + 1, row[i - 1] + 1, corner + (word != other))
    return row[-1]


@pytest.mark.parametrize("chunk_ms", [100, 20])
def test_go_forward_ten_meters(engine: PocketSphinx, chunk_ms: int) -> None:
    recording = recordings.goforward()
    for audio in (recording.audio, cut_at_speech(recording.audio)):
        _, final, _ = hear_alone(engine, audio, RATE_HZ * chunk_ms // 1000)
        if recording.is_made:
            assert edits(recording.words.split(), final.split()) <= 3
        else:
            assert final == "go forward ten meters"


@pytest.mark.parametrize("name", [name for name in recordings.names() if name not in recordings.MADE])
def test_people_are_recognisable_and_partials_only_grow(engine: PocketSphinx, name: str) -> None:
    recording = recordings.recording(name)
    partials, final, _ = hear_alone(engine, cut_at_speech(recording.audio))
    assert partials
    for earlier, later in pairwise(partials):
        assert later.startswith(earlier + " "), "what was told is never taken back"
    words = recording.words.split()
    assert edits(words, final.split()) <= len(words) / 2, final


@pytest.mark.parametrize("name", recordings.names()[:2])
def test_how_audio_is_cut_up_makes_no_difference(engine: PocketSphinx, name: str) -> None:
    audio = recordings.recording(name).audio
    heard = [hear_alone(engine, audio, chunk) for chunk in (320, 7777, len(audio))]
    assert heard[1:] == heard[:1] * 2


def test_nothing_of_one_caller_reaches_the_next(engine: PocketSphinx) -> None:
    """The same words, partials, score and probability to the last bit, whoever had the decoder before."""
    first, *others = recordings.names()
    audio = recordings.recording(first).audio
    alone = hear_alone(engine, audio)
    for name in others[-2:]:
        hear_alone(engine, recordings.recording(name).audio[: 3 * RATE_HZ])
        assert hear_alone(engine, audio) == alone


def test_nothing_of_one_turn_reaches_the_next(engine: PocketSphinx) -> None:
    first, second = (recordings.recording(name).audio for name in recordings.names()[:2])
    alone = hear_alone(engine, first)
    engine.open(1, StreamParams())
    hear(engine, 1, second, 320, turn=1)
    assert hear(engine, 1, first, 320, turn=2) == alone
    engine.close(1)


def test_a_flush_with_no_audio_is_an_empty_transcript(engine: PocketSphinx) -> None:
    engine.open(1, StreamParams())
    assert engine.step([Item(1, 1, NOTHING, is_flush=True)])[0].pieces == [(ResultKind.FINAL, "")]
    engine.close(1)


def test_less_audio_than_a_frame_is_a_transcript_all_the_same(engine: PocketSphinx) -> None:
    engine.open(1, StreamParams())
    item = Item(1, 1, np.zeros(100, np.float32), is_flush=True)
    pieces = engine.step([item])[0].pieces
    assert [piece.kind for piece in pieces] == [ResultKind.FINAL]
    engine.close(1)


def test_a_step_leaves_time_for_others(engine: PocketSphinx) -> None:
    """A backlog of seconds is taken in slices, with the asking for more in between."""
    engine.open(1, StreamParams())
    output = engine.step([Item(1, 1, recordings.goforward().audio, is_flush=True)])[0]
    steps = 1
    while output.more:
        output = engine.step([Item(1, 1, NOTHING, is_continued=True)])[0]
        steps += 1
    assert output.pieces[-1].kind == ResultKind.FINAL
    assert steps >= len(recordings.goforward().audio) // (RATE_HZ * 3 // 10)
    engine.close(1)


def test_the_next_utterance_may_come_before_the_last_is_asked_to_its_end(engine: PocketSphinx) -> None:
    audio = recordings.goforward().audio
    alone = hear_alone(engine, audio)
    engine.open(1, StreamParams())
    assert engine.step([Item(1, 1, audio, is_flush=True)])[0].more
    output = engine.step([Item(1, 2, audio[:RATE_HZ])])[0]
    assert output.pieces[-1] == (ResultKind.FINAL, alone[1])
    engine.close(1)


def test_partials_that_nobody_reads_are_not_computed(engine: PocketSphinx) -> None:
    audio = cut_at_speech(recordings.goforward().audio)
    _, usual, _ = hear_alone(engine, audio)
    engine.open(1, StreamParams())
    decoder, looks = engine._streams[1].decoder, 0

    class Watched:
        """A decoder that counts how often somebody looks at its hypothesis."""

        def __getattr__(self, name: str) -> object:
            nonlocal looks
            looks += name == "hyp"
            return getattr(decoder, name)

    engine._streams[1].decoder = Watched()  # type: ignore[assignment]
    try:
        for is_final_only, least, most in ((False, 2, 99), (True, 1, 1)):
            looks, pieces = 0, []
            items = [audio[start : start + 320] for start in range(0, len(audio), 320)]
            for chunk in items:
                pieces += engine.step([Item(1, 1, chunk, is_final_only=is_final_only)])[0].pieces
            output = engine.step([Item(1, 1, NOTHING, is_flush=True, is_final_only=is_final_only)])[0]
            pieces += output.pieces
            while output.more:
                output = engine.step([Item(1, 1, NOTHING, is_continued=True, is_final_only=is_final_only)])[0]
                pieces += output.pieces
            assert [piece.payload for piece in pieces if piece.kind == ResultKind.FINAL] == [usual]
            assert least <= looks <= most
    finally:
        engine._streams[1].decoder = decoder
        engine.close(1)
