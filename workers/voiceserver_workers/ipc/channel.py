"""The two ends of a channel: one segment, two rings, two doorbells.

Rule: **the server never waits, the worker may**. ``ServerEnd`` lives on the event loop and answers at once,
with False where it must; ``WorkerEnd`` may sleep until its bell rings, and beats whenever it wakes.

    server                    segment                      worker
    try_send ------------> request slots ------------> receive
    ring_bell ---eventfd, only if it sleeps----------> wait
    receive <------------- result slots <------------- try_send, send
    result_fd <--eventfd, only if it sleeps----------- ring_bell
    heartbeat_ns, flight <- heartbeat, flight recorder <- beat, record_step
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from voiceserver_workers.ipc import layout
from voiceserver_workers.ipc.layout import ChannelConfig
from voiceserver_workers.ipc.platform import Platform, choose_platform, ring_doorbell, silence_doorbell
from voiceserver_workers.ipc.ring import Consumer, Producer, Receive, RecordTooLarge, RingCorrupt, TrySend
from voiceserver_workers.ipc.segment import Segment, SegmentMismatch, attach_segment, create_segment

__all__ = [
    "ChannelConfig",
    "Flight",
    "FlightState",
    "RecordTooLarge",
    "RingCorrupt",
    "SegmentMismatch",
    "ServerEnd",
    "WorkerEnd",
]

ROOM_POLL_MS = 0.5  # how often a worker that waits for room looks again


class FlightState(IntEnum):
    """What a worker is doing; the last value stays readable after its death."""

    STARTING = 0
    LOADING = 1
    IDLE = 2
    STEPPING = 3
    OPENING = 4
    CLOSING = 5
    STOPPED = 6
    UNKNOWN = 255  # the word holds nothing that a worker writes: its memory was damaged


_STATES = {int(state): state for state in FlightState}


@dataclass(frozen=True, slots=True)
class Flight:
    """The flight recorder: what the worker did last. Times are monotonic nanoseconds.

    ``streams`` are the stream ids in the batch of the step in progress (at most 256 of ``batch_size``), empty
    when none is. ``deadline_ns``: when that step counts as hung. ``steps``, ``items``, ``step_ns_total``:
    finished work; ``optional_ns_total``: the part of it that is left undone under pressure. Exact once the
    worker stands still (dead, stopped or hung); of a running one it is a glance, not a transaction.
    """

    state: FlightState
    streams: tuple[int, ...]
    batch_size: int
    started_ns: int
    deadline_ns: int
    steps: int
    items: int
    step_ns_total: int
    optional_ns_total: int
    heartbeat_ns: int
    worker_pid: int


class ServerEnd:
    """The server's end. Lives on the event loop, never blocks. Make one with ``create``."""

    __slots__ = (
        "_bell_fds",
        "_is_closed",
        "_requests",
        "_results",
        "_segment",
        "_worker_fds",
        "receive",
        "try_send",
    )

    # Methods of the rings themselves: one Python call per record, not two.
    try_send: TrySend
    receive: Receive

    def __init__(
        self, segment: Segment, platform: Platform, worker_fds: list[int], bell_fds: list[int]
    ) -> None:
        self._segment = segment
        self._worker_fds = worker_fds
        self._bell_fds = bell_fds  # request bell, result bell
        self._is_closed = False
        ordered = platform.is_store_ordered
        memory, words, config = segment.memory, segment.words, segment.config
        self._requests = Producer(memory, words, layout.request_ring(config), is_store_ordered=ordered)
        self._results = Consumer(memory, words, layout.result_ring(config), is_store_ordered=ordered)
        self.try_send = self._requests.try_send
        self.receive = self._results.receive

    @classmethod
    def create(
        cls, config: ChannelConfig, *, generation: int = 1, platform: Platform | None = None
    ) -> ServerEnd:
        """A new segment with its bells; about 3 ms for the default sizes.

        Raises OSError when memory or fds are not to be had.
        """
        platform = platform or choose_platform()
        segment_fd, segment = create_segment(config, generation, platform)
        fds = [segment_fd]
        try:
            request_bell, worker_request_bell = platform.create_doorbell()
            fds += request_bell, worker_request_bell
            result_bell, worker_result_bell = platform.create_doorbell()
        except OSError:
            segment.close()
            for fd in fds:
                os.close(fd)
            raise
        worker_fds = [segment_fd, worker_request_bell, worker_result_bell]
        return cls(segment, platform, worker_fds, [request_bell, result_bell])

    @property
    def config(self) -> ChannelConfig:
        return self._segment.config

    @property
    def generation(self) -> int:
        return self._segment.generation

    def worker_fds(self) -> list[int]:
        """Fds for the worker process, in the order that ``WorkerEnd.attach`` takes; this end owns them."""
        return list(self._worker_fds)

    def close_worker_fds(self) -> None:
        """Call after the hand-over. Idempotent."""
        for fd in self._worker_fds:
            os.close(fd)
        self._worker_fds = []

    def ring_bell(self) -> None:
        """Wake the worker if it sleeps. Once per worker per tick of the loop, after the pushes."""
        if self._requests.wants_bell():
            ring_doorbell(self._bell_fds[0])

    def rearm(self) -> bool:
        """Silence the result bell and declare this end asleep. True: results are there, receive again."""
        silence_doorbell(self._bell_fds[1])
        return self._results.sleep()

    def result_fd(self) -> int:
        """Readable when results wait and this end was asleep; for ``loop.add_reader``."""
        return self._bell_fds[1]

    def queued(self) -> int:
        """Request slots that the worker has not taken."""
        return self._requests.queued()

    def free_slots(self) -> int:
        return self._requests.free_slots()

    def oldest_sent_ns(self) -> int:
        """``sent_ns`` of the oldest request that the worker has not taken, 0 if there is none."""
        return self._requests.oldest_sent_ns()

    def refused(self) -> int:
        """How many pushes were answered with "full"."""
        return self._requests.refused

    def heartbeat_ns(self) -> int:
        """Monotonic nanoseconds of the worker's last beat, 0 before the first."""
        beat: int = self._segment.words[layout.HEARTBEAT]
        return beat

    def flight(self) -> Flight:
        words = self._segment.words
        batch_size = words[layout.FLIGHT_BATCH_SIZE]
        recorded = min(batch_size, layout.FLIGHT_STREAMS_MAX)
        return Flight(
            state=_STATES.get(words[layout.FLIGHT_STATE], FlightState.UNKNOWN),
            streams=tuple(words[layout.FLIGHT_STREAMS : layout.FLIGHT_STREAMS + recorded].tolist()),
            batch_size=batch_size,
            started_ns=words[layout.FLIGHT_STARTED],
            deadline_ns=words[layout.FLIGHT_DEADLINE],
            steps=words[layout.FLIGHT_STEPS],
            items=words[layout.FLIGHT_ITEMS],
            step_ns_total=words[layout.FLIGHT_STEP_TOTAL],
            optional_ns_total=words[layout.FLIGHT_OPTIONAL_TOTAL],
            heartbeat_ns=words[layout.HEARTBEAT],
            worker_pid=words[layout.WORKER_PID],
        )

    def close(self) -> None:
        """Unmap and close everything. Idempotent. Take the reader off the loop first."""
        if self._is_closed:
            return
        self._is_closed = True
        self.close_worker_fds()
        for fd in self._bell_fds:
            os.close(fd)
        self._segment.close()


class WorkerEnd:
    """The worker's end. May block. Make one with ``attach``."""

    __slots__ = (
        "_bell_fds",
        "_clock_ns",
        "_extra_fds",
        "_is_closed",
        "_poll",
        "_requests",
        "_results",
        "_segment",
        "receive",
        "try_send",
    )

    try_send: TrySend
    receive: Receive

    def __init__(
        self,
        segment: Segment,
        platform: Platform,
        bell_fds: list[int],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._segment = segment
        self._bell_fds = bell_fds  # request bell, result bell
        self._clock_ns = clock_ns
        self._is_closed = False
        ordered = platform.is_store_ordered
        memory, words, config = segment.memory, segment.words, segment.config
        self._requests = Consumer(memory, words, layout.request_ring(config), is_store_ordered=ordered)
        self._results = Producer(memory, words, layout.result_ring(config), is_store_ordered=ordered)
        self.receive = self._requests.receive
        self.try_send = self._results.try_send
        self._extra_fds: tuple[int, ...] = ()
        self._poll = select.poll()
        self._poll.register(bell_fds[0], select.POLLIN)
        words[layout.WORKER_PID] = os.getpid()

    @classmethod
    def attach(
        cls,
        fds: Sequence[int],
        *,
        platform: Platform | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> WorkerEnd:
        """Attach to ``ServerEnd.worker_fds()``. Duplicates what it keeps: the caller still owns ``fds``.

        ``clock_ns`` dates heartbeat and flight recorder; give another one only to simulate.

        Raises SegmentMismatch when the first fd is no segment of this version.
        """
        segment_fd, request_bell, result_bell = fds
        segment = attach_segment(segment_fd)
        bells = [os.dup(request_bell), os.dup(result_bell)]
        return cls(segment, platform or choose_platform(), bells, clock_ns)

    @property
    def config(self) -> ChannelConfig:
        return self._segment.config

    @property
    def generation(self) -> int:
        return self._segment.generation

    def send(
        self,
        kind: int,
        stream: int,
        turn: int,
        seq: int,
        payload: bytes | bytearray | memoryview = b"",
        sent_ns: int = 0,
        *,
        timeout_ms: float,
    ) -> bool:
        """``try_send`` that waits up to ``timeout_ms`` for room, beating meanwhile. False: still full."""
        if self.try_send(kind, stream, turn, seq, payload, sent_ns):
            return True
        deadline = time.monotonic() + timeout_ms / 1000
        while time.monotonic() < deadline:
            self.ring_bell()
            self.beat()
            time.sleep(ROOM_POLL_MS / 1000)
            if self.try_send(kind, stream, turn, seq, payload, sent_ns):
                return True
        return False

    def ring_bell(self) -> None:
        """Wake the server if it sleeps. Once per batch of results."""
        if self._results.wants_bell():
            ring_doorbell(self._bell_fds[1])

    def wait(self, timeout_ms: float, extra_fds: Sequence[int] = ()) -> list[int]:
        """Sleep until requests are there, an extra fd is ready or ``timeout_ms`` are over; beats on the way.

        Returns the extra fds that are ready (readable, hung up or in error), also when requests are there.
        """
        extras = tuple(extra_fds)
        if extras != self._extra_fds:
            self._watch(extras)
        self.beat()
        has_records = self._requests.sleep()
        ready = [fd for fd, _ in self._poll.poll(0.0 if has_records else timeout_ms)]
        self.beat()
        self._requests.wake()
        bell = self._bell_fds[0]
        if bell in ready:
            silence_doorbell(bell)
            ready.remove(bell)
        return ready

    def _watch(self, extras: tuple[int, ...]) -> None:
        for fd in self._extra_fds:
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)
        for fd in extras:
            self._poll.register(fd, select.POLLIN)
        self._extra_fds = extras

    def beat(self) -> None:
        """Store the time of life."""
        self._segment.words[layout.HEARTBEAT] = self._clock_ns()

    def record_step(self, streams: Sequence[int], deadline_ns: int) -> None:
        """A step over these streams starts now and counts as hung after ``deadline_ns`` (monotonic)."""
        # hot
        words = self._segment.words
        now_ns = self._clock_ns()
        words[layout.FLIGHT_BATCH_SIZE] = (
            0  # a death between these stores must not blame the streams of the last step
        )
        _ids(min(len(streams), layout.FLIGHT_STREAMS_MAX)).pack_into(
            self._segment.memory,
            layout.FLIGHT_STREAMS * layout.WORD_BYTES,
            *streams[: layout.FLIGHT_STREAMS_MAX],
        )
        words[layout.FLIGHT_STARTED] = now_ns
        words[layout.FLIGHT_DEADLINE] = deadline_ns
        words[layout.FLIGHT_BATCH_SIZE] = len(streams)
        words[layout.FLIGHT_STATE] = FlightState.STEPPING
        words[layout.HEARTBEAT] = now_ns

    def record_idle(self, *, is_optional: bool = False) -> None:
        """The step is over: count it and forget its streams. ``is_optional``: under pressure it is left out."""
        # hot
        words = self._segment.words
        now_ns = self._clock_ns()
        if words[layout.FLIGHT_STATE] == FlightState.STEPPING:
            words[layout.FLIGHT_STEPS] += 1
            words[layout.FLIGHT_ITEMS] += words[layout.FLIGHT_BATCH_SIZE]
            words[layout.FLIGHT_STEP_TOTAL] += now_ns - words[layout.FLIGHT_STARTED]
            if is_optional:
                words[layout.FLIGHT_OPTIONAL_TOTAL] += now_ns - words[layout.FLIGHT_STARTED]
        self.record_state(FlightState.IDLE)
        words[layout.HEARTBEAT] = now_ns

    def record_state(self, state: FlightState) -> None:
        """Anything but a step."""
        words = self._segment.words
        words[layout.FLIGHT_STATE] = state
        words[layout.FLIGHT_BATCH_SIZE] = 0
        words[layout.FLIGHT_DEADLINE] = 0

    def close(self) -> None:
        """Unmap and close everything. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for fd in self._bell_fds:
            os.close(fd)
        self._segment.close()


@lru_cache(maxsize=layout.FLIGHT_STREAMS_MAX + 1)
def _ids(count: int) -> struct.Struct:
    return struct.Struct(f"@{count}Q")
