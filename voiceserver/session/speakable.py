"""What a voice is given of a reply: prose. The text event and the history keep the original.

::

    piece of the answer --> lines (code, headings, lists, tables) --> inline Markdown --> addresses, emoji, arrows, marks

================= ==============================================================
written           spoken
================= ==============================================================
bold, italic …    its words
heading, bullet   its words, as a sentence
``code``          its words; a block as "code", once
link, image       its text; without one, its domain
table             a row as a sentence
emoji, arrow      nothing
number, date …    in words, see ``number_words``
================= ==============================================================

A construct may begin in one piece and end in another: a Speakable remembers what is open. Rule: linear in the text, and a piece
without marks is passed on as it is. Markdown is read by markdown-it-py, Unicode properties by ``regex``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

import regex
from markdown_it import MarkdownIt
from markdown_it.token import Token

from voiceserver.session.number_words import has_digit, number_words

# In place of a block of code, by language.
_CODE: Final = {
    "ar": "شيفرة", "el": "κώδικας", "es": "código", "fa": "کد", "he": "קוד", "hi": "कोड", "it": "codice", "ja": "コード",
    "ko": "코드", "pl": "kod", "pt": "código", "ru": "код", "sv": "kod", "tr": "kod", "uk": "код", "zh": "代码",
}  # fmt: skip

# Letters with their marks, and the signs that a voice reads as prose: such a piece needs nothing.
_is_prose: Final = regex.compile(
    r"""(?:[[\p{L}\p{M}\p{Nd},;?!'’‘"“”«»… -]--[\u20e3\ufe0e\ufe0f]]|:(?![\p{L}+-])|\.(?!\p{L})|[\p{SB=ST}--\p{Cc}])*+""",
    regex.V1,
).fullmatch
_has_words: Final = regex.compile(r"[\p{L}\p{N}]").search

_FENCE: Final = regex.compile(r"`{3,}|~{3,}")
_RULE: Final = regex.compile(r"[ \t]*(?:[-*_+=][ \t]*+){2,}")
_TABLE_RULE: Final = regex.compile(r"[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*[|+])*+(?:[ \t]*:?-+:?[ \t]*)?")
_REFERENCE: Final = regex.compile(r" {0,3}\[[^\]\[]+\]:[ \t]*\S.*")
_QUOTE: Final = regex.compile(r"(?:[ \t]{0,3}>[ \t]?)++")
_HEADING: Final = regex.compile(r"[ \t]{0,3}#{1,6}(?:[ \t]++|$)")
_BULLET: Final = regex.compile(r"[ \t]*(?:[-*+•‣◦▪●○–·][ \t]++)(?:\[[ xX]\][ \t]+)?")
_NUMBERED: Final = regex.compile(r"[ \t]*\p{Nd}{1,3}[.)][ \t]")
_CELL: Final = regex.compile(r"(?<!\\)\|")

_URL_CHAR: Final = r"[\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7e\u00a1-\u024f]"
_ADDRESS_REST: Final = regex.compile(rf"{_URL_CHAR}*+")
_URL: Final = regex.compile(
    rf"(?i)(?<![a-z0-9])(?:(?:https?|ftp|wss?)://|mailto:|www\.(?=\w)){_URL_CHAR}++"
    rf"|(?<![\w@./])(?:[a-z0-9-]++\.)++[a-z]{{2,}}+(?::\d+)?/{_URL_CHAR}*+"
)
_HOST: Final = regex.compile(
    r"(?i)(?:[a-z]++:(?://)?)?(?:[^/?#@:]*(?::[^/?#@]*)?@(?=[^/?#]*\.))?(?:www\.)?([^/?#:]*)"
)
_OPEN_LINK: Final = regex.compile(r"!?\[([^\[\]]*+)\]\([^\s()]*+$")
_CLOSED_LINK: Final = regex.compile(r'\]\([^()\s]*+(?:\s+"[^"]*+")?\)')
_DATA: Final = regex.compile(r"(?i)\bdata:[a-z]++/[a-z0-9.+-]++(?:;[a-z0-9=-]++)*+,\S*+")
# GitHub: the name of an emoji, a kind of note; between dollars, mathematics.
_MARKED: Final = regex.compile(
    r"(?<![\p{L}\p{N}:]):(?:[+-]1|[a-z][a-z0-9_+-]++):(?![\p{L}\p{N}:])|\[![A-Z]++\]|\$\$|={2,}"
)
_FOOTNOTE: Final = regex.compile(r"[\[【](?:\^[^\[\]\s]+|\p{Nd}+(?:[,†: -]*[\p{L}\p{N}]*)*+)[\]】]")

# A mark that is left where no pair was found, as of bold text over two sentences.
_MARK: Final = regex.compile(
    r"(?<![\p{L}\p{N}*])\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?![\p{L}\p{N}*])|\*{2,}|~{2,}|`+"
    r"|(?<![\p{L}\p{N}_])_{1,3}(?=\S)|(?<=\S)_{1,3}(?![\p{L}\p{N}_])|_{2,}"
)
# UTS #51: the regular expression for possible emoji.
_EMOJI: Final = regex.compile(
    r"\p{RI}\p{RI}"
    r"|[\p{Emoji}--[0-9#*©®™]](?:\p{EMod}|\uFE0F\u20E3?|[\U000E0020-\U000E007E]+\U000E007F)?"
    r"(?:\u200D[\p{Emoji}--[0-9#*]](?:\p{EMod}|\uFE0F\u20E3?)?)*+"
    r"|[\p{RI}\uFE0F\uFE0E\u20E3\U000E0020-\U000E007F]",
    regex.V1,
)
_ARROW: Final = regex.compile(
    r"[\p{InArrows}\p{InSupplementalArrowsA}\p{InSupplementalArrowsB}\p{InSupplementalArrowsC}\u2794-\u27be]"
    r"|<?[-=]{1,3}+>|<[-=]{2,3}"
)
_PICTURE: Final = regex.compile(r"[[•‣⁃※\p{So}\p{InBoxDrawing}\p{InBlockElements}]--[°©®™№℃℉Ω℠℗]]", regex.V1)
# Joiners belong to words in Arabic and Indic scripts only.
_HIDDEN: Final = regex.compile(
    r"[\p{Cf}--[\u200c\u200d]]|(?<![\p{scx=Arab}\p{M}])[\u200c\u200d]|\p{Co}", regex.V1
)
_ESCAPE: Final = regex.compile(r"\x1b\[[0-9;]*+[A-Za-z]")
_SPACE: Final = regex.compile(r"[\p{Cc}\p{Z}]+")
_BRACKET: Final = regex.compile(r"[\[\]{}\\|]+")
_SPACE_BEFORE: Final = regex.compile(r" +(?=[,.;:!?…](?:\s|$))")
_REPEATED: Final = regex.compile(r"([^\p{L}\p{N}\s])\1{3,}")
_TIMES: Final = regex.compile(r"(?<=\p{N}) ?\*(?= ?\p{N})")
_IN_WORD: Final = regex.compile(r"(?<=\p{L})_(?=[\p{L}\p{N}])")
_is_ended: Final = regex.compile(r"[\p{SB=ST}\p{SB=AT}:;,…][\p{SB=Close}]*+$").search


# Tags between two pieces of text.
_SPACED_TAGS: Final = ("<br", "</p", "</l", "</t", "</summ", "</div", "</dt", "</dd", "</h")


class Speakable:
    """One reply's way to prose. ``language``: BCP 47, of the session; "" unknown."""

    __slots__ = ("_fence", "_is_in_address", "_is_line_start", "_language")

    def __init__(self, language: str = "") -> None:
        self._language = language
        self._fence = ""  # the mark that will close the block of code
        self._is_in_address = False  # the last piece ended in an address
        self._is_line_start = True

    def feed(self, piece: str) -> str:
        """The prose for the next piece of the answer; "" if there is nothing to say. Pieces bring their own spaces."""
        is_open = self._fence or self._is_in_address or (self._is_line_start and piece.lstrip()[:1] == "-")
        if piece and not is_open and _is_prose(piece):
            self._is_line_start = False
            if not _has_words(piece):
                return ""
            return self._numbers(piece.strip()) if has_digit(piece) else piece.strip()
        return self._numbers(" ".join(filter(None, map(self._line, piece.splitlines(keepends=True)))))

    def _numbers(self, prose: str) -> str:
        if not self._language or not has_digit(prose):
            return prose
        words = number_words(self._language)
        return words.in_words(prose) if words is not None else prose

    def _line(self, line: str) -> str:
        is_start, self._is_line_start = self._is_line_start, line.endswith(("\n", "\r"))
        body = line.rstrip("\r\n")
        if self._fence:
            closing = body.find(self._fence)
            if closing < 0:
                return ""
            body, self._fence, is_start = body[closing:].lstrip(self._fence[0]), "", False
        if self._is_in_address:
            rest = _ADDRESS_REST.match(body)
            end = rest.end() if rest is not None else 0
            self._is_in_address = 0 < end == len(body) and not self._is_line_start
            body = body[end:]
        return self._blocks(body, is_start)

    def _blocks(self, body: str, is_start: bool) -> str:
        """``body``: a line or a part of one, outside of code; it may open a block of code."""
        code = ""
        fence = _FENCE.search(body)
        if fence is not None and body.find(fence[0], fence.end()) < 0:
            self._fence = fence[0]
            code = _CODE.get(self._language.lower().partition("-")[0], "code") + "."
            body = body[: fence.start()]
        if is_start and any(r.fullmatch(body) for r in (_RULE, _TABLE_RULE, _REFERENCE)):
            return code
        body, is_sentence = _without_block_marks(body) if is_start else (body, False)
        prose = self._inline(body)
        if prose and is_sentence and self._is_line_start and not _is_ended(prose):
            prose += "."
        return f"{prose} {code}".strip()

    def _inline(self, text: str) -> str:
        if not _is_prose(text):
            text = _REPEATED.sub(r"\1\1\1", _ESCAPE.sub("", text))
            open_link = _OPEN_LINK.search(text)
            if open_link is not None and not self._is_line_start:
                text, self._is_in_address = text[: open_link.start()] + open_link[1], True
            text = _words(_markdown().parseInline(text)[0].children or ())
            if not self._is_line_start:
                self._is_in_address |= any(found.end() == len(text) for found in _URL.finditer(text))
            text = _without_marks(text)
        return text.strip() if _has_words(text) else ""


def _without_block_marks(body: str) -> tuple[str, bool]:
    """A line without what makes it a heading, an item or a row; and whether it is a sentence of its own."""
    quote = _QUOTE.match(body)
    if quote is not None:
        body = body[quote.end() :]
    heading = _HEADING.match(body)
    if heading is not None:
        return body[heading.end() :].rstrip().rstrip("#"), True
    bullet = _BULLET.match(body)
    if bullet is not None:
        return body[bullet.end() :], True
    is_row = body.lstrip()[:1] == "|" or " | " in body
    if is_row:
        cells = filter(None, (cell.strip() for cell in _CELL.split(body)))
        return " ".join(cells), True
    return body, _NUMBERED.match(body) is not None


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable("strikethrough")


def _words(tokens: Iterable[Token]) -> str:
    """The text of inline tokens; of tags, nothing."""
    words: list[str] = []
    for token in tokens:
        if token.type in ("text", "code_inline", "text_special"):
            words.append(token.content)
        elif token.type in ("softbreak", "hardbreak"):
            words.append(" ")
        elif token.type == "image":
            words.append(_words(token.children or ()))
        elif token.type == "html_inline" and token.content.lower().startswith(_SPACED_TAGS):
            words.append(" ")
    return "".join(words)


def _domain(found: regex.Match[str]) -> str:
    address = found[0].rstrip(".,;:!?'*_~)]}\u201d")
    host = _HOST.match(address)
    return f"{host[1] if host is not None else ''}{found[0][len(address) :]}"


# In this order: what a later rule looks at is what the earlier ones left.
_RULES: Final[tuple[tuple[regex.Pattern[str], str | Callable[[regex.Match[str]], str]], ...]] = (
    (_DATA, " "),
    (_URL, _domain),
    (_MARKED, ""),
    (_CLOSED_LINK, " "),
    (_FOOTNOTE, ""),
    (_TIMES, " × "),
    (_MARK, ""),
    (_IN_WORD, " "),
    (_EMOJI, " "),
    (_ARROW, " "),
    (_PICTURE, " "),
    (_HIDDEN, ""),
    (_BRACKET, " "),
    (_SPACE, " "),
    (_SPACE_BEFORE, ""),
)


def _without_marks(text: str) -> str:
    for rule, instead in _RULES:
        text = rule.sub(instead, text)
    return text
