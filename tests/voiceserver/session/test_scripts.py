"""A caller hears of what the voice cannot say: once for each script, and not for a name in a sentence."""

from __future__ import annotations

import pytest

from tests.voiceserver.session_bench import Bench
from voiceserver.events import events as ev
from voiceserver.session.scripts import foreign_script


@pytest.mark.parametrize(
    ("text", "languages", "script"),
    [
        ("我们九点开门。", "en", "Han"),
        ("九時に開きます。", "en de", "Hiragana"),
        ("Мы открываемся в девять.", "en", "Cyrillic"),
        ("نفتح في التاسعة", "en", "Arabic"),
        ("हम नौ बजे खुलते हैं।", "en", "Devanagari"),
        ("아홉 시에 엽니다.", "en", "Hangul"),
        ("Мы открываемся в девять.", "en uk", ""),
        ("九時", "ja", ""),
        # Unknown languages, Latin letters of any language, names, marks, digits.
        ("我们九点开门。", "", ""),
        ("Wir öffnen für Zoë um neun Uhr.", "en", ""),
        ("The word for tea is 茶, and it is good.", "en", ""),
        ("“…” – 9:30 €", "en", ""),
    ],
)
def test_more_than_half_of_the_letters_decide(text: str, languages: str, script: str) -> None:
    assert foreign_script(text, frozenset(languages.split())) == script


def errors(bench: Bench) -> list[str]:
    return [error.code for error in bench.all(ev.ErrorEvent)]


def test_a_caller_is_told_once_of_each_script_and_sees_the_text() -> None:
    bench = Bench()
    bench.session.server_snapshot.languages = frozenset({"en"})
    bench.converse("question")
    bench.answer("We open.", "我们九点开门。", "谢谢您的来电。", "Мы открываемся.")
    assert errors(bench) == ["script_unsupported"] * 2
    assert "Han" in bench.all(ev.ErrorEvent)[0].message
    assert "我们九点开门。" in "".join(text.text for text in bench.all(ev.ReplyText))


@pytest.mark.parametrize("languages", [frozenset(), frozenset({"en", "zh"})])
def test_a_voice_that_speaks_it_or_does_not_tell_is_not_complained_of(languages: frozenset[str]) -> None:
    bench = Bench()
    bench.session.server_snapshot.languages = languages
    bench.converse("question")
    bench.answer("我们九点开门。")
    assert errors(bench) == []


def test_who_reads_is_told_nothing() -> None:
    bench = Bench(speaks=False)
    bench.session.server_snapshot.languages = frozenset({"en"})
    bench.converse("question")
    bench.answer("我们九点开门。")
    assert errors(bench) == []
