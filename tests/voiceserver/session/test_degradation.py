"""A session that is served with less: it is told what it goes without, at once and as long as that lasts."""

from __future__ import annotations

import pytest

from tests.voiceserver.session_bench import Bench
from voiceserver.events import events as ev
from voiceserver_workers.ipc.messages import RequestKind, ResultKind


def degraded(level: int = 1, **options: object) -> Bench:
    bench = Bench(**options)
    bench.session.server_snapshot.degrade_level = level
    return bench


def partial(bench: Bench, text: str) -> None:
    bench.result("stt", ResultKind.TEXT, bench.turn, 0, text)


def test_a_turn_of_a_server_under_pressure_is_opened_without_partials_and_the_caller_hears_so() -> None:
    bench = degraded()
    bench.say()
    assert bench.params["stt"].is_final_only
    busy = bench.all(ev.ServerBusy)[0]
    assert (busy.stage, busy.reason, busy.step, busy.degraded) == (
        "stt",
        "no_partials",
        "degraded",
        ("partials",),
    )
    assert busy.lag_ms == 0.0, "this caller is not late"
    assert not busy.is_late
    partial(bench, "one two")
    assert bench.all(ev.TranscriptPartial) == []
    bench.pause()
    bench.take_stt()
    bench.transcribe("one two")
    bench.pass_time(10.0)
    assert bench.one(ev.TranscriptFinal).text == "one two"
    assert bench.one(ev.ServerReady).stage == "stt"


def test_it_is_repeated_as_long_as_the_turn_lasts() -> None:
    bench = degraded()
    bench.say(3_200)
    signals = bench.all(ev.ServerBusy)
    assert len(signals) == 4
    assert {one.reason for one in signals} == {"no_partials"}
    assert bench.all(ev.ServerReady) == []


def test_the_next_turn_of_a_server_that_has_recovered_has_partials_again() -> None:
    bench = degraded()
    bench.converse()
    bench.session.server_snapshot.degrade_level = 0
    bench.take()
    bench.say()
    partial(bench, "one")
    assert not bench.params["stt"].is_final_only
    assert bench.one(ev.TranscriptPartial).text == "one"
    assert bench.all(ev.ServerBusy) == []


def test_a_caller_who_becomes_late_in_a_turn_has_stt_told_to_leave_partials_out() -> None:
    bench = Bench()
    bench.say(320)
    partial(bench, "one")
    bench.stt_answers = False
    bench.say(1_600)
    signals = bench.all(ev.ServerBusy)
    assert [one.step for one in signals] == ["slow", "degraded"]
    assert signals[-1].degraded == ("partials",)
    kinds = [kind for kind, *_ in bench.sent["stt"]]
    assert kinds.count(RequestKind.FINAL_ONLY) == 1
    partial(bench, "one two")
    assert [one.text for one in bench.all(ev.TranscriptPartial)] == ["one"]
    assert bench.session.accounting().dropped_ms == 0.0


def test_a_lighter_engine_is_announced_and_ends_with_its_turn() -> None:
    bench = degraded(3)
    bench.lighter = {"stt"}
    bench.converse("hello there")
    bench.pass_time(5.0)
    assert bench.one(ev.ServerReady).stage == "stt"
    busy = bench.all(ev.ServerBusy)[-1]
    assert (busy.stage, busy.reason, busy.degraded) == ("stt", "lighter_engine", ("partials", "stt engine"))


@pytest.mark.parametrize("stage", ["reply", "tts"])
def test_any_stage_of_a_turn_may_be_the_lighter_one(stage: str) -> None:
    bench = Bench()
    bench.lighter = {stage}
    bench.converse()
    bench.answer("Yes.", is_done=False)
    bench.speak(1, 100, is_done=False)
    bench.pass_time(5.0)
    (busy,) = bench.all(ev.ServerBusy)
    assert (busy.stage, busy.degraded) == (stage, (f"{stage} engine",))
    bench.answer()
    bench.speak(1, 0)
    bench.pass_time(5.0)
    assert bench.one(ev.ReplyDone).reason == "completed"
    assert bench.one(ev.ServerReady).stage == stage


def test_what_waits_as_well_is_what_the_signal_is_about() -> None:
    bench = degraded(3)
    bench.lighter = {"stt"}
    bench.stt_answers = False
    bench.say(1_600)
    late = bench.all(ev.ServerBusy)[-1]
    assert (late.reason, late.degraded) == ("slow", ("partials", "stt engine"))
    assert late.is_late
    assert late.lag_ms > 500.0


def test_no_busy_tone_for_a_caller_who_waits_for_nothing() -> None:
    bench = degraded(3, audible_busy=True)
    bench.lighter = {"stt"}
    bench.converse()
    assert bench.all(ev.ServerBusy)
    assert bench.all(ev.BusyCue) == []


def test_a_stream_that_is_lost_takes_what_it_went_without_with_it() -> None:
    bench = degraded(3)
    bench.lighter = {"stt"}
    bench.say()
    bench.lighter = set()
    bench.session.server_snapshot.degrade_level = 0
    bench.lose("stt")
    lost = bench.all(ev.ServerBusy)[-1]
    assert (lost.step, lost.degraded) == ("lost", ())
    partial(bench, "one")
    assert bench.one(ev.TranscriptPartial).text == "one"


def test_without_partials_silence_does_not_mean_that_there_were_no_words() -> None:
    bench = degraded()
    bench.session.server_snapshot.degrade_level = 0
    bench.converse()
    bench.answer("A long answer.")
    bench.speak(1, 4_000)
    bench.session.server_snapshot.degrade_level = 1
    bench.say()
    bench.pause()
    bench.take_stt()
    turn = bench.turn
    bench.pass_time(5_000.0)
    assert len(bench.all(ev.ReplyStarted)) == 1, "the reply must not go on before the transcript says so"
    bench.transcribe("stop it", turn)
    assert [one.text for one in bench.all(ev.TranscriptFinal)] == ["hello", "stop it"]


def two_turns(bench: Bench) -> None:
    """stt is so late that the second turn has begun before the first one is through."""
    bench.stt_answers = False
    bench.say()
    bench.pause()
    bench.say()


def test_who_is_behind_comes_to_the_lighter_engine_with_the_next_turn() -> None:
    bench = Bench()
    two_turns(bench)
    bench.lighter = {"stt"}
    bench.session.server_snapshot.degrade_level, bench.session.server_snapshot.lighter = 3, frozenset({"stt"})
    sent = len(bench.sent["stt"])
    assert bench.opened.count("stt") == 1
    bench.transcribe("the first", turn=1)
    assert bench.opened.count("stt") == 2
    assert {turn for _, turn, _, _ in bench.sent["stt"][sent:]} == {2}, "all of the second turn goes to it"
    bench.pass_time(5.0)
    assert bench.all(ev.ServerBusy)[-1].degraded == ("partials", "stt engine")
    assert bench.session.accounting().dropped_ms == 0.0
    bench.pause()
    bench.transcribe("the second", turn=2)
    assert [one.text for one in bench.all(ev.TranscriptFinal)] == ["the first", "the second"]


def test_and_back_from_it_with_a_turn_too() -> None:
    bench = degraded(3)
    bench.session.server_snapshot.lighter = frozenset({"stt"})
    bench.lighter = {"stt"}
    two_turns(bench)
    bench.lighter = set()
    bench.session.server_snapshot.degrade_level, bench.session.server_snapshot.lighter = 0, frozenset()
    bench.session.the_busy_monitor.is_degraded = False
    bench.transcribe("the first", turn=1)
    assert bench.opened.count("stt") == 2
    assert not bench.params["stt"].is_final_only
