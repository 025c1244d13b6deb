"""Where every byte of a segment lies. All offsets are here and nowhere else (R5).

Rule: every 64-byte cache line has exactly one writer, and every cursor is one aligned 8-byte word.

=================  =======  ============================================================================
block (128 bytes)  writer   words of 8 bytes
=================  =======  ============================================================================
identity           server   magic, version, generation, request_slots, result_slots, slot_bytes, segment_bytes
request head       server   head: slots published so far
request tail       worker   tail: slots consumed so far; sleep: number of the sleep in progress, 0 while awake
result head        worker   head
result tail        server   tail, sleep
heartbeat          worker   monotonic nanoseconds of the last beat; process id
flight             worker   state, batch size, step started, deadline, steps, items, step total; stream ids
=================  =======  ============================================================================

Blocks are two lines apart because the hardware fetches lines in pairs. Cursors count slots and only grow;
``cursor % slots`` is the place. A record is a 64-byte header and its payload in as many consecutive slots as
it needs; only the first slot carries the header, so a long payload is one run of bytes (two where the ring
wraps).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

WORD_BYTES = 8
PAGE_BYTES = 4096
BLOCK_BYTES = 128

MAGIC = int.from_bytes(b"voicring", "little")
VERSION = 2

# Words (indices into the segment seen as unsigned 64-bit integers).
_BLOCK_WORDS = BLOCK_BYTES // WORD_BYTES
IDENTITY = 0
REQUEST_HEAD = 1 * _BLOCK_WORDS
REQUEST_TAIL = 2 * _BLOCK_WORDS
REQUEST_SLEEP = REQUEST_TAIL + 1
RESULT_HEAD = 3 * _BLOCK_WORDS
RESULT_TAIL = 4 * _BLOCK_WORDS
RESULT_SLEEP = RESULT_TAIL + 1
HEARTBEAT = 5 * _BLOCK_WORDS
WORKER_PID = HEARTBEAT + 1
FLIGHT_STATE = 6 * _BLOCK_WORDS
FLIGHT_BATCH_SIZE = FLIGHT_STATE + 1
FLIGHT_STARTED = FLIGHT_STATE + 2
FLIGHT_DEADLINE = FLIGHT_STATE + 3
FLIGHT_STEPS = FLIGHT_STATE + 4
FLIGHT_ITEMS = FLIGHT_STATE + 5
FLIGHT_STEP_TOTAL = FLIGHT_STATE + 6
FLIGHT_OPTIONAL_TOTAL = FLIGHT_STATE + 7
FLIGHT_STREAMS = 7 * _BLOCK_WORDS
FLIGHT_STREAMS_MAX = 256

# The first page boundary behind the flight recorder.
SLOTS_OFFSET = -(-(FLIGHT_STREAMS + FLIGHT_STREAMS_MAX) * WORD_BYTES // PAGE_BYTES) * PAGE_BYTES

IDENTITY_WORDS = struct.Struct(
    "@7Q"
)  # magic, version, generation, request_slots, result_slots, slot_bytes, bytes

# kind, stream, turn, seq, sent_ns, payload bytes: native alignment, one cache line with the rest in reserve.
HEADER = struct.Struct("@6q")
HEADER_BYTES = 64


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """Sizes of one channel. Slot counts are powers of two; ``slot_bytes`` includes the 64-byte header.

    Raises ValueError for sizes that the rings cannot work with.
    """

    request_slots: int = 1024
    result_slots: int = 2048
    slot_bytes: int = 4096

    def __post_init__(self) -> None:
        for name in ("request_slots", "result_slots"):
            slots = getattr(self, name)
            if slots < 2 or slots & (slots - 1):
                raise ValueError(f"{name} must be a power of two and at least 2, not {slots}")
        if self.slot_bytes < 2 * HEADER_BYTES or self.slot_bytes % HEADER_BYTES:
            raise ValueError(
                f"slot_bytes must be a multiple of {HEADER_BYTES} and at least {2 * HEADER_BYTES},"
                f" not {self.slot_bytes}"
            )


@dataclass(frozen=True, slots=True)
class RingLayout:
    """One direction: three words and a run of slots."""

    head_word: int
    tail_word: int
    sleep_word: int
    slots_offset: int
    slots: int
    slot_bytes: int

    @property
    def payload_max(self) -> int:
        """Bytes of the longest payload: a record may take half the ring, so that it fits whatever the cursors
        say.
        """
        return self.slots // 2 * self.slot_bytes - HEADER_BYTES


def segment_bytes(config: ChannelConfig) -> int:
    """Bytes of a whole segment, a multiple of the page size."""
    slots_bytes = (config.request_slots + config.result_slots) * config.slot_bytes
    return SLOTS_OFFSET + -(-slots_bytes // PAGE_BYTES) * PAGE_BYTES


def request_ring(config: ChannelConfig) -> RingLayout:
    """Server to worker."""
    return RingLayout(
        REQUEST_HEAD, REQUEST_TAIL, REQUEST_SLEEP, SLOTS_OFFSET, config.request_slots, config.slot_bytes
    )


def result_ring(config: ChannelConfig) -> RingLayout:
    """Worker to server."""
    offset = SLOTS_OFFSET + config.request_slots * config.slot_bytes
    return RingLayout(RESULT_HEAD, RESULT_TAIL, RESULT_SLEEP, offset, config.result_slots, config.slot_bytes)
