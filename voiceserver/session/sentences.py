"""Cuts streamed text into sentences as they complete, so that speech can begin before the answer is whole.

``"".join(pieces)`` is the text, to the letter, whatever way it was split on its arrival: every decision depends on the
text up to the cut and on what follows it, never on where a delta ended. Linear in the text.

The rules are those of Unicode (UAX #29, "Sentence Boundaries", with its property Sentence_Break) for all scripts. A sentence
ends after ``STerm Close*`` (the marks of Hindi, Arabic, Amharic, Burmese …) and after ``ATerm Close* Sp+`` (a full stop), unless
a small letter follows. Tailored, as UAX #29 allows:

======================== =================================================================================================
``. ! ?``                end only before white space, so that an address or ``3.5`` stays whole
``.``                    not after an abbreviation of the language, an initial, a list number, an ordinal (German ``3. Mai``)
``;``                    a question mark after Greek letters, as in CLDR
Thai, Lao, Khmer         have no mark: a space ends a phrase
a small letter after .   matters where the word before has no vowel, or may be an abbreviation: else the text is small
======================== =================================================================================================

The first piece may end at a comma: half a sentence early rather than a whole one late. No piece is longer than ``max_chars``.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from voiceserver.session.abbreviations import (
    MONTHS,
    NUMBERED,
    ORDINALS,
    STARTERS,
    STREETS,
    abbreviations,
)

if TYPE_CHECKING:
    import regex

MAX_CHARS: Final = 240
FIRST_CLAUSE_CHARS: Final = 32  # a first clause this long is worth saying on its own
PHRASE_CHARS: Final = 12  # a first phrase in a script without marks
LONG_PHRASE_CHARS: Final = 60  # a later one
LONG_CHARS: Final = 1_000  # a text longer than this is more than one sentence, whatever its engine says
_STEP: Final = 512  # characters that are looked at together, so that a long delta is cut in linear time

_CLAUSES: Final = frozenset(",;:—،؛፣፤՝·")
_WIDE_CLAUSES: Final = frozenset("，、；：")
_BREAKS: Final = frozenset("\n\u0085\u2028\u2029")
_NARROW_ENDINGS: Final = frozenset(".!?…\u2024\ufe52")
_FULL_STOPS: Final = frozenset(".\u2024\ufe52")


class _Patterns(NamedTuple):
    """Compiled at the first use: a server that cuts no text does not load ``regex``."""

    stop: regex.Pattern[str]  # where a piece may end
    run: regex.Pattern[str]  # terminators and what closes with them
    last_word: regex.Pattern[str]
    next_word: regex.Pattern[str]
    greek: regex.Pattern[str]
    german: regex.Pattern[str]
    vowel: regex.Pattern[str]  # or a letter of a script of which we do not know
    clause_end: regex.Pattern[str]
    word_end: regex.Pattern[
        str
    ]  # before a space, or between letters of a script that is written without spaces


@cache
def _patterns() -> _Patterns:
    import regex

    return _Patterns(
        stop=regex.compile(
            r"[\p{SB=STerm}\p{SB=ATerm}…།༎\n\u0085\u2028\u2029,;:—،؛፣፤՝·，、；：\u037e]"
            r"|(?<=[\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}]) "
        ),
        run=regex.compile(r"""[\p{SB=STerm}\p{SB=ATerm}…།༎\u037e\p{Pe}\p{Pf}"'*_“]*+"""),
        last_word=regex.compile(r"""[^\s(\[\p{Pi}"'„]*+$"""),
        next_word=regex.compile(r"""[\s\p{P}]*+([\p{L}\p{M}\p{N}]++)(.?)""", regex.DOTALL),
        greek=regex.compile(r"\p{Script=Greek}[\p{Pe}\p{Pf}\"']*+$"),
        german=regex.compile(r"(?i)\b(?:und|der|das|ist|nicht|eine?|wir|im|den|dem|zum|vom|für|seit|bis)\b"),
        vowel=regex.compile(
            r"[aeiouyäöüåæøœáàâãéèêëíìîïóòôõúùûýаеёиоуыэюяієїαεηιουωάέήίόύώ0-9]|[^\p{Latin}\p{Greek}\p{Cyrillic}\p{P}]"
        ),
        clause_end=regex.compile(r"[,;:—،؛፣፤՝](?=\s)|[，、；：]"),
        word_end=regex.compile(
            r"(?<=\S)(?=\s)|(?<=[\p{Script=Thai}\p{Script=Lao}\p{Script=Tibetan}\p{Script=Myanmar}\p{Script=Khmer}"
            r"\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Han}])"
        ),
    )


def load() -> None:
    """What the first SentenceCutter needs: so that no caller waits for it."""
    _patterns()


def spoken_pieces(text: str, language: str = "") -> list[str]:
    """``text`` of a reply engine as it is, or in sentences if it is long: nobody waits for a page to be spoken in one piece, and
    a tts engine takes only so much."""
    if len(text) <= LONG_CHARS:
        return [text]
    cutter = SentenceCutter(language=language)
    return [*cutter.feed(text), *cutter.finish()]


class SentenceCutter:
    """``feed`` deltas, take finished pieces; ``finish`` gives the rest. Leading spaces stay with the piece that they lead.
    ``language``: BCP 47, of the text; "" unknown."""

    __slots__ = (
        "_buffer",
        "_first_clause_chars",
        "_is_first",
        "_language",
        "_max_chars",
        "_scanned",
    )

    def __init__(
        self, max_chars: int = MAX_CHARS, first_clause_chars: int = FIRST_CLAUSE_CHARS, language: str = ""
    ) -> None:
        self._max_chars = max_chars
        self._first_clause_chars = first_clause_chars
        self._language = language
        self._buffer = ""
        self._scanned = 0  # everything before it was decided: no cut
        self._is_first = True

    def feed(self, delta: str) -> list[str]:
        """The pieces that ``delta`` completes."""
        pieces: list[str] = []
        for at in range(0, len(delta), _STEP):
            self._buffer += delta[at : at + _STEP]
            pieces += self._pieces(is_last=False)
        return pieces

    def finish(self) -> list[str]:
        """The rest, without the white space at its end; nothing more may be fed."""
        pieces = self._pieces(is_last=True)
        rest, self._buffer, self._scanned = self._buffer.rstrip(), "", 0
        return [*pieces, rest] if rest else pieces

    @property
    def has_rest(self) -> bool:
        """Something was fed that is not in a piece yet."""
        return bool(self._buffer) and not self._buffer.isspace()

    def take(self) -> str:
        """What can be spoken of a sentence that does not end in time: to its last clause or word; "" if nothing can. A word that
        may go on stays."""
        text, patterns = self._buffer, _patterns()
        clause = max((found.end() for found in patterns.clause_end.finditer(text)), default=0)
        word = max((found.end() for found in patterns.word_end.finditer(text)), default=0)
        end = clause if clause * 2 >= word else word
        if not _is_speakable(text[:end]):
            return ""
        self._buffer, self._scanned, self._is_first = text[end:], 0, False
        return text[:end]

    def _pieces(self, is_last: bool) -> list[str]:
        pieces: list[str] = []
        while cut := self._next_cut(is_last):
            pieces.append(self._buffer[:cut])
            self._buffer = self._buffer[cut:]
            self._scanned = 0
            self._is_first = False
        return pieces

    def _next_cut(self, is_last: bool) -> int:
        """Where the next piece ends; 0: not known yet."""
        text, limit = self._buffer, self._max_chars
        stop = _patterns().stop
        while match := stop.search(text, self._scanned):
            at = match.start()
            if at >= limit:
                break
            end = self._end_at(at, is_last)
            # Until what follows is known, only the limit may decide.
            if end is None or end > limit:
                break
            if end and _is_speakable(text[:end]):
                return end
            self._scanned = max(at + 1, _run_end(text, at))
        if len(text) <= limit:
            return 0
        return _forced_cut(text, limit)

    def _end_at(self, at: int, is_last: bool) -> int | None:
        """The end of the piece whose mark is at ``at``; 0: none ends here; None: that depends on what follows."""
        text = self._buffer
        mark = text[at]
        if mark in _BREAKS:
            return at + 1
        if mark == " ":
            return at if at >= (PHRASE_CHARS if self._is_first else LONG_PHRASE_CHARS) else 0
        is_question = mark == "\u037e" or (mark == ";" and _patterns().greek.search(text, 0, at) is not None)
        if not is_question and (mark in _CLAUSES or mark in _WIDE_CLAUSES):
            return self._clause_end(at, is_last)
        end = _run_end(text, at + 1)
        if end == len(text):
            return None if not is_last else 0
        if mark not in _NARROW_ENDINGS and not is_question:
            return end
        if not text[end].isspace():
            return 0
        return self._narrow_end(at, end, is_last)

    def _narrow_end(self, at: int, end: int, is_last: bool) -> int | None:
        """Of a mark that ends a sentence only before white space, which is there."""
        text = self._buffer
        is_full_stop = end == at + 1 and text[at] in _FULL_STOPS
        if not is_full_stop and not _depends_on_case(text[at:end]):
            return end
        word = _Word(text[:at], self._language) if is_full_stop else None
        if word is not None and word.is_title:
            return 0
        if word is not None and word.is_plain:
            return end
        found = _patterns().next_word.match(text, end)
        if found is None:
            return None if not is_last else 0
        following, is_whole = found[1], bool(found[2]) or is_last
        if word is not None and word.is_numbered and following[0].isnumeric():
            return 0
        if word is not None and (word.is_number or word.is_street):
            if not is_whole:
                return None
            if word.is_ordinal_before(following) or word.is_street_before(following):
                return 0
            if word.is_number:
                return end
        return 0 if following[0].islower() else end

    def _clause_end(self, at: int, is_last: bool) -> int | None:
        if not self._is_first or at < self._first_clause_chars:
            return 0
        text = self._buffer
        if text[at] in _WIDE_CLAUSES:
            return at + 1
        if at + 1 == len(text):
            return None if not is_last else 0
        return at + 1 if text[at + 1].isspace() else 0


def _run_end(text: str, at: int) -> int:
    """Behind the marks and closing quotes that begin at ``at``; a quote that opens is none of them."""
    found: Any = _patterns().run.match(text, at)
    end: int = found.end()
    # The mark that opens a quotation in English closes one in German.
    while end > at and text[end - 1] == "“" and end < len(text) and not text[end].isspace():
        end -= 1
    return end


def _depends_on_case(run: str) -> bool:
    """Whether a run of marks and closers ends a sentence only if no small letter follows: an ellipsis, quoted speech."""
    return "…" in run or ".." in run or run[-1] not in ".!?"


class _Word:
    """What stands before a full stop."""

    __slots__ = ("_before", "_language", "_lower", "_word")

    def __init__(self, before: str, language: str) -> None:
        found: Any = _patterns().last_word.search(before)
        self._before = before
        self._language = language.lower().replace("_", "-").partition("-")[0]
        self._word: str = found[0] if found is not None else ""
        self._lower = self._word.lower()

    @property
    def is_title(self) -> bool:
        """No sentence ends after it, whatever follows."""
        word = self._word
        if self._before.strip() == word and word.isdecimal() and len(word) <= 3:
            return True  # the number of a list
        if len(word) == 1 and word.isupper() and word != "I":
            return True
        if self._lower in abbreviations(self._language).titles:
            return True
        has_dots = "." in word and all(len(part) == 1 and part.isalpha() for part in word.split("."))
        return has_dots and not self.is_suffix

    @property
    def is_plain(self) -> bool:
        """A word as any other. One without a vowel may be an abbreviation that no list has (``hrs.``)."""
        others = (self.is_suffix, self.is_numbered, self.is_number, self.is_street)
        return not any(others) and _patterns().vowel.search(self._lower) is not None

    @property
    def is_suffix(self) -> bool:
        return self._lower in abbreviations(self._language).suffixes

    @property
    def is_numbered(self) -> bool:
        return self._lower in NUMBERED

    def is_ordinal_before(self, following: str) -> bool:
        """``3. Mai``, ``im 19. Jahrhundert``: where the language is not known, a German word before it tells."""
        if not self.is_number:
            return False
        if following.lower() in MONTHS or self._language in ORDINALS:
            return True
        return not self._language and _patterns().german.search(self._before) is not None

    @property
    def is_number(self) -> bool:
        return self._word.isdecimal() and len(self._word) <= 3

    @property
    def is_street(self) -> bool:
        return self._lower in STREETS

    def is_street_before(self, following: str) -> bool:
        return self.is_street and following.lower() not in STARTERS


def _is_speakable(piece: str) -> bool:
    return any(letter.isalnum() for letter in piece)


def _forced_cut(text: str, limit: int) -> int:
    """No piece is longer than ``limit``: end it at the last clause or word that fits."""
    window = text[:limit]
    for position in range(limit - 1, limit // 2, -1):
        mark = window[position]
        if mark in _WIDE_CLAUSES or (mark in _CLAUSES and text[position + 1].isspace()):
            return position + 1
    for position in range(limit - 1, 0, -1):
        if window[position].isspace() and window[:position].strip():
            return position
    return limit
