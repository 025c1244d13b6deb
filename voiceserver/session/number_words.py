"""Numbers, dates, amounts of money and units in words, by the session's language, as a voice is given them.

::

    "$3.50 on 3/5/2026, 5 km"  --en-->  "three dollars fifty on March fifth, twenty twenty-six, five kilometers"

Words of numbers are those of Unicode CLDR's rules (RBNF, by ``unicode-rbnf``), names of currencies, units and months, signs and
orders those of CLDR's locales (by ``babel``): the extra ``numbers``.

Rule: what is not sure to be one of these stays as it is, for the voice to read: telephone numbers, versions, codes, scores, and
numbers that agree with a word that we do not know (``1 Katze``). One pass, linear in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import regex

if TYPE_CHECKING:
    from babel import Locale
    from unicode_rbnf import RbnfEngine

_LANGUAGES: Final = 128  # more than there are: each is read once, in some 30 ms
# In which dates or numbers are written otherwise than in the language's first country.
_REGIONS: Final = frozenset(
    (
        "en_GB",
        "en_AU",
        "en_NZ",
        "en_IE",
        "en_IN",
        "en_ZA",
        "en_CA",
        "es_MX",
        "es_US",
        "pt_PT",
        "fr_CA",
        "fr_CH",
        "de_CH",
        "de_AT",
    )
)
_LONGEST: Final = 15  # digits of a number; more are a code

has_digit: Final = regex.compile(r"\p{Nd}").search

_CURRENCIES: Final = {
    "$": "USD", "US$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR", "₽": "RUB", "₩": "KRW", "₺": "TRY", "₴": "UAH",
    "₪": "ILS", "R$": "BRL", "zł": "PLN", "Kč": "CZK",
    **{code: code for code in ("USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "INR", "CNY", "PLN", "CZK", "SEK", "NOK", "DKK")},
}  # fmt: skip
# As people call their own money.
_SHORT_NAMES: Final = {
    ("en", "USD"): ("dollar", "dollars"), ("en", "GBP"): ("pound", "pounds"), ("en", "INR"): ("rupee", "rupees"),
    ("en", "JPY"): ("yen", "yen"), ("en", "EUR"): ("euro", "euros"),
}  # fmt: skip
_UNITS: Final = {
    "km": "length-kilometer", "m": "length-meter", "cm": "length-centimeter", "mm": "length-millimeter",
    "mi": "length-mile", "ft": "length-foot", "m²": "area-square-meter", "km²": "area-square-kilometer",
    "m³": "volume-cubic-meter", "км": "length-kilometer", "см": "length-centimeter", "мм": "length-millimeter",
    "кг": "mass-kilogram", "л": "volume-liter", "kg": "mass-kilogram", "g": "mass-gram", "mg": "mass-milligram",
    "lb": "mass-pound", "lbs": "mass-pound", "l": "volume-liter", "L": "volume-liter", "ml": "volume-milliliter",
    "mL": "volume-milliliter", "km/h": "speed-kilometer-per-hour", "mph": "speed-mile-per-hour",
    "m/s": "speed-meter-per-second", "°C": "temperature-celsius", "°F": "temperature-fahrenheit", "°": "angle-degree",
    "%": "concentr-percent", "‰": "concentr-permille", "h": "duration-hour", "min": "duration-minute",
    "s": "duration-second", "ms": "duration-millisecond", "kB": "digital-kilobyte", "KB": "digital-kilobyte",
    "MB": "digital-megabyte", "GB": "digital-gigabyte", "TB": "digital-terabyte", "Hz": "frequency-hertz",
    "kHz": "frequency-kilohertz", "MHz": "frequency-megahertz", "GHz": "frequency-gigahertz", "W": "power-watt",
    "kW": "power-kilowatt", "kWh": "energy-kilowatt-hour", "V": "electric-volt", "kcal": "energy-foodcalorie",
}  # fmt: skip
# Units that are no masculine words, where the word for 1 shows it.
_SPACES: Final = {0xA0: " ", 0x202F: " "}
_FEMININE: Final = {
    "de": ("duration-hour", "duration-minute", "duration-second", "duration-millisecond"),
    "fr": ("duration-hour", "duration-minute", "duration-second", "mass-pound"),
    "es": ("duration-hour", "mass-pound", "length-mile"),
    "pt": ("duration-hour", "mass-pound", "length-mile"),
    "it": ("duration-hour", "mass-pound"),
}
# Languages in which the day of a date is spoken as a plain number, the first of a month perhaps apart.
_PLAIN_DAYS: Final = {
    "fr": "premier",
    "it": "primo",
    "pt": "primeiro",
    **dict.fromkeys(("es", "nl", "ca", "ro", "id", "ms", "vi", "tr", "hi", "fa"), ""),
}
_ORDINAL_DAYS: Final = ("en", "de")
_DECIMAL_WORDS: Final = {"ja": "点", "zh": "点"}  # also: languages without spaces between words
_CARDINALS: Final = {"zh": "spellout-cardinal", "yue": "spellout-cardinal"}
_GERMAN_DATIVE: Final = regex.compile(r"(?i)\b(?:am|vom|zum|bis|seit|ab|dem|den|nach|beim)\s+$")
_GERMAN_THE: Final = regex.compile(r"(?i)\b(?:der|die|das)\s+$")

_NUMBER: Final = r"\p{Nd}++(?:[.,'’٬٫]\p{Nd}++)*+"
# Letters of scripts that are written without spaces may touch a number.
_LETTER: Final = r"[[\p{L}\p{M}]--[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]]"
_BEFORE: Final = rf"(?<!{_LETTER}|[\p{{N}}_@#/\\.,:'’+~-])"
_AFTER: Final = rf"(?!{_LETTER}|[\p{{N}}_/\\@]|[.,:'’-]\p{{N}})"


class NumberWords:
    """Of one language. ``in_words`` takes prose and gives prose."""

    __slots__ = (
        "_cardinal",
        "_decimal",
        "_engine",
        "_group",
        "_is_day_first",
        "_language",
        "_locale",
        "_pattern",
        "_point",
        "_rules",
    )

    def __init__(self, engine: RbnfEngine, locale: Locale) -> None:
        self._engine = engine
        self._locale = locale
        self._language = locale.language
        names = [n for n, one in engine.rulesets.items() if n.startswith("spellout") and not one.is_private]
        cardinals = [name for name in names if name.startswith("spellout-cardinal")]
        self._rules = frozenset(names)
        self._cardinal = _CARDINALS.get(
            self._language, "spellout-numbering" if "spellout-numbering" in names else cardinals[0]
        )
        symbols = locale.number_symbols.get("latn", {})
        self._decimal, self._group = symbols.get("decimal", "."), symbols.get("group", ",")
        short = locale.date_formats["short"].pattern
        self._is_day_first = short.find("d") < short.find("M")
        self._pattern = self._compile()
        self._point = self._find_point()

    def _compile(self) -> regex.Pattern[str]:
        number = (
            rf"(?:\p{{Nd}}{{1,3}}(?: \p{{Nd}}{{3}})++(?:,\p{{Nd}}+)?|{_NUMBER})"
            if self._group.isspace()
            else _NUMBER
        )
        money = "|".join(map(regex.escape, sorted(_CURRENCIES, key=len, reverse=True)))
        scales = r"(?:thousand|million|billion|trillion)\b"
        units = "|".join(map(regex.escape, sorted(_UNITS, key=len, reverse=True)))
        months = "|".join(regex.escape(name) for name in self._month_names())
        parts = [
            r"(?P<telephone>\+\p{Nd}[\p{Nd} ()/.-]{5,}+)",
            rf"(?P<iso>{_BEFORE}\p{{Nd}}{{4}}-\p{{Nd}}{{2}}-\p{{Nd}}{{2}}{_AFTER})",
            rf"(?P<date>{_BEFORE}\p{{Nd}}{{1,2}}(?P<mark>[./-])\p{{Nd}}{{1,2}}(?P=mark)\p{{Nd}}{{4}}{_AFTER})",
            rf"(?P<before>(?<!\p{{L}})(?:{money})) ?(?P<amount>{number}){_AFTER}(?P<scale>(?: {scales})?)",
            rf"{_BEFORE}(?P<price>{number})[ ]?(?P<after>{money})(?!\p{{L}})",
            rf"{_BEFORE}(?P<minus>(?<!\p{{N}} )[-−])?(?P<measure>{number})[ ]?(?P<unit>{units})(?![\p{{L}}\p{{N}}/²³])",
            rf"{_BEFORE}(?P<minus2>[-−])?(?P<number>{number}){_AFTER}",
        ]  # fmt: skip
        if self._language == "en":
            parts[4:4] = [
                rf"(?<!\p{{L}})(?P<month>{months}) (?P<day>\p{{Nd}}{{1,2}})(?:st|nd|rd|th)?"
                rf"(?:,? (?P<year>\p{{Nd}}{{4}}))?{_AFTER}",
                rf"{_BEFORE}(?P<nth>\p{{Nd}}{{1,6}})(?:st|nd|rd|th)(?!\p{{L}})",
                rf"{_BEFORE}(?P<hour>\p{{Nd}}{{1,2}}):(?P<minute>[0-5]\p{{Nd}})(?![:\p{{L}}\p{{N}}])(?! ?[ap]\.?m\b)",
            ]
        elif self._language == "de":
            parts[4:4] = [
                rf"{_BEFORE}(?P<day>\p{{Nd}}{{1,2}})\. (?P<month>{months})(?: (?P<year>\p{{Nd}}{{4}}))?(?![\p{{L}}\p{{N}}])",
                rf"{_BEFORE}(?P<hour>\p{{Nd}}{{1,2}})[:.](?P<minute>[0-5]\p{{Nd}}) Uhr\b",
            ]
        return regex.compile("|".join(parts), regex.V1)

    def _month_names(self) -> list[str]:
        return [str(name) for name in self._locale.months["format"]["wide"].values()]

    def in_words(self, text: str) -> str:
        spoken: str = self._pattern.sub(self._spoken, text.translate(_SPACES))
        return spoken.translate(_SPACES)

    def _spoken(self, found: regex.Match[str]) -> str:
        kinds: dict[str, Callable[[regex.Match[str]], str]] = {
            "iso": self._date, "date": self._date, "month": self._day, "amount": self._money, "price": self._money,
            "measure": self._measure, "nth": self._nth, "hour": self._time, "number": self._plain,
        }  # fmt: skip
        groups = found.groupdict()
        kind = next((name for name in kinds if groups.get(name)), "")
        return (kinds[kind](found) if kind else "") or found[0]

    # -------------------------------------------------------------------------------------------------- numbers

    def _say(self, number: int | Decimal, rules: str = "") -> str:
        name = rules if rules in self._rules else self._cardinal
        return self._by_rule(name, number)

    def _year(self, number: int) -> str:
        return self._say(number, "spellout-numbering-year")

    def _parse(self, text: str) -> tuple[int, str] | None:
        """Whole part and digits of the fraction; None: it is no number."""
        decimal, group = self._decimal, " " if self._group.isspace() else self._group
        text = text.replace("٬", "").replace("٫", decimal).replace("’", "'")
        marks = [mark for mark in (".", ",") if mark in text]
        if len(marks) == 2:
            decimal = max(marks, key=text.rindex)
            group = min(marks, key=text.rindex)
        elif marks and not _is_grouped(text, group) and text.count(marks[0]) == 1:
            decimal, group = marks[0], "" if group == marks[0] else group
        whole, _, fraction = text.partition(decimal)
        if group and _is_grouped(whole, group):
            whole = whole.replace(group, "")
        if not whole.isdecimal() or (fraction and not fraction.isdecimal()) or (text.endswith(decimal)):
            return None
        is_code = (len(whole) > 1 and int(whole[0]) == 0) or len(whole) + len(fraction) > _LONGEST
        return None if is_code else (int(whole), fraction)

    def _words(self, whole: int, fraction: str, rules: str = "") -> str:
        """ "": there are no words for it."""
        if not fraction:
            return self._say(whole, rules)
        point = self._point
        between = "" if self._language in _DECIMAL_WORDS else " "
        digits = (self._say(int(digit)) for digit in fraction)
        return between.join((self._say(whole), point, *digits)) if point else ""

    def _find_point(self) -> str:
        """The word between a number and its fraction; "" if there is none."""
        if self._language in _DECIMAL_WORDS:
            return _DECIMAL_WORDS[self._language]
        for name in (self._cardinal, *sorted(self._rules)):
            whole, text, half = (self._by_rule(name, number) for number in (7, Decimal("7.5"), 5))
            if whole and text.startswith(f"{whole} ") and text.endswith(f" {half}"):
                return text[len(whole) : len(text) - len(half)].strip()
        return ""

    def _by_rule(self, name: str, number: int | Decimal) -> str:
        from unicode_rbnf.engine import NoRuleForNumberError

        try:
            return self._engine.format_number(number, ruleset_names=[name]).text.strip()
        except NoRuleForNumberError:
            return ""

    def _plain(self, found: regex.Match[str]) -> str:
        text = found["number"]
        if text.isdecimal() and len(text) >= 7 and not text.endswith("000"):
            return ""  # a telephone number, an order: by digits, as the voice does
        parsed = self._parse(text)
        follows = found.string[found.end() : found.end() + 2]
        if parsed is None or (
            parsed[0] == 1 and not parsed[1] and self._language != "en" and follows[1:].isalpha()
        ):
            return ""
        whole, fraction = parsed
        sign = found.groupdict().get("minus2")
        if self._is_inflected(found, whole):
            return ""
        if len(text) == 4 and not sign and text.isdecimal() and 1100 <= whole <= 2099:
            return self._year(whole)
        words = self._words(whole, fraction)
        return self._say(-1).removesuffix(self._say(1)) + words if sign and words else words

    def _is_inflected(self, found: regex.Match[str], whole: int) -> bool:
        """It is the day of a date, in a language that declines it; or a German ordinal."""
        rest = found.string[found.end() : found.end() + 40]
        if self._language == "de":
            return regex.match(r"\. \p{L}", rest) is not None
        if self._language in _PLAIN_DAYS or self._language in _ORDINAL_DAYS or whole > 31:
            return False
        return any(name and rest[1:].startswith(name) for name in self._month_names())

    def _nth(self, found: regex.Match[str]) -> str:
        return self._say(int(found["nth"]), "spellout-ordinal")

    # ---------------------------------------------------------------------------------------- money and measures

    def _money(self, found: regex.Match[str]) -> str:
        groups = found.groupdict()
        parsed = self._parse(groups["amount"] or groups["price"])
        code = _CURRENCIES[groups["before"] or groups["after"]]
        if parsed is None:
            return ""
        whole, fraction = parsed
        scale = groups["scale"] or ""
        cents = int(fraction) if len(fraction) == 2 and not scale else 0
        if (cents and whole) or not fraction.strip("0"):
            fraction = ""
        words = self._words(
            whole, fraction, "" if fraction or scale else "spellout-cardinal-masculine" if whole == 1 else ""
        )
        if not words:
            return ""
        name = self._currency(code, Decimal(f"{whole}.{fraction or 0}") if not scale else Decimal(2))
        rest = f" {self._say(cents)}" if cents and whole else ""
        return f"{words}{scale} {name}{rest}"

    def _currency(self, code: str, count: Decimal) -> str:
        from babel.numbers import get_currency_name

        short = _SHORT_NAMES.get((self._language, code))
        if short is not None:
            return short[count != 1]
        return get_currency_name(
            code, count=int(count) if count == int(count) else float(count), locale=self._locale
        )

    def _measure(self, found: regex.Match[str]) -> str:
        from babel.units import UnknownUnitError, format_unit

        parsed = self._parse(found["measure"])
        unit = _UNITS[found["unit"]]
        if parsed is None:
            return ""
        whole, fraction = parsed
        gender = "feminine" if unit in _FEMININE.get(self._language, ()) else "masculine"
        words = self._words(whole, fraction, f"spellout-cardinal-{gender}" if whole in (1, 2, 21) else "")
        if not words:
            return ""
        count = Decimal(f"{whole}.{fraction}") if fraction else whole
        try:
            named = format_unit(count, unit, length="long", locale=self._locale)
        except UnknownUnitError:
            return ""
        if named.endswith(found["unit"]):
            return ""  # it has no name in words
        sign = self._say(-1).removesuffix(self._say(1)) if found.groupdict().get("minus") else ""
        digits = regex.search(r"\p{Nd}(?:[\p{Nd}\s.,'’٬٫]*\p{Nd})?", named)
        return (
            f"{sign}{named[: digits.start()]}{words}{named[digits.end() :]}" if digits is not None else named
        )

    # ---------------------------------------------------------------------------------------------------- dates

    def _date(self, found: regex.Match[str]) -> str:
        if found.groupdict().get("iso"):
            year, month, day = map(int, found["iso"].split("-"))
        else:
            first, second, year = map(int, found["date"].split(found["mark"]))
            is_day_first = self._is_day_first or found["mark"] == "."
            if max(first, second) > 12:
                is_day_first = first > 12
            day, month = (first, second) if is_day_first else (second, first)
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return ""
        return self._written(found, day, month, year)

    def _written(self, found: regex.Match[str], day: int, month: int, year: int) -> str:
        """The long form of the language; the day in words where we know how, else left to the voice."""
        name = str(self._locale.months["format"]["wide"][month])
        if self._language in _ORDINAL_DAYS:
            return self._with_ordinal(found, day, name, year)
        is_plain = self._language in _PLAIN_DAYS
        first = _PLAIN_DAYS.get(self._language, "") if day == 1 else ""
        spoken = (first or self._say(day)) if is_plain else str(day)
        if "MMM" not in self._locale.date_formats["long"].pattern:
            name = str(month)
        values = {"d": spoken, "M": name, "L": name, "y": self._year(year) if is_plain else str(year)}
        pattern = self._locale.date_formats["long"].pattern
        fill = regex.compile(r"'([^']*)'|([dMLy])\2*+").sub
        text: str = fill(lambda one: values[one[2]] if one[2] else one[1], pattern)
        return text

    def _with_ordinal(self, found: regex.Match[str], day: int, month: str, year: int) -> str:
        if self._language == "en":
            return f"{month} {self._say(day, 'spellout-ordinal')}" + (f", {self._year(year)}" if year else "")
        before = found.string[: found.start()]
        ending = "-n" if _GERMAN_DATIVE.search(before) else "" if _GERMAN_THE.search(before) else "-r"
        return f"{self._say(day, f'spellout-ordinal{ending}')} {month}" + (
            f" {self._year(year)}" if year else ""
        )

    def _day(self, found: regex.Match[str]) -> str:
        day = int(found["day"])
        return (
            self._with_ordinal(found, day, found["month"], int(found["year"] or 0)) if 1 <= day <= 31 else ""
        )

    def _time(self, found: regex.Match[str]) -> str:
        hour, minute = int(found["hour"]), int(found["minute"])
        if hour > 24:
            return ""
        if self._language == "de":
            spoken = self._say(hour, "spellout-cardinal-masculine") + " Uhr"
            return f"{spoken} {self._say(minute)}" if minute else spoken
        if not minute:
            return f"{self._say(hour)} o'clock" if 1 <= hour <= 12 else f"{self._say(hour)} hundred"
        return f"{self._say(hour)} {'oh ' if minute < 10 else ''}{self._say(minute)}"


def _is_grouped(text: str, group: str) -> bool:
    mark = regex.escape(group)
    return regex.fullmatch(rf"\p{{Nd}}{{1,3}}(?:{mark}\p{{Nd}}{{2,3}})*{mark}\p{{Nd}}{{3}}", text) is not None


@lru_cache(_LANGUAGES)
def _of(language: str) -> NumberWords | None:
    try:
        from babel import Locale, UnknownLocaleError
        from unicode_rbnf import RbnfEngine
    except ImportError:
        return None
    primary = {"nb": "no", "nn": "no"}.get(language.partition("_")[0], language.partition("_")[0])
    try:
        return NumberWords(RbnfEngine.for_language(primary), Locale.parse(language))
    except (UnknownLocaleError, ValueError, KeyError, IndexError):
        return None


def number_words(language: str) -> NumberWords | None:
    """Of ``language`` (BCP 47). None: it is unknown, has no rules, or the extra ``numbers`` is not installed."""
    primary, *others = language.replace("_", "-").split("-")
    if not primary.isalpha() or len(primary) > 3:
        return None
    regional = next((f"{primary.lower()}_{part.upper()}" for part in others if len(part) == 2), "")
    return _of(regional if regional in _REGIONS else primary.lower())
