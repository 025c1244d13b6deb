"""Numbers are words of the session's language, and what may be no number stays as it is."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.session import number_words


def in_words(text: str, language: str) -> str:
    words = number_words.number_words(language)
    assert words is not None
    return words.in_words(text)


@pytest.mark.parametrize(
    ("language", "written", "said"),
    [
        # Money: signs before and behind, cents, scales, other separators.
        ("en", "It costs $3.50, or $1,234.00.", "It costs three dollars fifty, or one thousand two hundred thirty-four dollars."),
        ("en", "$1 and \u20ac2.5 million", "one dollar and two point five million euros"),
        ("en-GB", "\u00a320, CHF 5", "twenty pounds, five Swiss francs"),
        ("de", "Das macht 3,50\u202f\u20ac.", "Das macht drei Euro fünfzig."),
        ("pl", "5 zł", "pięć złotych polskich"),
        ("pt-BR", "R$ 5", "cinco Reais brasileiros"),
        ("hi", "₹500", "पाँच सौ भारतीय रुपए"),
        # Dates: ISO 8601, and as the region writes them.
        ("en", "2026-11-30", "November thirtieth, twenty twenty-six"),
        ("en", "3/5/2026", "March fifth, twenty twenty-six"),
        ("en-GB", "3/5/2026", "May third, twenty twenty-six"),
        ("en", "13/5/2026", "May thirteenth, twenty twenty-six"),
        ("en", "May 3rd, 2025 and May 21", "May third, twenty twenty-five and May twenty-first"),
        ("de", "Heute ist der 30.11.2026.", "Heute ist der dreißigste November zweitausendsechsundzwanzig."),
        ("de", "bis zum 3. Mai", "bis zum dritten Mai"),
        ("de", "3. Mai 1999", "dritter Mai neunzehnhundertneunundneunzig"),
        ("fr", "le 01/05/2026", "le premier mai deux mille vingt-six"),
        ("es", "2026-05-02", "dos de mayo de dos mil veintiséis"),
        ("ru", "30.11.2026", "30 ноября 2026 г."),
        ("zh", "2026-05-01", "2026年5月1日"),
        # Times.
        ("en", "at 9:30, 9:05 and 9:00", "at nine thirty, nine oh five and nine o\'clock"),
        ("de", "um 17:30 Uhr, 1:00 Uhr", "um siebzehn Uhr dreißig, ein Uhr"),
        # Units, in the plural and gender that they want.
        ("en", "1 km, 5 km, 60 km/h, 50%", "one kilometer, five kilometers, sixty kilometers per hour, fifty percent"),
        ("en", "-3 °C or 21.5°C", "minus three degrees Celsius or twenty-one point five degrees Celsius"),
        ("de", "1 km, 1 h, 2 h", "ein Kilometer, eine Stunde, zwei Stunden"),
        ("fr", "1 kg, 21 h", "un kilogramme, vingt-et-une heures"),
        ("ru", "5 км, 1,5 кг", "пять километров, один запятая пять килограмма"),
        ("ar", "5 km", "خمسة كيلومترات"),
        # Numbers: groups, fractions, years, ordinals, digits of other scripts.
        ("en", "1,200,007 of 3.14", "one million two hundred thousand seven of three point one four"),
        ("en", "the 21st of 1999", "the twenty-first of nineteen ninety-nine"),
        ("de", "1.234,56 oder 3.5", "eintausendzweihundertvierunddreißig Komma fünf sechs oder drei Komma fünf"),
        ("fr", "1 234 567 habitants", "un million deux cent trente-quatre mille cinq cent soixante-sept habitants"),
        ("hi", "१२ और 1,00,000", "बारह और एक लाख"),
        ("zh", "我们9点开门，3.5", "我们九点开门，三点五"),
    ],
)  # fmt: skip
def test_what_is_written_is_said(language: str, written: str, said: str) -> None:
    assert in_words(written, language) == said


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Call 555-1234, +49 30 1234567 or 5551234567."),
        ("en", "v1.2.3, 192.168.0.1, B12, x86, MP3, 5G, A4"),
        ("en", "007, 3-4, 1/2, 5:30 pm, 12:30:45"),
        ("en", "me2@example.com, example.com/5"),
        ("en", "2026-13-45 and 40/40/2026"),
        ("en", "12345678901234567890"),
        # Here the number agrees with the word, or is an ordinal that declines.
        ("de", "1 Katze, im 19. Jahrhundert"),
        ("es", "1 gato"),
        ("ru", "3 мая"),
        ("fr", "No numbers at all."),
    ],
)
def test_what_may_be_no_number_stays(language: str, text: str) -> None:
    assert in_words(text, language) == text


@pytest.mark.parametrize("language", ["", "xx", "english", "tlh", "../de", "123"])
def test_a_language_without_rules_has_no_words(language: str) -> None:
    assert number_words.number_words(language) is None


def test_without_the_packages_there_are_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unicode_rbnf", None)
    number_words._of.cache_clear()
    try:
        assert number_words.number_words("en") is None
    finally:
        number_words._of.cache_clear()


@given(
    parts=st.lists(st.sampled_from([*"0159 .,:/-$%\'€a", "km", "12", "May ", "st", "१", "年", " 000", "Uhr"]), max_size=20),
    language=st.sampled_from(["en", "de", "fr", "ru", "ar", "zh", "ja", "hi", "sv", "en-IN"]),
)  # fmt: skip
def test_no_text_is_an_error(parts: list[str], language: str) -> None:
    assert in_words("".join(parts), language).strip() or not "".join(parts).strip()


@pytest.mark.parametrize("part", ["1", "1,", "1 000 ", "1.", "$", "1/", "+1", "12:", "1-"])
def test_the_time_is_linear_in_the_text(part: str) -> None:
    def seconds(length: int) -> float:
        text = (part * length)[:length]
        begin = time.thread_time()
        in_words(text, "fr")
        return time.thread_time() - begin

    seconds(1_000)
    short, long = (min(seconds(length) for _ in range(3)) for length in (1_000, 8_000))
    assert long < 24 * short + 0.01
