"""The outbox against a model that keeps everything in plain lists."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from voiceserver.session.outbox import Outbox
from voiceserver_workers.ipc.messages import RequestKind

FLUSH, DATA = RequestKind.FLUSH, RequestKind.DATA


class Chunk:
    def __init__(self, kind: RequestKind, turn: int, seq: int, units: int, at_ms: float) -> None:
        self.kind, self.turn, self.seq, self.units, self.at_ms = kind, turn, seq, units, at_ms
        self.is_sent = self.is_consumed = False


class OutboxAgainstLists(RuleBasedStateMachine):
    """``kept``: what may still be replayed. A chunk is consumed at most once, whatever is sent again."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox()
        self.kept: list[Chunk] = []
        self.seq = self.consumed_seq = 0
        self.turn = 1
        self.now_ms = 0.0
        self.received = self.consumed = self.dropped = self.discarded = 0

    @rule(units=st.integers(1, 400))
    def append_audio(self, units: int) -> None:
        self.seq += units
        self._append(DATA, units)

    @rule()
    def end_turn(self) -> None:
        self._append(FLUSH, 0)
        self.turn += 1

    def _append(self, kind: RequestKind, units: int) -> None:
        self.now_ms += 1.0
        self.outbox.append(kind, self.turn, self.seq, bytes(units * 2), units, self.now_ms)
        self.kept.append(Chunk(kind, self.turn, self.seq, units, self.now_ms))
        self.received += units

    @rule(units=st.integers(0, 50))
    def refuse(self, units: int) -> None:
        self.outbox.refuse(units)
        self.received += units
        self.discarded += units

    @rule(count=st.integers(1, 8))
    def send(self, count: int) -> None:
        for _ in range(count):
            entry = self.outbox.next_unsent()
            waiting = [chunk for chunk in self.kept if not chunk.is_sent]
            assert (entry is None) == (not waiting)
            if entry is None:
                return
            assert (entry.kind, entry.turn, entry.seq) == (waiting[0].kind, waiting[0].turn, waiting[0].seq)
            assert len(entry.payload) == entry.units * 2
            self.outbox.mark_sent()
            waiting[0].is_sent = True

    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        sent = [chunk for chunk in self.kept if chunk.is_sent]
        seq = data.draw(st.sampled_from([0, *(chunk.seq for chunk in sent)]))
        self.outbox.consume(seq)
        if seq < self.consumed_seq:
            return
        self.consumed_seq = seq
        for chunk in self.kept:
            if chunk.seq > seq or (chunk.kind is FLUSH and not chunk.is_sent and not chunk.is_consumed):
                break
            if not chunk.is_consumed:
                chunk.is_consumed = chunk.is_sent = True
                self.consumed += chunk.units

    @rule(back=st.integers(0, 500))
    def commit(self, back: int) -> None:
        seq = self.consumed_seq - back
        self.outbox.commit(seq)
        while self.kept and self.kept[0].is_consumed and self.kept[0].seq <= seq:
            self.kept.pop(0)

    @rule(data=st.data())
    def commit_turn(self, data: st.DataObject) -> None:
        turn = data.draw(st.integers(0, self.turn))
        self.outbox.commit_turn(turn)
        while self.kept and self.kept[0].turn <= turn:
            chunk = self.kept.pop(0)
            if not chunk.is_consumed:
                self.consumed += chunk.units
            self.consumed_seq = max(self.consumed_seq, chunk.seq)

    @rule(data=st.data())
    def give_up_turn(self, data: st.DataObject) -> None:
        turn = data.draw(st.integers(0, self.turn))
        gone = [chunk for chunk in self.kept if chunk.turn <= turn]
        is_cut = len({chunk.is_sent for chunk in gone}) == 2
        assert self.outbox.give_up_turn(turn) == is_cut
        self.kept = self.kept[len(gone) :]
        for chunk in gone:
            if not chunk.is_consumed:
                self.discarded += chunk.units
            self.consumed_seq = max(self.consumed_seq, chunk.seq)

    @rule()
    def lose_the_stream(self) -> None:
        self.outbox.rewind()
        for chunk in self.kept:
            chunk.is_sent = False

    @rule(limit=st.integers(0, 800))
    def shed(self, limit: int) -> None:
        dropped = 0
        backlog = sum(chunk.units for chunk in self.kept if not chunk.is_consumed)
        survivors = []
        for chunk in self.kept:
            is_open = chunk.kind is DATA and not chunk.is_sent and not chunk.is_consumed
            if is_open and backlog - dropped > limit:
                dropped += chunk.units
            else:
                survivors.append(chunk)
        assert self.outbox.shed(limit) == dropped
        self.kept = survivors
        self.dropped += dropped

    @rule()
    def discard_turn(self) -> None:
        mine = [chunk for chunk in self.kept if chunk.turn == self.turn]
        lost = sum(chunk.units for chunk in mine if not chunk.is_consumed)
        assert self.outbox.discard_turn(self.turn) == lost
        self.kept = [chunk for chunk in self.kept if chunk.turn != self.turn]
        self.discarded += lost

    @rule()
    def discard(self) -> None:
        lost = sum(chunk.units for chunk in self.kept if not chunk.is_consumed)
        assert self.outbox.discard() == lost
        self.kept = []
        self.discarded += lost

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def span(self, data: st.DataObject) -> None:
        begin = data.draw(st.integers(0, self.seq))
        end = data.draw(st.integers(begin, self.seq))
        expected = set()
        for chunk in self.kept:
            expected |= set(range(max(chunk.seq - chunk.units, begin), min(chunk.seq, end)))
        cut = self.outbox.span(begin, end)
        found = [position for entry in cut for position in range(entry.seq - entry.units, entry.seq)]
        assert found == sorted(expected)
        assert all(len(entry.payload) == entry.units * 2 for entry in cut)

    @invariant()
    def books_agree(self) -> None:
        outbox = self.outbox
        outbox.check()
        backlog = sum(chunk.units for chunk in self.kept if not chunk.is_consumed)
        assert (outbox.received, outbox.consumed, outbox.dropped, outbox.discarded, outbox.backlog) == (
            self.received,
            self.consumed,
            self.dropped,
            self.discarded,
            backlog,
        )
        waiting = [chunk.at_ms for chunk in self.kept if not chunk.is_consumed and chunk.units]
        assert outbox.oldest_at_ms == (waiting[0] if waiting else None)
        assert outbox.is_empty == (not self.kept)


OutboxAgainstLists.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOutboxAgainstLists = OutboxAgainstLists.TestCase
