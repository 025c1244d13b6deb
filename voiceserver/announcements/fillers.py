"""Lines that a caller hears while a reply is late: spoken once at the start, or a tone.

When one is due is decided by ``voiceserver.session.filler``. Rule: never a stage's work while a caller waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from voiceserver.announcements.earcons import tone
from voiceserver.announcements.prerendered import Prerendered

if TYPE_CHECKING:
    from voiceserver.config.schema import SessionConfig
    from voiceserver.pool import Pool

# In place of a text.
TONE: Final = "tone"
# How many sample rates lines are made for; callers with yet another one hear the tone.
RATES: Final = 8
# Of the Realtime wire, and of telephones.
USUAL_RATES_HZ: Final = (24_000, 8_000)
DEFAULT_LANGUAGE: Final = "en"


class Fillers:
    """The fillers of a server, made once for all its sessions.

    texts: one after the other; ``TONE`` stands for a tone.
    after_ms: silence before each.
    rates_hz: sample rates of the callers to be expected; others are added when they come.
    language: of the texts; callers in another language hear the tone.
    """

    __slots__ = ("_by_rate", "_language", "_lines", "after_ms", "texts")

    def __init__(
        self, texts: Sequence[str], after_ms: float, rates_hz: Iterable[int], language: str = ""
    ) -> None:
        self.texts = tuple(texts)
        self.after_ms = after_ms
        self._language = _primary(language or DEFAULT_LANGUAGE)
        self._lines = {text: text for text in self.texts if text != TONE}
        self._by_rate: dict[int, Prerendered] = {}
        for rate_hz in rates_hz:
            self._prerendered(rate_hz)

    def _prerendered(self, rate_hz: int) -> Prerendered | None:
        prerendered = self._by_rate.get(rate_hz)
        if prerendered is None and self._lines and len(self._by_rate) < RATES:
            prerendered = self._by_rate[rate_hz] = Prerendered(self._lines, rate_hz, bytes)
        return prerendered

    def make(self, pool: Pool | None) -> None:
        """Have the missing lines spoken. To be called again now and then."""
        for prerendered in self._by_rate.values():
            prerendered.make(pool)

    def audio(self, index: int, rate_hz: int, language: str = "") -> tuple[str, bytes]:
        """The text of filler ``index`` ("" for a tone) and its PCM16 little-endian mono at ``rate_hz``."""
        prerendered, text = self._prerendered(rate_hz), self.texts[index]
        is_understood = not language or _primary(language) == self._language
        spoken = prerendered.made.get(text) if prerendered is not None and is_understood else None
        return (text, spoken) if spoken else ("", tone(rate_hz))


def _primary(language: str) -> str:
    return language.replace("_", "-").partition("-")[0].casefold()


def fillers_from(config: SessionConfig) -> Fillers | None:
    """None: the server has none."""
    texts = [text.strip() for text in config.filler.split("|") if text.strip()]
    if not texts:
        return None
    rates_hz = dict.fromkeys((config.output_rate_hz, *USUAL_RATES_HZ))
    return Fillers(texts, config.filler_after_ms, rates_hz, config.language)
