"""Turn-taking: never two starts without a stop, a clock that only grows, and a replay that changes nothing."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from voiceserver.events.events import TurnDetection
from voiceserver.session.endpointing import Decision, Endpointer, Start, Stop

probabilities = st.lists(st.sampled_from([0.0, 0.2, 0.36, 0.49, 0.5, 0.9, 1.0]), max_size=120)
detections = st.builds(
    TurnDetection,
    threshold=st.sampled_from([0.3, 0.5, 0.8]),
    silence_duration_ms=st.sampled_from([0, 64, 200, 500]),
    min_speech_ms=st.sampled_from([0, 32, 64, 100]),
    max_turn_ms=st.sampled_from([100, 1_000, 30_000]),
)


def run(endpointer: Endpointer, values: list[float], cuts: list[int], window_ms: float) -> list[Start | Stop]:
    """Deliver the windows in records of any size."""
    decisions: list[Decision] = []
    position = 0
    for cut in [*cuts, len(values)]:
        piece = values[position : position + cut]
        decisions += endpointer.receive(position * window_ms, window_ms, piece)
        position += len(piece)
    decisions += endpointer.receive(position * window_ms, window_ms, values[position:])
    return bounds_of(decisions)


def bounds_of(decisions: list[Decision]) -> list[Start | Stop]:
    """Without the pauses within a turn."""
    return [decision for decision in decisions if isinstance(decision, Start | Stop)]


@settings(max_examples=300, deadline=None)
@given(detections, probabilities, st.lists(st.integers(1, 10)), st.sampled_from([10.0, 32.0]))
def test_starts_and_stops_alternate_on_a_clock_that_only_grows(
    detection: TurnDetection, values: list[float], cuts: list[int], window_ms: float
) -> None:
    decisions = run(Endpointer(detection), values, cuts, window_ms)
    for index, decision in enumerate(decisions):
        assert isinstance(decision, Start if index % 2 == 0 else Stop)
        assert 0.0 <= decision.at_ms <= decision.decided_ms <= len(values) * window_ms + 1e-6
    clocks = [decision.decided_ms for decision in decisions]
    assert clocks == sorted(clocks)
    for start, stop in zip(decisions[::2], decisions[1::2], strict=False):
        assert start.at_ms < stop.at_ms + 1e-6
        assert (
            stop.decided_ms - start.at_ms <= detection.max_turn_ms + detection.min_speech_ms + 2 * window_ms
        )


@settings(max_examples=300, deadline=None)
@given(detections, probabilities, st.lists(st.integers(1, 10)), st.lists(st.integers(1, 10)))
def test_how_windows_are_packed_into_records_changes_nothing(
    detection: TurnDetection, values: list[float], cuts: list[int], others: list[int]
) -> None:
    one, other = Endpointer(detection), Endpointer(detection)
    assert run(one, values, cuts, 32.0) == run(other, values, others, 32.0)


@settings(max_examples=300, deadline=None)
@given(detections, probabilities, st.integers(0, 120), st.integers(0, 60))
def test_windows_that_are_replayed_after_a_crash_change_nothing(
    detection: TurnDetection, values: list[float], crash: int, back: int
) -> None:
    straight, crashed = Endpointer(detection), Endpointer(detection)
    expected = run(straight, values, [], 32.0)
    crash = min(crash, len(values))
    again = max(crash - back, 0)
    decisions = crashed.receive(0.0, 32.0, values[:crash])
    decisions += crashed.receive(again * 32.0, 32.0, values[again:])
    assert bounds_of(decisions) == expected
    assert crashed.clock_ms == straight.clock_ms


@settings(max_examples=200, deadline=None)
@given(detections, probabilities, probabilities)
def test_after_a_commit_the_next_turn_is_found_as_ever(
    detection: TurnDetection, before: list[float], after: list[float]
) -> None:
    endpointer = Endpointer(detection)
    endpointer.receive(0.0, 32.0, before)
    was_speaking = endpointer.is_speaking
    stop = endpointer.stop_now("commit")
    assert (stop is not None) == was_speaking
    assert endpointer.stop_now("commit") is None
    decisions = bounds_of(endpointer.receive(len(before) * 32.0, 32.0, after))
    assert [type(decision) for decision in decisions] == [Start, Stop] * (len(decisions) // 2) + [Start] * (
        len(decisions) % 2
    )
