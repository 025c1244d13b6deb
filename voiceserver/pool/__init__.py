"""Where a stage's work is done: the Pool and Stream protocols.

A stage that computes is a pool of processes (``local``); a stage that waits for a network is a pool of tasks on the
loop (``http``); tests run a worker in the same thread (``inline``). All pass the stream suite of
``tests/conformance/pool_suite.py``, and those with workers the pool suite on top of it.
Rule R6: nothing here waits for a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from voiceserver.errors import Refusal
from voiceserver_workers.ipc.messages import Record, RequestKind, StreamParams

LossReason = Literal["worker_lost", "worker_hung", "worker_memory", "quarantined", "moved"]


class StreamOwner(Protocol):
    """Whoever opened a stream. All calls come from the loop's thread, never from inside ``try_open`` or ``send``."""

    def on_result(self, stage: str, record: Record) -> bool | None:
        """One result, in order. Do the bookkeeping only; ``on_tick`` follows in the same loop turn, unless all results of this
        turn are answered with False: nothing came of them that could be moved."""

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        """The stream is gone (its worker died, or it was quarantined). Its object must not be used again. "moved": it was
        on a worker for suspects, where somebody else's input was found guilty: nothing to speak of, another one has room."""

    def on_room(self, stage: str) -> None:
        """A place or ring space may be free again, after ``try_open`` or ``send`` said no."""

    def on_tick(self) -> None:
        """Called once per owner after a burst of the calls above: the moment to pump."""


class Stream(Protocol):
    """A session's sticky lane through one worker."""

    @property
    def is_lighter(self) -> bool:
        """It runs through the stage's lighter engine (``stages.STAGE.lighter``)."""

    def send(self, kind: RequestKind, turn: int, seq: int, payload: bytes | memoryview = b"") -> bool:
        """Put one request on the way. False is full: nothing was taken, ``on_room`` will be called. Never blocks, never
        drops. Raises ValueError for a payload that could never fit."""

    def close(self) -> None:
        """End the stream (CLOSE). Idempotent; no callback follows."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    index: int
    pid: int
    state: Literal["starting", "ready", "hung", "dead", "backoff"]
    generation: int
    streams: int
    queued: int  # requests on the ring that the worker has not taken
    queue_age_ms: float  # age of the oldest of them (an estimate for a lane that is moving)
    batches: int
    items: int
    service_ms: float  # moving average of one engine step
    busy_ms: float = 0.0  # in engine steps, ever; a step counts when it has ended


@dataclass(frozen=True, slots=True)
class PoolStats:
    stage: str
    engine: str
    workers: tuple[WorkerStats, ...]
    streams: int
    free: int | None  # places for more streams; None: no limit
    lag_ms: float  # the worst queue age of its live workers
    restarts: int
    mean_batch: float
    lighter_streams: int = 0  # of ``streams``, those on the stage's lighter engine


class Pool(Protocol):
    stage: str
    is_lighter: bool  # it is the lighter engine of its stage, see ``fallback``

    def try_open(self, owner: StreamOwner, params: StreamParams, *, key: str = "") -> Stream | Refusal:
        """A new stream on the least loaded live worker, or a Refusal (all places taken, no live worker). ``key`` names
        the session, so that input which kills workers can be traced and quarantined."""

    def forget(self, owner: StreamOwner) -> None:
        """``owner`` is leaving: it waits for no place any more, and hears no ``on_room``."""

    def is_ready(self) -> bool:
        """At least one worker has loaded its engine and answers."""

    def back_in_ms(self) -> float | None:
        """None while there is a worker to open streams on; otherwise in how many ms there may be one."""

    def stats(self) -> PoolStats: ...

    async def start(self) -> None:
        """Start the workers and return at once; ``is_ready`` tells when they can be used. Raises ConfigError for an engine
        that cannot be found or loaded at all."""

    async def stop(self) -> None:
        """End every worker and free every segment. Idempotent."""
