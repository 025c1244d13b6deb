"""The server's lines in one format: its own from the start, and those of a language once a caller has it.

Rule: a language is spoken only by a voice that says that it speaks it; else the caller hears the server's own line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from voiceserver.announcements.lines import TRANSLATIONS
from voiceserver.announcements.prerendered import Prerendered
from voiceserver.wire.request import line_name, primary_language

if TYPE_CHECKING:
    from voiceserver.pool import Pool


class SpokenLines:
    """``made``: clips by ``line_name``."""

    __slots__ = ("_encode", "_own", "_rate_hz", "_translated", "made")

    def __init__(self, lines: Mapping[str, str], rate_hz: int, encode: Callable[[bytes], bytes]) -> None:
        self.made: dict[str, bytes] = {}
        self._rate_hz = rate_hz
        self._encode = encode
        self._own = Prerendered(lines, rate_hz, encode, made=self.made)
        self._translated: dict[str, Prerendered] = {}

    def want(self, language: str) -> None:
        """A caller has this language, BCP 47."""
        primary = primary_language(language)
        if primary not in TRANSLATIONS or primary in self._translated:
            return
        lines = {line_name(name, primary): text for name, text in TRANSLATIONS[primary].items()}
        self._translated[primary] = Prerendered(lines, self._rate_hz, self._encode, primary, self.made)

    def make(self, pool: Pool | None) -> None:
        """Have spoken what is missing."""
        self._own.make(pool)
        for language, prerendered in self._translated.items():
            if pool is not None and language in pool.speech.languages:
                prerendered.make(pool)
