"""The outbox: one send window per stage, one deque, three cursors.

::

      committed          consumed            sent              received
          |  kept for replay |  in the ring    |  waiting here     |
    ------+------------------+-----------------+-------------------+--->
          '------------------ entries of the deque ----------------'

Its backlog (received and not consumed) is the lag meter and the backpressure bound; what is not committed is the
replay log. Rule, checked by ``check``, in units (samples for audio, requests for text)::

    received = consumed + backlog + dropped + discarded

``rewind`` moves only the sent cursor: after a crash entries are sent again, but never counted as consumed twice. An entry
costs some 200 bytes beside its audio, so audio in tiny messages is joined: at the end while it is unsent, and once
it is consumed, but never across a cursor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from voiceserver_workers.ipc.messages import RequestKind

PIECE: Final = 16_384  # samples: no request has more, as a ring has only so much room
ENTRY_BYTES: Final = 200  # of memory that an entry costs beside its payload


class Entry(NamedTuple):
    """One request. ``seq`` is the position at the end of ``payload``; ``at_ms`` when it was received."""

    kind: RequestKind
    turn: int
    seq: int
    payload: bytes
    units: int
    at_ms: float


DATA, FLUSH = RequestKind.DATA, RequestKind.FLUSH
_new_entry = tuple.__new__  # half the time of the constructor that NamedTuple makes


class Outbox:
    __slots__ = (
        "_consumed_entries",
        "_consumed_seq",
        "_entries",
        "_is_last_small",
        "_is_taken_small",
        "_sent_entries",
        "_small",
        "backlog",
        "consumed",
        "discarded",
        "dropped",
        "received",
    )

    def __init__(self, small: int = 0) -> None:
        """small: audio of fewer units is joined with what follows it. 0: nothing is, as where a unit is a whole request."""
        self._small = small
        self._is_last_small = False  # the last entry may be one to join with
        self._is_taken_small = False  # so may the last that is consumed
        self._entries: deque[Entry] = deque()
        self._sent_entries = 0
        self._consumed_entries = 0
        self._consumed_seq = 0
        self.received = 0
        self.consumed = 0
        self.backlog = 0
        self.dropped = 0
        self.discarded = 0

    def append(
        self, kind: RequestKind, turn: int, seq: int, payload: bytes, units: int, at_ms: float
    ) -> None:  # hot
        entry = _new_entry(Entry, (kind, turn, seq, payload, units, at_ms))
        if units >= self._small and not self._is_last_small:
            self._entries.append(entry)
        else:
            self._append_small(entry)
        self.received += units
        self.backlog += units

    def _append_small(self, entry: Entry) -> None:
        """What is small, or comes after it, goes to the entry before it where that still waits to be sent."""
        entries = self._entries
        if len(entries) > max(self._sent_entries, self._consumed_entries):
            joined = self._join(entries[-1], entry)
            if joined is not None:
                entries.pop()
                entry = joined
        entries.append(entry)
        self._is_last_small = self._is_small(entry)

    def _is_small(self, entry: Entry) -> bool:
        return entry.kind is DATA and 0 < entry.units < self._small

    def _join(self, first: Entry, second: Entry) -> Entry | None:
        """Both as one; None if ``first`` is large enough, or they are not neighbours in one turn."""
        units = first.units + second.units
        is_near = second.kind is DATA and second.turn == first.turn and second.seq - second.units == first.seq
        if not is_near or not second.units or units > PIECE or not self._is_small(first):
            return None
        return Entry(DATA, first.turn, second.seq, first.payload + second.payload, units, first.at_ms)

    def refuse(self, units: int) -> None:
        """Count audio that came too late to be taken: received and discarded."""
        self.received += units
        self.discarded += units

    def next_unsent(self) -> Entry | None:  # hot
        entries = self._entries
        sent = self._sent_entries
        return entries[sent] if sent < len(entries) else None

    def has_unsent(self) -> bool:
        return self._sent_entries < len(self._entries)

    def mark_sent(self) -> None:  # hot
        self._sent_entries += 1

    def send_to(self, send: Callable[[RequestKind, int, int, bytes], bool]) -> None:  # hot
        """Give everything unsent to ``send``, until that says False. What it raises goes on; that entry stays unsent."""
        entries = self._entries
        while self._sent_entries < len(entries):
            kind, turn, seq, payload, _, _ = entries[self._sent_entries]
            if not send(kind, turn, seq, payload):
                return
            self._sent_entries += 1

    def consume(self, seq: int) -> None:  # hot
        """The worker has taken everything up to ``seq``. Older positions (a replay) change nothing.

        A mark without audio (PAUSE, FLUSH) shares the position of the audio before it: it is passed only once it was sent.
        """
        if seq < self._consumed_seq:
            return
        entries = self._entries
        index = begin = self._consumed_entries
        last = len(entries)
        units, small, has_small = 0, self._small, self._is_taken_small
        while index < last:
            entry = entries[index]
            size = entry.units
            if entry.seq > seq or (not size and index >= self._sent_entries):
                break
            if size < small:
                has_small = True
            units += size
            index += 1
        self._consumed_entries = index
        self._consumed_seq = seq
        self.consumed += units
        self.backlog -= units
        if index > begin:
            if index > self._sent_entries:
                self._sent_entries = index
            if has_small:
                self._join_consumed(begin)

    def _join_consumed(self, begin: int) -> None:
        """Join what is small of the consumed entries from ``begin`` on, and with the one before. All of it was sent."""
        joined = self._join_within(max(begin - 1, 0), self._consumed_entries)
        self._consumed_entries -= joined
        self._sent_entries -= joined
        self._is_taken_small = self._is_small(self._entries[self._consumed_entries - 1])

    def _join_within(self, begin: int, end: int) -> int:
        """Join what is small of entries [begin, end); how many fewer there are now."""
        entries, index, last = self._entries, begin, end - 1
        while index < last:
            joined = self._join(entries[index], entries[index + 1])
            if joined is None:
                index += 1
                continue
            entries[index] = joined
            del entries[index + 1]
            last -= 1
        return end - 1 - last if end > begin else 0

    def commit(self, seq: int) -> None:  # hot
        """Forget consumed entries up to ``seq``: they will never be replayed."""
        entries = self._entries
        while self._consumed_entries and entries[0].seq <= seq:
            entries.popleft()
            self._consumed_entries -= 1
            self._sent_entries -= 1
        if self._sent_entries < 0:
            self._sent_entries = 0

    def commit_turn(self, turn: int) -> None:
        """The stage has answered ``turn``: everything of it and older is consumed and forgotten."""
        entries = self._entries
        while entries and entries[0].turn <= turn:
            entry = entries.popleft()
            if self._consumed_entries:
                self._consumed_entries -= 1
            else:
                self.consumed += entry.units
                self.backlog -= entry.units
            self._consumed_seq = max(self._consumed_seq, entry.seq)
            self._sent_entries = max(0, self._sent_entries - 1)

    def give_up_turn(self, turn: int) -> bool:
        """There will be no answer to ``turn``: forget it and everything older; what is not consumed is discarded. True: a part of
        it was sent and the rest was not, so the stage has a turn without an end."""
        entries, unsent, index = self._entries, 0, 0
        while entries and entries[0].turn <= turn:
            entry = entries.popleft()
            unsent += index >= self._sent_entries
            if index >= self._consumed_entries:
                self.discarded += entry.units
                self.backlog -= entry.units
            self._consumed_seq = max(self._consumed_seq, entry.seq)
            index += 1
        self._consumed_entries = max(self._consumed_entries - index, 0)
        self._sent_entries = max(self._sent_entries - index, 0)
        return 0 < unsent < index

    def discard_turn(self, turn: int) -> int:
        """Forget what is not consumed of ``turn``, the latest; returns the units discarded."""
        discarded = 0
        while len(self._entries) > self._consumed_entries and self._entries[-1].turn == turn:
            discarded += self._entries.pop().units
        while self._entries and self._entries[-1].turn == turn:
            self._entries.pop()
            self._consumed_entries -= 1
        self._sent_entries = min(self._sent_entries, len(self._entries))
        self.discarded += discarded
        self.backlog -= discarded
        return discarded

    def rewind(self) -> None:
        """The stream is lost: send everything that is not committed again."""
        self._sent_entries = 0
        if self._small:
            self._join_within(self._consumed_entries, len(self._entries))

    def shed(self, limit: int) -> int:
        """Drop the oldest unsent audio until the backlog is at most ``limit`` units; returns the units dropped."""
        entries = self._entries
        dropped = 0
        index = max(self._sent_entries, self._consumed_entries)
        while self.backlog - dropped > limit and index < len(entries):
            if entries[index].kind is not RequestKind.DATA or not entries[index].units:
                index += 1
                continue
            dropped += entries[index].units
            del entries[index]
        self.dropped += dropped
        self.backlog -= dropped
        return dropped

    def discard(self) -> int:
        """Forget everything that is not consumed (close, clear); returns the units discarded."""
        discarded = self.backlog
        self.discarded += discarded
        self.backlog = 0
        self._entries.clear()
        self._sent_entries = self._consumed_entries = 0
        return discarded

    @property
    def oldest_at_ms(self) -> float | None:
        """When the oldest audio or request that is not consumed was received."""
        entries = self._entries
        for index in range(self._consumed_entries, len(entries)):
            if entries[index].units:
                return entries[index].at_ms
        return None

    def backlog_of(self, turn: int) -> int:
        """Units of ``turn`` that are not consumed."""
        entries = self._entries
        waiting = (entries[index] for index in range(self._consumed_entries, len(entries)))
        return sum(entry.units for entry in waiting if entry.turn == turn)

    @property
    def is_empty(self) -> bool:
        return not self._entries

    @property
    def kept_bytes(self) -> int:
        """Of all entries, also those that are only kept for replay. Counts them; not for the hot path."""
        return sum(len(entry.payload) for entry in self._entries)

    @property
    def memory_bytes(self) -> int:
        """About what the entries cost, as ``kept_bytes`` but with what is around the audio."""
        return self.kept_bytes + len(self._entries) * ENTRY_BYTES

    @property
    def consumed_seq(self) -> int:
        return self._consumed_seq

    @property
    def first_seq(self) -> int:
        """Where the first entry kept for replay begins; the end of what was consumed if nothing is kept."""
        if not self._entries:
            return self._consumed_seq
        first = self._entries[0]
        return first.seq - first.units

    def span(self, begin: int, end: int) -> list[Entry]:
        """Audio positions [begin, end) from the kept entries, cut at the sample; what is gone is left out."""
        cut: list[Entry] = []
        if begin >= end:
            return cut
        for entry in reversed(self._entries):
            if entry.seq <= begin:
                break
            start = entry.seq - entry.units
            if start >= end or not entry.units:
                continue
            if start >= begin and entry.seq <= end:
                cut.append(entry)
                continue
            left = max(begin - start, 0)
            right = min(end, entry.seq) - start
            payload = entry.payload[left * 2 : right * 2]
            cut.append(entry._replace(payload=payload, units=right - left, seq=start + right))
        cut.reverse()
        return cut

    def check(self) -> None:
        """Raises AssertionError if the law does not hold or a cursor is out of order."""
        waiting = sum(
            entry.units for index, entry in enumerate(self._entries) if index >= self._consumed_entries
        )
        if waiting != self.backlog:
            raise AssertionError(f"outbox holds {waiting} units but counts {self.backlog}")
        if self.received != self.consumed + self.backlog + self.dropped + self.discarded:
            raise AssertionError(
                f"received {self.received} != consumed {self.consumed} + backlog {self.backlog}"
                f" + dropped {self.dropped} + discarded {self.discarded}"
            )
        if not 0 <= self._consumed_entries <= len(self._entries) or not 0 <= self._sent_entries <= len(
            self._entries
        ):
            raise AssertionError("a cursor is outside the deque")
