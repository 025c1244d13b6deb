"""Which script a text is in, and whether a voice that speaks certain languages can say it.

Rule: a voice that does not tell its languages says everything. A foreign name in a sentence is no foreign sentence: more than
half of the letters decide.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Final

from voiceserver.session.settings import ServerSnapshot

# By the first word of a letter's name in Unicode; what is not here is Latin.
_LANGUAGES: Final[dict[str, str]] = {
    "CYRILLIC": "ru uk be bg mk sr kk ky mn tg tt ba cv",
    "ARABIC": "ar fa ur ps sd ug ku",
    "CJK": "zh cmn yue ja nan hak",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "DEVANAGARI": "hi mr ne sa kok bpy",
    "BENGALI": "bn as bpy",
    "GREEK": "el grc",
    "ARMENIAN": "hy hyw",
    "ETHIOPIC": "am ti",
    "MYANMAR": "my shn",
    "HEBREW": "he yi",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "ORIYA": "or",
    "SINHALA": "si",
    "GEORGIAN": "ka",
    "CHEROKEE": "chr",
}
_OF_SCRIPT: Final = {script: frozenset(names.split()) for script, names in _LANGUAGES.items()}
_LOOKED_AT: Final = 128  # letters of a sentence


def foreign_script(text: str, languages: frozenset[str]) -> str:
    """The script of ``text``, where a voice of ``languages`` (primary subtags; empty: unknown) cannot say it; "" else."""
    if not languages:
        return ""
    letters = [letter for letter in text[:_LOOKED_AT] if letter.isalpha()]
    counts = Counter(unicodedata.name(letter, "LATIN").partition(" ")[0] for letter in letters)
    if not counts:
        return ""
    script, count = counts.most_common(1)[0]
    of_script = _OF_SCRIPT.get(script)
    if of_script is None or of_script & languages or count * 2 <= len(letters):
        return ""
    return "Han" if script == "CJK" else script.capitalize()


class ScriptWatch:
    """What the voice of one session cannot say, each script once. ``server``: what its voice speaks now."""

    __slots__ = ("_server", "_told")

    def __init__(self, server: ServerSnapshot) -> None:
        self._server = server
        self._told: set[str] = set()

    def look(self, prose: str) -> str:
        """The script to tell the caller of; "" for none."""
        script = foreign_script(prose, self._server.languages)
        if not script or script in self._told:
            return ""
        self._told.add(script)
        return script
