from __future__ import annotations

import pytest

from voiceserver.session.text import gap, join, split


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["One.", "Two."], "One. Two."),
        (["One. ", "Two."], "One. Two."),
        (["One.", " Two."], "One. Two."),
        (["", "One.", "", "Two."], "One. Two."),
        (["你好。", "今天天气很好。"], "你好。今天天气很好。"),
        (["こんにちは!", "元気ですか?"], "こんにちは!元気ですか?"),
        (["「はい」", "と言った。"], "「はい」と言った。"),
        (["안녕하세요.", "반갑습니다."], "안녕하세요. 반갑습니다."),
        (["สวัสดี", "ครับ"], "สวัสดี ครับ"),
        (["हाँ।", "ठीक है।"], "हाँ। ठीक है।"),
        (["I said", ", wait"], "I said, wait"),
        (["It says", "“stop”."], "It says “stop”."),
        (["Hola.", "¿Qué tal?"], "Hola. ¿Qué tal?"),
        (["Yes.", '"No."'], 'Yes. "No."'),
        (["OK", "吗?"], "OK吗?"),
        (["Fine 😀", "then"], "Fine 😀 then"),
    ],
)
def test_a_space_is_put_where_the_script_has_one(pieces: list[str], text: str) -> None:
    assert join(pieces) == text


def test_nothing_is_put_before_the_first_piece() -> None:
    assert gap("", "One") == gap("One", "") == ""


@pytest.mark.parametrize(
    ("share", "halves"),
    [
        (0.0, ("", "One two three four five.")),
        (0.5, ("One two", "three four five.")),
        (0.99, ("One two three four", "five.")),
        (1.0, ("One two three four five.", "")),
    ],
)
def test_a_text_is_cut_between_words(share: float, halves: tuple[str, str]) -> None:
    assert split(" One two three four five.", share) == halves


def test_a_text_without_spaces_is_cut_between_characters() -> None:
    assert split("今天天气很好。", 0.5) == ("今天天", "气很好。")
    assert split("我有 iPhone 手机。", 0.5) == ("我有 iPhone", "手机。")
    assert split("", 0.5) == ("", "")
