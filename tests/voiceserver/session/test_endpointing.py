"""Turn-taking by the window: starts, stops and pauses, each at its exact place on the audio clock."""

from __future__ import annotations

from voiceserver.events.events import TurnDetection
from voiceserver.session.endpointing import Endpointer, Pause, Start, Stop

WINDOW_MS = 32.0


def decisions_of(detection: TurnDetection, values: list[float]) -> list[object]:
    return list(Endpointer(detection).receive(0.0, WINDOW_MS, values))


def test_speech_starts_at_its_first_window_once_there_is_enough() -> None:
    found = decisions_of(TurnDetection(min_speech_ms=64), [0.0, 0.9, 0.9, 0.9])
    assert found == [Start(at_ms=32.0, decided_ms=96.0)]


def test_a_click_is_no_speech() -> None:
    assert decisions_of(TurnDetection(min_speech_ms=64), [0.0, 0.9, 0.0, 0.9, 0.0]) == []


def test_speech_ends_where_it_was_last_heard_after_enough_silence() -> None:
    values = [0.9] * 4 + [0.0] * 16
    found = decisions_of(TurnDetection(min_speech_ms=64, silence_duration_ms=500), values)
    assert [one for one in found if isinstance(one, Stop)] == [Stop(128.0, 640.0, "silence")]


def test_between_the_two_thresholds_speech_goes_on_but_does_not_begin() -> None:
    detection = TurnDetection(threshold=0.5, min_speech_ms=64, silence_duration_ms=64)
    assert decisions_of(detection, [0.4] * 20) == []
    assert decisions_of(detection, [0.9, 0.9, *[0.4] * 20]) == [Start(0.0, 64.0)]


def test_a_turn_has_a_longest_length() -> None:
    found = decisions_of(TurnDetection(min_speech_ms=32, max_turn_ms=320), [0.9] * 11)
    assert found[1] == Stop(320.0, 320.0, "max_turn")
    assert isinstance(found[0], Start)


def test_a_long_silence_within_a_turn_is_a_pause_first() -> None:
    found = decisions_of(TurnDetection(min_speech_ms=32, silence_duration_ms=500), [0.9] + [0.0] * 7 + [0.9])
    assert [type(one).__name__ for one in found] == ["Start", "Pause", "Resume"]
    assert found[1] == Pause(at_ms=32.0, decided_ms=224.0)


def test_stop_now_ends_what_is_being_said_and_nothing_else() -> None:
    endpointer = Endpointer(TurnDetection(min_speech_ms=32))
    assert endpointer.stop_now("commit") is None
    endpointer.receive(0.0, WINDOW_MS, [0.9, 0.9, 0.0])
    assert endpointer.stop_now("commit") == Stop(64.0, 96.0, "commit")
    assert endpointer.stop_now("commit") is None


def test_reset_forgets_the_turn_and_keeps_the_clock() -> None:
    endpointer = Endpointer(TurnDetection(min_speech_ms=32))
    endpointer.receive(0.0, WINDOW_MS, [0.9, 0.9])
    endpointer.reset()
    assert (endpointer.is_speaking, endpointer.clock_ms) == (False, 64.0)
    assert endpointer.receive(64.0, WINDOW_MS, [0.9]) == [Start(64.0, 96.0)]


def judged(probability: float, more: list[float]) -> list[object]:
    """One window of speech, a pause of seven that is judged then, and ``more``."""
    endpointer = Endpointer(TurnDetection(min_speech_ms=32, min_silence_ms=250, max_silence_ms=1_000))
    endpointer.receive(0.0, WINDOW_MS, [0.9] + [0.0] * 7)
    found: list[object] = list(endpointer.receive_turn(256.0, probability))
    return found + list(endpointer.receive(256.0, WINDOW_MS, more))


def test_a_turn_that_sounds_done_ends_early() -> None:
    assert judged(0.9, [0.0]) == [Stop(32.0, 288.0, "silence")]


def test_a_turn_that_sounds_unfinished_is_given_time() -> None:
    found = judged(0.1, [0.0] * 30)
    assert found == [Stop(32.0, 1_056.0, "silence")]


def test_a_verdict_that_comes_late_ends_the_turn_at_once() -> None:
    endpointer = Endpointer(TurnDetection(min_speech_ms=32, min_silence_ms=250))
    endpointer.receive(0.0, WINDOW_MS, [0.9] + [0.0] * 10)
    assert endpointer.receive_turn(256.0, 0.9) == [Stop(32.0, 352.0, "silence")]


def test_a_verdict_that_speech_has_overtaken_changes_nothing() -> None:
    endpointer = Endpointer(TurnDetection(min_speech_ms=32, silence_duration_ms=500))
    endpointer.receive(0.0, WINDOW_MS, [0.9] + [0.0] * 7 + [0.9])
    assert endpointer.receive_turn(256.0, 0.9) == []
    found = endpointer.receive(288.0, WINDOW_MS, [0.0] * 16)
    assert [one for one in found if isinstance(one, Stop)] == [Stop(288.0, 800.0, "silence")]


def test_a_verdict_lasts_as_long_as_its_pause() -> None:
    found = judged(0.1, [0.9] + [0.0] * 16)
    assert [one for one in found if isinstance(one, Stop)] == [Stop(288.0, 800.0, "silence")]
