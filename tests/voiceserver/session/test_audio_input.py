"""The ear: capture on the audio clock, nothing twice, nothing between turns lost."""

from __future__ import annotations

from itertools import pairwise

import pytest

from voiceserver.events.events import TurnDetection
from voiceserver.session.audio_input import WARM_MS, Ear
from voiceserver.session.outbox import ENTRY_BYTES, PIECE
from voiceserver_workers.ipc.messages import RequestKind

DETECTION = TurnDetection(prefix_padding_ms=100, min_speech_ms=50)


def heard(ear: Ear) -> list[tuple[int, int]]:
    """What stt would get: (first sample, one after the last) of each request with audio."""
    spans = []
    while (entry := ear.capture.next_unsent()) is not None:
        ear.capture.mark_sent()
        if entry.kind == RequestKind.DATA:
            spans.append((entry.seq - entry.units, entry.seq))
            assert entry.payload == bytes(
                i % 251 for i in range(2 * (entry.seq - entry.units), 2 * entry.seq)
            )
    return spans


def filled(rate_hz: int, ms: int, chunk: int = 160) -> Ear:
    """Every byte tells its own position."""
    ear = Ear(rate_hz, DETECTION, 10_000)
    pcm = bytes(i % 251 for i in range(2 * ms * rate_hz // 1000))
    for begin in range(0, len(pcm), chunk * 2):
        ear.receive(pcm[begin : begin + chunk * 2], 0.0)
    return ear


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_two_turns_meet_at_a_sample_at_any_rate(rate_hz: int) -> None:
    ear = filled(rate_hz, 2_000)
    ear.consume(ear.received_seq)
    ear.begin(1, 1_800.0, 1_850.0, 0.0)
    ear.end(1_900.0, 0.0)
    ear.begin(2, 1_700.0, 1_950.0, 0.0)
    ear.end(2_000.0, 0.0)
    spans = heard(ear)
    assert spans[0][0] == round(1.8 * rate_hz)
    assert spans[-1][1] == ear.received_seq
    for (_, end), (begin, _) in pairwise(spans):
        assert begin == end
    ear.check()


def test_positions_survive_the_way_to_milliseconds_and_back() -> None:
    for rate_hz in (8_000, 11_025, 22_050, 44_100):
        ear = Ear(rate_hz, None, 10_000)
        assert all(ear.samples(ear.ms(seq)) == seq for seq in range(0, 100_000, 97))


def test_only_what_vad_has_heard_is_captured() -> None:
    ear = filled(16_000, 1_000)
    ear.consume(8_000)
    ear.begin(1, 400.0, 450.0, 0.0)
    assert heard(ear)[-1][1] == 7_200
    ear.consume(9_600)
    assert heard(ear)[-1][1] == 9_600


def test_what_a_replayed_vad_needs_is_kept_and_no_more() -> None:
    ear = filled(16_000, 2_000)
    ear.consume(ear.received_seq)
    kept_ms = ear.ms(ear.received_seq - ear.outbox.first_seq)
    assert 0 <= kept_ms - (100 + 50 + WARM_MS) < 10.0 + 0.001


def test_shedding_takes_the_oldest_of_the_captured_turn_first() -> None:
    ear = filled(16_000, 1_000)
    ear.consume(8_000)
    ear.begin(1, 400.0, 500.0, 0.0)
    assert ear.lag_ms == 600.0
    assert ear.shed(560.0) == 40.0
    assert (ear.capture.dropped, ear.outbox.dropped) == (640, 0)
    assert ear.shed(460.0) == 100.0
    assert (ear.capture.dropped, ear.outbox.dropped) == (1_600, 640)
    assert ear.shed(460.0) == 0.0
    ear.check()


def test_an_empty_message_leaves_no_trace() -> None:
    ear = Ear(16_000, DETECTION, 10_000)
    ear.receive(b"", 0.0)
    assert not ear.outbox.has_unsent()


def test_a_turn_that_nobody_transcribes_keeps_no_audio_however_long_it_is() -> None:
    ear = Ear(16_000, None, 1_000.0, captures=False)
    ear.begin(1, 0.0, 0.0, 0.0)
    for count in range(1, 51):
        ear.receive(bytes(3_200), count * 100.0)
        ear.consume(ear.received_seq)
    assert ear.end(5_000.0, 5_000.0) == 1
    assert (ear.capture.received, ear.capture.backlog, ear.lag_ms) == (0, 0, 0.0)
    assert ear.outbox.consumed == ear.received_seq
    ear.check()


def by_hand(samples: int, messages: int) -> Ear:
    """A turn that nothing detects, sent to stt and taken by it message by message."""
    ear = Ear(16_000, None, 10_000)
    ear.begin(1, 0.0, 0.0, 0.0)
    for count in range(messages):
        ear.receive(bytes((count % 251,)) * 2 * samples, float(count))
        ear.pass_through()
        ear.capture.send_to(lambda *_: True)
        ear.capture.consume(ear.received_seq)
    return ear


def test_what_is_kept_of_tiny_messages_costs_little_more_than_its_bytes() -> None:
    ear = by_hand(1, 16_000)
    ear.check()
    assert ear.capture.memory_bytes <= 2 * 16_000 + 51 * ENTRY_BYTES
    ear.capture.rewind()
    ear.end(1_000.0, 0.0)
    assert [end - begin for begin, end in spans_of(ear)] == [320] * 50


def test_messages_of_the_usual_length_are_left_as_they_came() -> None:
    ear = by_hand(320, 50)
    assert ear.capture.memory_bytes == 50 * (640 + ENTRY_BYTES)


def test_tiny_messages_that_nobody_takes_are_joined_and_count_from_the_oldest() -> None:
    ear = Ear(16_000, DETECTION, 10_000)
    for count in range(1_000):
        ear.receive(bytes(2), float(count))
    assert (ear.outbox.backlog, ear.outbox.oldest_at_ms) == (1_000, 0.0)
    sizes = []
    while (entry := ear.outbox.next_unsent()) is not None:
        sizes.append((entry.seq, len(entry.payload) // 2))
        ear.outbox.mark_sent()
    assert sizes == [(320, 320), (640, 320), (960, 320), (1_000, 40)]
    ear.receive(bytes(2), 1_000.0)
    assert ear.outbox.next_unsent() == (RequestKind.DATA, 0, 1_001, bytes(2), 1, 1_000.0), "the rest is gone"
    ear.check()


def test_audio_is_not_joined_across_the_end_of_a_turn_nor_to_more_than_a_ring_takes() -> None:
    ear = Ear(16_000, None, 10_000)
    for turn in (1, 2):
        ear.begin(turn, 0.0, 0.0, 0.0)
        for _ in range(2):
            ear.receive(bytes(2), 0.0)
            ear.pass_through()
        ear.end(ear.ms(ear.received_seq), 0.0)
    ear.begin(3, 0.0, 0.0, 0.0)
    ear.receive(bytes(2), 0.0)
    ear.receive(bytes(2 * PIECE), 0.0)
    ear.pass_through()
    assert [end - begin for begin, end in spans_of(ear)] == [2, 2, 1, PIECE]


def spans_of(ear: Ear) -> list[tuple[int, int]]:
    spans = []
    while (entry := ear.capture.next_unsent()) is not None:
        ear.capture.mark_sent()
        if entry.units:
            spans.append((entry.seq - entry.units, entry.seq))
    return spans
