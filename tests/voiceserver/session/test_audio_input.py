"""The ear: capture on the audio clock, nothing twice, nothing between turns lost."""

from __future__ import annotations

from itertools import pairwise

import pytest

from voiceserver.events.events import TurnDetection
from voiceserver.session.audio_input import WARM_MS, AudioInput
from voiceserver.session.outbox import ENTRY_BYTES, PIECE
from voiceserver_workers.ipc.messages import RequestKind

DETECTION = TurnDetection(prefix_padding_ms=100, min_speech_ms=50)


def heard(audio_input: AudioInput) -> list[tuple[int, int]]:
    """What stt would get: (first sample, one after the last) of each request with audio."""
    spans = []
    while (entry := audio_input.capture.next_unsent()) is not None:
        audio_input.capture.mark_sent()
        if entry.kind == RequestKind.DATA:
            spans.append((entry.seq - entry.units, entry.seq))
            assert entry.payload == bytes(
                i % 251 for i in range(2 * (entry.seq - entry.units), 2 * entry.seq)
            )
    return spans


def filled(rate_hz: int, ms: int, chunk: int = 160) -> AudioInput:
    """Every byte tells its own position."""
    audio_input = AudioInput(rate_hz, DETECTION, 10_000)
    pcm = bytes(i % 251 for i in range(2 * ms * rate_hz // 1000))
    for begin in range(0, len(pcm), chunk * 2):
        audio_input.receive(pcm[begin : begin + chunk * 2], 0.0)
    return audio_input


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_two_turns_meet_at_a_sample_at_any_rate(rate_hz: int) -> None:
    audio_input = filled(rate_hz, 2_000)
    audio_input.consume(audio_input.received_seq)
    audio_input.begin(1, 1_800.0, 1_850.0, 0.0)
    audio_input.end(1_900.0, 0.0)
    audio_input.begin(2, 1_700.0, 1_950.0, 0.0)
    audio_input.end(2_000.0, 0.0)
    spans = heard(audio_input)
    assert spans[0][0] == round(1.8 * rate_hz)
    assert spans[-1][1] == audio_input.received_seq
    for (_, end), (begin, _) in pairwise(spans):
        assert begin == end
    audio_input.check()


def test_positions_survive_the_way_to_milliseconds_and_back() -> None:
    for rate_hz in (8_000, 11_025, 22_050, 44_100):
        audio_input = AudioInput(rate_hz, None, 10_000)
        assert all(audio_input.samples(audio_input.ms(seq)) == seq for seq in range(0, 100_000, 97))


def test_only_what_vad_has_heard_is_captured() -> None:
    audio_input = filled(16_000, 1_000)
    audio_input.consume(8_000)
    audio_input.begin(1, 400.0, 450.0, 0.0)
    assert heard(audio_input)[-1][1] == 7_200
    audio_input.consume(9_600)
    assert heard(audio_input)[-1][1] == 9_600


def test_what_a_replayed_vad_needs_is_kept_and_no_more() -> None:
    audio_input = filled(16_000, 2_000)
    audio_input.consume(audio_input.received_seq)
    kept_ms = audio_input.ms(audio_input.received_seq - audio_input.outbox.first_seq)
    assert 0 <= kept_ms - (100 + 50 + WARM_MS) < 10.0 + 0.001


def test_shedding_takes_the_oldest_of_the_captured_turn_first() -> None:
    audio_input = filled(16_000, 1_000)
    audio_input.consume(8_000)
    audio_input.begin(1, 400.0, 500.0, 0.0)
    assert audio_input.lag_ms == 600.0
    assert audio_input.shed(560.0) == 40.0
    assert (audio_input.capture.dropped, audio_input.outbox.dropped) == (640, 0)
    assert audio_input.shed(460.0) == 100.0
    assert (audio_input.capture.dropped, audio_input.outbox.dropped) == (1_600, 640)
    assert audio_input.shed(460.0) == 0.0
    audio_input.check()


def test_an_empty_message_leaves_no_trace() -> None:
    audio_input = AudioInput(16_000, DETECTION, 10_000)
    audio_input.receive(b"", 0.0)
    assert not audio_input.outbox.has_unsent()


def test_a_turn_that_nobody_transcribes_keeps_no_audio_however_long_it_is() -> None:
    audio_input = AudioInput(16_000, None, 1_000.0, captures=False)
    audio_input.begin(1, 0.0, 0.0, 0.0)
    for count in range(1, 51):
        audio_input.receive(bytes(3_200), count * 100.0)
        audio_input.consume(audio_input.received_seq)
    assert audio_input.end(5_000.0, 5_000.0) == 1
    assert (audio_input.capture.received, audio_input.capture.backlog, audio_input.lag_ms) == (0, 0, 0.0)
    assert audio_input.outbox.consumed == audio_input.received_seq
    audio_input.check()


def by_hand(samples: int, messages: int) -> AudioInput:
    """A turn that nothing detects, sent to stt and taken by it message by message."""
    audio_input = AudioInput(16_000, None, 10_000)
    audio_input.begin(1, 0.0, 0.0, 0.0)
    for count in range(messages):
        audio_input.receive(bytes((count % 251,)) * 2 * samples, float(count))
        audio_input.pass_through()
        audio_input.capture.send_to(lambda *_: True)
        audio_input.capture.consume(audio_input.received_seq)
    return audio_input


def test_what_is_kept_of_tiny_messages_costs_little_more_than_its_bytes() -> None:
    audio_input = by_hand(1, 16_000)
    audio_input.check()
    assert audio_input.capture.memory_bytes <= 2 * 16_000 + 51 * ENTRY_BYTES
    audio_input.capture.rewind()
    audio_input.end(1_000.0, 0.0)
    assert [end - begin for begin, end in spans_of(audio_input)] == [320] * 50


def test_messages_of_the_usual_length_are_left_as_they_came() -> None:
    audio_input = by_hand(320, 50)
    assert audio_input.capture.memory_bytes == 50 * (640 + ENTRY_BYTES)


def test_tiny_messages_that_nobody_takes_are_joined_and_count_from_the_oldest() -> None:
    audio_input = AudioInput(16_000, DETECTION, 10_000)
    for count in range(1_000):
        audio_input.receive(bytes(2), float(count))
    assert (audio_input.outbox.backlog, audio_input.outbox.oldest_at_ms) == (1_000, 0.0)
    sizes = []
    while (entry := audio_input.outbox.next_unsent()) is not None:
        sizes.append((entry.seq, len(entry.payload) // 2))
        audio_input.outbox.mark_sent()
    assert sizes == [(320, 320), (640, 320), (960, 320), (1_000, 40)]
    audio_input.receive(bytes(2), 1_000.0)
    assert audio_input.outbox.next_unsent() == (RequestKind.DATA, 0, 1_001, bytes(2), 1, 1_000.0), (
        "the rest is gone"
    )
    audio_input.check()


def test_audio_is_not_joined_across_the_end_of_a_turn_nor_to_more_than_a_ring_takes() -> None:
    audio_input = AudioInput(16_000, None, 10_000)
    for turn in (1, 2):
        audio_input.begin(turn, 0.0, 0.0, 0.0)
        for _ in range(2):
            audio_input.receive(bytes(2), 0.0)
            audio_input.pass_through()
        audio_input.end(audio_input.ms(audio_input.received_seq), 0.0)
    audio_input.begin(3, 0.0, 0.0, 0.0)
    audio_input.receive(bytes(2), 0.0)
    audio_input.receive(bytes(2 * PIECE), 0.0)
    audio_input.pass_through()
    assert [end - begin for begin, end in spans_of(audio_input)] == [2, 2, 1, PIECE]


def spans_of(audio_input: AudioInput) -> list[tuple[int, int]]:
    spans = []
    while (entry := audio_input.capture.next_unsent()) is not None:
        audio_input.capture.mark_sent()
        if entry.units:
            spans.append((entry.seq - entry.units, entry.seq))
    return spans
