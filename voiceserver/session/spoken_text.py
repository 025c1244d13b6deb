"""The sentences of a reply: what the client is shown, what the voice is given of each, and where the audio of each ends.

Rule: thoughts of a reasoning model never get in. A sentence without a word for the voice is not sent to it, and ends where the
one before it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from voiceserver.session.text import gap
from voiceserver.session.thoughts import Thoughts

if TYPE_CHECKING:
    from voiceserver.session.speakable import Speakable

LONG_WORD: Final = 64  # letters without a space; longer is an address, or no word at all


class SpokenText:
    """sentences: with their spaces, as shown. spoken: for each, the prose; "" where there is nothing to say. audio_ends: samples
    of the whole reply at the end of each sentence that is through. ``language``: of the session, "" unknown."""

    __slots__ = ("_speakable", "_thoughts", "audio_ends", "language", "sentences", "spoken")

    def __init__(self, language: str = "") -> None:
        self.language = language
        self._thoughts = Thoughts()
        self._speakable: Speakable | None = None
        self.sentences: list[str] = []
        self.spoken: list[str] = []
        self.audio_ends: list[int] = []

    def answer_in(self, piece: str) -> str:
        """What of the engine's next piece is no thought."""
        return self._thoughts.feed(piece)

    def rest_of_answer(self) -> str:
        """The engine has said all: what was held because it might have become a tag."""
        return self._thoughts.finish()

    def add(self, text: str, spoken: str | None = None) -> str:
        """The next sentence, as it is shown: with the space that it wants before it. ``spoken``: its prose, if that is known."""
        shown = self._gap(text) + text
        self.sentences.append(shown)
        self.spoken.append(self._prose(shown) if spoken is None else spoken)
        return shown

    def _gap(self, text: str) -> str:
        """What belongs before ``text``: nothing, where a word was cut because it is too long for one sentence."""
        last = self.sentences[-1] if self.sentences else ""
        word = last[-LONG_WORD:]
        is_cut = len(word) == LONG_WORD and not any(map(str.isspace, word)) and word[-1] not in ".!?"
        return "" if is_cut else gap(last, text)

    def _prose(self, text: str) -> str:
        if self._speakable is None:
            # Loaded by a server that speaks only.
            from voiceserver.session.speakable import Speakable

            self._speakable = Speakable(self.language)
        return self._speakable.feed(text)

    def settle(self, samples: int) -> None:
        """The sentences without a word that come next end at ``samples``."""
        while len(self.audio_ends) < len(self.spoken) and not self.spoken[len(self.audio_ends)]:
            self.audio_ends.append(samples)

    def finish(self, sentence: int, samples: int) -> None:
        """All audio of ``sentence`` (1-based) is there: ``samples`` in all."""
        while len(self.audio_ends) < sentence:
            self.audio_ends.append(samples)
        self.settle(samples)


def load(language: str = "") -> None:
    """What the first sentence in ``language`` needs, so that no caller waits for it. For a server that speaks."""
    from voiceserver.session.speakable import Speakable

    Speakable(language).feed("**Ready** at https://example.com/, 1")
