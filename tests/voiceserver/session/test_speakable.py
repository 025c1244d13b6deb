"""The voice is given prose: no marks, no addresses, no pictures; and plain prose as it is."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.session.sentences import SentenceCutter
from voiceserver.session.speakable import Speakable
from voiceserver.session.spoken_text import SpokenText


def spoken(text: str, language: str = "", size: int = 10_000) -> list[str]:
    """What the voice is given of an answer that comes in deltas of ``size``."""
    cutter, words = SentenceCutter(), SpokenText(language)
    pieces = [piece for at in range(0, len(text), size) for piece in cutter.feed(text[at : at + size])]
    for piece in [*pieces, *cutter.finish()]:
        shown = words.answer_in(piece)
        if shown:
            words.add(shown)
    if rest := words.rest_of_answer():
        words.add(rest)
    return [prose for prose in words.spoken if prose]


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        # CommonMark 0.31, sections 4 and 5: blocks.
        ("# Hours\nWe open at nine.", "Hours. We open at nine."),
        ("### Hours ###\n\nNine.", "Hours. Nine."),
        ("Hours\n=====\nNine.", "Hours Nine."),
        ("Done.\n\n* * *\n\nNext.", "Done. Next."),
        ("> We open\n> at nine.", "We open at nine."),
        ("- tea\n- coffee\n", "tea. coffee."),
        ("+ tea\n  * green\n  * black\n", "tea. green. black."),
        ("- [x] tea\n- [ ] cake\n", "tea. cake."),
        ("1. **Bread**: flour\n2) water\n", "1. Bread: flour. 2) water."),
        ("Run:\n```python\nprint('a')\n\nx = 1\n```\nThat is all.", "Run: code. That is all."),
        ("~~~\na. b\n~~~\nDone.", "code. Done."),
        ("See [here].\n\n[here]: https://example.com/x\n", "See here."),
        # Inline.
        ("**Nine** and *ten* and ***eleven***.", "Nine and ten and eleven."),
        ("__Nine__ and _ten_.", "Nine and ten."),
        ("It is ~~eight~~ nine.", "It is eight nine."),
        ("Use `tea` and ``a`b``.", "Use tea and ab."),
        ("[the hours](https://example.com/a?b=c \"title\") please.", "the hours please."),
        ("![a cat](cat.png) and <https://example.com/x>.", "a cat and example.com."),
        ("Tom &amp; Ann, 3 &lt; 4.", "Tom & Ann, 3 < 4."),
        ("5 \\* 3, a\\_b.", "5 × 3, a b."),
        # Bold over two sentences, and what its pair was lost of.
        ("**We open. Come early.** Then go.", "We open. Come early. Then go."),
        ("**重要：**内容です。", "重要：内容です。"),
        ("A *lone star and a lone_ line.", "A lone star and a lone line."),
        # GitHub tables.
        ("| day | hour |\n|:---|---:|\n| Monday | nine |\n", "day hour. Monday nine."),
        ("day | hour\n--- | ---\nMonday | nine\n", "day hour. Monday nine."),
        # Addresses.
        ("Go to https://www.example.com/a/b?c=d#e.", "Go to example.com."),
        ("Go to http://user:pw@example.com:8080/x (or ftp://files.example.org/y).", "Go to example.com (or files.example.org)."),
        ("See docs.example.com/start, or write to me@example.com.", "See docs.example.com, or write to me@example.com."),
        ("[https://a.example/x](https://a.example/x) is it.", "a.example is it."),
        ("请看https://example.com/x。谢谢", "请看example.com。 谢谢"),
        ("As shown [1], and there[^2]【3†source】.", "As shown, and there."),
        # UTS #51.
        ("Nine \U0001f600\U0001f389!", "Nine!"),
        ("We \U0001f468\u200d\U0001f469\u200d\U0001f467 are \U0001f44d\U0001f3fd here \U0001f1e9\U0001f1ea.", "We are here."),
        ("\u2705 Done. \u2b50\u2b50\u2b50 1\ufe0f\u20e3 first", "Done. 1 first"),
        ("\u2764\ufe0f love, \u00a9 2024, 21 \u00b0C, \u2122.", "love, © 2024, 21 °C, ™."),
        ("Monday \u2192 nine -> ten => \u21d2 end.", "Monday nine ten end."),
        ("\u2610 tea \u2022 \u2588\u2588 \u250c\u2500\u2510", "tea"),
        # Characters that are no letters at all.
        ("We open\x00 at \x1b[1mnine\x1b[0m\x07.", "We open at nine."),
        ("We \u202eopen\u202c at\u200b nine\ufeff.", "We open at nine."),
        ("<speak>We <break time='60s'/>open.</speak>", "We open."),
        ("We open [[f@nEm]] at nine.", "We open f@nEm at nine."),
        ("چای می\u200cخواهید؟", "چای می\u200cخواهید؟"),
        ("क्\u200dष है।", "क्\u200dष है।"),
        # Nothing at all.
        ("\U0001f44d", ""),
        ("...", ""),
        ("---", ""),
        ("* * *\n\n***", ""),
        # Prose stays.
        ("C++ and C#, a/b, £5, 50%, 9:30; \u201cyes\u201d \u2013 it\u2019s 3 \u2212 2 = 1.", None),
        ("We open at nine, and close (sometimes) at 17:00. A-ha!", None),
    ],
)  # fmt: skip
def test_an_answer_is_prose_for_the_voice(text: str, prose: str | None) -> None:
    assert " ".join(spoken(text)) == (text if prose is None else prose)
    assert spoken(text, size=1) == spoken(text)


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        # GitHub and its kin: names of emoji, notes, keys, details, task lists; nodejs, docs.github.com.
        ("Hello :smile: there :+1:", "Hello there"),
        ("> [!NOTE]\n> We open at nine.", "We open at nine."),
        ("Press <kbd>Ctrl</kbd>+<kbd>C</kbd>.", "Press Ctrl+C."),
        ("<details><summary>More</summary>We open.</details>", "More We open."),
        ("- [ ] buy **milk**\n- [x] ~~sell~~ tea\n", "buy milk. sell tea."),
        # UTS #51: keycaps, a skin, a row, a flag of tags.
        ("Steps: 1\ufe0f\u20e3 tea 2\ufe0f\u20e3 cake.", "Steps: 1 tea 2 cake."),
        ("Hi \U0001f44b\U0001f3fd! How are you? \U0001f642\U0001f642\U0001f642", "Hi! How are you?"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f England.", "England."),
        # HTML entities, hard breaks (CommonMark 6.7), footnotes, a picture within a line.
        ("Tea &mdash; or coffee&nbsp;now.", "Tea — or coffee now."),
        ("Line one  \nline two\\\nline three.", "Line one line two line three."),
        ("[^1]: A note.\nWe open.[^1]", "We open."),
        ("![](https://example.com/a.png)We open.", "We open."),
        # RFC 2397, mathematics, highlights of notes.
        ("See data:image/png;base64,iVBORw0KGgoAAAANSUhEUg== here.", "See here."),
        ("$$E = mc$$ is it.", "E = mc is it."),
        ("We open ==at nine==.", "We open at nine."),
        ("Open `https://example.com/a/b?c=d` now.", "Open example.com now."),
        # These are none.
        ("At 9:30: tea, 1 == 1.", "At 9:30: tea, 1 1."),
        ("Note: we open. Ratio 3:2:1.", "Note: we open. Ratio 3:2:1."),
    ],
)  # fmt: skip
def test_more_that_is_written_for_the_eye(text: str, prose: str) -> None:
    assert " ".join(spoken(text)) == prose
    assert spoken(text, size=1) == spoken(text)


def test_code_is_named_in_the_language_of_the_session() -> None:
    assert spoken("```\nx\n```", "es-MX") == ["código."]
    assert spoken("```\nx\n```", "xx") == ["code."]


def test_numbers_are_words_of_the_language_of_the_session() -> None:
    assert spoken("- **5 km**\n- [3 kg](https://example.com/7)\n", "en") == [
        "five kilometers.",
        "three kilograms.",
    ]
    assert spoken("Am 3. Mai um 9:30 Uhr.", "de-DE", size=1) == ["Am dritten Mai um neun Uhr dreißig."]
    assert spoken("We open at 9.") == ["We open at 9."]


def test_an_address_of_two_thousand_characters_is_a_domain() -> None:
    assert spoken("See https://example.com/" + "x/" * 1_000 + " for more.") == [
        "See",
        "example.com",
        "for more.",
    ]
    assert spoken("See [here](https://example.com/" + "x/" * 1_000 + ") for more.") == [
        "See",
        "here",
        "for more.",
    ]


PARTS = st.sampled_from(
    [
        *(
            "**",
            "*",
            "_",
            "`",
            "```",
            "~~",
            "#",
            "-",
            "|",
            ">",
            "[",
            "]",
            "(",
            ")",
            "!",
            ".",
            ",",
            " ",
            "\n",
            "\n\n",
            "\\",
        ),
        *(
            "https://a.example/b",
            "www.",
            "<b>",
            "</b>",
            "<think>",
            "</think>",
            "&amp;",
            "\x1b[1m",
            "\u200d",
            "\u2192",
            "\U0001f600",
        ),
        *("a", "b", "word", "Wort", "3", "3.5", "\u00e9", "\u5143", "\u0964"),
    ]
)


@given(parts=st.lists(PARTS, max_size=40), size=st.integers(1, 7))
def test_cutting_does_not_change_the_speech(parts: list[str], size: int) -> None:
    text = "".join(parts)
    assert spoken(text, size=size) == spoken(text)


@given(parts=st.lists(PARTS, max_size=40))
def test_what_is_spoken_has_words_and_none_of_the_marks(parts: list[str]) -> None:
    for prose in spoken("".join(parts)):
        assert any(map(str.isalnum, prose))
        assert not {"\n", "`", "[", "\\", "\U0001f600", "\u2192", "\x1b"} & set(prose)
        assert "  " not in prose
        assert prose == prose.strip()


@pytest.mark.parametrize(
    "part",
    ["[", "*", "`", "<", "![](", "[a](", "*a ", "_a_", "(https://", "a.b.", "&", "<a ", "|", "> ", "\\", "[1", "![[", "<!--"],
)  # fmt: skip
def test_the_time_is_linear_in_the_text(part: str) -> None:
    def seconds(length: int) -> float:
        speakable, text = Speakable(), (part * length)[:length]
        begin = time.thread_time()
        speakable.feed(text)
        return time.thread_time() - begin

    seconds(2_000)
    short, long = (min(seconds(length) for _ in range(4)) for length in (2_000, 16_000))
    assert long < 24 * short + 0.01


def test_a_server_that_does_not_speak_loads_none_of_it() -> None:
    script = (
        "import sys, voiceserver.session.session, voiceserver.server.build\n"
        "print({'regex', 'markdown_it'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"
