"""Words whose full stop ends no sentence, by language: in lower case and without that full stop.

Short lists of what people say and language models write, after the sentence-break suppressions of Unicode CLDR, without those
that are words as well ("on.", "up."). Where the language is not known, a word of another language could be one of English.

========= ==================================================================================
TITLES    a name or a number follows: never an end
SUFFIXES  an end only where a capital letter follows
NUMBERED  no end before a number (``No. 5``); else a word as any other
STREETS   no end before a name; one before a word that begins a sentence
ORDINALS  languages in which ``3.`` is "third"
MONTHS    what follows an ordinal in those languages, for texts of no known language
========= ==================================================================================
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


TITLES: Final[dict[str, str]] = {
    "en": (
        "resp mr mrs ms dr prof rev hon gen col capt lt sgt cpl maj cmdr st mt ft gov sen rep messrs vs viz al "
        "approx ca cf e.g i.e dept est jan feb apr aug sept oct nov dec tue tues thu thur thurs attn bldg"
    ),
    "de": (
        "z d u o i v hr fr dr prof dipl ing mag st nr bzgl ca evtl ggf inkl exkl sog vgl z.b d.h u.a z.t o.ä "
        "i.d.r s.o s.u v.a mind max tel jan feb mär apr aug sept okt nov dez abt geb allg bspw bes stellv "
        "zzgl"
    ),
    "fr": "m mm mme mmes mlle dr pr me st ste p.ex c.-à-d cf env tél janv févr avr juil sept oct nov déc av bd",
    "es": (
        "sr sra srta sres dr dra d dña prof lic ing ud uds p.ej aprox tel av avda c pza sto sta gral ene feb "
        "mar abr jun jul ago sept oct nov dic"
    ),
    "it": (
        "sig sigg sig.ra dott dott.ssa prof avv ing geom on p.es es ca tel v.le p.zza gen feb mar apr mag giu "
        "lug ago sett ott nov dic"
    ),
    "pt": "sr sra srta dr dra prof eng exmo av r p.ex aprox tel jan fev mar abr mai jun jul ago set out nov dez",
    "nl": (
        "dhr mevr mw dr prof ir ing drs mr bijv bv d.w.z o.a m.b.t t.a.v ca tel jan feb mrt apr aug sept okt "
        "nov dec"
    ),
    "sv": "hr fr dr prof t.ex bl.a d.v.s s.k ca tel jan feb apr aug sept okt nov dec",
    "da": "hr fr dr prof f.eks bl.a dvs ca tlf jan feb apr aug sept okt nov dec",
    "pl": "p dr prof mgr inż np m.in tzw ok tel ul al pl św gen płk ks",
    "cs": "p dr prof ing mgr mudr judr např tj tzv cca tel ul nám sv",
    "ru": "г гг ул пр просп пл д кв корп стр им проф акад т.е т.к т.н напр см ср св тел руб",
    "uk": "вул просп пл буд кв ім проф акад т.зв напр див тел",
    "el": "κ κα κος δρ καθ π.χ δηλ βλ αρ τηλ",
    "tr": "dr prof doç av sn örn bkz vb tel cad sok mah",
    "hi": "डॉ डा श्री प्रो पं",
    "bn": "ডা ড মো প্রো",
    "ar": "د أ م ص",
}
SUFFIXES: Final[dict[str, str]] = {
    "en": "jr sr inc ltd co corp bros etc a.m p.m ph.d esq llc hrs hr min sec lb lbs oz in sq",
    "de": "usw etc bzw gmbh co uhr std min sek v.chr n.chr",
    "fr": "etc cie",
    "es": "etc cía s.a ee.uu a.m p.m",
    "it": "ecc s.p.a s.r.l",
    "pt": "etc cia ltda s.a",
    "nl": "enz etc",
    "sv": "osv m.m",
    "da": "osv mv",
    "pl": "itd itp tzn",
    "cs": "atd apod",
    "ru": "др пр т.д т.п тыс млн млрд",
    "uk": "ін т.д",
    "el": "κ.λπ κλπ κ.ά μ.μ π.μ",
    "tr": "vs a.ş ltd şti",
    "hi": "",
    "bn": "",
    "ar": "",
}
NUMBERED: Final = _set(
    "no nos nr num núm nº fig figs figure vol vols p pp pg art arts sec ch chap cap ex eq eqs tab abb abs "
    "kap bd s pág págs page str § ver vers v pt bk op par rn ziff zl ap fl rm ste apt č čís αρ рис табл "
    "гл"
)
STREETS: Final = _set("ave blvd rd hwy ln pkwy expy ter pl ct sq cir")
# Words that begin a sentence, and hardly a name.
STARTERS: Final = _set(
    "the a an it we you i he she they this that these those there here then and but or so if when while "
    "please your our my his her its their is are was were do does did can could will would should turn "
    "take go walk drive what where who why how yes no not now just once after before from for in on at to "
    "with"
)
ORDINALS: Final = _set("de da nb nn no fi cs sk hu pl hr sl sr bs et is lv lt tr eu fo lb")
MONTHS: Final = _set(
    "januar jänner februar feber märz april mai juni juli august september oktober november dezember "
    "jahrhundert jahrhunderts stock weltkrieg geburtstag klasse etage marts maj oktober december januára "
    "ledna února března dubna května června července srpna září října listopadu prosince tammikuuta "
    "helmikuuta maaliskuuta huhtikuuta toukokuuta kesäkuuta heinäkuuta elokuuta syyskuuta lokakuuta "
    "marraskuuta joulukuuta"
)


class Abbreviations(NamedTuple):
    titles: frozenset[str]
    suffixes: frozenset[str]


# Where the language is not known: what is no word of another language, and other alphabets.
_UNKNOWN_TITLES: Final = (
    "hr mme mlle mmes bzgl ca evtl ggf inkl vgl z.b d.h u.a p.ej p.ex sra srta sig dott dhr mevr bijv "
    "t.ex f.eks"
)
_OTHER_ALPHABETS: Final = ("ru", "uk", "el", "hi", "bn", "ar")


@cache
def abbreviations(language: str) -> Abbreviations:
    """Of ``language`` (BCP 47) and of English, which is mixed into all; "": not known."""
    primary = language.lower().replace("_", "-").partition("-")[0]
    if primary in TITLES:
        return Abbreviations(_words(TITLES, "en", primary), _words(SUFFIXES, "en", primary))
    titles = _words(TITLES, "en", *_OTHER_ALPHABETS) | _set(_UNKNOWN_TITLES)
    return Abbreviations(titles, _words(SUFFIXES, "en", "de", *_OTHER_ALPHABETS))


def _words(table: dict[str, str], *languages: str) -> frozenset[str]:
    return frozenset(word for name in languages for word in table[name].split())
