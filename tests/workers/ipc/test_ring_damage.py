"""A peer with damaged memory is found out; it can neither crash the reader nor make it read beyond a ring."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from voiceserver_workers.ipc.layout import HEADER, ChannelConfig, request_ring, segment_bytes
from voiceserver_workers.ipc.ring import Consumer, Producer, RingCorrupt

CONFIG = ChannelConfig(request_slots=8, result_slots=2, slot_bytes=128)
LAYOUT = request_ring(CONFIG)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, segment_bytes(CONFIG)) as memory:
        yield memory


@pytest.mark.parametrize("size", [-1, 128, 8 * 128, 2**62])
def test_an_impossible_payload_size_is_damage(memory: mmap.mmap, size: int) -> None:
    with memoryview(memory).cast("Q") as words:
        Producer(memory, words, LAYOUT).try_send(1, 1, 1, 1, b"payload")
        HEADER.pack_into(memory, LAYOUT.slots_offset, 1, 1, 1, 1, 0, size)
        consumer = Consumer(memory, words, LAYOUT)
        with pytest.raises(RingCorrupt, match=str(size)):
            consumer.receive()


@pytest.mark.parametrize("head", [9, 2**64 - 1])
def test_an_impossible_head_is_damage(memory: mmap.mmap, head: int) -> None:
    with memoryview(memory).cast("Q") as words:
        consumer = Consumer(memory, words, LAYOUT)
        words[LAYOUT.head_word] = head
        with pytest.raises(RingCorrupt, match=str(head)):
            consumer.receive()


@pytest.mark.parametrize("tail", [1, 2**64 - 1])
def test_an_impossible_tail_is_damage(memory: mmap.mmap, tail: int) -> None:
    with memoryview(memory).cast("Q") as words:
        producer = Producer(memory, words, LAYOUT)
        words[LAYOUT.tail_word] = tail
        with pytest.raises(RingCorrupt, match=str(tail)):
            producer.try_send(1, 1, 1, 1)


def test_a_head_that_goes_back_is_damage(memory: mmap.mmap) -> None:
    with memoryview(memory).cast("Q") as words:
        producer = Producer(memory, words, LAYOUT)
        consumer = Consumer(memory, words, LAYOUT)
        for seq in range(3):
            producer.try_send(1, 1, 1, seq)
        consumer.receive()
        words[LAYOUT.head_word] = 2
        with pytest.raises(RingCorrupt):
            consumer.receive()
