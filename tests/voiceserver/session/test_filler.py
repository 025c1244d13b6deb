"""Fillers: a late reply is bridged by a line that was made before, on every wire, and never beside another sound."""

from __future__ import annotations

import json

import pytest

from tests.voiceserver.session_bench import OUT_HZ, Bench, settings_of
from tests.voiceserver.shell import AnsweredPool
from tests.voiceserver.wire.openai_client import Client
from tests.voiceserver.wire.test_twilio import kinds, marks, started
from voiceserver.announcements.earcons import tone
from voiceserver.announcements.fillers import RATES, Fillers, fillers_from
from voiceserver.announcements.prerendered import MAX_TRIES
from voiceserver.config.schema import SessionConfig
from voiceserver.events import events as ev
from voiceserver.session.filler import GRACE_MS
from voiceserver_workers.ipc.messages import ResultKind

AFTER_MS = 600.0
LINE_MS = 400.0
LINES = ("One moment.", "Nearly there.")


def pcm_of(ms: float, rate_hz: int = OUT_HZ) -> bytes:
    return b"\1\0" * int(rate_hz * ms / 1000)


def made(*texts: str, rate_hz: int = OUT_HZ, language: str = "") -> Fillers:
    """Fillers that a tts pool has spoken."""
    fillers, pool = Fillers(texts, AFTER_MS, (rate_hz,), language), AnsweredPool("tts")
    fillers.make(pool)
    for at, _ in enumerate(texts, 1):
        pool.streams[0].answer(ResultKind.AUDIO, 1, at, pcm_of(LINE_MS, rate_hz))
        pool.streams[0].answer(ResultKind.DONE, 1, at, b"{}")
    return fillers


def asked(*texts: str, **options: object) -> Bench:
    """The caller's turn is over, and the reply has not begun. What time that took does not count."""
    bench = Bench(settings_of(fillers=made(*(texts or LINES))), **options)
    bench.say()
    bench.pause()
    bench.take_stt()
    bench.transcribe("question")
    reply = bench.session.reply
    assert reply is not None
    bench.pass_time(reply.decided_ms + AFTER_MS - 1 - bench.now_ms)
    assert not bench.all(ev.ReplyFiller)
    bench.take()
    return bench


def test_a_late_reply_is_bridged_and_the_client_knows_by_what() -> None:
    bench = asked()
    bench.pass_time(1)
    assert bench.names() == ["reply.filler", "reply.audio"]
    assert bench.one(ev.ReplyFiller) == ev.ReplyFiller(1, "One moment.", LINE_MS)
    assert bench.one(ev.ReplyAudio) == ev.ReplyAudio(1, pcm_of(LINE_MS))
    assert bench.sent.get("tts") is None


def test_each_filler_is_said_once_and_after_the_silence_that_follows_the_last() -> None:
    bench = asked()
    bench.pass_time(1)
    bench.pass_time(LINE_MS + AFTER_MS - 1)
    assert len(bench.all(ev.ReplyFiller)) == 1
    bench.pass_time(1)
    assert [one.text for one in bench.all(ev.ReplyFiller)] == list(LINES)
    bench.pass_time(5_000)
    assert len(bench.all(ev.ReplyFiller)) == 2
    assert bench.session.counters()["fillers"] == 2


def test_a_reply_that_is_heard_in_time_or_has_begun_to_be_heard_gets_none() -> None:
    bench = asked()
    bench.answer("Well.", is_done=False)
    bench.speak(1, 200)
    bench.pass_time(5_000)
    assert not bench.all(ev.ReplyFiller)


def test_it_is_audio_of_the_reply_but_neither_text_nor_history_nor_timing() -> None:
    bench = asked()
    bench.pass_time(1)
    bench.answer("One two three four five.")
    bench.pass_time(100)
    bench.speak(1, 1_000)
    done = bench.one(ev.ReplyDone)
    assert done.text == "One two three four five."
    assert done.timings.audio_ms == 1_000.0
    assert done.timings.first_audio_ms is not None
    assert done.timings.first_audio_ms >= AFTER_MS + 100
    assert bench.roles()[-1] == ("assistant", "One two three four five.")
    assert bench.session.counters()["reply_audio_ms"] == 1_000.0


def test_what_was_heard_of_the_reply_is_counted_from_the_end_of_the_filler() -> None:
    bench = asked()
    bench.pass_time(1)
    bench.answer("One two three four five.")
    bench.speak(1, 1_000)
    bench.do(ev.ReplyPlayed(turn=1, played_ms=LINE_MS + 400.0))
    bench.say(96)
    assert bench.roles()[-1] == ("assistant", "One two")


def test_silence_between_filler_and_reply_is_not_taken_for_something_heard() -> None:
    bench = asked()
    bench.pass_time(1)
    bench.answer("One two three four five.")
    bench.pass_time(LINE_MS + 100)
    bench.speak(1, 1_000)
    bench.pass_time(336)
    bench.say(64)
    assert bench.roles()[-1] == ("assistant", "One two")


def test_speech_into_a_filler_is_a_barge_in() -> None:
    bench = asked()
    bench.pass_time(1)
    bench.take()
    bench.say(96)
    assert bench.names()[:2] == ["speech.started", "reply.done"]
    assert bench.one(ev.SpeechStarted).interrupted_turn == 1
    bench.take()
    bench.hear(3_000, 0.9)
    assert not bench.all(ev.ReplyFiller)
    assert bench.roles() == [("user", "question")]


def test_a_sentence_that_is_spoken_again_after_a_crash_goes_on_behind_the_filler() -> None:
    bench = asked()
    bench.pass_time(1)
    bench.answer("One two.")
    bench.speak(1, 300, is_done=False)
    bench.take()
    bench.lose("tts")
    bench.speak(1, 500)
    assert bench.one(ev.ReplyAudio).pcm == bytes(OUT_HZ * 200 // 1000 * 2)


@pytest.mark.parametrize("event", [ev.ReplyCreate(is_out_of_band=True), ev.ReplyCreate(speaks=False)])
def test_nobody_waits_for_a_voice_where_none_is_owed(event: ev.ReplyCreate) -> None:
    bench = Bench(settings_of(fillers=made(*LINES)))
    bench.do(event)
    bench.pass_time(5_000)
    assert bench.one(ev.ReplyStarted).turn
    assert not bench.all(ev.ReplyFiller)


def test_a_reply_that_was_asked_for_in_text_is_bridged_too() -> None:
    bench = Bench(settings_of(fillers=made(*LINES)))
    bench.do(ev.ReplyCreate())
    bench.pass_time(AFTER_MS)
    assert bench.one(ev.ReplyFiller).text == "One moment."


def test_no_filler_over_a_caller_who_speaks_or_into_a_connection_that_is_full() -> None:
    detection = ev.TurnDetection(interrupts_reply=False)
    bench = Bench(settings_of(fillers=made(*LINES)), turn_detection=detection)
    bench.converse("question")
    bench.say(2_000)
    assert bench.session.reply is not None
    assert not bench.all(ev.ReplyFiller)
    bench = asked()
    bench.session.hold_output(True, bench.now_ms)
    bench.pass_time(5_000)
    assert not bench.all(ev.ReplyFiller)
    bench.session.hold_output(False, bench.now_ms)
    bench.pass_time(10)
    assert bench.one(ev.ReplyFiller).text == "One moment."


def test_an_answer_that_was_asked_for_just_now_is_not_put_off_by_a_filler() -> None:
    bench = Bench(settings_of(fillers=made(*LINES)))
    bench.say()
    bench.pause()
    bench.take_stt()
    bench.pass_time(3_000)
    bench.transcribe("question")
    bench.pass_time(GRACE_MS - 1)
    assert not bench.all(ev.ReplyFiller)
    bench.pass_time(1)
    assert bench.one(ev.ReplyFiller).text == "One moment."


def test_who_is_told_aloud_of_being_busy_is_not_told_twice() -> None:
    bench = asked(audible_busy=True)
    bench.lose("reply")
    bench.pass_time(3_000)
    assert bench.one(ev.BusyCue).cue == "busy"
    assert not bench.all(ev.ReplyFiller)


def test_a_filler_does_not_put_off_the_signal_that_the_reply_is_late() -> None:
    with_filler, without = asked(), Bench()
    without.converse("question")
    for bench in (with_filler, without):
        bench.pass_time(1_200)
    assert with_filler.all(ev.ReplyFiller)
    assert with_filler.one(ev.ServerBusy).lag_ms == without.one(ev.ServerBusy).lag_ms


# ----------------------------------------------------------------------------------------------------------- lines


def test_lines_are_made_for_every_rate_that_callers_have_and_a_tone_is_heard_until_then() -> None:
    fillers, pool = made("Wait."), AnsweredPool("tts")
    assert fillers.audio(0, OUT_HZ) == ("Wait.", pcm_of(LINE_MS))
    assert fillers.audio(0, 8_000) == ("", tone(8_000))
    fillers.make(pool)
    pool.streams[0].answer(ResultKind.AUDIO, 1, 1, b"\2\0" * 800)
    pool.streams[0].answer(ResultKind.DONE, 1, 1, b"{}")
    assert fillers.audio(0, 8_000) == ("Wait.", b"\2\0" * 800)
    for rate_hz in range(25_000, 48_000, 1_000):
        assert fillers.audio(0, rate_hz) == ("", tone(rate_hz))
    fillers.make(pool)
    assert len(pool.streams) <= RATES


def test_callers_in_another_language_hear_a_tone() -> None:
    fillers = made("Moment.", language="de-DE")
    assert fillers.audio(0, OUT_HZ, "de")[0] == fillers.audio(0, OUT_HZ, "DE_AT")[0] == "Moment."
    assert fillers.audio(0, OUT_HZ)[0] == "Moment."
    assert fillers.audio(0, OUT_HZ, "en-us") == ("", tone(OUT_HZ))


def test_a_line_that_cannot_be_made_is_not_tried_for_ever() -> None:
    fillers, pool = Fillers(("Wait.",), AFTER_MS, (OUT_HZ,)), AnsweredPool("tts")
    for _ in range(20):
        fillers.make(pool)
        pool.streams[-1].answer(ResultKind.FAILED, 1, 1, b"{}")
    assert len(pool.streams) == MAX_TRIES


def test_settings_are_off_by_default_and_name_several_texts_or_a_tone() -> None:
    assert fillers_from(SessionConfig()) is None
    fillers = fillers_from(SessionConfig(filler=" One moment, please. | tone", filler_after_ms=700))
    assert fillers is not None
    assert (fillers.texts, fillers.after_ms) == (("One moment, please.", "tone"), 700)
    assert fillers.audio(1, 16_000) == ("", tone(16_000))


# ----------------------------------------------------------------------------------------------------------- wires


def test_on_the_realtime_wire_it_is_a_part_of_the_response_in_the_golden_order() -> None:
    client = Client()
    client.speech(1)
    heard = client.hear(
        ev.ReplyStarted(1),
        ev.ReplyFiller(1, "One moment.", 400.0),
        ev.ReplyAudio(1, pcm_of(400)),
        ev.ReplyText(1, "Hello."),
        ev.ReplyText(1, " You."),
        ev.ReplyAudio(1, pcm_of(100)),
        ev.ReplyDone(1, "completed"),
    )
    names = [frame["type"].removeprefix("response.") for frame in heard]
    opening = ["created", "output_item.added", "conversation.item.added", "content_part.added"]
    assert names[:4] == opening
    assert names[4:9] == [
        "output_audio_transcript.delta",
        "output_audio.delta",
        "output_audio_transcript.delta",
        "output_audio_transcript.delta",
        "output_audio.delta",
    ]
    said = [frame for frame in heard if frame["type"] == "response.output_audio_transcript.done"]
    assert said[0]["transcript"] == "One moment. Hello. You."
    deltas = [f["delta"] for f in heard if f["type"] == "response.output_audio_transcript.delta"]
    assert "".join(deltas) == said[0]["transcript"]


def test_a_tone_before_a_function_call_leaves_a_whole_response() -> None:
    client = Client()
    heard = client.hear(
        ev.ReplyStarted(1),
        ev.ReplyFiller(1, "", 250.0),
        ev.ReplyAudio(1, pcm_of(250)),
        ev.ReplyToolCall(1, 0, "c1", "look", "{}"),
        ev.ReplyToolCall(1, 0, "c1", "look", "{}", is_done=True),
        ev.ReplyDone(1, "completed"),
    )
    added = [f["item"]["id"] for f in heard if f["type"] == "response.output_item.added"]
    done = [f["item"]["id"] for f in heard if f["type"] == "response.output_item.done"]
    assert sorted(added) == sorted(done)
    assert len(set(added)) == 2


def test_on_the_telephone_it_is_media_with_a_mark_and_cleared_by_speech() -> None:
    codec = started()
    assert codec.encode(ev.ReplyFiller(1, "One moment.", 400.0)) == []
    frames = codec.encode(ev.ReplyAudio(1, pcm_of(400, 8_000)))
    assert kinds(frames) == ["media", "mark"]
    (name,) = marks(frames)
    (played,) = codec.receive_text(
        json.dumps({"event": "mark", "streamSid": codec.stream_sid, "mark": {"name": name}}).encode()
    )
    assert played == ev.ReplyPlayed(turn=1, played_ms=400.0)
    codec.encode(ev.ReplyAudio(1, pcm_of(400, 8_000)))
    assert kinds(codec.encode(ev.SpeechStarted(turn=2, at_ms=0.0, interrupted_turn=1))) == ["clear"]
