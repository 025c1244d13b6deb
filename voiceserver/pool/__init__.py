"""Where a stage's work is done: ``Pool``, the base of all pools, and the protocols of its streams and their owners.

=================  ==================================================================
``process_pool``   a stage that computes: worker processes
``remote_pool``    a stage that waits for a network: tasks on the event loop
``fallback``       two pools of one stage: its own engine and a lighter one
``inline``         workers in the same thread, stepped by hand, for tests
=================  ==================================================================

All pass ``StreamSuite`` of ``voiceserver.testing``, and those with workers ``PoolSuite``.
Rule R6: the server never waits for a worker.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from voiceserver.errors import Refusal
from voiceserver_workers.ipc.messages import Record, RequestKind, StreamParams

LossReason = Literal["worker_lost", "worker_hung", "worker_memory", "quarantined", "moved"]
OnEvent = Callable[[str, Mapping[str, object]], None]


class Speech(NamedTuple):
    """Of a speech engine: its voices, and its languages as primary subtags. Empty: it does not list them."""

    voices: frozenset[str] = frozenset()
    languages: frozenset[str] = frozenset()


def ignore_event(name: str, fields: Mapping[str, object]) -> None:
    """The default ``on_event`` of a pool."""


def never_raising(on_event: OnEvent) -> OnEvent:
    """``on_event`` for code whose callers must not hear of its faults: what it raises ends here."""

    def observe(name: str, fields: Mapping[str, object]) -> None:
        with contextlib.suppress(Exception):
            on_event(name, fields)

    return observe


class StreamOwner(Protocol):
    """The caller of ``try_open``. All calls come from the loop's thread, never from inside ``try_open`` or ``send``."""

    def on_result(self, stage: str, record: Record) -> bool | None:
        """One result, in order. Do the bookkeeping only; ``on_tick`` follows in the same loop turn.

        An owner that returns False for every result of a turn is not called: it has nothing to send."""

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        """The stream is gone (its worker died, or it was quarantined). Its object must not be used again.

        "moved": another caller has the place, at the end of a turn; or the worker was one for suspects, and another stream was
        found guilty of its death. Open a new stream."""

    def on_room(self, stage: str) -> None:
        """A place or ring space may be free again, after ``try_open`` or ``send`` said no."""

    def on_tick(self) -> None:
        """Called once per owner after a burst of the calls above: the moment to send."""


class Stream(Protocol):
    """A session's place on one worker, which it keeps because engines hold state per stream."""

    @property
    def is_lighter(self) -> bool:
        """It was opened on the stage's lighter engine (``stages.STAGE.lighter``)."""

    def send(self, kind: RequestKind, turn: int, seq: int, payload: bytes | memoryview = b"") -> bool:
        """Send one request. False is full: nothing was taken, and ``on_room`` will be called. Never blocks, never drops.

        Raises ValueError for a payload that could never fit."""

    def close(self) -> None:
        """End the stream (CLOSE). Idempotent; no callback follows."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker of a pool."""

    index: int
    # Process id; 0 where there is no process.
    pid: int
    state: Literal["starting", "ready", "hung", "dead", "backoff"]
    # How often a worker was started at this index.
    generation: int
    # Open streams.
    streams: int
    # Requests on the ring that the worker has not taken.
    queued: int
    # Age of the oldest of them; an estimate while the worker takes requests.
    queue_age_ms: float
    # Engine steps and the items in them, since the start of the server.
    batches: int
    items: int
    # Moving average of one engine step.
    service_ms: float
    # Time in engine steps, since the start of the server; a step counts when it has ended.
    busy_ms: float = 0.0
    # The part of it that is left undone under pressure: partial transcripts.
    optional_ms: float = 0.0


class RemoteCounts(NamedTuple):
    """Answers since the start. ``first_ms``: moving average of the time to the first result; 0 before there was one."""

    is_up: bool
    asked: int
    failed: int
    cancelled: int
    first_ms: float


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One stage of the server."""

    stage: str
    engine: str
    workers: tuple[WorkerStats, ...]
    # Open streams.
    streams: int
    # Places for more streams; None: no limit.
    free: int | None
    # The worst queue age of its live workers.
    lag_ms: float
    restarts: int
    # Items per engine step.
    mean_batch: float
    # Of ``streams``, those on the stage's lighter engine.
    lighter_streams: int = 0
    # Parts of a remote side's answers that could not be read, since the start of the server.
    skipped: int = 0
    # Of a stage that asks a remote side.
    remote: RemoteCounts | None = None


class Pool(ABC):
    """The base of every pool. What only some pools can do has a default here that does nothing."""

    stage: str
    # The stage waits for a network, so it has no workers of its own.
    is_remote = False
    # There is a lighter engine beside the stage's own, see ``set_lighter``.
    has_lighter = False

    @property
    def speech(self) -> Speech:
        """What a speech engine says of itself; nothing while it is not known."""
        return Speech()

    @abstractmethod
    def try_open(
        self, owner: StreamOwner, params: StreamParams, *, key: str = "", is_lighter: bool = False
    ) -> Stream | Refusal:
        """A new stream on the least loaded live worker, or a Refusal (all places taken, no live worker).

        ``key`` names the session, so that input which kills workers can be traced and quarantined. ``is_lighter``: this pool
        is the lighter one of its stage, and the stream says so."""

    @abstractmethod
    def forget(self, owner: StreamOwner) -> None:
        """``owner`` is leaving: it does not wait for a place any more, and its ``on_room`` is not called."""

    @abstractmethod
    def is_ready(self) -> bool:
        """At least one worker has loaded its engine and answers."""

    def is_idle(self) -> bool:
        """No stream is open, nobody waits for one, and no worker is missing: nothing is due until somebody comes."""
        return self.is_ready() and not self.stats().streams

    @abstractmethod
    def back_in_ms(self) -> float | None:
        """None while there is a worker to open streams on; otherwise in how many ms there may be one."""

    @abstractmethod
    def stats(self) -> PoolStats: ...

    @abstractmethod
    async def start(self) -> None:
        """Start the workers and return at once; ``is_ready`` tells when they can be used. Raises ConfigError for an engine
        that cannot be found or loaded at all."""

    @abstractmethod
    async def stop(self) -> None:
        """End every worker and free every segment. Idempotent."""

    def set_max_wait_ms(self, max_wait_ms: float) -> None:  # noqa: B027  # a pool without batches has no window
        """Change the batch window of the running workers; a worker that starts later has the configured one."""

    def set_lighter(self, is_lighter: bool) -> None:  # noqa: B027  # a pool without a lighter engine stays with its own
        """Open new streams on the lighter engine from now on, or on the stage's own again."""


def speech_voices(pools: Mapping[str, Pool]) -> frozenset[str]:
    """The voices of the tts engine; empty where there is none, or where it does not list them."""
    pool = pools.get("tts")
    return pool.speech.voices if pool is not None else frozenset()


def speech_languages(pools: Mapping[str, Pool]) -> frozenset[str]:
    """The languages of the tts engine; empty where there is none, or where it does not list them."""
    pool = pools.get("tts")
    return pool.speech.languages if pool is not None else frozenset()
