"""The batcher's rules, one by one. The laws over random schedules are in tests/laws."""

from __future__ import annotations

import pytest

from voiceserver_workers.batcher import Batcher, BatchLimits, Work


def audio(stream: int, end: int, samples: int = 160, *, turn: int = 1) -> Work:
    """``samples`` of audio that end at position ``end``; each sample says where it is."""
    payload = b"".join((position % 65536).to_bytes(2, "little") for position in range(end - samples, end))
    return Work(stream, turn, end, payload)


def text(stream: int, seq: int, *, turn: int = 1) -> Work:
    return Work(stream, turn, seq, f"sentence {seq}".encode())


def make(*streams: int, max_batch_size: int = 8, max_wait_ms: float = 0.0, merge_bytes: int = 0) -> Batcher:
    batcher = Batcher(BatchLimits(max_batch_size, max_wait_ms, merge_bytes))
    for stream in streams:
        batcher.open(stream)
    return batcher


def test_nothing_queued_gives_no_batch() -> None:
    batcher = make(1)
    assert batcher.take(0.0) == []
    assert batcher.due_ms() is None


def test_a_batch_holds_one_item_per_stream_in_the_order_they_came() -> None:
    batcher = make(1, 2, 3)
    for work in (text(2, 1), text(1, 1), text(2, 2), text(3, 1)):
        batcher.put(work, 0.0)
    assert [(w.stream, w.seq) for w in batcher.take(0.0)] == [(2, 1), (1, 1), (3, 1)]
    assert [(w.stream, w.seq) for w in batcher.take(0.0)] == [(2, 2)]


def test_the_wait_counts_from_the_first_item() -> None:
    batcher = make(1, 2, 3, max_wait_ms=5.0)
    batcher.put(text(1, 1), 100.0)
    batcher.put(text(2, 1), 104.0)
    assert batcher.due_ms() == 105.0
    assert batcher.take(104.9) == []
    assert len(batcher.take(105.0)) == 2


def test_a_full_batch_does_not_wait() -> None:
    batcher = make(1, 2, 3, max_batch_size=2, max_wait_ms=5.0)
    batcher.put(text(1, 1), 0.0)
    assert batcher.take(0.0) == []
    batcher.put(text(2, 1), 0.0)
    assert len(batcher.take(0.0)) == 2


def test_a_batch_with_every_open_stream_does_not_wait() -> None:
    batcher = make(1, 2, max_wait_ms=5.0)
    batcher.put(text(1, 1), 0.0)
    assert batcher.take(0.0) == []
    batcher.put(text(2, 1), 0.0)
    assert len(batcher.take(0.0)) == 2


def test_a_single_caller_never_waits_for_company() -> None:
    batcher = make(1, max_wait_ms=50.0)
    batcher.put(text(1, 1), 0.0)
    assert len(batcher.take(0.0)) == 1


def test_a_flush_does_not_wait() -> None:
    batcher = make(1, 2, max_wait_ms=50.0)
    batcher.put(Work(1, 1, 160, is_flush=True), 0.0)
    assert batcher.take(0.0)[0].is_flush


def test_what_a_batch_left_behind_goes_at_once() -> None:
    batcher = make(1, 2, max_wait_ms=50.0)
    batcher.put(text(1, 1), 0.0)
    batcher.put(text(1, 2), 0.0)
    assert batcher.take(0.0) == []
    assert [w.seq for w in batcher.take(50.0)] == [1]
    assert [w.seq for w in batcher.take(50.0)] == [2]


def test_a_new_wait_begins_after_a_cancel_emptied_the_queue() -> None:
    batcher = make(1, 2, max_wait_ms=5.0)
    batcher.put(text(1, 1), 0.0)
    batcher.cancel(1, 1)
    batcher.put(text(2, 1), 4.0)
    assert batcher.take(5.0) == []
    assert len(batcher.take(9.0)) == 1


def test_continued_work_goes_before_the_streams_next_but_behind_other_streams() -> None:
    batcher = make(1, 2, max_batch_size=1)
    batcher.put(text(1, 1), 0.0)
    (first,) = batcher.take(0.0)
    batcher.put(text(2, 1), 0.0)
    batcher.put_continued(first, 0.0)
    batcher.put(text(1, 2), 0.0)
    order = [batcher.take(0.0)[0] for _ in range(3)]
    assert [(w.stream, w.seq, w.is_continued) for w in order] == [(2, 1, False), (1, 1, True), (1, 2, False)]
    assert order[1].payload == b""


def test_adjacent_audio_of_a_stream_is_one_item() -> None:
    batcher = make(1, merge_bytes=10_000)
    works = [audio(1, end) for end in (160, 320, 480)]
    for work in works:
        batcher.put(work, 0.0)
    (merged,) = batcher.take(0.0)
    assert merged == Work(1, 1, 480, b"".join(w.payload for w in works))
    assert batcher.pending == 0


def test_merging_stops_at_the_limit_and_takes_the_rest_next() -> None:
    batcher = make(1, merge_bytes=640)
    for end in (160, 320, 480):
        batcher.put(audio(1, end), 0.0)
    assert [len(batcher.take(0.0)[0].payload) for _ in range(2)] == [640, 320]


def test_a_flush_joins_the_audio_before_it_and_ends_the_merge() -> None:
    batcher = make(1, merge_bytes=10_000)
    batcher.put(audio(1, 160), 0.0)
    batcher.put(Work(1, 1, 160, is_flush=True), 0.0)
    batcher.put(audio(1, 320), 0.0)
    first, second = batcher.take(0.0)[0], batcher.take(0.0)[0]
    assert (first.seq, len(first.payload), first.is_flush) == (160, 320, True)
    assert (second.seq, second.is_flush) == (320, False)


@pytest.mark.parametrize("next_work", [audio(1, 480), audio(1, 320, turn=2)], ids=["gap", "next turn"])
def test_audio_is_not_merged_across(next_work: Work) -> None:
    batcher = make(1, merge_bytes=10_000)
    batcher.put(audio(1, 160), 0.0)
    batcher.put(next_work, 0.0)
    assert batcher.take(0.0) == [audio(1, 160)]
    assert batcher.take(0.0) == [next_work]


def test_cancel_drops_that_turn_and_older_of_that_stream_only() -> None:
    batcher = make(1, 2)
    for work in (text(1, 1, turn=1), text(1, 2, turn=2), text(1, 3, turn=3), text(2, 1, turn=1)):
        batcher.put(work, 0.0)
    assert batcher.cancel(1, 2) == 2
    assert batcher.cancel(9, 2) == 0
    assert {(w.stream, w.seq) for w in batcher.take(0.0)} == {(1, 3), (2, 1)}
    assert batcher.pending == 0


def test_a_closed_stream_leaves_nothing_behind() -> None:
    batcher = make(1, 2)
    batcher.put(text(1, 1), 0.0)
    batcher.close(1)
    batcher.close(1)
    assert batcher.pending == 0
    assert batcher.take(0.0) == []


def test_a_stream_on_trial_goes_alone_and_then_like_everybody() -> None:
    batcher = make(1, 3)
    batcher.open(2, trial_items=1)
    for seq in (1, 2):
        for stream in (1, 2, 3):
            batcher.put(text(stream, seq), 0.0)
    batches = [[w.stream for w in batcher.take(0.0)] for _ in range(4)]
    assert batches == [[1], [2], [3, 1, 2], [3]]


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_wait_ms": -1.0}, "negative"),
        ({"merge_bytes": -1}, "negative"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        BatchLimits(**limits)


def test_resting_work_and_what_is_behind_it_wait_and_others_do_not() -> None:
    batcher = make(1, 2, max_wait_ms=50.0)
    batcher.put(text(1, 1), 0.0)
    batcher.put(text(2, 1), 0.0)
    first, _ = batcher.take(0.0)
    batcher.put_continued(first, 0.0, 5.0)
    batcher.put(text(1, 2), 1.0)
    assert batcher.due_ms() == 5.0
    assert batcher.take(4.0) == []
    # The other stream is all that could bring something, so it waits for nobody.
    batcher.put(text(2, 2), 4.0)
    assert [(work.stream, work.seq) for work in batcher.take(4.0)] == [(2, 2)]
    assert [(work.seq, work.is_continued) for work in batcher.take(5.0)] == [(1, True)]
    assert [(work.seq, work.is_continued) for work in batcher.take(55.0)] == [(2, False)]


def test_a_cancelled_rest_frees_what_was_behind_it() -> None:
    batcher = make(1)
    batcher.put(text(1, 1), 0.0)
    (first,) = batcher.take(0.0)
    batcher.put_continued(first, 0.0, 1000.0)
    batcher.put(text(1, 2, turn=2), 0.0)
    assert batcher.cancel(1, 1) == 1
    assert [work.seq for work in batcher.take(0.0)] == [2]
    batcher.put_continued(first, 0.0, 1000.0)
    batcher.close(1)
    assert (batcher.pending, batcher.due_ms()) == (0, None)
