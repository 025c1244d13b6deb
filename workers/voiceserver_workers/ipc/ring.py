"""A single-producer single-consumer ring of slots: the two ends of one direction.

Rule: **a record exists from the moment its producer stores the head, and not before**. Everything of it is
written first; then one aligned 8-byte store publishes it whole, however many slots it takes. A producer that
dies at any other moment has written into slots that nobody reads. Full is an answer: nothing is taken,
overwritten or lost.

    tail          head                      producer owns [head, tail + slots), consumer owns [tail, head)
     | oldest ... | next free ...           each side stores its own cursor and only reads the other's

Sleep handshake, so that the bell costs a system call only when somebody sleeps:

    consumer:  sleep = n;  FENCE;  look at head       producer:  head = h;  FENCE;  look at sleep

With a fence between its store and its load, at least one of the two sees the other: no wake-up is lost. The
producer rings once per sleep (``n`` grows). Machines with weaker order than x86 also fence each publish and
each consume.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from threading import Lock
from typing import Protocol

from voiceserver_workers.ipc.layout import HEADER, HEADER_BYTES, RingLayout
from voiceserver_workers.ipc.messages import Record
from voiceserver_workers.ipc.platform import IS_STORE_ORDERED

_pack_header = HEADER.pack_into
_unpack_header = HEADER.unpack_from
_new_record = tuple.__new__  # half the cost of Record(...), which goes through a Python-level __new__

# A burst ends behind this many bytes of long records: copying more than a core's cache holds, into memory that the
# allocator must fetch from the kernel and give back each time, costs twice as much.
LONG_BURST_BYTES = 256 * 1024


class RecordTooLarge(ValueError):
    """The payload needs more than half the ring, so it might never fit. Send it in parts."""


class RingCorrupt(RuntimeError):
    """Cursors or a header make no sense: the peer's memory is damaged. Treat it as a crash of the peer."""


class TrySend(Protocol):
    """Push one record. False: full, nothing was taken. Does not ring the bell.

    ``payload`` is any C-contiguous buffer of bytes and is copied. ``sent_ns``: monotonic nanoseconds.
    Raises RecordTooLarge when it can never fit, ValueError when the ring is closed.
    """

    def __call__(
        self,
        kind: int,
        stream: int,
        turn: int,
        seq: int,
        payload: bytes | bytearray | memoryview = b"",
        sent_ns: int = 0,
    ) -> bool: ...


class Receive(Protocol):
    """Take up to ``limit`` records, oldest first; an empty list when there are none. Never blocks.

    Long records end a burst early (LONG_BURST_BYTES), so fewer than ``limit`` does not mean that none are left.

    Raises RingCorrupt when the producer's memory is damaged, ValueError when the ring is closed.
    """

    def __call__(self, limit: int = 512) -> list[Record]: ...


def make_fence() -> Callable[[], None]:
    """A full memory barrier in plain Python: the release and acquire of a lock that nobody else has.

    In this order: acquire-then-release would let neighbours drift into the pair from both sides.
    """
    lock = Lock()
    lock.acquire()
    release, acquire = lock.release, lock.acquire

    def fence() -> None:
        release()
        acquire()

    return fence


class Producer:
    """The writing end. One per direction, in one thread of one process."""

    __slots__ = (
        "_fence",
        "_free",
        "_head",
        "_head_word",
        "_is_store_ordered",
        "_mask",
        "_memory",
        "_payload_max",
        "_ring",
        "_rung",
        "_slot_bytes",
        "_slot_payload",
        "_slots_offset",
        "_words",
        "refused",
    )

    def __init__(
        self,
        memory: mmap.mmap,
        words: memoryview,
        ring: RingLayout,
        *,
        is_store_ordered: bool = IS_STORE_ORDERED,
    ) -> None:
        self._memory = memory
        self._words = words
        self._ring = ring
        self._is_store_ordered = is_store_ordered
        self._fence = make_fence()
        self._head: int = words[ring.head_word]
        self._free = 0  # slots known to be free; the consumer may have freed more since
        self._head_word = ring.head_word
        self._mask = ring.slots - 1
        self._slots_offset = ring.slots_offset
        self._slot_bytes = ring.slot_bytes
        self._slot_payload = ring.slot_bytes - HEADER_BYTES
        self._payload_max = ring.payload_max
        self._rung = 0
        self.refused = 0  # pushes answered with "full" so far

    def try_send(
        self,
        kind: int,
        stream: int,
        turn: int,
        seq: int,
        payload: bytes | bytearray | memoryview = b"",
        sent_ns: int = 0,
    ) -> bool:
        """See TrySend."""
        # hot
        size = len(payload)
        if size > self._slot_payload:
            return self._try_send_long(kind, stream, turn, seq, payload, sent_ns)
        if not self._free and not self._find_free(1):
            return False
        head = self._head
        memory = self._memory
        start = self._slots_offset + (head & self._mask) * self._slot_bytes
        _pack_header(memory, start, kind, stream, turn, seq, sent_ns, size)
        start += HEADER_BYTES
        memory[start : start + size] = payload
        if not self._is_store_ordered:
            self._fence()
        self._free -= 1
        self._head = head = head + 1
        self._words[self._head_word] = head  # SYNC POINT: publishes the slot; pairs with Consumer.receive
        return True

    def _try_send_long(
        self,
        kind: int,
        stream: int,
        turn: int,
        seq: int,
        payload: bytes | bytearray | memoryview,
        sent_ns: int,
    ) -> bool:
        size = len(payload)
        if size > self._payload_max:
            raise RecordTooLarge(
                f"a payload of {size} bytes can never be sent: the limit of this ring is {self._payload_max}"
            )
        taken = -(-(HEADER_BYTES + size) // self._slot_bytes)
        if self._free < taken and not self._find_free(taken):
            return False
        memory = self._memory
        head = self._head
        start = self._slots_offset + (head & self._mask) * self._slot_bytes
        until_wrap = (self._mask + 1 - (head & self._mask)) * self._slot_bytes - HEADER_BYTES
        _pack_header(memory, start, kind, stream, turn, seq, sent_ns, size)
        start += HEADER_BYTES
        if size <= until_wrap:
            memory[start : start + size] = payload
        else:
            with memoryview(payload) as view:
                memory[start : start + until_wrap] = view[:until_wrap]
                rest = self._slots_offset + size - until_wrap
                memory[self._slots_offset : rest] = view[until_wrap:]
        if not self._is_store_ordered:
            self._fence()
        self._free -= taken
        self._head = head = head + taken
        self._words[self._head_word] = (
            head  # SYNC POINT: publishes all slots at once; pairs with Consumer.receive
        )
        return True

    def _find_free(self, wanted: int) -> bool:
        tail = self._words[
            self._ring.tail_word
        ]  # SYNC POINT: takes over freed slots; pairs with Consumer.receive
        if not self._is_store_ordered:
            self._fence()
        queued = self._head - tail
        if not 0 <= queued <= self._ring.slots:
            raise RingCorrupt(f"tail {tail} is impossible with head {self._head}")
        self._free = self._ring.slots - queued
        if self._free >= wanted:
            return True
        self.refused += 1
        return False

    def wants_bell(self) -> bool:
        """Whether the consumer sleeps and was not rung yet; the caller must ring when it is True.

        Call it after a burst of ``try_send``: one fence covers the burst.
        """
        self._fence()  # SYNC POINT: between our head and its sleep; pairs with Consumer.sleep
        sleep: int = self._words[self._ring.sleep_word]
        if sleep == 0 or sleep == self._rung:
            return False
        self._rung = sleep
        return True

    def queued(self) -> int:
        """Slots published and not yet consumed."""
        tail: int = self._words[self._ring.tail_word]
        return self._head - tail

    def free_slots(self) -> int:
        return self._ring.slots - self.queued()

    def oldest_sent_ns(self) -> int:
        """``sent_ns`` of the oldest record that the consumer has not taken; 0 when it has taken all."""
        tail: int = self._words[self._ring.tail_word]
        if tail == self._head:
            return 0
        # Only this side writes slots, so the header at the tail stays readable even if the tail moves on
        # meanwhile.
        start = self._slots_offset + (tail & self._mask) * self._slot_bytes
        sent_ns: int = _unpack_header(self._memory, start)[4]
        return sent_ns


class Consumer:
    """The reading end. One per direction, in one thread of one process."""

    __slots__ = (
        "_fence",
        "_is_asleep",
        "_is_store_ordered",
        "_memory",
        "_ring",
        "_sleeps",
        "_tail",
        "_words",
    )

    def __init__(
        self,
        memory: mmap.mmap,
        words: memoryview,
        ring: RingLayout,
        *,
        is_store_ordered: bool = IS_STORE_ORDERED,
    ) -> None:
        self._memory = memory
        self._words = words
        self._ring = ring
        self._is_store_ordered = is_store_ordered
        self._fence = make_fence()
        self._tail: int = words[ring.tail_word]
        self._sleeps = 0
        self._is_asleep = False

    def receive(self, limit: int = 512) -> list[Record]:
        """See Receive. The slots of the whole burst are given back with one store, behind it."""
        # hot
        if self._is_asleep:
            self.wake()
        words = self._words
        ring = self._ring
        tail = self._tail
        head = words[ring.head_word]  # SYNC POINT: takes over published slots; pairs with Producer.try_send
        if head == tail:
            return []
        if not self._is_store_ordered:
            self._fence()
        slots = ring.slots
        if not 0 < head - tail <= slots:
            raise RingCorrupt(f"head {head} is impossible with tail {tail} and {slots} slots")
        memory = self._memory
        slots_offset, slot_bytes, mask = ring.slots_offset, ring.slot_bytes, slots - 1
        slot_payload = slot_bytes - HEADER_BYTES
        records: list[Record] = []
        append = records.append
        long_bytes = 0
        while tail != head and limit > 0:
            start = slots_offset + (tail & mask) * slot_bytes
            kind, stream, turn, seq, sent_ns, size = _unpack_header(memory, start)
            if 0 <= size <= slot_payload:
                start += HEADER_BYTES
                payload = memory[start : start + size]
                tail += 1
            else:
                payload, tail = self._take_long(tail, head, size)
                long_bytes += size
                if long_bytes >= LONG_BURST_BYTES:
                    limit = 0
            append(_new_record(Record, (kind, stream, turn, seq, payload, sent_ns)))
            limit -= 1
        if not self._is_store_ordered:
            self._fence()
        self._tail = tail
        words[ring.tail_word] = tail  # SYNC POINT: gives the slots back; pairs with Producer._find_free
        return records

    def _take_long(self, tail: int, head: int, size: int) -> tuple[bytes, int]:
        ring = self._ring
        taken = -(-(HEADER_BYTES + size) // ring.slot_bytes)
        if not 0 <= size <= ring.payload_max or tail + taken > head:
            raise RingCorrupt(f"a payload of {size} bytes is impossible in slot {tail} with head {head}")
        place = tail & (ring.slots - 1)
        start = ring.slots_offset + place * ring.slot_bytes + HEADER_BYTES
        until_wrap = (ring.slots - place) * ring.slot_bytes - HEADER_BYTES
        if size <= until_wrap:
            payload = self._memory[start : start + size]
        else:
            rest = ring.slots_offset + size - until_wrap
            payload = self._memory[start : start + until_wrap] + self._memory[ring.slots_offset : rest]
        return payload, tail + taken

    def has_records(self) -> bool:
        head: int = self._words[self._ring.head_word]
        return head != self._tail

    def sleep(self) -> bool:
        """Declare this end asleep. True: records are there already, so receive them before waiting.

        From now until the next ``receive`` or ``wake`` the producer rings the bell.
        """
        self._sleeps += 1
        self._is_asleep = True
        self._words[self._ring.sleep_word] = self._sleeps
        self._fence()  # SYNC POINT: between our sleep and its head; pairs with Producer.wants_bell
        return self.has_records()

    def wake(self) -> None:
        """Tell the producer that bells are not needed."""
        self._is_asleep = False
        self._words[self._ring.sleep_word] = 0
