"""Sums as people say them: "what is three plus four times two" -> 11.

A small grammar over words and digits, with the usual precedence. ``solve`` answers ``None`` for anything that is not
wholly a sum, so that ordinary sentences with numbers in them are left alone.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

_UNIT_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = {word: value for value, word in enumerate(_UNIT_WORDS.split())}
_TENS = {word: 10 * value for value, word in enumerate(_TEN_WORDS.split(), 2)}
_SCALES = {"thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}
# What a recogniser writes for a number where only a number can stand.
_HEARD_AS = {
    "oh": "zero",
    "won": "one",
    "to": "two",
    "too": "two",
    "for": "four",
    "fore": "four",
    "ate": "eight",
}
_OPERATORS = {
    "plus": "+",
    "added to": "+",
    "minus": "-",
    "less": "-",
    "take away": "-",
    "times": "*",
    "multiplied by": "*",
    "x": "*",
    "divided by": "/",
    "over": "/",
    "to the power of": "^",
    "squared": "^ 2",
    "cubed": "^ 3",
    "percent of": "% *",
}
_LEAD_IN = re.compile(
    r"^(?:(?:please|so|okay|and|now|hey|hello|hi|well)\s+)*"
    r"(?:(?:can|could) you (?:please )?(?:tell me|work out|calculate)\s+|tell me\s+|calculate\s+|compute\s+)?"
    r"(?:(?:what|how much)(?:\s+is|\s+are|'s|\s+does|\s+s)?\s+)?"
)
_TAIL = re.compile(r"\s*(?:=|equals?|is|make|makes|please)*\s*(?:please)?$")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[a-z]+|[-+*/^()%]")
_MAX_EXPONENT = 64
_MAX_DEPTH = 32
_MAX_CHARS = 200
_MAX_VALUE = 10**15


class Unanswerable(Exception):
    """It is a sum, but there is no answer; the message says why, as a sentence."""


def solve(text: str) -> Fraction | None:
    """The value of the sum that ``text`` asks for; ``None`` if it asks for none. Raises Unanswerable."""
    if len(text) > _MAX_CHARS:
        return None
    spoken = _LEAD_IN.sub("", re.sub(r"(?<=\d),(?=\d{3})", "", text.lower()).rstrip(" ?.!"), count=1)
    spoken = _TAIL.sub("", spoken).replace("×", "*").replace("÷", "/").replace("-", " - ")
    for phrase in sorted(_OPERATORS, key=len, reverse=True):
        spoken = re.sub(rf"\b{phrase}\b", f" {_OPERATORS[phrase]} ", spoken)
    tokens = _TOKEN.findall(spoken)
    if len(tokens) < 2 or _TOKEN.sub("", spoken).strip(" "):
        return None
    if not any(token in "+-*/^%" for token in tokens[1:]):
        return None
    parser = _Parser(tokens)
    try:
        value = parser.sum(0)
    except (_NotASum, IndexError):
        return None
    if parser.tokens:
        return None
    if abs(value) >= _MAX_VALUE:
        raise Unanswerable("That number is too large for me.")
    return value


def say_number(value: Fraction) -> str:
    """As digits that a speech engine reads well: at most four decimals, "about" where that is not exact."""
    if value.denominator == 1:
        return str(value.numerator)
    rounded = round(value, 4)
    text = f"{float(rounded):.4f}".rstrip("0").rstrip(".")
    return text if rounded == value else f"about {text}"


class _NotASum(Exception):
    pass


class _Parser:
    """Recursive descent: sum > product > power > number."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = deque(tokens)

    def _next_is(self, *tokens: str) -> bool:
        return bool(self.tokens) and self.tokens[0] in tokens

    def sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while self._next_is("+", "-"):
            is_plus = self.tokens.popleft() == "+"
            right = self._product(depth)
            value = value + right if is_plus else value - right
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._power(depth)
        while self._next_is("*", "/"):
            operator = self.tokens.popleft()
            right = self._power(depth)
            if operator == "/" and right == 0:
                raise Unanswerable("Nothing can be divided by zero.")
            value = value * right if operator == "*" else value / right
        return value

    def _power(self, depth: int) -> Fraction:
        if self._next_is("-"):
            self.tokens.popleft()
            return -self._power(depth + 1) if depth < _MAX_DEPTH else self._fail()
        value = self._atom(depth)
        if self._next_is("%"):
            self.tokens.popleft()
            value /= 100
        while self._next_is("^"):
            self.tokens.popleft()
            exponent = self._power(depth + 1) if depth < _MAX_DEPTH else self._fail()
            value = _raise(value, exponent)
        return value

    def _atom(self, depth: int) -> Fraction:
        if self._next_is("("):
            self.tokens.popleft()
            value = self.sum(depth + 1) if depth < _MAX_DEPTH else self._fail()
            if self.tokens.popleft() != ")":
                raise _NotASum
            return value
        if self.tokens[0][0].isdigit():
            value = Fraction(self.tokens.popleft())
            while self._next_is(*_SCALES):
                value *= _SCALES[self.tokens.popleft()]
            return value
        return self._words()

    def _words(self) -> Fraction:
        """ "minus one thousand and twenty three point five": words up to the first that is no part of a number."""
        total = group = 0
        has_any = False
        while self.tokens:
            word = self.tokens[0]
            word = word if has_any else _HEARD_AS.get(word, word)
            if word in _UNITS and (
                group % 100 == 0 or (group % 10 == 0 and group % 100 >= 20 and _UNITS[word] < 10)
            ):
                group += _UNITS[word]
            elif word in _TENS and group % 100 == 0:
                group += _TENS[word]
            elif word == "hundred" and (0 < group < 100 or not has_any):
                group = (group or 1) * 100
            elif word in _SCALES and (group or not has_any):
                total, group = total + (group or 1) * _SCALES[word], 0
            elif (
                word == "a"
                and not has_any
                and len(self.tokens) > 1
                and self.tokens[1] in {"hundred", *_SCALES}
            ):
                group = 0
                self.tokens.popleft()
                continue
            elif word == "and" and has_any and len(self.tokens) > 1 and self._joins(total, group):
                pass
            else:
                break
            has_any = True
            self.tokens.popleft()
        if not has_any:
            raise _NotASum
        return total + group + self._decimals()

    def _joins(self, total: int, group: int) -> bool:
        # "a hundred and five" is one number, "five and five" are two.
        following = self.tokens[1]
        return (group % 100 == 0 and bool(group or total)) and (following in _UNITS or following in _TENS)

    def _decimals(self) -> Fraction:
        if not self._next_is("point"):
            return Fraction(0)
        self.tokens.popleft()
        digits = ""
        while self.tokens and (self.tokens[0].isdigit() or _UNITS.get(self.tokens[0], 10) < 10):
            token = self.tokens.popleft()
            digits += token if token.isdigit() else str(_UNITS[token])
        if not digits:
            raise _NotASum
        return Fraction(int(digits), 10 ** len(digits))

    def _fail(self) -> Fraction:
        raise _NotASum


def _raise(value: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT or abs(value) > 10**9:
        raise Unanswerable("That power is too much for me.")
    if value == 0 and exponent < 0:
        raise Unanswerable("Nothing can be divided by zero.")
    power: Fraction = value ** int(exponent)
    return power
