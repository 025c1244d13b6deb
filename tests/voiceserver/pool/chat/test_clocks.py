"""Two clocks: nothing heard from the endpoint, and nothing to say to the caller."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.pool.chat.clocks import CHAR_S, CallerClock, EndpointClock
from voiceserver.pool.chat.config import ChatConfig

CONFIG = ChatConfig("http://x/v1", first_token_timeout_ms=8_000, stall_timeout_ms=5_000, timeout_ms=60_000)


# ----------------------------------------------------------------------------------------- heard from the endpoint


def test_before_the_first_word_any_byte_is_a_sign_of_life() -> None:
    clock = EndpointClock(CONFIG, 100.0)
    assert clock.due_s == 108.0
    for second in range(1, 40):
        assert clock.hear(100.0 + second, has_begun=False, is_progress=second % 2 == 0)
    assert clock.due_s == 147.0
    assert clock.complaint(147.0) == (
        "The reply endpoint did not begin to answer; given up after 8000 ms (stages.reply.params.first_token_timeout_ms)."
    )


def test_after_it_comments_and_empty_deltas_are_none_and_thoughts_are() -> None:
    clock = EndpointClock(CONFIG, 0.0)
    clock.hear(1.0, has_begun=True, is_progress=True)
    assert not clock.hear(4.0, has_begun=True, is_progress=False)
    assert clock.due_s == 6.0
    assert clock.hear(5.0, has_begun=True, is_progress=True)
    assert clock.due_s == 10.0
    assert clock.complaint(10.0).endswith(
        "stopped in its answer; given up after 5000 ms (stages.reply.params.stall_timeout_ms)."
    )


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans(), st.booleans()), max_size=200))
def test_the_whole_answer_has_its_time_whatever_is_heard(signs: list[tuple[float, bool, bool]]) -> None:
    clock, now_s, has_begun = EndpointClock(CONFIG, 0.0), 0.0, False
    for passed_s, is_word, is_progress in signs:
        now_s, has_begun = now_s + passed_s, has_begun or is_word
        clock.hear(now_s, has_begun=has_begun, is_progress=is_progress or is_word)
        assert clock.due_s <= min(60.0, now_s + 8.0)
    if clock.due_s == 60.0:
        assert "(stages.reply.params.timeout_ms)" in clock.complaint(60.0)


# ------------------------------------------------------------------------------------------------ said to the caller


def test_text_that_waits_is_due_after_max_unspoken() -> None:
    clock = CallerClock(1_500.0)
    assert clock.look(10.0, spoken_chars=0, has_rest=False) == math.inf
    assert clock.look(11.0, spoken_chars=0, has_rest=True) == 12.5
    assert clock.look(12.0, spoken_chars=0, has_rest=True) == 12.5, "more of it does not put it off"
    assert clock.look(12.0, spoken_chars=0, has_rest=False) == math.inf


def test_what_was_said_is_heard_first() -> None:
    clock = CallerClock(1_500.0)
    assert clock.look(10.0, spoken_chars=40, has_rest=True) == pytest.approx(10.0 + 40 * CHAR_S + 1.5)
    assert clock.look(20.0, spoken_chars=40, has_rest=False) == math.inf
    assert clock.look(21.0, spoken_chars=40, has_rest=True) == 22.5
