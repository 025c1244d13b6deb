"""Pieces of a text, as they are put together and cut apart: with the spaces that its script wants.

Rule: Chinese and Japanese have no spaces between words or sentences, so nothing is put there and each character is a word of its
own; all other scripts are cut and joined at spaces.
"""

from __future__ import annotations

import re
from typing import Final

# Han, kana, bopomofo, and the punctuation and full-width forms beside them. Hangul is not: Korean has spaces.
_UNSPACED: Final = (
    "\u2e80-\u2fdf\u3000-\u312f\u3190-\u31ff\u3220-\u325f\u3280-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_CLOSING: Final = ",.;:!?)]}%\u2026\u0964"
_is_unspaced: Final = re.compile(f"[{_UNSPACED}]").match
_units: Final = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+").finditer


def gap(before: str, after: str) -> str:
    """What belongs between two pieces of a text: a space or nothing."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    if _is_unspaced(before[-1]) or _is_unspaced(after[0]):
        return ""
    return "" if after[0] in _CLOSING else " "


def join(pieces: list[str]) -> str:
    """The pieces that are not empty, as one text."""
    text = ""
    for piece in pieces:
        text += gap(text, piece) + piece
    return text


def count_words(text: str) -> int:
    """How many words ``text`` has, as ``split`` counts them."""
    return sum(1 for _ in _units(text))


def split(text: str, share: float) -> tuple[str, str]:
    """The first ``share`` (0 to 1) of the words of ``text``, rounded down, and the rest; both without space around them."""
    units = [unit.start() for unit in _units(text)]
    count = int(len(units) * share)
    at = units[count] if count < len(units) else len(text)
    return text[:at].strip(), text[at:].strip()
