"""A reply that is asked for at a pause: nothing of it is heard before the turn is over, and all of it is as without."""

from __future__ import annotations

import pytest

from tests.voiceserver.session_bench import Bench, settings_of
from voiceserver.config.schema import BackpressureConfig
from voiceserver.errors import Refusal
from voiceserver.events import events as ev
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind

PAUSE_MS = 192  # six windows


def paused(text: str = "what time is it", **settings: object) -> Bench:
    """The caller has said something and makes a pause; stt has said what it was."""
    bench = Bench(settings_of(preemptive=True, **settings))
    bench.say()
    bench.pause(PAUSE_MS)
    assert bench.sent["stt"][-1][0] == RequestKind.PAUSE
    hear(bench, text)
    return bench


def hear(bench: Bench, text: str) -> None:
    mark = bench.sent["stt"][-1]
    bench.result("stt", ResultKind.TEXT, mark[1], mark[2], text)


def work(bench: Bench, turn: int = 1) -> None:
    """Reply and tts have done everything."""
    bench.answer("It is noon.", "Anything else?", turn=turn)
    bench.speak(1, 500, turn=turn)


def end_turn(bench: Bench, text: str = "what time is it") -> None:
    bench.pause(640)
    bench.transcribe(text)


def test_at_a_pause_the_reply_is_asked_for_and_nobody_hears_of_it() -> None:
    bench = paused()
    assert bench.asked()["messages"] == [{"role": "user", "content": "what time is it"}]
    assert bench.asked()["turn"] == 1
    assert {"reply", "tts"} <= bench.open_stages
    bench.take()
    work(bench)
    assert bench.sent["tts"] == [(RequestKind.DATA, 1, 1, b"It is noon.")], "one sentence ahead, no more"
    assert bench.events == []
    assert bench.roles() == []
    assert bench.session.stage_of_turn == "listening"


def test_a_turn_that_ends_there_is_answered_at_once_in_the_usual_order() -> None:
    bench = paused()
    work(bench)
    bench.take()
    end_turn(bench)
    assert bench.names() == [
        "speech.stopped",
        "input.committed",
        "transcript.final",
        "reply.started",
        "reply.text",
        "reply.text",
        "reply.audio",
    ]
    assert len(bench.sent["reply"]) == 1, "it was asked for once"
    assert [one[2:] for one in bench.sent["tts"]] == [(1, b"It is noon."), (2, b"Anything else?")]
    bench.speak(2, 400)
    done = bench.one(ev.ReplyDone)
    assert done.reason == "completed"
    assert done.text == "It is noon. Anything else?"
    assert done.timings.reply_ms == done.timings.tts_ms == 0.0
    assert done.timings.audio_ms == 900.0
    assert done.timings.first_audio_ms == done.timings.stt_ms
    assert bench.roles() == [("user", "what time is it"), ("assistant", "It is noon. Anything else?")]
    assert bench.session.counters()["replies_ahead"] == bench.session.counters()["replies"] == 1


def test_a_guess_that_is_still_being_worked_on_is_waited_for() -> None:
    bench = paused()
    bench.take()
    end_turn(bench)
    assert bench.names()[-1] == "reply.started"
    assert len(bench.sent["reply"]) == 1
    bench.answer("It is noon.")
    assert bench.names()[-1] == "reply.text"
    bench.speak(1, 500)
    assert bench.one(ev.ReplyDone).reason == "completed"


def test_with_a_sentence_on_its_way_through_tts_it_is_not_sent_again() -> None:
    bench = paused()
    bench.answer("It is noon.", turn=1)
    bench.take()
    end_turn(bench)
    assert bench.sent["tts"] == [(RequestKind.DATA, 1, 1, b"It is noon.")]
    bench.speak(1, 500)
    assert bench.one(ev.ReplyDone).text == "It is noon."


def test_a_caller_who_goes_on_hears_nothing_of_it_and_is_answered_anew() -> None:
    bench = paused()
    work(bench)
    bench.take()
    bench.say(320)
    assert not {"reply", "tts"} & bench.open_stages
    assert bench.events == []
    end_turn(bench, "what time is it in Rome")
    assert len(bench.sent["reply"]) == 2
    assert bench.asked()["messages"] == [{"role": "user", "content": "what time is it in Rome"}]
    assert [event.text for event in bench.all(ev.ReplyText)] == []
    bench.answer("One.")
    bench.speak(1, 300)
    assert bench.one(ev.ReplyDone).text == "One."
    assert bench.roles() == [("user", "what time is it in Rome"), ("assistant", "One.")]


def test_another_transcript_than_the_guessed_one_is_asked_anew() -> None:
    bench = paused("what time is")
    work(bench)
    bench.opened.clear()
    end_turn(bench)
    assert bench.asked()["messages"] == [{"role": "user", "content": "what time is it"}]
    assert bench.opened.count("reply") == bench.opened.count("tts") == 1, (
        "old work came through the old streams"
    )
    assert bench.all(ev.ReplyText) == []
    assert bench.all(ev.ReplyAudio) == []


def test_results_of_the_old_request_do_not_answer_the_new_one() -> None:
    """They may lie in the same batch as the transcript, before the shell has closed the stream."""
    bench = paused("what time is")
    bench.pause(640)
    flush = bench.sent["stt"][-1]
    session = bench.session
    session.receive_result("stt", Record(ResultKind.FINAL, 1, 1, flush[2], b"what time is it"), bench.now_ms)
    session.receive_result("reply", Record(ResultKind.TEXT, 1, 1, 1, b"Is what?"), bench.now_ms)
    session.receive_result("tts", Record(ResultKind.AUDIO, 1, 1, 1, bytes(480)), bench.now_ms)
    bench.pump()
    assert bench.all(ev.ReplyText) == []
    assert bench.all(ev.ReplyAudio) == []
    assert len(bench.sent["reply"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        ev.SessionUpdate(instructions="Be rude."),
        ev.SessionUpdate(voice="other"),
        ev.SessionUpdate(speaks=False),
        ev.ItemAppend(item=ev.HistoryItem(role="user", text="by the way")),
    ],
)
def test_whatever_changes_the_answer_makes_the_guess_worthless(change: ev.ClientEvent) -> None:
    bench = paused()
    work(bench)
    bench.do(change)
    end_turn(bench)
    assert len(bench.sent["reply"]) == 2
    assert bench.all(ev.ReplyText) == []


@pytest.mark.parametrize("stage", ["reply", "tts"])
def test_a_worker_that_dies_takes_the_guess_along_and_nobody_hears_of_it(stage: str) -> None:
    bench = paused()
    bench.answer("It is", is_done=False, turn=1)
    bench.take()
    bench.lose(stage)
    assert bench.events == []
    end_turn(bench)
    assert len(bench.sent["reply"]) == 2
    bench.answer("It is noon.")
    bench.speak(1, 500)
    assert bench.one(ev.ReplyDone).reason == "completed"


def test_a_worker_that_dies_after_the_adoption_is_replayed() -> None:
    bench = paused()
    bench.answer("It is noon.", "Anything else?", turn=1)
    bench.speak(1, 500, turn=1, is_done=False)
    end_turn(bench)
    bench.lose("tts")
    assert bench.one(ev.ServerBusy).step == "lost"
    assert [one[2] for one in bench.sent["tts"]] == [1, 2, 1, 2]
    bench.speak(1, 700)
    bench.speak(2, 300)
    assert bench.one(ev.ReplyDone).timings.audio_ms == 1000.0, "nothing was said twice"


def test_a_guess_that_fails_is_asked_for_again_in_earnest() -> None:
    bench = paused()
    bench.result("reply", ResultKind.FAILED, 1, 1, '{"code": "engine_failed", "message": "no"}')
    assert bench.all(ev.ReplyDone) == []
    end_turn(bench)
    assert len(bench.sent["reply"]) == 2
    assert bench.one(ev.ReplyStarted).turn == 1


def test_a_guess_is_not_waited_for() -> None:
    full = Refusal("full", 100.0, "reply")
    bench = Bench(settings_of(preemptive=True, backpressure=BackpressureConfig(busy_after_ms=50)))
    bench.refuses["reply"] = full
    bench.say()
    bench.pause(PAUSE_MS)
    hear(bench, "what time is it")
    bench.take()
    bench.pass_time(250)
    assert bench.events == []
    bench.refuses.clear()
    end_turn(bench)
    assert bench.all(ev.ServerBusy) == []
    assert len(bench.sent["reply"]) == 1


def test_a_barge_in_is_answered_ahead_too_and_an_interjection_is_not() -> None:
    bench = Bench(
        settings_of(preemptive=True, backchannels=frozenset({"mm hm"}), false_interruption_ms=2000.0)
    )
    bench.converse("tell me a story")
    bench.answer("Once upon a time.", is_done=False)
    bench.speak(1, 2000)
    for text, asked in (("Mm-hm.", 1), ("stop that", 2)):
        bench.say(320)
        bench.pause(PAUSE_MS)
        hear(bench, text)
        assert len(bench.sent["reply"]) == asked
    work(bench, turn=bench.turn)
    end_turn(bench, "stop that")
    assert len(bench.sent["reply"]) == 2
    assert bench.all(ev.ReplyText)[-1].text == " Anything else?"


def test_an_adopted_reply_can_be_interrupted() -> None:
    bench = paused()
    work(bench)
    end_turn(bench)
    bench.take()
    bench.say(96)
    assert bench.names() == ["speech.started", "reply.done"]
    assert bench.one(ev.ReplyDone).reason == "interrupted"


def test_input_that_is_cleared_takes_the_guess_along() -> None:
    bench = paused()
    bench.do(ev.InputClear())
    assert not {"reply", "tts"} & bench.open_stages
    assert bench.roles() == []


def test_somebody_who_pauses_often_costs_three_guesses_a_turn() -> None:
    bench = paused("a")
    for text in ("a b", "a b c", "a b c d"):
        bench.say(320)
        bench.pause(PAUSE_MS)
        hear(bench, text)
    assert len(bench.sent["reply"]) == 3
    bench.pause()
    bench.transcribe("a b c d")
    assert len(bench.sent["reply"]) == 4


def test_a_session_that_closes_leaves_nothing_behind() -> None:
    bench = paused()
    bench.session.disconnect(bench.now_ms)
    bench.pump()
    assert bench.open_stages == set()
    assert bench.session.preemptive_reply is None


def test_without_the_setting_nothing_is_asked_ahead() -> None:
    bench = Bench()
    bench.say()
    bench.pause(PAUSE_MS)
    hear(bench, "what time is it")
    assert "reply" not in bench.sent


def test_a_server_that_is_late_guesses_nothing() -> None:
    bench = Bench(settings_of(preemptive=True))
    bench.session.server_snapshot.degrade_level = 1
    bench.say()
    bench.pause(PAUSE_MS)
    hear(bench, "what time is it")
    assert "reply" not in bench.sent


def test_more_than_can_be_held_is_given_up() -> None:
    bench = paused()
    bench.answer("It is noon.", turn=1)
    for _ in range(40):
        bench.speak(1, 1000, is_done=False, turn=1)
    assert bench.session.preemptive_reply is None
    assert "tts" not in bench.open_stages


def test_the_sentence_that_is_said_ahead_is_the_one_that_the_reply_would_say() -> None:
    bench = paused()
    bench.answer("<think>Easy.</think>", "\U0001f44d", "It is **noon**.", turn=1)
    assert bench.sent["tts"] == [(RequestKind.DATA, 1, 2, b"It is noon.")]
    bench.take()
    end_turn(bench)
    assert len(bench.sent["tts"]) == 1, "it is not said twice"
    bench.speak(2, 500)
    assert bench.one(ev.ReplyDone).text == "\U0001f44d It is **noon**."
