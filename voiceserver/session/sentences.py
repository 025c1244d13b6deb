"""Cuts streamed text into sentences as they complete, so that speech can begin before the answer is whole.

``"".join(pieces)`` is the text, to the letter, whatever way it was split on its arrival: every decision depends on the
text up to the cut and on what follows it, never on where a delta ended.

A sentence ends after ``. ! ? …`` with its closing quotes when space follows, at once after ``。！？``, and at a line break.
It does not end after an abbreviation, an initial, a list number, or an ellipsis that goes on in lower case. The first
piece may end at a comma, because whoever waits is grateful for half a sentence; no piece is longer than ``max_chars``.
"""

from __future__ import annotations

import re
from typing import Final

MAX_CHARS: Final = 240
FIRST_CLAUSE_CHARS: Final = 32  # a first clause this long is worth saying on its own
LONG_CHARS: Final = 1_000  # a text longer than this is more than one sentence, whatever its engine says

_STOP: Final = re.compile(r"[.!?…。！？．｡\n,;:—，、；：]")
_ENDINGS: Final = frozenset(".!?…")
_WIDE_ENDINGS: Final = frozenset("。！？．｡")
_CLAUSES: Final = frozenset(",;:—")
_WIDE_CLAUSES: Final = frozenset("，、；：")
_CLOSERS: Final = frozenset("\"'”’»)]}*_」』）】》〉")
_LAST_WORD: Final = re.compile(r"[^\s(\[\"'“‘«]*$")
_LIST_NUMBER: Final = re.compile(r"\s*\d{1,3}$")

_FOLLOWED: Final = (
    "mr mrs ms dr prof rev hon gen col capt lt sgt st mt ft gov sen rep messrs mme mlle hr fr vs nos nr figs vol pp "
    "approx ca cf e.g i.e z.b d.h u.a viz al eq sec dept est jan feb apr aug sept oct nov tue tues thu thur thurs"
)
_ENDING: Final = "jr sr inc ltd co corp bros etc usw bzw a.m p.m"

# Never the end of a sentence: a name or a number follows.
_TITLES: Final = frozenset(_FOLLOWED.split())
# The end of a sentence only when a capital letter follows.
_SUFFIXES: Final = frozenset(_ENDING.split())


def spoken_pieces(text: str) -> list[str]:
    """``text`` of a reply engine as it is, or in sentences if it is long: nobody waits for a page to be spoken in one piece, and
    a tts engine takes only so much."""
    if len(text) <= LONG_CHARS:
        return [text]
    cutter = SentenceCutter()
    return [*cutter.feed(text), *cutter.finish()]


class SentenceCutter:
    """``feed`` deltas, take finished pieces; ``finish`` gives the rest. Leading spaces stay with the piece that they lead."""

    __slots__ = ("_buffer", "_first_clause_chars", "_is_first", "_max_chars", "_scanned")

    def __init__(self, max_chars: int = MAX_CHARS, first_clause_chars: int = FIRST_CLAUSE_CHARS) -> None:
        self._max_chars = max_chars
        self._first_clause_chars = first_clause_chars
        self._buffer = ""
        self._scanned = 0  # everything before it was decided: no cut
        self._is_first = True

    def feed(self, delta: str) -> list[str]:
        """The pieces that ``delta`` completes."""
        self._buffer += delta
        return self._pieces(is_last=False)

    def finish(self) -> list[str]:
        """The rest, without the white space at its end; nothing more may be fed."""
        pieces = self._pieces(is_last=True)
        rest, self._buffer, self._scanned = self._buffer.rstrip(), "", 0
        return [*pieces, rest] if rest else pieces

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
        while match := _STOP.search(text, self._scanned):
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
        return _forced_cut(text, limit) if len(text) > limit else 0

    def _end_at(self, at: int, is_last: bool) -> int | None:
        """The end of the piece whose mark is at ``at``; 0: none ends here; None: that depends on what follows."""
        text = self._buffer
        mark = text[at]
        if mark == "\n":
            return at + 1
        if mark in _CLAUSES or mark in _WIDE_CLAUSES:
            return self._clause_end(at, is_last)
        end = _run_end(text, at)
        if end == len(text):
            return None if not is_last else 0
        if mark in _WIDE_ENDINGS:
            return end
        if not text[end].isspace():
            return 0
        verdict = _is_end_of_sentence(text[:at]) if text[at:end] == "." else _is_end_by_marks(text[at:end])
        if verdict is not None:
            return end if verdict else 0
        following = text[end:].lstrip()
        if not following:
            return None if not is_last else 0
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
    """Behind the marks and closing quotes that begin at ``at``."""
    while at < len(text) and (text[at] in _ENDINGS or text[at] in _WIDE_ENDINGS or text[at] in _CLOSERS):
        at += 1
    return at


def _is_end_by_marks(run: str) -> bool | None:
    """Whether a run of marks and closers ends a sentence; None: if no small letter follows (an ellipsis, quoted speech)."""
    return None if "…" in run or ".." in run or run[-1] in _CLOSERS else True


def _is_end_of_sentence(before: str) -> bool | None:
    """Whether a full stop after ``before`` ends a sentence; None: if a capital follows."""
    found = _LAST_WORD.search(before)
    word = found[0] if found else ""
    if _LIST_NUMBER.fullmatch(before):
        return False
    if len(word) == 1 and word.isupper() and word != "I":
        return False
    lower = word.lower()
    if lower in _TITLES:
        return False
    if lower in _SUFFIXES:
        return None
    return not ("." in word and all(len(part) == 1 and part.isalpha() for part in word.split(".")))


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
