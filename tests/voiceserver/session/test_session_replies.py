"""Replies: barge-in and what was heard, requests of the client, tools, timeouts, speech to speech, resumed replies."""

from __future__ import annotations

import json

import pytest

from tests.voiceserver.session_bench import OUT_HZ, Bench, settings_of
from voiceserver.errors import ProtocolError, Refusal
from voiceserver.events import events as ev
from voiceserver_workers.ipc.messages import RequestKind, ResultKind

# --------------------------------------------------------------------------------------------------------- barge-in


def speaking(**options: object) -> Bench:
    """A reply of ten words over two seconds has begun to play."""
    bench = Bench(**options)
    bench.converse("question")
    bench.answer("One two three four five.", "Six seven eight nine ten.", is_done=False)
    bench.speak(1, 1000)
    bench.speak(2, 1000, is_done=False)
    bench.take()
    return bench


def test_a_barge_in_while_thinking_ends_the_reply_before_it_began() -> None:
    bench = Bench()
    bench.converse("question")
    bench.take()
    bench.say(96)
    assert bench.names() == ["speech.started", "reply.done"]
    assert bench.one(ev.SpeechStarted).interrupted_turn == 1
    assert bench.one(ev.ReplyDone).reason == "interrupted"
    assert bench.roles() == [("user", "question")]


def test_a_barge_in_while_speaking_cuts_the_history_to_what_was_heard() -> None:
    bench = speaking()
    bench.pass_time(1_336)
    bench.say(64)
    done = bench.one(ev.ReplyDone)
    assert done.reason == "interrupted"
    assert done.text == "One two three four five. Six seven eight nine ten."
    assert bench.roles()[-1] == ("assistant", "One two three four five. Six seven")
    assert "reply" not in bench.open_stages
    assert "tts" not in bench.open_stages


def test_speech_started_comes_before_the_end_of_the_reply_that_it_explains() -> None:
    bench = speaking()
    bench.say(96)
    assert bench.names()[:2] == ["speech.started", "reply.done"]
    assert bench.one(ev.SpeechStarted).interrupted_turn == bench.one(ev.ReplyDone).turn == 1


@pytest.mark.parametrize(
    ("sent_ms", "played_ms", "heard"),
    [
        (300, 300, "One two three four five. Six"),
        (900, 900, "One two three four five. Six seven eight nine"),
        (1_500, 1_500, "One two three four five. Six seven eight nine"),
        (0, 0, "One two three four five."),
    ],
)
def test_a_sentence_that_is_still_being_made_was_not_heard_to_its_end(
    sent_ms: int, played_ms: int, heard: str
) -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer("One two three four five.", "Six seven eight nine ten.", is_done=False)
    bench.speak(1, 1_000)
    bench.speak(2, sent_ms, is_done=False)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=1_000.0 + played_ms))
    bench.say(96)
    assert bench.one(ev.ReplyDone).reason == "interrupted"
    assert bench.roles()[-1] == ("assistant", heard)


def test_the_first_sentence_is_taken_to_be_as_long_as_people_speak() -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer("One two three four five.", is_done=False)
    bench.speak(1, 800, is_done=False)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=800.0))
    bench.say(96)
    assert bench.roles()[-1] == ("assistant", "One two")


def test_a_barge_in_after_the_end_stops_what_is_still_being_played() -> None:
    bench = speaking()
    bench.speak(2, 0)
    bench.answer()
    assert bench.one(ev.ReplyDone).reason == "completed"
    bench.take()
    bench.pass_time(336)
    bench.say(64)
    assert bench.names() == ["speech.started", "playback.stop"]
    assert bench.one(ev.SpeechStarted).interrupted_turn == 1
    assert bench.one(ev.PlaybackStop) == ev.PlaybackStop(turn=1, played_ms=400.0)
    assert bench.roles()[-1] == ("assistant", "One two")


PAGE = " ".join(f"This is sentence number {number} of a very long answer." for number in range(120))


def test_a_page_in_one_piece_is_spoken_in_sentences_and_each_once_after_a_replay() -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer(PAGE, is_done=False)
    bench.lose("reply")
    bench.answer(PAGE, "Goodbye.")
    texts = [event.text for event in bench.all(ev.ReplyText)]
    assert "".join(texts) == f"{PAGE} Goodbye."
    spoken = [payload.decode() for _, _, _, payload in bench.sent["tts"]]
    assert " ".join(spoken) == f"{PAGE} Goodbye."
    assert max(map(len, spoken)) <= 240


def test_a_page_that_nobody_speaks_stays_as_it_came() -> None:
    bench = Bench(speaks=False)
    bench.converse("question")
    bench.answer(PAGE)
    assert bench.one(ev.ReplyText).text == PAGE


def test_speech_after_everything_was_heard_interrupts_nothing() -> None:
    bench = speaking()
    bench.speak(2, 0)
    bench.answer()
    bench.pass_time(2_000)
    bench.take()
    bench.say(96)
    assert bench.names() == ["speech.started"]
    assert bench.one(ev.SpeechStarted).interrupted_turn == 0
    assert bench.roles()[-1] == ("assistant", "One two three four five. Six seven eight nine ten.")


def test_the_client_knows_better_what_was_heard() -> None:
    bench = speaking()
    bench.pass_time(1_000)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=200.0))
    bench.say(64)
    assert bench.roles()[-1] == ("assistant", "One")
    bench.do(ev.ReplyPlayed(turn=1, played_ms=600.0, is_final=True))
    assert bench.roles()[-1] == ("assistant", "One two three")


def test_a_truncate_of_a_finished_reply_cuts_the_history() -> None:
    bench = speaking()
    bench.speak(2, 0)
    bench.answer()
    bench.do(ev.ReplyPlayed(turn=1, played_ms=1_000.0, is_final=True))
    assert bench.roles()[-1] == ("assistant", "One two three four five.")


def test_results_of_a_reply_that_was_cut_off_are_dropped_at_the_door() -> None:
    bench = speaking()
    bench.say(96)
    bench.take()
    bench.answer("late", turn=1)
    bench.speak(2, 100, turn=1)
    bench.result("reply", ResultKind.FAILED, 1, 1, "{}")
    assert bench.events == []


def test_speech_does_not_interrupt_where_the_client_said_so() -> None:
    bench = speaking(turn_detection=ev.TurnDetection(interrupts_reply=False))
    bench.say()
    assert bench.names() == ["speech.started"]
    bench.pause()
    bench.transcribe("and this?")
    assert bench.all(ev.ReplyStarted) == []
    bench.speak(2, 0)
    bench.answer()
    assert [event.turn for event in bench.all(ev.ReplyStarted)] == [2]


def test_a_transcript_is_not_answered_when_its_caller_speaks_again() -> None:
    bench = Bench()
    bench.say()
    bench.pause()
    bench.say()
    bench.transcribe("first", turn=1)
    assert bench.all(ev.ReplyStarted) == []
    bench.pause()
    bench.transcribe("second", turn=2)
    assert bench.one(ev.ReplyStarted).turn == 2
    assert bench.roles() == [("user", "first"), ("user", "second")]


# ----------------------------------------------------------------------------------------------- false interruption


def test_a_reply_that_noise_cut_off_goes_on_from_where_it_was_heard() -> None:
    bench = speaking()
    bench.answer()
    bench.pass_time(1_336)
    bench.say(64)
    bench.pause()
    bench.take()
    bench.transcribe("")
    assert bench.names() == ["transcript.final", "reply.started", "reply.text"]
    assert bench.one(ev.ReplyText).text == "eight nine ten."
    assert bench.sent["tts"][-1][3] == b"eight nine ten."
    bench.speak(1, 600)
    assert bench.one(ev.ReplyDone).reason == "completed"
    assert bench.roles() == [
        ("user", "question"),
        ("assistant", "One two three four five. Six seven"),
        ("assistant", "eight nine ten."),
    ]
    assert len([kind for kind, *_ in bench.sent["reply"]]) == 1, "nobody was asked again"


def cut_off_by_noise() -> Bench:
    """Two sentences of a reply were produced, the first and two words of the second heard; then noise, and the reply goes on."""
    bench = speaking()
    bench.pass_time(1_336)
    bench.say(64)
    bench.pause()
    bench.take()
    bench.transcribe("")
    return bench


def test_a_reply_that_was_not_produced_to_its_end_is_asked_for_the_rest_and_loses_nothing() -> None:
    bench = cut_off_by_noise()
    assert [one.text for one in bench.all(ev.ReplyText)] == ["eight nine ten."]
    first, again = (json.loads(payload) for *_, payload in bench.sent["reply"])
    turn = bench.one(ev.ReplyStarted).turn
    assert again == {**first, "turn": turn}
    bench.answer("One two three four five.", "Six seven eight nine ten.", "Eleven.", "Twelve.")
    for sentence in (1, 2, 3):
        bench.speak(sentence, 300)
    assert [one.text for one in bench.all(ev.ReplyText)] == ["eight nine ten.", " Eleven.", " Twelve."]
    said = [payload for kind, of, _, payload in bench.sent["tts"] if kind == RequestKind.DATA and of == turn]
    assert said == [b"eight nine ten.", b"Eleven.", b"Twelve."]
    done = bench.one(ev.ReplyDone)
    assert (done.reason, done.text) == ("completed", "eight nine ten. Eleven. Twelve.")


def test_a_reply_of_which_all_was_heard_so_far_goes_on_with_what_comes() -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer("One.", is_done=False)
    bench.speak(1, 500)
    bench.pass_time(1_000)
    bench.say(96)
    bench.pause()
    bench.take()
    bench.transcribe("")
    assert bench.all(ev.ReplyText) == []
    bench.answer("One.", "Two.")
    bench.speak(1, 300)
    assert bench.one(ev.ReplyDone).text == "Two."


def test_a_resumed_reply_that_is_cut_off_again_or_whose_stage_dies_still_says_each_sentence_once() -> None:
    bench = cut_off_by_noise()
    bench.answer("One two three four five.", "Six seven eight nine ten.", "Eleven.", is_done=False)
    bench.lose("reply")
    bench.answer("One two three four five.", "Six seven eight nine ten.", "Eleven.", "Twelve.", is_done=False)
    bench.speak(1, 300)
    bench.speak(2, 300)
    bench.pass_time(300)
    bench.say(64)
    bench.pause()
    bench.take()
    bench.transcribe("")
    assert [one.text for one in bench.all(ev.ReplyText)] == ["Eleven.", " Twelve."]
    bench.answer("One two three four five.", "Six seven eight nine ten.", "Eleven.", "Twelve.", "Last.")
    assert bench.all(ev.ReplyText)[-1].text == " Last."


def test_a_reply_goes_on_from_where_the_client_says_that_it_stopped() -> None:
    bench = speaking()
    bench.answer()
    bench.pass_time(1_336)
    bench.say(64)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=1_000.0, is_final=True))
    bench.pause()
    bench.take()
    bench.transcribe("")
    assert bench.one(ev.ReplyText).text == "Six seven eight nine ten."
    assert ("assistant", "One two three four five.") in bench.roles()


def test_sentences_are_put_together_as_their_script_wants() -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer("你好。", "今天天气很好。", is_done=False)
    bench.answer("Hello.", "You.", is_done=False)
    assert "".join(one.text for one in bench.all(ev.ReplyText)) == "你好。今天天气很好。Hello. You."
    bench.speak(1, 300)
    bench.speak(2, 700)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=650.0))
    bench.say(96)
    assert bench.roles()[-1] == ("assistant", "你好。今天天")


def test_words_make_an_interruption_true() -> None:
    bench = speaking()
    bench.say(96)
    bench.pause()
    bench.take()
    bench.transcribe("stop it")
    assert bench.one(ev.ReplyStarted).turn == 2
    assert bench.asked()["messages"][-1] == {"role": "user", "content": "stop it"}  # type: ignore[index]


def test_a_backchannel_does_not_end_a_reply_where_they_are_named() -> None:
    bench = Bench(settings_of(backchannels=frozenset({"mm hm"})))
    bench.converse("question")
    bench.answer("One two three four five.")
    bench.speak(1, 1000)
    bench.say(96)
    bench.pause()
    bench.take()
    bench.transcribe("Mm-hm.")
    assert bench.one(ev.ReplyText).text.endswith("five.")


def test_silence_settles_an_interruption_when_the_transcript_is_slow() -> None:
    bench = speaking()
    bench.say(96)
    bench.pause()
    bench.take()
    bench.pass_time(2_000)
    assert bench.one(ev.ReplyStarted)
    turn = bench.one(ev.ReplyStarted).turn
    bench.take()
    bench.transcribe("but there were words")
    assert bench.one(ev.ReplyDone).turn == turn
    assert bench.one(ev.ReplyDone).reason == "interrupted"
    assert bench.one(ev.ReplyStarted)
    assert bench.asked()["messages"][-1] == {"role": "user", "content": "but there were words"}  # type: ignore[index]


def test_an_stt_that_is_behind_is_not_taken_for_silence() -> None:
    bench = speaking()
    bench.stt_answers = False
    bench.say(96)
    bench.pause()
    bench.take()
    bench.pass_time(5_000)
    assert bench.all(ev.ReplyStarted) == []


def test_a_partial_with_words_keeps_the_reply_stopped() -> None:
    bench = speaking()
    bench.say(96)
    bench.result("stt", ResultKind.TEXT, 2, 0, "but")
    bench.pause()
    bench.take()
    bench.pass_time(5_000)
    assert bench.all(ev.ReplyStarted) == []


def test_noise_over_noise_still_lets_the_reply_go_on() -> None:
    bench = speaking()
    bench.say(96)
    bench.pause()
    bench.say(96)
    bench.pause()
    bench.take()
    bench.transcribe("", turn=2)
    assert bench.all(ev.ReplyStarted) == []
    bench.transcribe("", turn=3)
    assert bench.one(ev.ReplyStarted)


def test_a_reply_that_was_cut_off_while_thinking_is_asked_again() -> None:
    bench = Bench()
    bench.converse("question")
    bench.say(96)
    bench.pause()
    bench.take()
    bench.transcribe("")
    assert bench.one(ev.ReplyStarted)
    assert len(bench.sent["reply"]) == 2
    assert bench.asked()["messages"] == [{"role": "user", "content": "question"}]


def test_nothing_goes_on_where_it_is_switched_off() -> None:
    bench = Bench(settings_of(false_interruption_ms=0.0))
    bench.converse("question")
    bench.answer("One two.")
    bench.speak(1, 1000)
    bench.say(96)
    bench.pause()
    bench.take()
    bench.transcribe("")
    assert bench.one(ev.ReplyStarted).turn == 2
    assert len(bench.sent["reply"]) == 2


# ------------------------------------------------------------------------------------------------ asked by the client


def test_a_reply_can_be_asked_for_without_speech() -> None:
    bench = Bench()
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="user", text="hi")))
    bench.do(ev.ReplyCreate(key="k", instructions="Shout.", max_output_tokens=5))
    assert bench.one(ev.ReplyStarted) == ev.ReplyStarted(turn=1, key="k")
    asked = bench.asked()
    assert (asked["instructions"], asked["max_output_tokens"]) == ("Shout.", 5)
    bench.answer("HI!")
    bench.speak(1, 100)
    assert bench.one(ev.ReplyDone).key == "k"


def test_a_second_reply_is_refused_while_one_is_in_progress() -> None:
    bench = Bench()
    bench.do(ev.ReplyCreate())
    with pytest.raises(ProtocolError) as caught:
        bench.do(ev.ReplyCreate())
    assert caught.value.code == "reply_active"
    assert len(bench.all(ev.ReplyStarted)) == 1


def test_a_reply_waits_for_the_transcripts_that_it_answers() -> None:
    bench = Bench(turn_detection=ev.TurnDetection(creates_reply=False))
    bench.say()
    bench.pause()
    bench.do(ev.ReplyCreate(key="k"))
    assert bench.all(ev.ReplyStarted) == []
    bench.transcribe("now")
    assert bench.one(ev.ReplyStarted).key == "k"
    assert bench.asked()["messages"] == [{"role": "user", "content": "now"}]


def test_the_queue_of_replies_is_bounded() -> None:
    bench = Bench()
    bench.do(ev.ReplyCreate())
    for _ in range(8):
        bench.do(ev.ReplyCreate(is_out_of_band=True))
    with pytest.raises(ProtocolError) as caught:
        bench.do(ev.ReplyCreate(is_out_of_band=True))
    assert caught.value.code == "reply_queue_full"


def test_an_out_of_band_reply_brings_its_own_items_and_leaves_no_trace() -> None:
    bench = Bench()
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="user", text="hi")))
    items = (ev.HistoryItem(role="user", text="classify"),)
    bench.do(ev.ReplyCreate(is_out_of_band=True, items=items, speaks=False))
    assert bench.asked()["messages"] == [{"role": "user", "content": "classify"}]
    bench.answer("spam")
    assert bench.one(ev.ReplyDone).text == "spam"
    assert bench.roles() == [("user", "hi")]


def test_every_reply_has_a_turn_of_its_own() -> None:
    bench = Bench()
    for _ in range(3):
        bench.do(ev.ReplyCreate(speaks=False))
        bench.answer("ok")
    bench.converse("four")
    bench.answer("ok")
    bench.speak(1, 10)
    turns = [event.turn for event in bench.all(ev.ReplyStarted)]
    assert turns == sorted(set(turns))
    assert [event.turn for event in bench.all(ev.ReplyDone)] == turns


def test_a_reply_in_text_needs_no_tts() -> None:
    bench = Bench(speaks=False)
    bench.converse("hello")
    assert not bench.one(ev.ReplyStarted).speaks
    bench.answer("Hi.", "You.")
    assert "tts" not in bench.sent
    assert bench.one(ev.ReplyDone).reason == "completed"
    assert bench.roles()[-1] == ("assistant", "Hi. You.")


def test_a_cancel_stops_everything_at_once() -> None:
    bench = speaking()
    bench.do(ev.ReplyCancel())
    assert bench.one(ev.ReplyDone).reason == "cancelled"
    assert {"reply", "tts"}.isdisjoint(bench.open_stages)
    with pytest.raises(ProtocolError) as caught:
        bench.do(ev.ReplyCancel())
    assert caught.value.code == "reply_not_active"


def test_a_reply_that_was_limited_says_so_with_its_usage() -> None:
    bench = Bench(speaks=False)
    bench.do(ev.ReplyCreate())
    bench.answer("As long as", is_done=False)
    finish = {"finish_reason": "length", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    bench.result("reply", ResultKind.DONE, 1, 1, json.dumps(finish))
    done = bench.one(ev.ReplyDone)
    assert (done.reason, done.input_tokens, done.output_tokens) == ("limited", 7, 3)


@pytest.mark.parametrize("stage", ["reply", "tts"])
def test_a_stage_that_fails_ends_the_reply_with_its_code(stage: str) -> None:
    bench = Bench()
    bench.do(ev.ReplyCreate())
    bench.answer("Well.", is_done=False)
    bench.result(stage, ResultKind.FAILED, 1, 1, '{"code": "too_rude", "message": "no"}')
    if stage == "reply":
        bench.speak(1, 200)  # what came before is said first
    done = bench.one(ev.ReplyDone)
    assert (done.reason, done.code, done.message) == ("failed", "too_rude", "no")
    assert bench.roles() == ([("assistant", "Well.")] if stage == "reply" else [])
    assert {"reply", "tts"}.isdisjoint(bench.open_stages)
    bench.do(ev.ReplyCreate())
    assert len(bench.all(ev.ReplyStarted)) == 2


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (ResultKind.TOOL, b"{"),
        (ResultKind.DONE, b"[]"),
        (ResultKind.TEXT, b"\xff"),
        (ResultKind.FAILED, b"?"),
    ],
)
def test_a_malformed_answer_fails_the_reply_only(kind: ResultKind, payload: bytes) -> None:
    bench = Bench()
    bench.do(ev.ReplyCreate())
    bench.result("reply", kind, 1, 1, payload)
    assert bench.one(ev.ReplyDone).reason == "failed"
    assert not bench.session.is_closed


# ------------------------------------------------------------------------------------------------------------ tools


def tool(bench: Bench, **fields: object) -> None:
    bench.result("reply", ResultKind.TOOL, 1, 1, json.dumps(fields))


def test_a_tool_call_streams_and_feeds_the_next_reply() -> None:
    bench = Bench()
    bench.do(ev.ReplyCreate(tools=(ev.Tool(name="clock"),)))
    assert bench.asked()["tools"] == [{"name": "clock", "description": "", "parameters": {}}]
    tool(bench, index=0, call_id="c1", name="clock", arguments='{"zone"')
    tool(bench, index=0, arguments=': "utc"}')
    bench.answer()
    calls = bench.all(ev.ReplyToolCall)
    assert [call.arguments for call in calls] == ['{"zone"', ': "utc"}', '{"zone": "utc"}']
    assert [call.is_done for call in calls] == [False, False, True]
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="tool", call_id="c1", text="noon")))
    bench.do(ev.ReplyCreate())
    function = {"name": "clock", "arguments": '{"zone": "utc"}'}
    assert bench.asked()["messages"] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "noon", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize("pieces", [['{"people": 6}'], ["", '{"people": 6}'], ["", "{}"]])
def test_arguments_that_come_whole_are_told_once(pieces: list[str]) -> None:
    bench = Bench()
    bench.do(ev.ReplyCreate())
    for at, piece in enumerate(pieces):
        tool(bench, index=0, call_id="c1", name="" if at else "book", arguments=piece)
    bench.answer()
    calls = bench.all(ev.ReplyToolCall)
    assert "".join(call.arguments for call in calls) == pieces[-1]
    assert [call.is_done for call in calls] == [False, True]


def test_a_tool_call_is_not_doubled_when_the_reply_stage_dies_in_it() -> None:
    bench = Bench()
    bench.do(ev.ReplyCreate())
    tool(bench, index=0, call_id="c1", name="clock", arguments='{"zone"')
    bench.lose("reply")
    tool(bench, index=0, call_id="c1", name="clock", arguments='{"zo')
    tool(bench, index=0, arguments='ne": "utc"}')
    bench.answer()
    calls = bench.all(ev.ReplyToolCall)
    assert "".join(call.arguments for call in calls if not call.is_done) == '{"zone": "utc"}'
    assert calls[-1].arguments == '{"zone": "utc"}'


# --------------------------------------------------------------------------------------------------------- timeouts


def test_a_reply_that_does_not_begin_is_announced_slow_and_then_given_up() -> None:
    bench = Bench()
    bench.converse("hello")
    bench.take()
    bench.pass_time(1_000)
    assert bench.one(ev.ServerBusy).stage == "reply"
    bench.pass_time(9_000)
    done = bench.one(ev.ReplyDone)
    assert (done.reason, done.code) == ("failed", "reply_timeout")
    assert "reply" not in bench.open_stages
    assert bench.names()[-1] in ("server.ready", "reply.done")
    bench.pass_time(2_000)
    assert bench.names()[-1] == "server.ready"


def test_a_reply_that_stops_in_its_middle_is_announced_once_the_caller_hears_nothing() -> None:
    bench = Bench()
    bench.converse("hello")
    bench.answer("One.", is_done=False)
    bench.speak(1, 3_000)
    bench.take()
    bench.pass_time(3_900)
    assert bench.all(ev.ServerBusy) == [], "the caller still heard the reply, and then a second of silence"
    bench.pass_time(200)
    assert bench.one(ev.ServerBusy).stage == "reply"
    bench.pass_time(10_000)
    done = bench.one(ev.ReplyDone)
    assert (done.code, done.message.split(" for")[0]) == ("reply_timeout", "the answer stopped")


def test_no_timeout_runs_against_a_client_that_does_not_read() -> None:
    bench = speaking()
    bench.session.hold_output(True, bench.now_ms)
    bench.pass_time(60_000)
    assert bench.all(ev.ReplyDone) == []
    bench.session.hold_output(False, bench.now_ms)
    bench.pass_time(1_000)
    bench.speak(2, 0)
    bench.answer()
    assert bench.one(ev.ReplyDone).reason == "completed"


def test_a_caller_who_says_nothing_is_spoken_to() -> None:
    bench = Bench(turn_detection=ev.TurnDetection(idle_timeout_ms=5_000))
    bench.converse("hello")
    bench.answer("Hi.")
    bench.speak(1, 1_000)
    bench.take()
    bench.pass_time(5_900)
    assert bench.events == []
    bench.pass_time(200)
    assert bench.names() == ["input.idle", "reply.started"]


def test_a_caller_who_speaks_is_not_idle() -> None:
    bench = Bench(turn_detection=ev.TurnDetection(idle_timeout_ms=2_000))
    bench.converse("hello")
    bench.answer("Hi.")
    bench.speak(1, 100)
    bench.say(4_000)
    assert bench.all(ev.InputIdle) == []


# --------------------------------------------------------------------------------------------------- slow readers


def test_tts_stops_running_ahead_of_a_slow_reader() -> None:
    bench = Bench()
    bench.converse("hello")
    bench.session.hold_output(True, bench.now_ms)
    bench.answer("One.", "Two.")
    assert "tts" not in bench.sent
    bench.pass_time(5_000)
    assert bench.all(ev.ServerBusy) == [], "it is not the server who is slow"
    bench.session.hold_output(False, bench.now_ms)
    bench.pump()
    assert [payload for *_, payload in bench.sent["tts"]] == [b"One.", b"Two."]


# ------------------------------------------------------------------------------------------------- speech to speech


def speech_to_speech() -> Bench:
    bench = Bench(settings_of(audio_stage="reply", stages=("vad", "reply")))
    bench.stt_answers = False
    return bench


def test_a_speech_to_speech_engine_hears_audio_and_answers_with_audio() -> None:
    bench = speech_to_speech()
    bench.say()
    bench.pause()
    assert bench.sent["reply"][-1][0] == RequestKind.FLUSH
    assert all(kind == RequestKind.DATA for kind, *_ in bench.sent["reply"][:-1])
    assert bench.one(ev.ReplyStarted).turn == 1
    last = bench.sent["reply"][-1]
    bench.result("reply", ResultKind.FINAL, 1, last[2], "what was heard")
    bench.result("reply", ResultKind.TEXT, 1, last[2], "The answer.")
    bench.result("reply", ResultKind.AUDIO, 1, last[2], bytes(OUT_HZ // 10 * 2))
    bench.result("reply", ResultKind.DONE, 1, last[2])
    assert bench.one(ev.TranscriptFinal).text == "what was heard"
    assert len(bench.one(ev.ReplyAudio).pcm) == OUT_HZ // 10 * 2
    assert bench.one(ev.ReplyDone).reason == "completed"
    assert bench.session.streams_to_change()[1] == []
    books = bench.session.accounting()
    assert books.consumed_ms == books.received_ms


def test_a_speech_to_speech_reply_is_cut_off_and_its_audio_forgotten() -> None:
    bench = speech_to_speech()
    bench.say()
    bench.pause()
    last = bench.sent["reply"][-1]
    bench.result("reply", ResultKind.AUDIO, 1, last[2], bytes(OUT_HZ * 2))
    bench.say(96)
    assert bench.one(ev.ReplyDone).reason == "interrupted"
    assert {turn for _, turn, *_ in bench.sent["reply"][-3:]} == {2}


def test_a_speech_to_speech_worker_that_dies_says_nothing_twice() -> None:
    bench = speech_to_speech()
    bench.say()
    bench.pause()
    heard = list(bench.sent["reply"])
    last = heard[-1]
    bench.result("reply", ResultKind.AUDIO, 1, last[2], b"ab" * 100)
    bench.sent.clear()
    bench.lose("reply")
    assert bench.sent["reply"] == heard
    bench.result("reply", ResultKind.AUDIO, 1, last[2], b"ab" * 60)
    bench.result("reply", ResultKind.AUDIO, 1, last[2], b"ab" * 60 + b"cd" * 10)
    bench.result("reply", ResultKind.DONE, 1, last[2])
    pcm = b"".join(event.pcm for event in bench.all(ev.ReplyAudio))
    assert pcm == b"ab" * 120 + b"cd" * 10


def test_a_speech_to_speech_reply_that_never_comes_is_given_up() -> None:
    bench = speech_to_speech()
    bench.say()
    bench.pause()
    bench.pass_time(11_000)
    assert bench.one(ev.ReplyDone).code == "reply_timeout"
    bench.take()
    bench.pass_time(10_000)
    assert bench.session.streams_to_change()[1] == []
    assert bench.all(ev.ServerBusy) == []


def test_a_speech_to_speech_turn_that_is_ended_by_hand_is_answered() -> None:
    bench = speech_to_speech()
    bench.do(ev.SessionUpdate(turn_detection=None))
    bench.say(320)
    bench.do(ev.InputCommit())
    assert bench.one(ev.ReplyStarted).turn == 1
    assert bench.sent["reply"][-1][0] == RequestKind.FLUSH
    last = bench.sent["reply"][-1]
    bench.result("reply", ResultKind.AUDIO, 1, last[2], bytes(OUT_HZ // 10 * 2))
    bench.result("reply", ResultKind.DONE, 1, last[2])
    assert bench.one(ev.ReplyDone).reason == "completed"


@pytest.mark.parametrize("detects", [True, False])
def test_a_speech_to_speech_turn_waits_for_a_client_that_asks_for_the_answer_itself(*, detects: bool) -> None:
    bench = speech_to_speech()
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetection(creates_reply=False) if detects else None))
    bench.say(320)
    if detects:
        bench.pause()
    else:
        bench.do(ev.InputCommit(creates_reply=False))
    assert bench.one(ev.InputCommitted).turn == 1
    sent = bench.sent["reply"][-1]
    bench.result("reply", ResultKind.CONSUMED, sent[1], sent[2])
    assert all(kind == RequestKind.DATA for kind, *_ in bench.sent["reply"])
    bench.take()
    bench.pass_time(20_000)
    assert bench.names() == []
    bench.do(ev.ReplyCreate(key="k"))
    assert bench.one(ev.ReplyStarted) == ev.ReplyStarted(turn=1, key="k")
    assert bench.sent["reply"][-1][0] == RequestKind.FLUSH
    bench.result("reply", ResultKind.AUDIO, 1, sent[2], bytes(OUT_HZ // 10 * 2))
    bench.result("reply", ResultKind.DONE, 1, sent[2])
    assert bench.one(ev.ReplyDone).reason == "completed"
    with pytest.raises(ProtocolError) as caught:
        bench.do(ev.ReplyCreate())
    assert caught.value.code == "input_empty"
    assert bench.session.streams_to_change()[1] == []


@pytest.mark.parametrize("end", ["speech", "close", "drain"])
def test_a_speech_to_speech_turn_that_nobody_asks_about_is_forgotten(end: str) -> None:
    bench = speech_to_speech()
    bench.do(ev.SessionUpdate(turn_detection=None))
    bench.say(320)
    bench.do(ev.InputCommit(creates_reply=False))
    if end == "speech":
        bench.say(320)
        bench.do(ev.InputCommit())
        assert bench.one(ev.ReplyStarted).turn == 2
        assert [turn for kind, turn, *_ in bench.sent["reply"] if kind == RequestKind.FLUSH] == [2]
        return
    if end == "close":
        bench.do(ev.SessionClose())
    else:
        bench.session.drain(5_000, bench.now_ms)
        bench.pump()
    assert bench.names()[-1] == "session.closing"
    books = bench.session.accounting()
    assert books.received_ms == books.consumed_ms + books.discarded_ms


def test_a_listener_of_a_speech_to_speech_engine_is_not_answered() -> None:
    bench = speech_to_speech()
    bench.do(ev.SessionUpdate(replies=False))
    bench.say()
    bench.pause()
    assert bench.one(ev.SpeechStopped).turn == 1
    assert bench.all(ev.ReplyStarted) == []
    bench.take()
    assert "reply" not in bench.session.streams_to_change()[1]
    bench.pass_time(12_000)
    assert bench.all(ev.ServerBusy) == []
    books = bench.session.accounting()
    assert books.consumed_ms == books.received_ms


def test_a_quarantined_caller_is_told_and_closed() -> None:
    bench = Bench()
    bench.refuses["vad"] = Refusal("quarantined", 1_000.0, "vad")
    bench.hear(32, 0.0)
    assert bench.names() == ["error", "session.closing"]
    assert bench.session.close_code == 1011


# ------------------------------------------------------------------------------------------------------ empty answers


@pytest.mark.parametrize("sentences", [[], ["  "], ["<think>Hm.</think>"]])
def test_an_answer_without_text_or_sound_has_failed(sentences: list[str]) -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer(*sentences)
    for number in range(1, len(sentences) + 1):
        bench.speak(number, 0)
    done = bench.one(ev.ReplyDone)
    assert (done.reason, done.code) == ("failed", "empty_reply")


@pytest.mark.parametrize("speaks", [True, False])
@pytest.mark.parametrize("text", ["👍", "...", "-"])
def test_an_answer_that_can_be_read_needs_no_word(text: str, speaks: bool) -> None:
    bench = Bench(speaks=speaks)
    bench.converse("question")
    bench.answer(text)
    done = bench.one(ev.ReplyDone)
    assert (done.reason, done.text) == ("completed", text)


def test_an_answer_that_is_only_read_has_failed_without_text() -> None:
    bench = Bench(speaks=False)
    bench.converse("question")
    bench.answer(" ")
    assert bench.one(ev.ReplyDone).code == "empty_reply"


def test_a_tool_call_is_an_answer() -> None:
    bench = Bench()
    bench.converse("question")
    bench.result("reply", ResultKind.TOOL, 1, 1, json.dumps({"index": 0, "call_id": "a", "name": "f"}))
    bench.answer()
    assert bench.one(ev.ReplyDone).reason == "completed"


# -------------------------------------------------------------------------------------------------- what is spoken


def given_to_the_voice(bench: Bench) -> list[str]:
    return [payload.decode() for _, _, _, payload in bench.sent["tts"]]


def test_the_voice_is_given_prose_and_the_event_keeps_the_original() -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer("## Hours\n", "We open at **nine** \U0001f600.")
    assert given_to_the_voice(bench) == ["Hours.", "We open at nine."]
    bench.speak(1, 300)
    bench.speak(2, 700)
    assert [event.text for event in bench.all(ev.ReplyText)] == [
        "## Hours\n",
        "We open at **nine** \U0001f600.",
    ]
    assert bench.one(ev.ReplyDone).text == "## Hours\nWe open at **nine** \U0001f600."
    assert bench.roles()[-1] == ("assistant", "## Hours\nWe open at **nine** \U0001f600.")


def test_thoughts_are_neither_said_nor_shown_nor_kept() -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer("<think>The user asks. ", "Keep it short.</thi", "nk>We open at nine.", " Bye <")
    assert given_to_the_voice(bench) == ["We open at nine.", "Bye"]
    bench.speak(1, 300)
    bench.speak(2, 300)
    assert bench.one(ev.ReplyDone).text == "We open at nine. Bye <"
    assert bench.roles()[-1] == ("assistant", "We open at nine. Bye <")


def test_a_sentence_without_a_word_for_the_voice_is_heard_with_the_one_before() -> None:
    bench = Bench()
    bench.converse("question")
    bench.answer("\U0001f44d", "One two.", "***", "Three four.", "\U0001f600")
    assert [one[2] for one in bench.sent["tts"]] == [2, 4]
    bench.speak(2, 1_000)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=1_000.0))
    bench.say(96)
    assert bench.one(ev.ReplyDone).reason == "interrupted"
    assert bench.roles()[-1] == ("assistant", "\U0001f44d One two. ***")


def test_a_reply_that_goes_on_stays_in_its_block_of_code() -> None:
    bench = Bench(settings_of(false_interruption_ms=500))
    bench.converse("question")
    bench.answer("Run this one now. ", "```sh\n", "rm file\n", "```\nThat is all.")
    bench.speak(1, 2_000)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=1_000.0))
    bench.sent["tts"].clear()
    bench.say(96)
    bench.pause(640)
    bench.transcribe("")
    assert given_to_the_voice(bench) == ["one now.", "code.", "That is all."]


def test_text_that_nobody_speaks_is_shown_without_thoughts() -> None:
    bench = Bench(speaks=False)
    bench.converse("question")
    bench.answer("<think>Hm.</think>**Nine.**")
    assert bench.one(ev.ReplyDone).text == "**Nine.**"
    assert "tts" not in bench.sent


def test_a_word_that_is_cut_because_it_is_long_is_shown_in_one() -> None:
    bench = Bench()
    bench.converse("question")
    address = "https://example.com/" + "x/" * 600
    bench.answer(f"See {address} now.")
    bench.speak(1, 500)
    assert "".join(event.text for event in bench.all(ev.ReplyText)) == f"See {address} now."
    assert given_to_the_voice(bench) == ["See", "example.com", "now."]


# -------------------------------------------------------------------------------- a reply stage that is at work and silent


def test_a_stage_that_shows_that_it_is_at_work_is_not_given_up() -> None:
    bench = Bench(settings_of(reply_timeout_ms=10_000))
    bench.converse("question")
    for _ in range(20):
        bench.pass_time(2_000)
        bench.result("reply", ResultKind.CONSUMED, 1, 1)
    assert bench.all(ev.ReplyDone) == []
    assert bench.all(ev.ServerBusy), "the caller is told all the same that the reply is slow"
    bench.pass_time(9_000)
    assert bench.all(ev.ReplyDone) == []
    bench.pass_time(1_500)
    done = bench.one(ev.ReplyDone)
    assert done.code == "reply_timeout"
    assert done.message == "no answer began for 10000 ms (session.reply_timeout_ms)"


def test_a_failure_ends_at_once_the_reply_of_a_caller_who_reads() -> None:
    bench = Bench(speaks=False)
    bench.converse("question")
    bench.answer("Well", is_done=False)
    bench.result("reply", ResultKind.FAILED, 1, 1, '{"code": "too_rude", "message": "no"}')
    done = bench.one(ev.ReplyDone)
    assert (done.code, done.text) == ("too_rude", "Well")


# -------------------------------------------------------------------------------------- turns that end without a sound


def fail_reply(code: str) -> Bench:
    bench = Bench(audible_busy=True)
    bench.converse("question")
    failure = json.dumps({"code": code, "message": "It failed."})
    bench.result("reply", ResultKind.FAILED, 1, 1, failure)
    return bench


@pytest.mark.parametrize(
    ("code", "cue"),
    [
        ("reply_unreachable", "try_again"),
        ("reply_timeout", "try_again"),
        ("reply_http_error", "try_again"),
        ("engine_failed", "try_again"),
        ("reply_rejected", "no_answer"),
        ("empty_reply", "no_answer"),
    ],
)
def test_who_only_listens_hears_that_there_is_no_answer(code: str, cue: str) -> None:
    bench = fail_reply(code)
    assert bench.names()[-2:] == ["reply.done", "server.cue"]
    assert bench.one(ev.BusyCue).cue == cue
    assert bench.one(ev.ReplyDone).code == code


@pytest.mark.parametrize("sentences", [[], ["\U0001f44d"], ["..."], ["<think>Hm.</think>"]])
def test_an_answer_without_a_word_is_said_to_be_none(sentences: list[str]) -> None:
    bench = Bench(audible_busy=True)
    bench.converse("question")
    bench.answer(*sentences)
    assert bench.one(ev.BusyCue).cue == "no_answer"


def test_an_answer_that_was_filtered_is_said_to_be_none() -> None:
    bench = Bench(audible_busy=True)
    bench.converse("question")
    bench.result("reply", ResultKind.DONE, 1, 1, json.dumps({"finish_reason": "content_filter"}))
    assert bench.one(ev.ReplyDone).reason == "filtered"
    assert bench.one(ev.BusyCue).cue == "no_answer"


def test_an_answer_that_is_given_up_is_said_to_be_none() -> None:
    bench = Bench(audible_busy=True)
    bench.converse("question")
    bench.pass_time(60_000)
    assert bench.one(ev.ReplyDone).code == "reply_timeout"
    assert [cue.cue for cue in bench.all(ev.BusyCue)][-1] == "try_again"


def test_a_turn_that_was_not_understood_is_asked_for_again() -> None:
    bench = Bench(audible_busy=True)
    bench.say()
    bench.pause()
    flush = bench.sent["stt"][-1]
    bench.result("stt", ResultKind.FAILED, 1, flush[2], json.dumps({"code": "stt_failed", "message": "No."}))
    assert bench.one(ev.BusyCue).cue == "not_understood"


def test_what_was_heard_in_part_needs_no_words_of_ours() -> None:
    bench = Bench(audible_busy=True)
    bench.converse("question")
    bench.answer("One two.", is_done=False)
    bench.speak(1, 500)
    bench.result(
        "reply", ResultKind.FAILED, 1, 1, json.dumps({"code": "reply_unreachable", "message": "No."})
    )
    assert bench.one(ev.ReplyDone).reason == "failed"
    assert bench.all(ev.BusyCue) == []


@pytest.mark.parametrize("options", [{"audible_busy": False}, {"audible_busy": True, "speaks": False}])
def test_who_reads_events_hears_nothing_more(options: dict[str, object]) -> None:
    bench = Bench(**options)
    bench.converse("question")
    bench.result(
        "reply", ResultKind.FAILED, 1, 1, json.dumps({"code": "reply_unreachable", "message": "No."})
    )
    assert bench.one(ev.ReplyDone).code == "reply_unreachable"
    assert bench.all(ev.BusyCue) == []


def test_a_tool_call_is_no_silence() -> None:
    bench = Bench(audible_busy=True)
    bench.converse("question")
    bench.result("reply", ResultKind.TOOL, 1, 1, json.dumps({"index": 0, "call_id": "a", "name": "f"}))
    bench.answer()
    assert bench.all(ev.BusyCue) == []


def test_a_caller_who_speaks_again_is_not_spoken_into() -> None:
    bench = Bench(audible_busy=True)
    bench.converse("question")
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetectionChange(interrupts_reply=False)))
    bench.say(96)
    bench.result(
        "reply", ResultKind.FAILED, 1, 1, json.dumps({"code": "reply_unreachable", "message": "No."})
    )
    assert bench.all(ev.BusyCue) == []
