"""A worker as the server sees it, and the streams that run through it.

    STARTING --hello--> READY --death, hang--> DEAD --respawn--> STARTING ...

A handle keeps its index for ever; each incarnation of its worker has a new channel and a new generation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from voiceserver.pool import LossReason, StreamOwner, WorkerStats
from voiceserver.pool.worker_meter import WorkerMeter
from voiceserver_workers.ipc.channel import FlightState, ServerEnd
from voiceserver_workers.ipc.messages import RequestKind, StreamParams

HEALTHY_MS = 1_000.0  # a worker that lived so long starts with a clean record
FIRST_BACKOFF_MS = 50.0
MAX_BACKOFF_MS = 5_000.0


class WorkerState(Enum):
    STARTING = "starting"
    READY = "ready"
    HUNG = "hung"
    DEAD = "dead"
    BACKOFF = "backoff"


class WorkerLife:
    """The incarnation of a worker, and when the next one is due. ``crashes``: in a row, without a healthy life between them."""

    __slots__ = ("crashes", "generation", "idle_since_ms", "last_words", "pid", "respawn_ms", "started_ms")

    def __init__(self) -> None:
        self.generation = 0
        self.pid = 0
        self.started_ms = 0.0
        self.idle_since_ms = 0.0
        self.last_words = ""
        self.crashes = 0
        self.respawn_ms = 0.0

    def begin(self, now_ms: float) -> None:
        self.pid = 0
        self.started_ms = self.idle_since_ms = now_ms
        self.last_words = ""

    def finish(self, now_ms: float) -> None:
        """The first death is an accident: back at once. Then it takes longer each time."""
        self.crashes = self.crashes + 1 if now_ms - self.started_ms < HEALTHY_MS else 1
        backoff_ms = FIRST_BACKOFF_MS * 2 ** min(self.crashes - 2, 16) if self.crashes > 1 else 0.0
        self.respawn_ms = now_ms + min(MAX_BACKOFF_MS, backoff_ms)


class WorkerHandle:
    """One place for a worker. ``is_trial``: only for streams that were near a crash; there while it is needed."""

    __slots__ = (
        "call_soon",
        "clock_ns",
        "end",
        "index",
        "is_bell_due",
        "is_trial",
        "life",
        "max_streams",
        "meter",
        "state",
        "streams",
        "try_send",
        "unsent_closes",
        "wants_room",
    )

    def __init__(
        self,
        index: int,
        call_soon: Callable[[Callable[[], None]], object],
        clock_ns: Callable[[], int],
        *,
        is_trial: bool = False,
    ) -> None:
        self.index = index
        self.is_trial = is_trial
        self.call_soon = call_soon
        self.clock_ns = clock_ns
        self.state = WorkerState.DEAD
        self.life = WorkerLife()
        self.meter = WorkerMeter()
        self.end: ServerEnd | None = None
        self.streams: dict[int, WorkerStream] = {}
        self.wants_room: dict[int, WorkerStream] = {}
        self.unsent_closes: deque[int] = deque()
        self.is_bell_due = False
        self.max_streams = 0

    @property
    def pid(self) -> int:
        return self.life.pid

    @property
    def generation(self) -> int:
        return self.life.generation

    def begin(self, end: ServerEnd, now_ms: float) -> None:
        """A new incarnation: STARTING."""
        self.end = end
        self.try_send = end.try_send
        self.state = WorkerState.STARTING
        self.life.generation += 1
        self.life.begin(now_ms)
        self.meter.begin()

    def finish(self, now_ms: float) -> None:
        """The worker is gone: free its channel and say when to start the next one."""
        end = self.end
        if end is None:
            return
        self.meter.finish(end.flight())
        self.end = None
        end.close()
        self.wants_room.clear()
        self.unsent_closes.clear()
        self.state = WorkerState.BACKOFF
        self.life.finish(now_ms)

    def put_off(self, respawn_ms: float) -> None:
        """It could not be started now."""
        self.state = WorkerState.BACKOFF
        self.life.respawn_ms = respawn_ms

    def is_idle(self) -> bool:
        return self.state is WorkerState.READY and not self.streams and not self.unsent_closes

    def has_place(self) -> bool:
        return self.state is WorkerState.READY and (
            not self.max_streams or len(self.streams) < self.max_streams
        )

    def ring(self) -> None:
        """Wake the worker for everything sent in this tick of the loop."""
        self.is_bell_due = False
        if self.end is not None:
            self.end.ring_bell()

    def ring_soon(self) -> None:
        if not self.is_bell_due:
            self.is_bell_due = True
            self.call_soon(self.ring)

    def close_stream(self, stream: int) -> None:
        """Send CLOSE, now or when there is room."""
        self.wants_room.pop(stream, None)
        if self.unsent_closes or not self.try_send(RequestKind.CLOSE, stream, 0, 0, b"", self.clock_ns()):
            self.unsent_closes.append(stream)
        self.ring_soon()

    def push_closes(self) -> None:
        """Send the CLOSE records that found the ring full."""
        while self.unsent_closes and self.try_send(
            RequestKind.CLOSE, self.unsent_closes[0], 0, 0, b"", self.clock_ns()
        ):
            self.unsent_closes.popleft()
            self.ring_soon()

    def is_silent(self, now_ns: int, quiet_ns: int) -> bool:
        """See ``WorkerMeter``."""
        end = self.end
        return end is not None and self.meter.is_silent(end.flight(), self.sign_ns(now_ns), now_ns, quiet_ns)

    def sign_ns(self, now_ns: int) -> int:
        """The last sign of life, or since when one is owed, if that is later. There is none during a step. ``now_ns``: none is
        owed, because the worker has no streams and sleeps until it is sent something."""
        end = self.end
        if end is None:
            return 0
        flight = end.flight()
        if flight.state is FlightState.STEPPING:
            return flight.heartbeat_ns
        if not self.streams and not end.queued():
            return now_ns
        return max(flight.heartbeat_ns, end.oldest_sent_ns())

    def measure(self) -> None:
        """Update the times of a step."""
        if self.end is not None:
            self.meter.measure(self.end.flight())

    def totals(self) -> tuple[int, int]:
        """``(steps, items)`` over all incarnations."""
        return self.meter.totals(self.end)[:2]

    def stats(self) -> WorkerStats:
        queued, age_ms = 0, 0.0
        if self.end is not None:
            queued = self.end.queued()
            oldest_ns = self.end.oldest_sent_ns()
            age_ms = max(0.0, (self.clock_ns() - oldest_ns) / 1e6) if oldest_ns else 0.0
        totals = self.meter.totals(self.end)
        return WorkerStats(
            self.index,
            self.pid,
            self.state.value,
            self.generation,
            len(self.streams),
            queued,
            age_ms,
            totals.steps,
            totals.items,
            self.meter.service_ms,
            totals.busy_ms,
            totals.optional_ms,
        )


class ClosesStreams(Protocol):
    """Ends streams on their worker; a pool does."""

    def close_stream(self, handle: WorkerHandle, stream: WorkerStream) -> None: ...


class WorkerStream:
    """A stream on one worker. ``key`` names the session for the quarantine."""

    __slots__ = ("_heard_seq", "_pool", "_rate_hz", "handle", "id", "is_lighter", "is_live", "key", "owner")

    def __init__(
        self,
        pool: ClosesStreams,
        handle: WorkerHandle,
        stream: int,
        owner: StreamOwner,
        key: str,
        is_lighter: bool,
        params: StreamParams,
    ) -> None:
        self._pool = pool
        self.handle: WorkerHandle | None = handle
        self.id = stream
        self.owner = owner
        self.key = key
        self.is_lighter = is_lighter
        self.is_live = params.is_live
        self._rate_hz = params.rate_hz
        self._heard_seq = params.start_seq

    def send(self, kind: RequestKind, turn: int, seq: int, payload: bytes | memoryview = b"") -> bool:
        """See ``voiceserver.pool.Stream``."""
        # hot
        handle = self.handle
        if handle is None:
            return False
        if handle.try_send(kind, self.id, turn, seq, payload, handle.clock_ns()):
            if not handle.is_bell_due:
                handle.is_bell_due = True
                handle.call_soon(handle.ring)
            return True
        handle.wants_room[self.id] = self
        return False

    def close(self) -> None:
        """See ``voiceserver.pool.Stream``."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._pool.close_stream(handle, self)

    def heard_ms(self, seq: int) -> float:
        """Audio from the end of the turn before to ``seq``, the end of this one."""
        samples, self._heard_seq = seq - self._heard_seq, seq
        return samples * 1000.0 / self._rate_hz

    def lose(self, stage: str, reason: LossReason) -> None:
        """Its worker is gone."""
        self.handle = None
        self.owner.on_stream_lost(stage, reason)
