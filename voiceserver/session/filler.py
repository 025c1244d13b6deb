"""What a caller hears while a reply is late, so that waiting is not dead air: a line spoken once at the start, or a tone.

::

    end of turn --after_ms--> no sound of the reply yet --> filler --its end + after_ms--> the next one, each once a reply

Rule: only where a reply is owed and nothing of it was said; never over a caller who speaks, never beside another sound of ours,
and never a stage's work. For the client it is the first audio of the reply, so a barge-in and ``played_ms`` treat it as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from voiceserver.announcements.earcons import tone
from voiceserver.announcements.prerendered import Prerendered

if TYPE_CHECKING:
    from voiceserver.pool import Pool
    from voiceserver.session.reply import Reply
    from voiceserver.session.state import SessionState

TONE: Final = "tone"  # in place of a text
RATES: Final = 8  # that lines are made for; callers with yet another one hear the tone
GRACE_MS: Final = (
    300.0  # after a transcript that was late; the answer may come before a filler would be through
)
DEFAULT_LANGUAGE: Final = "en"


class Fillers:
    """``texts``: one after the other, ``TONE`` for a tone; ``after_ms``: of silence before each; ``rates_hz``: of the callers to
    be expected, others are added when they come. ``language``: of the texts; callers in another one hear the tone."""

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
        """Have spoken what is missing. To be called again now and then."""
        for prerendered in self._by_rate.values():
            prerendered.make(pool)

    def audio(self, at: int, rate_hz: int, language: str = "") -> tuple[str, bytes]:
        """The text of filler ``at`` ("" for a tone) and its PCM16 little-endian mono at ``rate_hz``."""
        prerendered, text = self._prerendered(rate_hz), self.texts[at]
        is_understood = not language or _primary(language) == self._language
        spoken = prerendered.made.get(text) if prerendered is not None and is_understood else None
        return (text, spoken) if spoken else ("", tone(rate_hz))


def _primary(language: str) -> str:
    return language.replace("_", "-").partition("-")[0].casefold()


def due_ms(session: SessionState) -> float:
    """When the caller should hear the next filler; inf for never."""
    reply, fillers = session.reply, session.settings.fillers
    if reply is None or fillers is None or not _is_wanted(session, reply):
        return math.inf
    if reply.fillers >= len(fillers.texts):
        return math.inf
    grace_ms = min(GRACE_MS, fillers.after_ms)
    return max(
        reply.decided_ms + fillers.after_ms,
        reply.plays_until_ms + fillers.after_ms,
        reply.asked_ms + grace_ms,
    )


def _is_wanted(session: SessionState, reply: Reply) -> bool:
    busy_monitor = session.busy_monitor
    return (
        reply.speaks
        and not reply.has_spoken
        and not reply.create.is_out_of_band
        and session.place is None
        and not session.is_output_held
        and not (session.audio_input is not None and session.audio_input.capturing_turn)
        # Who is told aloud that the server is busy need not hear the same in other words.
        and not (session.options.audible_busy and busy_monitor is not None and busy_monitor.is_busy)
    )


def say(session: SessionState, now_ms: float) -> None:
    """``due_ms`` has come."""
    reply, fillers = session.reply, session.settings.fillers
    if reply is not None and fillers is not None:
        text, pcm = fillers.audio(reply.fillers, reply.output_rate_hz, session.options.language)
        session.speech_output.fill(reply, text, pcm, now_ms)
