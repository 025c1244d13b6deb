"""What wires with ids of their own need of a session: named replies end once, items may be gone, rates may be settled late."""

from __future__ import annotations

from tests.voiceserver.session_bench import Bench
from voiceserver.events import events as ev


def speaking() -> Bench:
    bench = Bench()
    bench.converse()
    bench.answer("A long answer.", is_done=False)
    bench.speak(1, 500, is_done=False)
    bench.events.clear()
    return bench


def test_replies_that_wait_and_have_a_name_are_told_to_be_over() -> None:
    bench = speaking()
    bench.do(ev.ReplyCreate(key="aside", is_out_of_band=True))
    bench.do(ev.ReplyCreate(is_out_of_band=True))
    bench.do(ev.ReplyCancel())
    done = bench.all(ev.ReplyDone)
    assert [(one.key, one.reason) for one in done] == [("", "cancelled"), ("aside", "cancelled")]
    assert done[0].turn > 0
    assert done[1].turn == 0
    assert bench.session.reply is None


def test_a_waiting_reply_is_cancelled_by_its_name_and_nothing_else_is() -> None:
    bench = speaking()
    bench.do(ev.ReplyCreate(key="first", is_out_of_band=True))
    bench.do(ev.ReplyCreate(key="second", is_out_of_band=True))
    bench.do(ev.ReplyCancel(key="first"))
    assert bench.one(ev.ReplyDone).key == "first"
    assert bench.session.reply is not None
    bench.answer()
    bench.speak(1, 20)
    assert bench.all(ev.ReplyStarted)[-1].key == "second"


def test_a_barge_in_ends_the_replies_that_wait_too() -> None:
    bench = speaking()
    bench.do(ev.ReplyCreate(key="aside", is_out_of_band=True))
    bench.say()
    assert [(one.key, one.reason) for one in bench.all(ev.ReplyDone)] == [
        ("", "interrupted"),
        ("aside", "interrupted"),
    ]


def test_an_out_of_band_reply_does_not_take_the_turn_that_is_to_be_answered() -> None:
    bench = Bench()
    bench.say()
    bench.pause()
    spoken = bench.turn
    bench.take_stt()
    bench.do(ev.ReplyCreate(key="aside", is_out_of_band=True))
    bench.transcribe("hello", spoken)
    turns = {one.turn for one in bench.all(ev.ReplyStarted)}
    bench.answer()
    turns |= {one.turn for one in bench.all(ev.ReplyStarted)}
    assert len(turns) == 2
    assert len(bench.all(ev.ReplyStarted)) == 2


def test_an_item_that_the_history_no_longer_has_may_be_named() -> None:
    bench = Bench()
    bench.do(ev.ItemDelete(key="gone", may_be_gone=True))
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="user", text="a", key="a")))
    late = ev.HistoryItem(role="user", text="b", key="b")
    bench.do(ev.ItemAppend(item=late, after_key="gone", may_be_gone=True))
    assert bench.roles() == [("user", "a"), ("user", "b")]


def test_the_output_rate_is_the_one_at_the_start_of_a_reply() -> None:
    bench = Bench()
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="user", text="hello")))
    bench.session.output_rate_hz = 8_000
    bench.do(ev.ReplyCreate())
    bench.answer("Hello.")
    assert bench.session.stream_params("tts").rate_hz == 8_000
    reply = bench.session.reply
    assert reply is not None
    assert reply.output_rate_hz == 8_000
