"""Whether audio that does not come ends a turn: not while the reason may be the connection, the server or vad."""

from __future__ import annotations

import pytest

from tests.voiceserver.session_bench import Bench, settings_of
from voiceserver.events import events as ev
from voiceserver_workers.ipc.messages import ResultKind, pack_turn

GRACE_MS = 500.0
DUE_MS = 32.0 + 500.0 + GRACE_MS  # the message that was awaited, the silence, the grace


def speaking(**options: object) -> Bench:
    bench = Bench(settings_of(audio_grace_ms=GRACE_MS), **options)
    bench.say()
    assert bench.session.stage_of_turn == "listening"
    return bench


def test_the_turn_ends_as_on_silence_and_its_timings_tell_the_wait() -> None:
    bench = speaking()
    bench.pass_time(DUE_MS - 1.0)
    assert not bench.all(ev.SpeechStopped)
    bench.pass_time(1.0)
    stopped = bench.one(ev.SpeechStopped)
    assert (stopped.reason, stopped.at_ms) == ("silence", 640.0)
    assert bench.one(ev.InputCommitted).turn == 1
    bench.transcribe("hello")
    bench.answer("Hi.")
    bench.speak(1, 100)
    assert bench.one(ev.ReplyDone).timings.endpointing_ms == DUE_MS - 32.0


def test_a_caller_who_is_away_may_come_back_and_go_on() -> None:
    bench = speaking()
    bench.session.hold_output(True, bench.now_ms)
    bench.pass_time(20_000)
    assert not bench.all(ev.SpeechStopped)
    bench.session.hold_output(False, bench.now_ms)
    bench.pass_time(GRACE_MS - 1.0)
    assert not bench.all(ev.SpeechStopped)
    bench.pass_time(2.0)
    assert bench.one(ev.SpeechStopped).reason == "silence"


def test_audio_that_vad_has_not_heard_may_be_speech() -> None:
    bench = speaking()
    bench.vad_answers = False
    bench.say(320)
    bench.pass_time(5_000)
    assert not bench.all(ev.SpeechStopped)
    bench.answer_vad(0.9)
    bench.pass_time(GRACE_MS + 250.0)
    assert bench.one(ev.SpeechStopped).at_ms == 960.0


def test_a_turn_by_hand_is_the_clients_to_end() -> None:
    bench = Bench(settings_of(audio_grace_ms=GRACE_MS), turn_detection=None)
    bench.say()
    bench.pass_time(20_000)
    assert not bench.all(ev.InputCommitted)


@pytest.mark.parametrize(("probability", "limit_ms"), [(0.9, 200.0), (0.1, 900.0)])
def test_the_verdict_on_the_pause_moves_the_wait(probability: float, limit_ms: float) -> None:
    detection = ev.TurnDetection(silence_duration_ms=500, min_silence_ms=200, max_silence_ms=900)
    bench = speaking(turn_detection=detection)
    bench.pause(160)
    verdict = pack_turn(640.0, 800.0, probability)
    bench.result("vad", ResultKind.TURN, 0, bench.vad_seq, verdict)
    bench.pass_time(32.0 + limit_ms + GRACE_MS - 1.0)
    assert not bench.all(ev.SpeechStopped)
    bench.pass_time(1.0)
    assert bench.one(ev.SpeechStopped).reason == "silence"
