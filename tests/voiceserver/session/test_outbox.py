"""The outbox, case by case; ``tests/laws/test_outbox_laws.py`` holds it to a model."""

from __future__ import annotations

import pytest

from voiceserver.session.outbox import Outbox
from voiceserver_workers.ipc.messages import RequestKind

DATA, FLUSH = RequestKind.DATA, RequestKind.FLUSH


def turn_of(chunks: int, *, sent: int = 0) -> Outbox:
    """One utterance of 10-sample chunks and its FLUSH."""
    outbox = Outbox()
    for index in range(1, chunks + 1):
        outbox.append(DATA, 1, index * 10, bytes(20), 10, float(index))
    outbox.append(FLUSH, 1, chunks * 10, b"", 0, float(chunks + 1))
    for _ in range(sent):
        outbox.mark_sent()
    return outbox


def unsent(outbox: Outbox) -> list[RequestKind]:
    kinds = []
    while (entry := outbox.next_unsent()) is not None:
        kinds.append(entry.kind)
        outbox.mark_sent()
    return kinds


def test_a_flush_that_found_the_ring_full_still_goes_out_when_its_audio_is_consumed() -> None:
    outbox = turn_of(3, sent=3)
    outbox.consume(30)
    assert outbox.backlog == 0
    assert unsent(outbox) == [FLUSH]


def test_a_flush_still_goes_out_when_its_replay_finds_the_ring_full() -> None:
    outbox = turn_of(3, sent=4)
    outbox.consume(30)
    outbox.rewind()
    for _ in range(3):
        outbox.mark_sent()
    outbox.consume(30)
    assert unsent(outbox) == [FLUSH]


def test_what_is_replayed_is_consumed_once() -> None:
    outbox = turn_of(3, sent=4)
    outbox.consume(20)
    outbox.rewind()
    assert unsent(outbox) == [DATA, DATA, DATA, FLUSH]
    outbox.consume(10)
    outbox.consume(30)
    assert (outbox.consumed, outbox.backlog) == (30, 0)
    outbox.check()


def test_the_answer_to_a_turn_settles_all_of_it() -> None:
    outbox = turn_of(3, sent=4)
    outbox.append(DATA, 2, 40, bytes(20), 10, 9.0)
    outbox.commit_turn(1)
    assert (outbox.consumed, outbox.backlog, outbox.is_empty) == (30, 10, False)
    assert unsent(outbox) == [DATA]
    assert outbox.oldest_at_ms == 9.0


@pytest.mark.parametrize(("sent", "is_cut"), [(0, False), (2, True), (3, True), (4, False)])
def test_of_a_turn_that_is_given_up_the_stage_may_have_half(sent: int, is_cut: bool) -> None:
    outbox = turn_of(3, sent=sent)
    if sent:
        outbox.consume(10)
    outbox.append(DATA, 2, 40, bytes(20), 10, 9.0)
    assert outbox.give_up_turn(1) is is_cut
    consumed = 10 if sent else 0
    assert (outbox.consumed, outbox.discarded, outbox.backlog) == (consumed, 30 - consumed, 10)
    assert unsent(outbox) == [DATA]
    outbox.check()


def test_what_is_being_worked_on_is_not_shed() -> None:
    outbox = turn_of(4, sent=2)
    assert outbox.shed(0) == 20
    assert (outbox.backlog, outbox.dropped) == (20, 20)
    assert unsent(outbox) == [FLUSH]


def test_a_span_is_cut_at_the_sample() -> None:
    outbox = Outbox()
    for index in range(1, 4):
        outbox.append(DATA, 0, index * 10, bytes(range(20 * (index - 1), 20 * index)), 10, 0.0)
    cut = outbox.span(7, 25)
    assert [(entry.seq, entry.units) for entry in cut] == [(10, 3), (20, 10), (25, 5)]
    assert b"".join(entry.payload for entry in cut) == bytes(range(14, 50))
    assert outbox.span(25, 25) == []


def test_check_finds_books_that_do_not_balance() -> None:
    outbox = turn_of(2)
    outbox.received += 1
    with pytest.raises(AssertionError, match="received 21"):
        outbox.check()
