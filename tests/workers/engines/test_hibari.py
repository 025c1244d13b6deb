"""hibari: the same samples each time, no silence in front, the first clause apart, and words that can be understood."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("hibari", reason="pip install 'voiceserver[hibari]'")

from tests.neural_cases import make, moonshine_cache
from voiceserver_workers.engine import Audio, Engine, Item
from voiceserver_workers.engines.hibari import RATE_HZ, first_clause_apart, trimmed
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

NOTHING: Audio = np.empty(0, np.float32)
SENTENCES = (
    "It is half past two, and the sun is shining over the town.",
    "Your train leaves from the other platform in a few minutes.",
    "I am sorry, but I did not understand the question.",
    "Would you like me to call you back tomorrow morning?",
    "The quick brown fox jumps over the lazy dog.",
    "Please tell me your name and the number of your order.",
)


def say(engine: Engine, text: str, **options: str | int | float | bool) -> list[Audio]:
    """Audio, one piece a part."""
    engine.open(1, StreamParams(options=options))
    output = engine.step([Item(1, 1, NOTHING, text)])[0]
    pieces = list(output.pieces)
    while output.more:
        output = engine.step([Item(1, 1, NOTHING, is_continued=True)])[0]
        pieces += output.pieces
    engine.close(1)
    assert pieces[-1].kind == ResultKind.DONE
    return [piece.payload for piece in pieces[:-1] if isinstance(piece.payload, np.ndarray)]


def test_a_sentence_has_the_same_samples_in_every_stream_and_every_engine() -> None:
    first, second = make("hibari", {}), make("hibari", {})
    say(first, "Something else, before it.")
    for one, other in zip(say(first, SENTENCES[0]), say(second, SENTENCES[0]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", SENTENCES)
def test_a_sentence_begins_within_30_ms(text: str) -> None:
    audio = say(make("hibari", {}), text)[0]
    assert np.flatnonzero(np.abs(audio) > 0.006)[0] <= RATE_HZ * 30 // 1000


def test_speed_is_of_the_stream() -> None:
    engine = make("hibari", {"speed": 1.5})
    fast, slow = (sum(map(len, say(engine, SENTENCES[1], **options))) for options in ({}, {"speed": 0.75}))
    assert 1.6 < slow / fast < 2.4


def test_text_without_a_word_makes_no_sound_and_is_done() -> None:
    engine = make("hibari", {})
    for text in ("...", "😀", "", "ありがとう"):
        assert say(engine, text) == []


@given(st.text(alphabet="ab ,;:—.", max_size=200))
def test_the_first_clause_and_the_rest_are_the_sentence(sentence: str) -> None:
    parts = first_clause_apart(sentence)
    assert len(parts) <= 2
    assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", sentence)
    assert len(parts) == 1 or min(map(len, parts)) >= 15


def test_silence_around_the_sound_is_cut() -> None:
    sound = np.full(2400, 0.5, np.float32)
    audio = trimmed(np.concatenate((np.zeros(9600, np.float32), sound, np.zeros(24000, np.float32))), 240)
    assert len(audio) == 720 + 2400 + 239
    assert trimmed(np.zeros(100, np.float32), 240).size == 0


def test_it_is_understood_by_the_recogniser() -> None:
    pytest.importorskip("moonshine_cpp", reason="pip install 'voiceserver[moonshine]'")
    from tests.recordings import plain
    from tests.workers.engines.test_moonshine import transcribe

    voice, recogniser = make("hibari", {}), make("moonshine", {"cache": moonshine_cache()})
    for text in SENTENCES:
        audio = soxr.resample(np.concatenate(say(voice, text)), RATE_HZ, 16000)
        assert plain(transcribe(recogniser, audio)[-1]) == plain(text)
