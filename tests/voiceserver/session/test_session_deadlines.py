"""Never silent: busy by deadline, the ladder, the waiting room, losses and replays, each with exact numbers."""

from __future__ import annotations

import msgspec
import pytest

from tests.voiceserver.session_bench import OUT_HZ, RATE_HZ, Bench, settings_of
from voiceserver.config.schema import BackpressureConfig
from voiceserver.errors import Refusal
from voiceserver.events import events as ev
from voiceserver_workers.ipc.messages import RequestKind, ResultKind


def deaf(**backpressure: int) -> Bench:
    """A caller whose vad takes nothing."""
    bench = Bench(settings_of(backpressure=BackpressureConfig(**backpressure)))
    bench.vad_answers = False
    return bench


# ------------------------------------------------------------------------------------------------- busy by deadline


def test_audio_that_nobody_takes_is_announced_at_its_deadline() -> None:
    bench = deaf()
    bench.hear(32, 0.0)
    first_ms = bench.now_ms
    bench.hear(192, 0.0)
    assert bench.events == []
    bench.hear(64, 0.0)
    busy = bench.one(ev.ServerBusy)
    assert (busy.stage, busy.reason, busy.step) == ("vad", "slow", "slow")
    assert busy.lag_ms == 256.0, "audio up to 250 ms after the first chunk had come"
    assert busy.credit_ms == 10_000.0 - 256.0
    assert bench.session.busy_monitor is not None
    assert bench.session.busy_monitor.signalled_ms == first_ms + 250.0


def test_busy_repeats_with_fresh_numbers() -> None:
    bench = deaf()
    bench.hear(2_560, 0.0)
    signals = bench.all(ev.ServerBusy)
    assert [signal.lag_ms for signal in signals] == [256.0, 1_280.0, 2_272.0]
    assert [signal.step for signal in signals] == ["slow", "degraded", "degraded"]


def test_recovery_is_announced_with_hysteresis() -> None:
    bench = deaf()
    bench.hear(320, 0.0)
    bench.take()
    assert bench.session.audio_input is not None
    chunk = RATE_HZ * 32 // 1000
    for taken in range(1, 6):
        bench.result("vad", ResultKind.CONSUMED, 0, taken * chunk)
    assert bench.events == [], "the oldest chunk is 128 ms old"
    bench.result("vad", ResultKind.CONSUMED, 0, 6 * chunk)
    assert bench.one(ev.ServerReady) == ev.ServerReady(stage="vad", credit_ms=10_000.0 - 128.0)
    bench.hear(96, 0.0)
    assert bench.all(ev.ServerBusy) == []


def test_a_pool_without_room_gives_its_reason_and_its_estimate() -> None:
    bench = Bench()
    bench.refuses["vad"] = Refusal("full", 1_500.0, "vad")
    bench.vad_answers = False
    bench.hear(320, 0.0)
    busy = bench.one(ev.ServerBusy)
    assert (busy.reason, busy.retry_after_ms) == ("full", 1_500.0)
    del bench.refuses["vad"]
    bench.pass_time(100)
    assert "vad" in bench.open_stages, "a refused stream is asked for again after 100 ms"


def test_room_is_used_as_soon_as_the_pool_offers_it() -> None:
    bench = Bench()
    bench.refuses["vad"] = Refusal("full", 1_500.0, "vad")
    bench.vad_answers = False
    bench.hear(32, 0.0)
    bench.refuses.clear()
    bench.pump()
    assert "vad" not in bench.open_stages
    bench.session.retry("vad")
    bench.pump()
    assert "vad" in bench.open_stages


def test_a_transcript_that_takes_long_is_announced() -> None:
    bench = Bench()
    bench.say()
    bench.pause()
    bench.take()
    bench.pass_time(1_000)
    busy = bench.one(ev.ServerBusy)
    assert (busy.stage, busy.turn) == ("stt", 1)
    bench.transcribe("at last")
    assert bench.names()[1:3] == ["transcript.final", "reply.started"]
    bench.answer("Yes.")
    bench.speak(1, 100)
    assert bench.all(ev.ServerReady)


def test_a_sentence_that_is_not_spoken_is_announced() -> None:
    bench = Bench()
    bench.converse()
    bench.answer("Yes.")
    bench.take()
    bench.pass_time(250)
    busy = bench.one(ev.ServerBusy)
    assert (busy.stage, busy.lag_ms) == ("tts", 250.0)


def test_silence_of_an_idle_caller_is_never_busy() -> None:
    bench = Bench()
    bench.pause(10_240)
    bench.pass_time(60_000)
    assert bench.events == []


# ------------------------------------------------------------------------------------------------------- the ladder


def test_partials_are_the_first_to_go_and_come_back_with_ready() -> None:
    bench = Bench()
    bench.stt_answers = False
    bench.say(1_600)
    assert [signal.step for signal in bench.all(ev.ServerBusy)] == ["slow", "degraded"]
    bench.result("stt", ResultKind.TEXT, 1, 0, "some")
    assert bench.all(ev.TranscriptPartial) == []
    bench.take_stt()
    assert bench.all(ev.ServerReady)
    bench.result("stt", ResultKind.TEXT, 1, bench.seq, "some words")
    assert bench.one(ev.TranscriptPartial).text == "some words"


def test_shed_tells_to_the_sample_what_was_dropped() -> None:
    bench = Bench(settings_of(backpressure=BackpressureConfig(max_backlog_ms=1_000)))
    bench.refuses["vad"] = Refusal("no_worker", 100.0)
    bench.vad_answers = False
    bench.hear(3_200, 0.0)
    bench.session.disconnect(bench.now_ms)
    bench.pump()
    signals = bench.all(ev.ServerBusy)
    books = bench.one(ev.SessionClosing).accounting
    assert sum(signal.dropped_ms for signal in signals) == books.dropped_ms == 2_208.0
    assert books.received_ms == 3_200.0 == books.dropped_ms + books.discarded_ms
    assert "shed" in [signal.step for signal in signals]
    assert all(signal.credit_ms >= 0 for signal in signals)


def test_one_signal_announces_a_shed_at_once_and_the_repeats_add_up() -> None:
    bench = Bench(settings_of(backpressure=BackpressureConfig(max_backlog_ms=100)))
    bench.refuses["vad"] = Refusal("no_worker", 100.0)
    bench.vad_answers = False
    bench.hear(128, 0.0)
    busy = bench.one(ev.ServerBusy)
    assert (busy.step, busy.dropped_ms) == ("shed", 32.0)


def test_what_a_worker_already_has_is_not_shed() -> None:
    bench = deaf(max_backlog_ms=500)
    bench.hear(1_024, 0.0)
    assert len(bench.sent["vad"]) == 15
    bench.answer_vad(0.0)
    books = bench.session.accounting()
    assert (books.consumed_ms, books.dropped_ms) == (480.0, 544.0)


def test_sheds_of_the_captured_turn_move_from_consumed_to_dropped() -> None:
    bench = Bench(settings_of(backpressure=BackpressureConfig(max_backlog_ms=1_000)))
    bench.refuses["stt"] = Refusal("full", 100.0)
    bench.say(3_200)
    books = bench.session.accounting()
    assert books.dropped_ms > 2_000.0
    assert books.received_ms == books.consumed_ms + books.dropped_ms + books.discarded_ms
    assert bench.session.settings.check_laws


# ------------------------------------------------------------------------------------------------- the waiting room


def test_a_waiting_caller_hears_its_place_its_estimate_and_every_move() -> None:
    bench = Bench()
    bench.session.waiting(3, 9_000.0, bench.now_ms)
    bench.pump()
    busy = bench.one(ev.ServerBusy)
    assert (busy.stage, busy.reason, busy.step) == ("admission", "waiting", "waiting")
    assert (busy.position, busy.retry_after_ms) == (3, 9_000.0)
    bench.session.waiting(3, 8_500.0, bench.now_ms)
    bench.pump()
    assert len(bench.all(ev.ServerBusy)) == 1, "the same place is told again at the next repeat"
    bench.pass_time(1_000)
    assert bench.all(ev.ServerBusy)[-1].retry_after_ms == 8_500.0
    bench.session.waiting(2, 6_000.0, bench.now_ms)
    bench.pump()
    assert bench.all(ev.ServerBusy)[-1].position == 2


def test_no_stage_works_for_a_caller_who_waits_and_nothing_is_lost() -> None:
    bench = Bench()
    bench.session.waiting(1, 1_000.0, bench.now_ms)
    bench.vad_answers = False
    bench.hear(640, 0.9)
    bench.do(ev.ReplyCreate())
    bench.pass_time(30_000)
    assert bench.opened == []
    assert bench.all(ev.ReplyDone) == [], "waiting is not a timeout"
    bench.take()
    bench.session.admitted(bench.now_ms)
    bench.pump()
    assert {"vad", "reply", "tts"} <= bench.open_stages
    bench.answer_vad(0.9)
    assert bench.all(ev.SpeechStarted)
    assert bench.session.accounting().dropped_ms == 0.0


def test_an_admitted_caller_hears_ready() -> None:
    bench = Bench()
    bench.session.waiting(1, 1_000.0, bench.now_ms)
    bench.session.admitted(bench.now_ms)
    bench.pump()
    assert bench.names() == ["server.busy", "server.ready"]


# ----------------------------------------------------------------------------------------------------- audible busy


def test_a_caller_who_reads_no_events_is_told_aloud_once_for_each_time() -> None:
    bench = deaf()
    bench.do(ev.SessionUpdate(audible_busy=True))
    bench.hear(2_560, 0.0)
    assert len(bench.all(ev.ServerBusy)) == 3
    assert bench.one(ev.BusyCue) == ev.BusyCue(cue="busy")
    bench.answer_vad(0.0)
    assert bench.all(ev.ServerReady)
    bench.hear(640, 0.0)
    assert len(bench.all(ev.BusyCue)) == 2


def test_every_place_in_the_waiting_room_is_told_aloud() -> None:
    bench = Bench(audible_busy=True)
    for position in (2, 2, 1):
        bench.session.waiting(position, 1_000.0, bench.now_ms)
    bench.pass_time(3_000)
    assert [(cue.cue, cue.position) for cue in bench.all(ev.BusyCue)] == [("waiting", 2), ("waiting", 1)]


def test_no_cue_is_mixed_into_a_reply() -> None:
    bench = Bench(audible_busy=True)
    bench.converse()
    bench.answer("One.", "Two.")
    bench.speak(1, 100)
    bench.pass_time(600)
    assert bench.all(ev.ServerBusy)
    assert bench.all(ev.BusyCue) == []


def test_a_drain_and_a_failure_are_told_aloud() -> None:
    bench = Bench(audible_busy=True)
    bench.converse()
    bench.session.drain(100.0, bench.now_ms)
    bench.session.fail("internal_error", "sorry", 1011, bench.now_ms)
    bench.pump()
    assert [cue.cue for cue in bench.all(ev.BusyCue)] == ["failed"]
    idle = Bench(audible_busy=True)
    idle.session.drain(100.0, idle.now_ms)
    idle.pump()
    assert idle.names() == ["server.draining", "server.cue", "session.closing"]


# ----------------------------------------------------------------------------------------------- losses and replays


@pytest.mark.parametrize("reason", ["worker_lost", "worker_hung", "worker_memory"])
def test_a_lost_worker_is_told_at_once_and_ready_follows_its_successor(reason: str) -> None:
    bench = Bench()
    bench.pause(640)
    bench.refuses["vad"] = Refusal("no_worker", 50.0)
    bench.lose("vad", reason)
    busy = bench.one(ev.ServerBusy)
    assert (busy.stage, busy.reason, busy.step) == ("vad", reason, "lost")
    bench.vad_answers = False
    bench.hear(1_600, 0.0)
    assert len(bench.all(ev.ServerBusy)) == 2
    assert bench.all(ev.ServerBusy)[-1].reason == reason
    assert bench.all(ev.ServerReady) == []
    bench.refuses.clear()
    bench.pass_time(100)
    bench.answer_vad(0.0)
    assert bench.all(ev.ServerReady)


def test_while_no_worker_comes_back_each_signal_says_anew_when_one_may() -> None:
    bench = Bench()
    bench.pause(64)
    bench.vad_answers = False
    bench.refuses["vad"] = Refusal("no_worker", 700.0, "vad")
    bench.hear(64, 0.0)
    bench.lose("vad")
    bench.pass_time(1_000)
    bench.refuses["vad"] = Refusal("no_worker", 1_500.0, "vad")
    bench.pass_time(1_000)
    told = [(event.step, event.retry_after_ms) for event in bench.all(ev.ServerBusy)]
    assert told[1:] == [("lost", 700.0), ("lost", 1_500.0)]


def test_a_stage_that_has_nothing_to_do_is_not_missed() -> None:
    bench = Bench()
    bench.converse()
    bench.answer("Yes.")
    bench.speak(1, 100)
    bench.take()
    bench.session.lose_stream("stt", "worker_lost", bench.now_ms)
    bench.session.lose_stream("tts", "worker_lost", bench.now_ms)
    bench.pump()
    assert bench.events == []


def test_vad_is_replayed_warm_and_decides_nothing_twice() -> None:
    bench = Bench()
    bench.pause(1_280)
    bench.say(640)
    bench.sent["vad"].clear()
    bench.lose("vad")
    replayed = sum(len(payload) for *_, payload in bench.sent["vad"]) // 2
    assert replayed * 1000 / RATE_HZ >= 300 + 64 + 200
    bench.vad_seq = bench.seq - replayed
    bench.answer_vad(0.9)
    assert len(bench.all(ev.SpeechStarted)) == 1
    bench.pause()
    assert bench.one(ev.SpeechStopped).at_ms == 1_920.0
    books = bench.session.accounting()
    assert books.consumed_ms == books.received_ms


def test_stt_hears_the_whole_turn_again_and_says_each_word_once() -> None:
    bench = Bench()
    bench.say()
    bench.result("stt", ResultKind.TEXT, 1, 0, "go")
    bench.pause()
    heard = list(bench.sent["stt"])
    bench.sent["stt"].clear()
    bench.lose("stt")
    assert bench.sent["stt"] == heard
    assert bench.session.stream_params("stt").start_seq == heard[0][2] - len(heard[0][3]) // 2
    bench.result("stt", ResultKind.TEXT, 1, 0, "go")
    bench.result("stt", ResultKind.TEXT, 1, 0, "go forward")
    bench.transcribe("go forward")
    assert [event.text for event in bench.all(ev.TranscriptPartial)] == ["go", "go forward"]
    assert bench.one(ev.TranscriptFinal).text == "go forward"
    books = bench.session.accounting()
    assert books.consumed_ms == books.received_ms


def test_a_reply_is_asked_again_and_its_sentences_are_passed_over() -> None:
    bench = Bench()
    bench.converse()
    asked = list(bench.sent["reply"])
    bench.answer("One.", "Two.", is_done=False)
    bench.lose("reply")
    assert bench.sent["reply"] == asked * 2
    bench.answer("One.", "Two.", "Three.")
    for sentence in (1, 2, 3):
        bench.speak(sentence, 100)
    assert [event.text for event in bench.all(ev.ReplyText)] == ["One.", " Two.", " Three."]
    assert bench.one(ev.ReplyDone).text == "One. Two. Three."
    assert [payload for *_, payload in bench.sent["tts"]] == [b"One.", b"Two.", b"Three."]


def test_a_sentence_is_spoken_again_but_sent_once() -> None:
    bench = Bench()
    bench.converse()
    bench.answer("One.", "Two.")
    bench.speak(1, 100)
    bench.result("tts", ResultKind.AUDIO, 1, 2, b"ab" * 100)
    bench.sent["tts"].clear()
    bench.lose("tts")
    assert [payload for *_, payload in bench.sent["tts"]] == [b"Two."]
    bench.result("tts", ResultKind.AUDIO, 1, 2, b"ab" * 60)
    bench.result("tts", ResultKind.AUDIO, 1, 2, b"ab" * 60 + b"cd" * 5)
    bench.result("tts", ResultKind.DONE, 1, 2)
    pcm = b"".join(event.pcm for event in bench.all(ev.ReplyAudio))
    assert pcm == bytes(OUT_HZ // 10 * 2) + b"ab" * 120 + b"cd" * 5
    assert bench.one(ev.ReplyDone).reason == "completed"


def test_a_reply_whose_text_is_complete_is_not_asked_again() -> None:
    bench = Bench()
    bench.converse()
    bench.answer("One.")
    bench.take()
    bench.session.lose_stream("reply", "worker_lost", bench.now_ms)
    bench.pump()
    assert bench.events == []
    assert len(bench.sent["reply"]) == 1


def test_two_losses_of_the_same_stage_still_say_nothing_twice() -> None:
    bench = Bench()
    bench.say()
    bench.pause()
    bench.lose("stt")
    bench.take_stt()
    bench.lose("stt")
    bench.transcribe("once")
    assert bench.one(ev.TranscriptFinal).text == "once"
    assert len(bench.all(ev.ServerBusy)) == 2


def test_a_stream_that_moves_is_opened_again_and_nobody_speaks_of_it() -> None:
    """It was on the worker for suspects, and somebody else was found guilty."""
    bench = Bench()
    bench.say()
    for stage in ("vad", "stt"):
        before = list(bench.sent[stage])
        bench.sent[stage].clear()
        bench.lose(stage, "moved")
        assert stage in bench.open_stages
        again = bench.sent[stage]
        assert again == before[-len(again) :], "what was not committed goes out again"
        assert again
    assert bench.all(ev.ServerBusy) == []
    bench.converse("hello")
    assert bench.one(ev.TranscriptFinal).text == "hello"


def test_quarantine_is_told_and_ends_the_session() -> None:
    bench = Bench()
    bench.say(96)
    bench.take()
    bench.lose("vad", "quarantined")
    assert bench.names() == ["error", "session.closing"]
    assert bench.one(ev.ErrorEvent).code == "quarantined"
    assert (bench.session.is_closed, bench.session.close_code) == (True, 1011)


def test_the_audio_of_a_caller_who_waits_for_a_worker_is_taken_when_it_comes() -> None:
    bench = Bench()
    bench.refuses["vad"] = Refusal("no_worker", 100.0)
    bench.vad_answers = False
    bench.hear(2_048, 0.9)
    bench.refuses.clear()
    bench.pass_time(100)
    bench.answer_vad(0.9)
    assert bench.one(ev.SpeechStarted).at_ms == 0.0
    assert [kind for kind, *_ in bench.sent["stt"]] == [RequestKind.DATA] * 64
    assert bench.session.accounting().dropped_ms == 0.0


def test_signals_can_be_encoded_for_the_wire() -> None:
    bench = deaf()
    bench.hear(320, 0.0)
    told = msgspec.json.decode(msgspec.json.encode(bench.one(ev.ServerBusy)))
    assert set(told) == {
        "type", "stage", "reason", "lag_ms", "credit_ms", "retry_after_ms", "dropped_ms", "position", "turn", "step",
        "degraded",
    }  # fmt: skip


def test_a_close_that_cannot_wait_for_the_transcript_says_so_with_numbers() -> None:
    bench = Bench(settings_of(close_timeout_ms=500.0))
    bench.stt_answers = False
    bench.say()
    bench.pause()
    bench.do(ev.SessionClose())
    assert bench.all(ev.TranscriptFailed) == []
    bench.pass_time(500.0)
    failed = bench.one(ev.TranscriptFailed)
    assert (failed.turn, failed.code) == (1, "session_ended")
    (unheard_ms,) = (float(word) for word in failed.message.split() if word.replace(".", "").isdigit())
    books = bench.one(ev.SessionClosing).accounting
    assert unheard_ms == books.stages["stt"].discarded_ms > 500.0
    assert bench.names()[-1] == "session.closing"


def test_a_turn_that_is_cut_off_by_the_close_is_ended_and_told_of_too() -> None:
    bench = Bench(settings_of(close_timeout_ms=500.0))
    bench.stt_answers = False
    bench.vad_answers = True
    bench.say()
    bench.do(ev.SessionClose())
    bench.pass_time(500.0)
    assert bench.one(ev.SpeechStopped).reason == "close"
    assert bench.one(ev.TranscriptFailed).turn == 1


def test_a_caller_who_wants_no_transcripts_hears_of_none() -> None:
    bench = Bench(settings_of(close_timeout_ms=500.0), transcribes=False)
    bench.stt_answers = False
    bench.say()
    bench.pause()
    bench.do(ev.SessionClose())
    bench.pass_time(500.0)
    assert bench.all(ev.TranscriptFailed) == []
    assert bench.all(ev.SessionClosing)


def test_who_speaks_when_the_server_drains_may_end_the_sentence() -> None:
    bench = Bench()
    bench.say()
    bench.session.drain(10_000.0, bench.now_ms)
    bench.pump()
    bench.say(1_600)
    bench.pause()
    assert bench.one(ev.SpeechStopped).reason == "silence"
    bench.take_stt()
    bench.transcribe("all of it")
    bench.answer("Yes.")
    bench.speak(1, 100)
    assert bench.one(ev.ReplyDone).reason == "completed"
    closing = bench.one(ev.SessionClosing)
    assert (closing.reason, bench.session.close_code) == ("draining", 1012)
    assert closing.accounting.consumed_ms >= 640 + 1_600


def test_who_does_not_stop_is_stopped_in_time_for_the_answer() -> None:
    bench = Bench()
    bench.say()
    bench.session.drain(10_000.0, bench.now_ms)
    bench.pump()
    bench.say(6_000)
    assert bench.one(ev.SpeechStopped).reason == "close"
    assert 4_900 <= bench.one(ev.SpeechStopped).at_ms <= 5_800
    bench.take_stt()
    bench.transcribe("and so on")
    assert len(bench.all(ev.ReplyStarted)) == 1


def test_who_is_silent_when_the_server_drains_is_not_waited_for() -> None:
    bench = Bench()
    bench.pause(640)
    bench.session.drain(10_000.0, bench.now_ms)
    bench.pump()
    assert bench.one(ev.SessionClosing).reason == "draining"


def test_an_utterance_by_hand_may_be_ended_while_the_server_drains() -> None:
    bench = Bench(turn_detection=None)
    bench.vad_answers = False
    bench.say(320)
    bench.session.drain(10_000.0, bench.now_ms)
    bench.say(320)
    bench.do(ev.InputCommit(creates_reply=False))
    bench.take_stt()
    bench.transcribe("ended by hand")
    assert bench.one(ev.TranscriptFinal).text == "ended by hand"
    assert bench.one(ev.SessionClosing).accounting.consumed_ms == 640.0
