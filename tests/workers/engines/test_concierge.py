"""The concierge: what it says to what was heard."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_workers.engine import EngineError, Item
from voiceserver_workers.engines.arithmetic import Unanswerable, say_number, solve
from voiceserver_workers.engines.concierge import Concierge, answer
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

CONTEXT = {"sessions": 12, "talkers": 3, "lag_ms": 4.2, "local_time": "2026-01-31T18:05:00"}
NOTHING = np.empty(0, np.float32)


@pytest.mark.parametrize(
    ("said", "sentences"),
    [
        ("go forward ten meters", ["You said: go forward ten meters."]),
        ("are you there?", ["You said: are you there?"]),
        ("", ["Sorry, I did not understand you.", "Please say it again."]),
        (" ... ", ["Sorry, I did not understand you.", "Please say it again."]),
        ("hello", ["Hello.", "What can I do for you?"]),
        ("Good morning!", ["Hello.", "What can I do for you?"]),
        ("hello what time is it", ["Hello.", "It is 6:05 PM."]),
        ("what's the date today", ["Today is Saturday, January 31, 2026."]),
        ("tell me time and date", ["It is 6:05 PM.", "Today is Saturday, January 31, 2026."]),
        (
            "what is three plus four times two",
            ["You said: what is three plus four times two.", "That makes 11."],
        ),
        (
            "what is one divided by zero",
            ["You said: what is one divided by zero.", "Nothing can be divided by zero."],
        ),
        (
            "how busy are you",
            ["There are 12 callers, and 3 of them talking.", "The server is 4 milliseconds behind."],
        ),
        ("thank you", ["You are welcome."]),
        ("goodbye", ["Goodbye."]),
    ],
)
def test_it_answers(said: str, sentences: list[str]) -> None:
    assert answer(said, CONTEXT) == sentences


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ({}, "I cannot see how busy the server is."),
        ({"sessions": 1, "talkers": 1, "lag_ms": 0.0}, "You are the only caller."),
        ({"sessions": 2, "talkers": 0}, "There are 2 callers, and 0 of them talking."),
        ({"sessions": "many"}, "I cannot see how busy the server is."),
    ],
)
def test_it_tells_of_the_load_what_it_knows(context: dict[str, Any], sentence: str) -> None:
    assert answer("how busy is the server", context)[0] == sentence


@pytest.mark.parametrize("hour", range(24))
def test_the_hour_is_told_as_people_say_it(hour: int) -> None:
    told = answer("what time is it", {"local_time": f"2026-01-31T{hour:02}:07:00"})[0]
    assert told == f"It is {(hour - 1) % 12 + 1}:07 {'PM' if hour >= 12 else 'AM'}."


def request(content: Any, role: str = "user") -> str:
    return json.dumps({"messages": [{"role": role, "content": content}], "context": CONTEXT})


def test_one_text_a_sentence_and_then_done() -> None:
    engine = Concierge({})
    engine.open(1, StreamParams())
    output = engine.step([Item(1, 1, NOTHING, request("hello"))])[0]
    assert not output.more
    *texts, done = output.pieces
    assert texts == [(ResultKind.TEXT, "Hello."), (ResultKind.TEXT, " What can I do for you?")]
    assert done.kind == ResultKind.DONE
    assert isinstance(done.payload, str)
    assert json.loads(done.payload) == {"finish_reason": "stop", "usage": {}}


def test_it_answers_the_last_thing_the_caller_said() -> None:
    engine = Concierge({})
    engine.open(1, StreamParams())
    history = [("user", "one"), ("assistant", "You said: one."), ("user", "two"), ("system", "be kind")]
    messages = [{"role": role, "content": content} for role, content in history]
    output = engine.step([Item(1, 1, NOTHING, json.dumps({"messages": messages}))])[0]
    assert output.pieces[0].payload == "You said: two."


def test_content_may_be_a_list_of_parts() -> None:
    engine = Concierge({})
    engine.open(1, StreamParams())
    output = engine.step([Item(1, 1, NOTHING, request([{"type": "input_text", "text": "go on"}]))])[0]
    assert output.pieces[0].payload == "You said: go on."


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "{}", '{"messages": 3}', '{"messages": [4]}', "[" * 100_000]
)
def test_a_bad_request_is_an_engine_error(text: str) -> None:
    engine = Concierge({})
    engine.open(1, StreamParams())
    with pytest.raises(EngineError) as caught:
        engine.step([Item(1, 1, NOTHING, text)])
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("what is three plus four times two", 11),
        ("what's (3 + 4) * 2?", 14),
        ("two hundred and five minus six", 199),
        ("one thousand and twenty three plus one", 1024),
        ("a hundred times a thousand", 100_000),
        ("twenty one plus thirty four", 55),
        ("nineteen hundred plus eighty four", 1984),
        ("three point one four times two", Fraction(628, 100)),
        ("minus five plus ten", 5),
        ("ten divided by four", Fraction(5, 2)),
        ("twenty percent of fifty", 10),
        ("two to the power of ten", 1024),
        ("five squared minus two cubed", 17),
        ("1,000 x 2.5", 2500),
        ("what is one plus won", 2),
        ("please tell me what is two plus to", 4),
        ("six take away two equals", 4),
    ],
)
def test_sums(said: str, value: int | Fraction) -> None:
    assert solve(said) == value


@pytest.mark.parametrize(
    "said",
    [
        "ten",
        "go forward ten meters",
        "i have two dogs and three cats",
        "he was not an ill disposed young man",
        "over and over",
        "plus",
        "two plus",
        "five and five",
        "twenty twenty",
        "1 2 3",
        "(1 + 2",
        "",
    ],
)
def test_no_sums(said: str) -> None:
    assert solve(said) is None


@pytest.mark.parametrize("said", ["one over zero", "0 to the power of -1", "2 ^ 65", "10^9 * 10^9 * 10^9"])
def test_sums_without_an_answer(said: str) -> None:
    with pytest.raises(Unanswerable):
        solve(said)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(11), "11"),
        (Fraction(5, 2), "2.5"),
        (Fraction(10, 3), "about 3.3333"),
        (Fraction(-1, 8), "-0.125"),
    ],
)
def test_numbers_are_said_shortly(value: Fraction, text: str) -> None:
    assert say_number(value) == text


WORDS = "one two ten hundred thousand plus minus times over point and a ( ) ^ - % 7 0 3.5 to"
SUM_WORDS = st.sampled_from(WORDS.split())


@given(st.lists(SUM_WORDS, max_size=40).map(" ".join) | st.text(max_size=300))
def test_whatever_is_said_gets_an_answer(said: str) -> None:
    sentences = answer(said, CONTEXT)
    assert sentences
    assert all(sentence.strip() and len(sentence) < 1000 for sentence in sentences)


@given(
    st.integers(-999, 999),
    st.sampled_from("+-*"),
    st.integers(0, 999),
    st.sampled_from("+-*"),
    st.integers(0, 99),
)
def test_digits_are_worked_out_as_python_does(a: int, first: str, b: int, second: str, c: int) -> None:
    text = f"{a} {first} {b} {second} {c}"
    assert solve(text) == eval(text)


@pytest.mark.parametrize("end", [",", ".", ";", ":", " ,"])
def test_what_is_repeated_ends_with_one_full_stop(end: str) -> None:
    assert answer(f"Unless it is to be ill-disposed{end}", {}) == [
        "You said: Unless it is to be ill-disposed."
    ]
