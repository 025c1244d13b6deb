"""Thoughts of a reasoning model never leave, wherever the network cut the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.session.thoughts import PAIRS, Thoughts


def answer_of(*deltas: str, begins_inside: bool = False) -> str:
    thoughts = Thoughts(begins_inside)
    return "".join(map(thoughts.feed, deltas)) + thoughts.finish()


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_every_pair_of_tags_is_known_in_capitals_too(opening: str, closing: str) -> None:
    thought = f"{opening}\nThe user asks for the hours. Less < more.\n{closing}"
    for text in (thought, thought.upper()):
        assert answer_of(f"{text}We open at nine.") == "We open at nine."
        assert answer_of(*f"{text}We open at nine.") == "We open at nine."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("We open <think>or not?</think>at nine.", "We open at nine."),
        ("<think>one</think><think>two</think>Nine.", "Nine."),
        ("<think>a </thinking> is not its end</think>Nine.", "Nine."),
        ("<think>never closed", ""),
        ("The hours are known.</think>We open at nine.", "The hours are known.We open at nine."),
        ("a < b, <thin, <think", "a < b, <thin, <think"),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Nine.<|return|>",
            "Nine.",
        ),
        ("\u0130<think>x</think>\u0130<", "\u0130\u0130<"),
    ],
)
def test_what_is_no_thought_is_the_answer(text: str, answer: str) -> None:
    assert answer_of(text) == answer_of(*text) == answer


def test_an_answer_that_begins_in_a_thought_begins_behind_it() -> None:
    assert answer_of("The user asks.\n</thi", "nk>\nNine.", begins_inside=True) == "\nNine."
    assert answer_of("We open at nine.", begins_inside=True) == "We open at nine."
    assert answer_of("So: <think>hm</think>Nine.", begins_inside=True) == "So: Nine."


def test_a_closing_tag_that_nothing_opened_is_noted() -> None:
    thoughts = Thoughts()
    thoughts.feed("The user asks.</think>")
    assert thoughts.was_closed


PIECES = st.sampled_from(
    [*(tag for pair in PAIRS for tag in pair), "<", "<th", "/think>", "a", " b. ", "\n", "[", "|>"]
)


@given(
    pieces=st.lists(PIECES, max_size=20), sizes=st.lists(st.integers(1, 9), min_size=1), inside=st.booleans()
)
def test_cutting_changes_nothing(pieces: list[str], sizes: list[int], inside: bool) -> None:
    text, deltas, at = "".join(pieces), [], 0
    while at < len(text):
        size = sizes[len(deltas) % len(sizes)]
        deltas.append(text[at : at + size])
        at += size
    assert answer_of(*deltas, begins_inside=inside) == answer_of(text, begins_inside=inside)
