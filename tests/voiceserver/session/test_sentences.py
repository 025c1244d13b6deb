"""Sentences are cut where a person would take a breath, and nothing depends on how the text arrived."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voiceserver.session.sentences import SentenceCutter, spoken_pieces


def cut(text: str, size: int = 1, language: str = "", **limits: int) -> list[str]:
    cutter = SentenceCutter(language=language, **limits)
    pieces: list[str] = []
    for start in range(0, len(text), size):
        pieces += cutter.feed(text[start : start + size])
    return pieces + cutter.finish()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello there. How are you?", ["Hello there.", " How are you?"]),
        ("It costs 3.14 dollars. OK!", ["It costs 3.14 dollars.", " OK!"]),
        (
            "Dr. Smith met Mrs. Jones at St. Mary's. Fine.",
            ["Dr. Smith met Mrs. Jones at St. Mary's.", " Fine."],
        ),
        ("J. K. Rowling wrote it. So do I. Yes.", ["J. K. Rowling wrote it.", " So do I.", " Yes."]),
        ("At 5 p.m. we go. At 5 p.m. The end.", ["At 5 p.m. we go.", " At 5 p.m.", " The end."]),
        ("Fruit, e.g. pears, is good.", ["Fruit, e.g. pears, is good."]),
        ("In the U.S. Army. Yes.", ["In the U.S. Army.", " Yes."]),
        ("Wait... what? Wait... What now?", ["Wait... what?", " Wait...", " What now?"]),
        ("Nun… ja. Nun… Ja.", ["Nun… ja.", " Nun…", " Ja."]),
        ("Really?! Yes!!! No.", ["Really?!", " Yes!!!", " No."]),
        ('He said "Really?" and left. "Oh." Then', ['He said "Really?" and left.', ' "Oh."', " Then"]),
        ("1. First thing. 2. Second thing.", ["1. First thing.", " 2. Second thing."]),
        ("Three things:\n- one\n- two\n", ["Three things:\n", "- one\n", "- two\n"]),
        ("今日は。「はい。」元気ですか？うん", ["今日は。", "「はい。」", "元気ですか？", "うん"]),
        ("hi. how are you? fine", ["hi.", " how are you?", " fine"]),
        ("Visit example.com today. Bye.", ["Visit example.com today.", " Bye."]),
        ("No. I will not.", ["No.", " I will not."]),
        ("**Bold.** Then.", ["**Bold.**", " Then."]),
        ("... . ! ok.", ["... . ! ok."]),
        ("   ", []),
        ("", []),
    ],
)
def test_a_text_is_cut_into_its_sentences(text: str, pieces: list[str]) -> None:
    assert cut(text) == pieces
    assert cut(text, size=1000) == pieces


# A first sentence, and the beginning of a second: the first leaves at once.
SCRIPTS = {
    "Hindi": ("हम नौ बजे खुलते हैं।", " आप"),
    "Bengali": ("আমরা নয়টায় খুলি।", " আপনি"),
    "Marathi": ("आम्ही नऊ वाजता उघडतो!", " तुम्ही"),
    "Punjabi": ("ਅਸੀਂ ਨੌਂ ਵਜੇ ਖੁੱਲ੍ਹਦੇ ਹਾਂ।", " ਤੁਸੀਂ"),
    "Odia": ("ଆମେ ନଅଟାରେ ଖୋଲୁ।", " ଆପଣ"),
    "Tamil": ("நாங்கள் ஒன்பது மணிக்கு திறக்கிறோம்.", " நீங்கள்"),
    "Urdu": ("ہم نو بجے کھولتے ہیں۔", " آپ"),
    "Arabic": ("هل تريد الشاي؟", " لدينا"),
    "Persian": ("چای می‌خواهید؟", " قهوه"),
    "Pashto": ("تاسو څه غواړئ؟", " موږ"),
    "Hebrew": ("אנחנו פותחים בתשע.", " אתם"),
    "Greek": ("Θέλετε τσάι;", " Έχουμε"),
    "Greek mark": ("Θέλετε τσάι\u037e", " Έχουμε"),
    "Armenian": ("Մենք բացում ենք ժամը իննին։", " Դուք"),
    "Georgian": ("ჩვენ ცხრაზე ვიხსნებით.", " თქვენ"),
    "Amharic": ("በዘጠኝ ሰዓት እንከፍታለን።", " ከእኩለ"),
    "Amharic question": ("ሻይ ይፈልጋሉ፧", " ቡና"),
    "Burmese": ("ကျွန်ုပ်တို့ ကိုးနာရီ ဖွင့်သည်။", " မွန်း"),
    "Khmer": ("យើងបើកម៉ោងប្រាំបួន។", " អ្នក"),
    "Thai": ("เราเปิดตอนเก้าโมง", " คุณ"),
    "Lao": ("ພວກເຮົາເປີດເກົ້າໂມງ", " ທ່ານ"),
    "Tibetan": ("ང་ཚོ་ཆུ་ཚོད་དགུ་པར་སྒོ་འབྱེད།", " ཁྱེད"),
    "Sinhala": ("අපි නවයට විවෘත කරමු.", " ඔබ"),
    "Cherokee": ("ᎣᏏᏲ.", " ᏙᎯᏧ"),
    "Syriac": ("ܫܠܡܐ܂", " ܐܝܟܢ"),
    "N'Ko": ("ߌ ߣߌ ߛߐ߲߬߹", " ߌ"),
    "Santali": ("ᱡᱚᱦᱟᱨ᱾", " ᱟᱢ"),
    "Mongolian": ("ᠰᠠᠢᠨ ᠪᠠᠢᠨ᠎ᠠ ᠤᠤ᠃", " ᠪᠢ"),
    "Vietnamese": ("Chúng tôi mở cửa lúc chín giờ.", " Bạn"),
    "Russian": ("Мы открываемся в девять.", " Вы"),
    "Korean": ("아홉 시에 엽니다.", " 정오"),
    "Japanese": ("九時に開きます。", "正午"),
    "Chinese": ("您要喝茶吗？", "我们"),
    "Half width": ("ｱｹﾏｽ｡", "ﾄﾞｳｿﾞ"),
    "Interrobang": ("Nine\u203d", " So"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_sentence_ends_in_every_script(name: str) -> None:
    first, second = SCRIPTS[name]
    cutter = SentenceCutter()
    assert cutter.feed(first + second) == [first]
    assert cut(first + second) == [first, second]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        # One sentence each: the chapters on full stops of the style guides, and CLDR's suppressions.
        ("", "See No. 5 and Fig. 2 and Vol. 3, pp. 4 to 6."),
        ("", "It is at 350 Fifth Ave. Brooklyn and on Sunset Blvd. Hollywood."),
        ("en", "The U.S. Army and Gen. Lee met Lt. Col. Jones at approx. 5 p.m. on Jan. 3."),
        ("", "Wir öffnen am 3. Mai um neun."),
        ("de", "Der 2. Weltkrieg und das 19. Jahrhundert, z. B. bei Dr. Meier, vgl. S. 5 dort."),
        ("de-AT", "Das ist der 100. Geburtstag von Mag. Huber."),
        ("fr", "M. Dupont et Mme. Durand, p.ex. au 5 av. Foch."),
        ("es", "El Sr. García y la Sra. López viven en la Avda. América."),
        ("it", "Il Dott. Rossi e la Sig.ra Bianchi arrivano in P.zza Garibaldi."),
        ("pt", "O Sr. Silva e a Dra. Costa chegam no dia 5."),
        ("nl", "Dhr. Jansen komt bijv. om 5 uur."),
        ("sv", "Hr. Berg kommer t.ex. klockan 5."),
        ("da", "Det er den 3. Maj hos hr. Hansen."),
        ("cs", "Je to 5. Května u Ing. Nováka."),
        ("pl", "To jest prof. Kowalski z ul. Długiej."),
        ("ru", "Он живёт на ул. Ленина в г. Москва, т.е. в центре."),
        ("el", "Ο κ. Παπαδόπουλος και η κα. Νίκου, π.χ. αύριο."),
        ("tr", "Dr. Yılmaz ve Prof. Kaya Atatürk Cad. üzerinde."),
        # A small letter follows: UAX #29, SB8. A number: SB6.
        ("", "Add approx. five gr. of it, resp. ten, at 3.5 or .5 degrees."),
        ("", "He said “Well...” and left, and then (what a day!) came back."),
    ],
)  # fmt: skip
def test_a_full_stop_that_ends_no_sentence(language: str, text: str) -> None:
    assert cut(text + " Next", language=language, first_clause_chars=1_000) == [text, " Next"]


@pytest.mark.parametrize(
    ("language", "pieces"),
    [
        ("", ["It is 5.", " Then we go."]),
        ("", ["Two years ago.", " Now get out.", " Please go on.", " It is a must."]),
        ("", ["It is on Park Ave.", " The shop is open."]),
        ("de", ["Das war 1999.", " Danach kam mehr."]),
        ("de", ["„Hallo.“", " Danach ging er."]),
        ("", ["It ends; so it does.", " Yes."]),
        ("", ["i know.", " it is small.", " ok"]),
    ],
)
def test_a_full_stop_that_ends_a_sentence(language: str, pieces: list[str]) -> None:
    assert cut("".join(pieces), language=language) == pieces


@pytest.mark.parametrize(
    ("language", "pieces"),
    [
        # Abbreviations of CLDR's suppressions, laws, clocks and titles; marks within brackets and quotes; UAX #29, SB5 to SB8a.
        ("en", ["See e.g. Fig. 3 or Sec. 4.2 for more.", " Done."]),
        ("en", ["It costs $3.50.", " Cheap!"]),
        ("en", ["Use the app (v2.0).", " It works."]),
        ("en", ["Ph.D. students get it.", " Good."]),
        ("en", ["At 5:30 a.m. the shop opens.", " Go."]),
        ("en", ["Wait . . . what?", " Ok."]),
        ("en", ['He said "Stop!"', " Then he left."]),
        ("de", ["Siehe Abs. 3 Nr. 4 BGB.", " Gut."]),
        ("de", ["Am 1. Januar 2026 um 8 Uhr.", " Gut."]),
        ("fr", ["Il est 8 h.", " M. Martin est là."]),
        ("es", ["¿Cómo está?", " ¡Bien!", " El Dr. Ruiz."]),
        ("ru", ["Это стоит 5 тыс. руб. в год.", " Да."]),
        ("hi", ["डॉ. शर्मा आए।", " वे गए।"]),
        ("bn", ["ডা. রহমান এলেন।", " ভালো।"]),
        ("ar", ["جاء د. أحمد.", " ثم ذهب."]),
        ("fa", ["حال شما چطور است؟", " خوبم."]),
        ("zh", ["他说：“好。”", "然后走了。"]),
        ("hy", ["Ինչպե՞ս ես։", " Լավ եմ։"]),
        ("my", ["မင်္ဂလာပါ။", " နေကောင်းလား။"]),
        ("am", ["ሰላም።", " እንዴት ነህ፧"]),
        ("km", ["សួស្តី។", " អ្នកសុខសប្បាយទេ?"]),
    ],
)
def test_more_ends_of_sentences(language: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert cut(text, language=language, first_clause_chars=1_000) == pieces
    assert cut(text, language=language, size=1_000, first_clause_chars=1_000) == pieces


def test_a_delta_of_a_million_letters_is_cut_in_linear_time() -> None:
    def seconds(text: str) -> float:
        begin = time.thread_time()
        SentenceCutter().feed(text)
        return time.thread_time() - begin

    for part in ("We open at nine. ", "x", ". ", ".", "a ", "3. "):
        short, long = (min(seconds((part * size)[:size]) for _ in range(3)) for size in (20_000, 160_000))
        assert long < 24 * short + 0.01, part


def test_only_the_first_piece_may_end_at_a_comma() -> None:
    text = "Sure, I can tell you quite a lot about that, my friend, and more, and more, and more, and more, if you like."
    assert cut(text) == [
        "Sure, I can tell you quite a lot about that,",
        " my friend, and more, and more, and more, and more, if you like.",
    ]


def test_a_number_with_commas_is_not_a_clause() -> None:
    assert cut("The distance to it is something like 384,400 km.") == [
        "The distance to it is something like 384,400 km."
    ]


def test_a_sentence_is_out_as_soon_as_the_next_begins() -> None:
    cutter = SentenceCutter()
    assert cutter.feed("Hello there.") == []
    assert cutter.feed(" ") == ["Hello there."]
    assert cutter.feed("元気ですか？") == []
    assert cutter.feed("う") == [" 元気ですか？"]


def test_a_text_without_an_end_is_cut_at_its_words() -> None:
    pieces = cut("word " * 200, max_chars=100)
    assert all(len(piece) <= 100 for piece in pieces)
    assert all(piece.strip().split(" ") == ["word"] * len(piece.split()) for piece in pieces)
    assert cut("x" * 250, max_chars=100) == ["x" * 100, "x" * 100, "x" * 50]


PROSE = st.lists(
    st.sampled_from([*"aIx .!?…,;:\n\"')*。，」1é“।؟โก ;α", "No. ", "Ave. ", "3. ", "Mai ", "und ", "p.m. "]),
    max_size=60,
).map("".join)


@settings(deadline=None, max_examples=400)
@given(text=PROSE | st.text(max_size=120), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8))
@example(text=",. a", sizes=[1])
def test_pieces_are_the_text_however_it_arrived(text: str, sizes: list[int]) -> None:
    whole = cut(text, size=max(len(text), 1), max_chars=40, first_clause_chars=8)
    cutter = SentenceCutter(max_chars=40, first_clause_chars=8)
    pieces: list[str] = []
    at = turn = 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        pieces += cutter.feed(text[at : at + size])
        at, turn = at + size, turn + 1
    pieces += cutter.finish()
    assert pieces == whole
    said = "".join(pieces)
    assert said == text[: len(said)]
    assert not text[len(said) :].strip()
    assert all(0 < len(piece) <= 40 for piece in pieces)


@pytest.mark.parametrize("language", ["de", "fr"])
def test_a_page_of_an_engine_is_cut_by_the_rules_of_its_language(language: str) -> None:
    sentence = "Wir gehen am 3. Tag."
    pieces = spoken_pieces(" ".join([sentence] * 60), language)
    assert [piece.strip() for piece in pieces].count(sentence) == (60 if language == "de" else 0)


# ----------------------------------------------------------------------------------- a sentence that does not end in time


@pytest.mark.parametrize(
    ("text", "part", "rest"),
    [
        ("I will look that u", "I will look that", " u"),
        ("Well, let us see wh", "Well, let us see", " wh"),
        ("A clause is long enough, to g", "A clause is long enough,", " to g"),
        ("Hel", "", "Hel"),
        ("... ", "", "..."),
        ("今日はいい天気", "今日はいい天気", ""),
        ("สวัสดี", "สวัสดี", ""),
    ],
)
def test_a_part_of_a_sentence_ends_at_a_clause_or_a_word(text: str, part: str, rest: str) -> None:
    cutter = SentenceCutter()
    assert cutter.feed(text) == []
    assert cutter.take() == part
    assert cutter.has_rest == bool(rest)
    assert cutter.finish() == ([rest] if rest else [])


@given(st.lists(st.text("ab .,!今", max_size=6) | st.none(), max_size=20))
def test_parts_lose_nothing_of_the_text(deltas: list[str | None]) -> None:
    cutter, pieces = SentenceCutter(), []
    for delta in deltas:
        pieces += [cutter.take()] if delta is None else cutter.feed(delta)
    pieces += cutter.finish()
    assert "".join(pieces).rstrip() == "".join(delta or "" for delta in deltas).rstrip()
