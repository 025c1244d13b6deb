"""Sentences are cut where a person would take a breath, and nothing depends on how the text arrived."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voiceserver.session.sentences import SentenceCutter


def cut(text: str, size: int = 1, **limits: int) -> list[str]:
    cutter = SentenceCutter(**limits)
    pieces: list[str] = []
    for start in range(0, len(text), size):
        pieces += cutter.feed(text[start : start + size])
    return pieces + cutter.finish()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello there. How are you?", ["Hello there.", " How are you?"]),
        ("It costs 3.14 dollars. OK!", ["It costs 3.14 dollars.", " OK!"]),
        (
            "Dr. Smith met Mrs. Jones at St. Mary's. Fine.",
            ["Dr. Smith met Mrs. Jones at St. Mary's.", " Fine."],
        ),
        ("J. K. Rowling wrote it. So do I. Yes.", ["J. K. Rowling wrote it.", " So do I.", " Yes."]),
        ("At 5 p.m. we go. At 5 p.m. The end.", ["At 5 p.m. we go.", " At 5 p.m.", " The end."]),
        ("Fruit, e.g. pears, is good.", ["Fruit, e.g. pears, is good."]),
        ("In the U.S. Army. Yes.", ["In the U.S. Army.", " Yes."]),
        ("Wait... what? Wait... What now?", ["Wait... what?", " Wait...", " What now?"]),
        ("Nun… ja. Nun… Ja.", ["Nun… ja.", " Nun…", " Ja."]),
        ("Really?! Yes!!! No.", ["Really?!", " Yes!!!", " No."]),
        ('He said "Really?" and left. "Oh." Then', ['He said "Really?" and left.', ' "Oh."', " Then"]),
        ("1. First thing. 2. Second thing.", ["1. First thing.", " 2. Second thing."]),
        ("Three things:\n- one\n- two\n", ["Three things:\n", "- one\n", "- two\n"]),
        ("今日は。「はい。」元気ですか？うん", ["今日は。", "「はい。」", "元気ですか？", "うん"]),
        ("hi. how are you? fine", ["hi.", " how are you?", " fine"]),
        ("Visit example.com today. Bye.", ["Visit example.com today.", " Bye."]),
        ("No. I will not.", ["No.", " I will not."]),
        ("**Bold.** Then.", ["**Bold.**", " Then."]),
        ("... . ! ok.", ["... . ! ok."]),
        ("   ", []),
        ("", []),
    ],
)
def test_a_text_is_cut_into_its_sentences(text: str, pieces: list[str]) -> None:
    assert cut(text) == pieces
    assert cut(text, size=1000) == pieces


def test_only_the_first_piece_may_end_at_a_comma() -> None:
    text = "Sure, I can tell you quite a lot about that, my friend, and more, and more, and more, and more, if you like."
    assert cut(text) == [
        "Sure, I can tell you quite a lot about that,",
        " my friend, and more, and more, and more, and more, if you like.",
    ]


def test_a_number_with_commas_is_not_a_clause() -> None:
    assert cut("The distance to it is something like 384,400 km.") == [
        "The distance to it is something like 384,400 km."
    ]


def test_a_sentence_is_out_as_soon_as_the_next_begins() -> None:
    cutter = SentenceCutter()
    assert cutter.feed("Hello there.") == []
    assert cutter.feed(" ") == ["Hello there."]
    assert cutter.feed("元気ですか？") == []
    assert cutter.feed("う") == [" 元気ですか？"]


def test_a_text_without_an_end_is_cut_at_its_words() -> None:
    pieces = cut("word " * 200, max_chars=100)
    assert all(len(piece) <= 100 for piece in pieces)
    assert all(piece.strip().split(" ") == ["word"] * len(piece.split()) for piece in pieces)
    assert cut("x" * 250, max_chars=100) == ["x" * 100, "x" * 100, "x" * 50]


PROSE = st.text(alphabet="aIx .!?…,;:\n\"')*。，」1é", max_size=120)


@settings(deadline=None, max_examples=400)
@given(text=PROSE | st.text(max_size=120), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8))
@example(text=",. a", sizes=[1])
def test_pieces_are_the_text_however_it_arrived(text: str, sizes: list[int]) -> None:
    whole = cut(text, size=max(len(text), 1), max_chars=40, first_clause_chars=8)
    cutter = SentenceCutter(max_chars=40, first_clause_chars=8)
    pieces: list[str] = []
    at = turn = 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        pieces += cutter.feed(text[at : at + size])
        at, turn = at + size, turn + 1
    pieces += cutter.finish()
    assert pieces == whole
    said = "".join(pieces)
    assert said == text[: len(said)]
    assert not text[len(said) :].strip()
    assert all(0 < len(piece) <= 40 for piece in pieces)
