"""What ``benchmarks.words`` counts as a wrong word, and as a partial that was taken back."""

from __future__ import annotations

import pytest

from benchmarks.words import Heard, words_of, wrong_words


@pytest.mark.parametrize(
    ("heard", "wrong"),
    [
        ("go forward ten meters", 0),
        ("go ten meters", 1),
        ("go far forward ten meters", 1),
        ("go forward two meters", 1),
        ("", 4),
        ("yes", 4),
    ],
)
def test_words_put_in_left_out_and_mistaken_are_wrong(heard: str, wrong: int) -> None:
    assert wrong_words(["go", "forward", "ten", "meters"], heard.split()) == wrong


def test_punctuation_capitals_and_digits_are_no_mistakes() -> None:
    assert words_of("Go forward: 10 metres!") == words_of("go forward ten meters")
    assert words_of("An ill-disposed man.") == ["an", "ill", "disposed", "man"]


def test_a_partial_that_its_transcript_does_not_begin_with_is_counted() -> None:
    heard = Heard(partials={1: ["Go", "Go four"], 2: ["He"]}, finals={1: "Go forward.", 2: "She was."})
    assert heard.contradicted() == 2


def test_transcripts_that_come_late_count_in_the_order_of_their_turns() -> None:
    assert Heard(finals={2: "He was.", 1: "Go forward."}).text == "Go forward. He was."
