"""The workers of one stage: how they start, what they say, how they end, whoever runs them.

``WorkerSet`` knows neither processes nor an event loop: a ``Runner`` starts and kills. ``worker_processes`` runs processes,
``inline`` a worker in the same thread. Rules:

- Owners are called from ``drain``, ``bury`` and ``sweep`` only; each burst of calls ends in one ``on_tick`` per owner.
- Results that were published before a worker died reach their owners before they hear of the death.
- Whoever was told "full" is called back, first come, first called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from voiceserver.pool import LossReason, Speech
from voiceserver.pool.places import Places
from voiceserver.pool.pool_context import CallSoon, PoolContext
from voiceserver.pool.quarantine import Quarantine
from voiceserver.pool.result_delivery import ResultDelivery, Touched
from voiceserver.pool.worker_handle import WorkerHandle, WorkerState
from voiceserver_workers.ipc.channel import ChannelConfig, RingCorrupt, ServerEnd
from voiceserver_workers.ipc.messages import (
    CONTROL_STREAM,
    BatchWindow,
    Record,
    RequestKind,
    ResultKind,
    decode_failure,
    decode_hello,
    encode,
)
from voiceserver_workers.ipc.platform import Platform

TRIAL_WORKERS = 2  # started when needed; as many as callers whom a worker of the default stt serves at once
TRIAL_IDLE_MS = 10_000.0
_BURSTS_PER_DRAIN = 8


class Runner(Protocol):
    """Starts and ends workers, and knows what the system knows of them."""

    def spawn(self, handle: WorkerHandle) -> None:
        """Start a worker (``WorkerSet.begin``)."""

    def kill(self, handle: WorkerHandle) -> None:
        """End its worker. Does not wait, and does not bury."""

    def forget(self, handle: WorkerHandle) -> None:
        """Its worker is dead, and its channel about to be closed. Idempotent."""

    def is_hung(self, handle: WorkerHandle, now_ns: int, *, is_silent: bool) -> bool:
        """The verdict on a ready worker. ``is_silent``: its step, or its silence, lasts too long."""

    def is_stuck(self, handle: WorkerHandle, now_ns: int) -> bool:
        """The verdict on a worker that loads its engine."""

    def look(self) -> None:
        """Called by each sweep."""


class Starter(Protocol):
    """Waits for the first answer of an engine."""

    def on_ready(self) -> None: ...

    def on_bad_engine(self, message: str, *, is_made: bool) -> None:
        """It cannot be made; not ``is_made``: not even its module can be loaded."""


class WorkerSet:
    """``handles``: the stage's own workers; ``trials``: for streams that were near a crash. ``restarts``: so far."""

    def __init__(
        self,
        context: PoolContext,
        starter: Starter,
        make_runner: Callable[[WorkerSet], Runner],
        *,
        quarantine: Quarantine | None = None,
        platform: Platform | None = None,
    ) -> None:
        config, count = context.config, context.config.workers
        if count < 1:
            raise ValueError(f"workers must be at least 1, not {count}")
        self._context = context
        self._starter = starter
        self._channel = ChannelConfig(config.request_slots, config.result_slots, config.slot_bytes)
        self._platform = platform
        self.quarantine = quarantine or Quarantine()
        made = [
            WorkerHandle(index, context.call_soon, context.clock_ns, is_trial=index >= count)
            for index in range(count + TRIAL_WORKERS)
        ]
        self.handles, self.trials = made[:count], made[count:]
        self.runner = make_runner(self)
        self.places = Places(context, self.handles, self.trials, self.quarantine, self.runner.spawn)
        self._results = ResultDelivery(context, self.places)
        self.restarts = 0
        # As a worker's hello says.
        self.speech = Speech()

    def all_handles(self) -> list[WorkerHandle]:
        """The trials come last."""
        return [*self.handles, *self.trials]

    def is_idle(self) -> bool:
        """A sweep would find nothing before the next stream is opened or the next worker dies."""
        return (
            all(handle.is_idle() for handle in self.handles)
            and all(handle.state is WorkerState.DEAD or handle.is_idle() for handle in self.trials)
            and not self.places.queue.waiting
        )

    def begin(self, handle: WorkerHandle) -> ServerEnd:
        """A fresh channel for the handle's next worker. Raises OSError when there is no memory or descriptor for it."""
        end = ServerEnd.create(self._channel, generation=handle.generation + 1, platform=self._platform)
        handle.begin(end, self._context.now_ms())
        return end

    def ask_to_end(self) -> None:
        """Each worker ends after what it is doing."""
        for handle in self.all_handles():
            if handle.end is not None:
                handle.try_send(RequestKind.CLOSE, CONTROL_STREAM, 0, 0)
                handle.ring()

    def end_all(self) -> None:
        """Kill and bury every worker."""
        for handle in self.all_handles():
            if handle.end is not None:
                self.runner.kill(handle)
                self.bury(handle, "worker_lost")

    def set_max_wait_ms(self, max_wait_ms: float) -> None:
        """See ``Pool``."""
        payload = encode(BatchWindow(max_wait_ms))
        for handle in self.all_handles():
            if handle.state is WorkerState.READY and handle.try_send(
                RequestKind.DATA, CONTROL_STREAM, 0, 0, payload, self._context.clock_ns()
            ):
                handle.ring_soon()

    def drain(self, handle: WorkerHandle) -> None:
        """Deliver what the worker has published; stays within a bounded share of a loop turn."""
        touched: Touched = {}
        generation = handle.generation
        try:
            is_empty = self._deliver(handle, touched, _BURSTS_PER_DRAIN)
        except RingCorrupt as error:
            self._context.owners.tick(touched)
            self.runner.kill(handle)
            self.bury(handle, "worker_lost")
            self._context.report("ring_corrupt", handle, error=str(error))
            return
        if not is_empty:
            self._context.call_soon(lambda: self._drain_again(handle, generation))
        handle.push_closes()
        self._results.offer_ring_room(handle, touched)
        self._context.owners.tick(touched)

    def bury(self, handle: WorkerHandle, reason: LossReason) -> None:
        """The worker is dead: the one crash path. Idempotent."""
        context, end = self._context, handle.end
        self.runner.forget(handle)
        if end is None:
            return
        touched: Touched = {}
        try:
            self._deliver(handle, touched, None)
        except RingCorrupt as error:
            context.report("ring_corrupt", handle, error=str(error))
        if handle.life.last_words == "out_of_memory":
            reason = "worker_memory"
        now_ms, flight = context.now_ms(), end.flight()
        suspects = {handle.streams[s].key for s in flight.streams if s in handle.streams} - {""}
        guilty = set() if context.is_stopping else self.quarantine.record_crash(suspects, now_ms)
        lost = list(handle.streams.values())
        handle.streams.clear()
        handle.finish(now_ms)
        is_meant = context.is_stopping or (handle.is_trial and not lost)
        if is_meant:
            handle.state = WorkerState.DEAD
        self.restarts += not is_meant
        for stream in lost:
            told: LossReason = "quarantined" if stream.key in guilty else reason
            if handle.is_trial and guilty and stream.key not in guilty:
                told = "moved"  # they have had their hiccup
            touched[id(stream.owner)] = stream.owner
            context.owners.call(stream.lose, context.stage, told)
        if suspects - guilty:
            context.call_soon(partial(self.places.start_trials, len(suspects - guilty)))
        context.owners.tick(touched)
        # Callers are told first.
        event, why = ("worker_stopped", "stopped") if is_meant else ("worker_lost", reason)
        context.report(event, handle, reason=why, batch=flight.batch_size, streams=len(lost))
        for key in guilty:
            context.report("quarantined", handle, key=key)

    def sweep(self) -> None:
        """Everything that no event announces: hangs, due respawns, room that came without a result."""
        context = self._context
        now_ms, now_ns = context.now_ms(), context.clock_ns()
        for handle in self.all_handles():
            if handle.state is WorkerState.BACKOFF:
                if now_ms >= handle.life.respawn_ms and not context.is_stopping:
                    self.runner.spawn(handle)
            elif handle.state is WorkerState.STARTING:
                if handle.end is not None and self.runner.is_stuck(handle, now_ns):
                    self._hang(handle)
            elif handle.state is WorkerState.READY:
                self._look_at(handle, now_ms, now_ns)
        if len(self.places.queue):
            self.places.offer()
        if not context.is_stopping:
            self.runner.look()

    # For the runner

    def use(self, call_soon: CallSoon) -> None:
        """The loop runs: ring bells on it without a detour."""
        for handle in self.all_handles():
            handle.call_soon = call_soon

    def on_bad_engine(self, handle: WorkerHandle | None, message: str) -> None:
        """A worker could not make its engine. None: its module cannot be loaded."""
        self._context.report("bad_engine", handle, message=message)
        self._starter.on_bad_engine(message, is_made=handle is not None)

    def respawn(self, handle: WorkerHandle) -> None:
        """Start the next worker, if that is due and nobody has."""
        if handle.state is WorkerState.BACKOFF and not self._context.is_stopping:
            self.runner.spawn(handle)

    # Inside

    def _look_at(self, handle: WorkerHandle, now_ms: float, now_ns: int) -> None:
        """At a ready worker."""
        handle.measure()
        is_silent = handle.is_silent(now_ns, int(self._context.config.step_timeout_ms * 1e6))
        if self.runner.is_hung(handle, now_ns, is_silent=is_silent):
            self._hang(handle)
        elif handle.wants_room or handle.unsent_closes:
            self.drain(handle)
        elif handle.is_trial and handle.streams:
            handle.life.idle_since_ms = now_ms
        elif handle.is_trial and now_ms - handle.life.idle_since_ms > TRIAL_IDLE_MS:
            self.runner.kill(handle)
            self.bury(handle, "worker_lost")

    def _hang(self, handle: WorkerHandle) -> None:
        handle.state = WorkerState.HUNG
        self.runner.kill(handle)
        self._context.report("worker_hung", handle)
        self.bury(handle, "worker_hung")

    def _drain_again(self, handle: WorkerHandle, generation: int) -> None:
        if handle.end is not None and handle.generation == generation:
            self.drain(handle)

    def _deliver(self, handle: WorkerHandle, touched: Touched, bursts: int | None) -> bool:
        own_words: list[Record] = []
        try:
            return self._results.deliver(handle, touched, own_words, bursts)
        finally:
            for record in own_words:
                self._hear(handle, record)

    def _hear(self, handle: WorkerHandle, record: Record) -> None:
        """What a worker says of itself."""
        if record.kind == ResultKind.FAILED:
            failure = decode_failure(record.payload)
            handle.life.last_words = failure.code
            if failure.code == "bad_engine":
                self.on_bad_engine(handle, failure.message)
        elif record.kind == ResultKind.OPENED and handle.state is WorkerState.STARTING:
            hello = decode_hello(record.payload)
            limits = [
                limit for limit in (self._context.config.streams_per_worker, hello.max_streams) if limit
            ]
            handle.max_streams = min(limits, default=0)
            handle.state = WorkerState.READY
            self.speech = Speech(frozenset(hello.voices), frozenset(hello.languages))
            if handle.end is not None:
                handle.life.pid = (
                    handle.end.flight().worker_pid
                )  # the hello may overtake the forkserver's answer
            took_ms = self._context.now_ms() - handle.life.started_ms
            self._context.report("worker_ready", handle, took_ms=round(took_ms, 1))
            self.places.add_worker(handle, frozenset(hello.options))
            self._starter.on_ready()
