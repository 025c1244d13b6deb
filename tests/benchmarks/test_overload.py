from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.callers.paced_talkers import CHUNK_MS, SILENCE_AFTER_MS, Script, Talker, Tally
from benchmarks.overload import Load, loads, settled_s
from voiceserver_clients.recording import Recording


class Clock:
    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


def script() -> Script:
    """Two utterances of a second, and 1.2 s after each in which the caller listens."""
    tone = (np.sin(np.arange(16_000) / 10) * 8_000).astype("<i2").tobytes()
    return Script.build([Recording("tone", tone, 16_000), Recording("tone", tone, 16_000)])


class Call:
    """A talker without a socket, whom the test answers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tally = Tally()
        self.again_ms: list[float] = []
        self.talker = Talker(1, script(), 0.0, self.tally, self.clock, 0.0, self.again_ms.append)

    def hear(self, kind: str, **fields: object) -> None:
        self.talker.on_text(json.dumps({"type": kind, **fields}).encode())

    def open(self) -> None:
        self.talker.is_open = True
        self.hear("session.ready")

    def speak(self, until_ms: float) -> None:
        while self.clock.now_ms < until_ms:
            self.talker.step(self.clock.now_ms)
            self.clock.now_ms += CHUNK_MS


def test_speech_counts_when_its_final_came_in_time() -> None:
    call = Call()
    call.open()
    call.speak(1_500.0)
    call.hear("speech.started", turn=1, at_ms=50.0)
    call.hear("transcript.final", turn=1)
    call.speak(6_000.0)
    call.hear("speech.started", turn=2, at_ms=2_250.0)
    call.hear("transcript.final", turn=2)  # 2.8 s after its end
    call.speak(8_000.0)
    assert call.talker.heard(0.0, 4_000.0) == (2.0, 1.0)
    assert call.talker.heard(0.0, 2_000.0) == (1.0, 1.0)
    assert call.talker.heard(4_000.0, 7_700.0) == (2.0, 0.0)  # no transcript at all
    assert call.tally.ms["final"] == [pytest.approx(500.0), pytest.approx(2_800.0)]


def test_what_is_said_in_the_waiting_room_is_no_talkers_speech() -> None:
    call = Call()
    call.open()
    call.hear("server.busy", position=3, credit_ms=0.0)
    call.speak(2_000.0)
    assert not call.talker.is_talking
    assert call.talker.sent_ms == 0
    call.hear("server.ready")
    assert call.talker.is_talking
    call.speak(5_000.0)
    assert call.talker.sent_ms == 5_000
    assert call.talker.heard(0.0, 4_900.0)[0] == 1.0  # of the two that ended by then


def test_silence_is_neither_result_nor_signal_for_over_two_seconds_of_speech() -> None:
    call = Call()
    call.open()
    call.speak(SILENCE_AFTER_MS + 1_000.0)
    assert call.tally.silence_s == pytest.approx(1.0, abs=0.05)
    call.hear("server.busy", credit_ms=1_000.0)
    call.speak(SILENCE_AFTER_MS + 2_000.0)
    assert call.tally.silence_s == pytest.approx(1.0, abs=0.05)


def test_who_was_refused_knows_when_to_come_again_and_is_not_left_in_silence() -> None:
    call = Call()
    call.talker.on_refused(503, 3_000.0)
    call.speak(10_000.0)
    assert call.again_ms == [3_000.0]
    assert call.tally.counts["refused"] == 1
    assert call.tally.silence_s == 0.0


def test_twice_the_capacity_comes_as_a_step_and_the_last_load_as_a_storm() -> None:
    found = {load.name: load for load in loads(10, (0.5, 2.0, 10.0))}
    assert [load.size for load in found.values()] == [5, 20, 100, 100]
    step = found["2x"].arrivals_ms()
    assert step[:10] == [200.0 * index for index in range(10)]
    assert step[10:] == [found["2x"].step_s * 1000] * 10
    assert set(found["10x storm"].arrivals_ms()) == {0.0}


def test_settled_is_when_the_number_of_talkers_stays() -> None:
    counts = [(at_s * 100.0, count) for at_s, count in enumerate([5] * 10 + [8, 9, 12] + [10] * 20)]
    assert settled_s(counts, 1_000.0) == pytest.approx(0.2)
    assert settled_s(counts, 1_300.0) == 0.0
    assert Load("1x", ((4, 0.0, 2.0),)).step_s == 2.0
