"""The laws of a ring: order, no loss, no duplicate, full is False, nothing partial, no lost wake-up."""

from __future__ import annotations

import mmap
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from voiceserver_workers.ipc import ring as ring_module
from voiceserver_workers.ipc.layout import (
    HEADER_BYTES,
    ChannelConfig,
    RingLayout,
    request_ring,
    segment_bytes,
)
from voiceserver_workers.ipc.messages import Record
from voiceserver_workers.ipc.ring import Consumer, Producer, RecordTooLarge

SLOTS = 8
SLOT_BYTES = 128
CONFIG = ChannelConfig(request_slots=SLOTS, result_slots=2, slot_bytes=SLOT_BYTES)
LAYOUT = request_ring(CONFIG)
PAYLOAD_MAX = SLOTS // 2 * SLOT_BYTES - HEADER_BYTES


def slots_of(size: int) -> int:
    return -(-(HEADER_BYTES + size) // SLOT_BYTES)


def make_memory(cursor: int = 0) -> tuple[mmap.mmap, memoryview]:
    """A ring whose slots are full of rubbish, as after many turns, with both cursors at ``cursor``."""
    memory = mmap.mmap(-1, segment_bytes(CONFIG))
    memory[LAYOUT.slots_offset :] = b"\xa5" * (len(memory) - LAYOUT.slots_offset)
    words = memoryview(memory).cast("Q")
    words[LAYOUT.head_word] = words[LAYOUT.tail_word] = cursor
    return memory, words


def make_payload(seq: int, size: int) -> bytes:
    return bytes((seq * 31 + place) % 251 for place in range(size))


class RingAgainstDeque(RuleBasedStateMachine):
    """Whatever is pushed and received in whatever order, the ring does what a bounded deque does."""

    @initialize(cursor=st.sampled_from([0, 1, SLOTS - 1, 2**32 - 3, 2**53 - 1, 2**62]), ordered=st.booleans())
    def start(self, cursor: int, ordered: bool) -> None:
        self.memory, self.words = make_memory(cursor)
        self.producer = Producer(self.memory, self.words, LAYOUT, is_store_ordered=ordered)
        self.consumer = Consumer(self.memory, self.words, LAYOUT, is_store_ordered=ordered)
        self.model: deque[Record] = deque()
        self.seq = 0
        self.refused = 0

    def used(self) -> int:
        return sum(slots_of(len(record.payload)) for record in self.model)

    @rule(
        size=st.one_of(
            st.integers(0, PAYLOAD_MAX),
            st.sampled_from([0, SLOT_BYTES - HEADER_BYTES, SLOT_BYTES - HEADER_BYTES + 1, PAYLOAD_MAX]),
        ),
        kind=st.integers(0, 255),
        stream=st.integers(0, 2**63 - 1),
        turn=st.integers(-(2**63), 2**63 - 1),
        sent_ns=st.integers(0, 2**63 - 1),
        as_view=st.booleans(),
    )
    def push(self, size: int, kind: int, stream: int, turn: int, sent_ns: int, as_view: bool) -> None:
        payload = make_payload(self.seq, size)
        record = Record(kind, stream, turn, self.seq, payload, sent_ns)
        fits = self.used() + slots_of(size) <= SLOTS
        given_payload = memoryview(payload) if as_view else payload
        assert self.producer.try_send(kind, stream, turn, self.seq, given_payload, sent_ns) is fits
        if fits:
            self.model.append(record)
        else:
            self.refused += 1
        self.seq += 1

    @rule(limit=st.integers(1, SLOTS + 1))
    def receive(self, limit: int) -> None:
        expected = [self.model.popleft() for _ in range(min(limit, len(self.model)))]
        assert self.consumer.receive(limit) == expected

    @rule(excess=st.integers(1, 1000))
    def push_what_can_never_fit(self, excess: int) -> None:
        with pytest.raises(RecordTooLarge):
            self.producer.try_send(1, 1, 1, 1, bytes(PAYLOAD_MAX + excess))

    @rule()
    def sleep(self) -> None:
        assert self.consumer.sleep() is bool(self.model)
        assert self.producer.wants_bell() is True
        assert self.producer.wants_bell() is False

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def counters_agree(self) -> None:
        assert self.producer.queued() == self.used()
        assert self.producer.free_slots() == SLOTS - self.used()
        assert self.producer.oldest_sent_ns() == (self.model[0].sent_ns if self.model else 0)
        assert self.producer.refused == self.refused
        assert self.consumer.has_records() is bool(self.model)

    def teardown(self) -> None:
        if hasattr(self, "words"):
            self.words.release()
            self.memory.close()


TestRingAgainstDeque = RingAgainstDeque.TestCase
TestRingAgainstDeque.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Stopped(BaseException):
    """The process died here."""


def die() -> None:
    raise Stopped


@contextmanager
def interrupt_after(instructions: int, action: Callable[[], object] = die) -> Iterator[list[int]]:
    """Run ``action`` after that many bytecode instructions inside the ring module. Yields the count executed."""
    executed = [0]

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        if frame.f_code.co_filename != ring_module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if executed[0] == instructions:
                action()
            executed[0] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield executed
    except Stopped:
        pass
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("cursor", [0, SLOTS - 2, 2**40 - 1])
@pytest.mark.parametrize("size", [0, 1, SLOT_BYTES - HEADER_BYTES, SLOT_BYTES, PAYLOAD_MAX])
def test_a_producer_stopped_after_any_instruction_exposes_all_of_a_record_or_nothing(
    size: int, cursor: int, ordered: bool
) -> None:
    earlier = [Record(1, 1, 0, seq, make_payload(seq, 20), 0) for seq in range(2)]
    last = Record(2, 9, 8, 7, make_payload(7, size), 6)
    outcomes: list[bool] = []
    for instructions in range(10_000):
        memory, words = make_memory(cursor)
        producer = Producer(memory, words, LAYOUT, is_store_ordered=ordered)
        for record in earlier:
            assert producer.try_send(*record)
        with interrupt_after(instructions) as executed:
            producer.try_send(*last)
        seen = Consumer(memory, words, LAYOUT).receive()
        assert seen in (earlier, [*earlier, last])
        outcomes.append(len(seen) == len(earlier) + 1)
        if executed[0] < instructions:
            break
    assert len(outcomes) > 50  # it was stopped in many places
    assert outcomes == sorted(outcomes)  # one instruction publishes it, and nothing takes it back
    assert outcomes[0] is False
    assert outcomes[-1] is True


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("size", [0, SLOT_BYTES, PAYLOAD_MAX])
def test_a_producer_that_fills_the_ring_at_any_moment_of_a_receive_never_touches_what_is_read(
    size: int, ordered: bool
) -> None:
    earlier = [Record(1, 1, 0, 0, make_payload(0, size), 5), Record(1, 1, 0, 1, b"second", 6)]
    room = SLOTS - slots_of(size) - 1
    pushed: list[int] = []
    for instructions in range(10_000):
        memory, words = make_memory(SLOTS - 2)
        producer = Producer(memory, words, LAYOUT, is_store_ordered=ordered)
        consumer = Consumer(memory, words, LAYOUT, is_store_ordered=ordered)
        assert all(producer.try_send(*record) for record in earlier)

        def fill(producer: Producer = producer) -> None:
            pushed.append(sum(producer.try_send(9, 9, 9, 9, b"\xff" * 9) for _ in range(2 * SLOTS)))

        with interrupt_after(instructions, fill) as executed:
            seen = consumer.receive()
        fresh = seen[len(earlier) :]
        assert seen[: len(earlier)] == earlier
        assert all(record == Record(9, 9, 9, 9, b"\xff" * 9, 0) for record in fresh)
        if len(pushed) == instructions:
            assert executed[0] <= instructions  # the receive was over before it could be interrupted
            break
        assert len(fresh) + len(consumer.receive()) == pushed[-1]
    assert set(pushed) == {room, SLOTS}  # given back at one moment, and whole
    assert pushed == sorted(pushed)


class Turns:
    """Lets two threads through one shared-memory access at a time, in the order that the schedule says."""

    def __init__(self, schedule: list[int]) -> None:
        self.schedule = deque(schedule)
        self.gates = [threading.Semaphore(0), threading.Semaphore(0)]
        self.ended = [False, False]

    def pass_on(self) -> None:
        wanted = self.schedule.popleft() if self.schedule else 0
        who = wanted if not self.ended[wanted] else 1 - wanted
        if not self.ended[who]:
            self.gates[who].release()

    def step(self, me: int) -> None:
        self.pass_on()
        self.gates[me].acquire()

    def run(self, programs: list[Callable[[], None]]) -> None:
        failures: list[BaseException] = []

        def body(me: int) -> None:
            self.gates[me].acquire()
            try:
                programs[me]()
            except BaseException as error:
                failures.append(error)
            self.ended[me] = True
            self.pass_on()

        threads = [threading.Thread(target=body, args=(me,), daemon=True) for me in (0, 1)]
        for thread in threads:
            thread.start()
        self.pass_on()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        if failures:
            raise failures[0]


class ScheduledWords:
    """The words of a segment as one side sees them: every access waits for its turn."""

    def __init__(self, words: memoryview, turns: Turns, me: int) -> None:
        self.words, self.turns, self.me = words, turns, me

    def __getitem__(self, word: int) -> int:
        self.turns.step(self.me)
        value: int = self.words[word]
        return value

    def __setitem__(self, word: int, value: int) -> None:
        self.turns.step(self.me)
        self.words[word] = value


@settings(max_examples=150, deadline=None)
@given(
    schedule=st.lists(st.integers(0, 1), max_size=80),
    bursts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    ordered=st.booleans(),
)
def test_no_interleaving_loses_a_wake_up_or_a_record(
    schedule: list[int], bursts: list[int], ordered: bool
) -> None:
    memory, words = make_memory()
    turns = Turns(schedule)
    producer = Producer(memory, words, LAYOUT, is_store_ordered=ordered)
    consumer = Consumer(memory, words, LAYOUT, is_store_ordered=ordered)
    producer._words = cast(memoryview, ScheduledWords(words, turns, 0))
    consumer._words = cast(memoryview, ScheduledWords(words, turns, 1))
    bell = [False]
    sent: list[int] = []
    received: list[int] = []

    def produce() -> None:
        for burst in bursts:
            for _ in range(burst):
                if producer.try_send(1, 1, 0, len(sent)):
                    sent.append(len(sent))
            if producer.wants_bell():
                turns.step(0)
                bell[0] = True

    def consume() -> None:
        while True:
            turns.step(1)
            bell[0] = False
            if not consumer.sleep():
                turns.step(1)
                if not bell[0]:
                    return  # blocked: only a bell would wake it from here
            received.extend(record.seq for record in consumer.receive())

    turns.run([produce, consume])
    assert sent[: len(received)] == received
    assert bell[0] or received == sent


def test_the_layout_gives_each_writer_its_own_cache_lines() -> None:
    lines: dict[int, str] = {}
    for words, writer in _writers(request_ring(CONFIG), "server", "worker"):
        assert lines.setdefault(words * 8 // 64, writer) == writer


def _writers(ring: RingLayout, producer: str, consumer: str) -> list[tuple[int, str]]:
    from voiceserver_workers.ipc import layout

    results = layout.result_ring(CONFIG)
    return [
        (ring.head_word, producer),
        (ring.tail_word, consumer),
        (ring.sleep_word, consumer),
        (results.head_word, consumer),
        (results.tail_word, producer),
        (results.sleep_word, producer),
        (layout.IDENTITY, producer),
        (layout.HEARTBEAT, consumer),
        (layout.WORKER_PID, consumer),
        *((word, consumer) for word in range(layout.FLIGHT_STATE, layout.FLIGHT_STREAMS + 256)),
        (ring.slots_offset // 8, producer),
        (results.slots_offset // 8, consumer),
    ]
