"""What every pool of channels does, whoever runs the workers: streams, results, room, and the one crash path.

``ChannelPool`` knows neither processes nor an event loop: time, ``call_soon`` and the making of workers are given. ``local``
puts processes behind it, ``inline`` a worker in the same thread. Rules:

- Owners are called from ``drain``, ``bury`` and ``sweep`` only; each burst of calls ends in one ``on_tick`` per owner.
- Results that were published before a worker died reach their owners before they hear of the death.
- Whoever was told "full" is called back, first come, first called.
- Streams that were in the batch of a crash go to workers of their own kind (the trial lanes), each to one of its own as far
  as there are some, so that a second crash of the same input meets none of the others.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from voiceserver.config.schema import StageConfig
from voiceserver.errors import Refusal
from voiceserver.pool import (
    LossReason,
    OnEvent,
    Pool,
    PoolStats,
    Stream,
    StreamOwner,
    ignore_event,
    never_raising,
)
from voiceserver.pool.owner_calls import OwnerCalls
from voiceserver.pool.place_queue import PlaceQueue, Turnover
from voiceserver.pool.quarantine import Quarantine
from voiceserver.pool.worker_handle import WorkerHandle, WorkerState, WorkerStream
from voiceserver_workers.ipc.channel import ChannelConfig, RingCorrupt, ServerEnd
from voiceserver_workers.ipc.messages import (
    CONTROL_STREAM,
    BatchWindow,
    Record,
    RequestKind,
    ResultKind,
    StreamParams,
    decode_failure,
    decode_hello,
    encode,
)
from voiceserver_workers.ipc.platform import Platform

CallSoon = Callable[[Callable[[], None]], object]

RESPAWN_MS = 50.0  # what to promise while no worker is ready: a fork and the engine's constructor
DEFAULT_TURNOVER_MS = 2_000.0  # between two places becoming free, before it was measured
TRIAL_LANES = 2  # started when needed; as many as callers whom a worker of the default stt serves at once
TRIAL_WAIT_MS = 500.0
TRIAL_IDLE_MS = 10_000.0
_BURST = 512
_BURSTS_PER_DRAIN = 8
_FINAL = int(ResultKind.FINAL)


class ChannelPool(Pool):
    """``on_event(name, fields)`` hears what happens to workers, for logs and metrics. ``call_soon(callback)`` runs it after
    the callbacks of this turn of the loop."""

    def __init__(
        self,
        stage: str,
        config: StageConfig,
        *,
        call_soon: CallSoon,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        on_event: OnEvent = ignore_event,
        quarantine: Quarantine | None = None,
        platform: Platform | None = None,
    ) -> None:
        workers = config.workers
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.stage = stage
        self._config = config
        self.quarantine = quarantine or Quarantine()
        self._channel = ChannelConfig(config.request_slots, config.result_slots, config.slot_bytes)
        self._platform = platform
        self._call_soon = call_soon
        self._clock_ns = clock_ns
        self._on_event = never_raising(on_event)
        self.handles = [WorkerHandle(index, call_soon, clock_ns) for index in range(workers)]
        trials = range(workers, workers + TRIAL_LANES)
        self.trial_handles = [WorkerHandle(index, call_soon, clock_ns, is_trial=True) for index in trials]
        self._next_stream = CONTROL_STREAM + 1
        self._queue = PlaceQueue()
        self._is_offer_due = False
        self._is_stopping = False
        self._turnover = Turnover(DEFAULT_TURNOVER_MS)
        self._owners = OwnerCalls(self.on_owner_error)
        self.restarts = 0
        # What the engine takes of a session and which voices it has, as a worker's hello says.
        self._options: frozenset[str] = frozenset()
        self._voices: frozenset[str] = frozenset()

    # For the sessions

    @property
    def voices(self) -> frozenset[str]:
        """See ``Pool``."""
        return self._voices

    def try_open(
        self, owner: StreamOwner, params: StreamParams, *, key: str = "", is_lighter: bool = False
    ) -> Stream | Refusal:
        """See ``Pool``."""
        now_ms = self._now_ms()
        left_ms = self.quarantine.left_ms(key, now_ms) if key else 0.0
        if left_ms:
            return Refusal("quarantined", left_ms, self.stage)
        trial_items = self.quarantine.trial_items(key, now_ms) if key else 0
        queue, is_live = self._queue, params.is_live
        if (
            not trial_items
            and queue.waiting
            and not queue.may_take(owner, self._free_places(), is_live=is_live)
        ):
            return self._refuse(owner, is_live, is_on_trial=False)
        payload = self._taken_by_engine(params).to_bytes()
        for handle in self._candidates(trial_items > 0, now_ms):
            stream = self._next_stream
            if handle.try_send(RequestKind.OPEN, stream, 0, trial_items, payload, self._clock_ns()):
                self._next_stream += 1
                opened = WorkerStream(self, handle, stream, owner, key, is_lighter, params)
                handle.streams[stream] = opened
                queue.admit(owner, is_live=is_live)
                handle.ring_soon()
                return opened
        return self._refuse(owner, is_live, is_on_trial=trial_items > 0)

    def _taken_by_engine(self, params: StreamParams) -> StreamParams:
        """Without the options that the engine does not name: a session wishes, and not every engine can."""
        options = {name: value for name, value in params.options.items() if name in self._options}
        return (
            params
            if len(options) == len(params.options)
            else msgspec.structs.replace(params, options=options)
        )

    def forget(self, owner: StreamOwner) -> None:
        """``owner`` is leaving: no ``on_room`` for it any more."""
        self._queue.forget(owner)

    def set_max_wait_ms(self, max_wait_ms: float) -> None:
        """See ``Pool``."""
        payload = encode(BatchWindow(max_wait_ms))
        for handle in self.all_handles():
            if handle.state is WorkerState.READY and handle.try_send(
                RequestKind.DATA, CONTROL_STREAM, 0, 0, payload, self._clock_ns()
            ):
                handle.ring_soon()

    def is_ready(self) -> bool:
        return any(handle.state is WorkerState.READY for handle in self.handles)

    def back_in_ms(self) -> float | None:
        """See ``Pool``."""
        return None if self.is_ready() else self._next_worker_ms()

    def stats(self) -> PoolStats:
        workers = tuple(
            handle.stats() for handle in self.all_handles() if not handle.is_trial or handle.end is not None
        )
        steps = sum(worker.batches for worker in workers)
        items = sum(worker.items for worker in workers)
        return PoolStats(
            stage=self.stage,
            engine=self._config.engine,
            workers=workers,
            streams=sum(worker.streams for worker in workers),
            free=self._free_places(),
            lag_ms=max((w.queue_age_ms for w in workers if w.state in ("ready", "hung")), default=0.0),
            restarts=self.restarts,
            mean_batch=items / steps if steps else 0.0,
        )

    def close_stream(self, handle: WorkerHandle, stream: WorkerStream) -> None:
        """For LaneStream.close."""
        if handle.streams.pop(stream.id, None) is None:
            return
        handle.wants_room.pop(stream.id, None)
        if handle.unsent_closes or not handle.try_send(
            RequestKind.CLOSE, stream.id, 0, 0, b"", self._clock_ns()
        ):
            handle.unsent_closes.append(stream.id)
        handle.ring_soon()
        self._turnover.freed(self._now_ms())
        self._offer_places_soon()

    # For whoever runs the workers

    def all_handles(self) -> list[WorkerHandle]:
        """The trial lanes come last."""
        return [*self.handles, *self.trial_handles]

    def begin(self, handle: WorkerHandle) -> ServerEnd:
        """A fresh channel for the lane's next worker. Raises OSError when there is no memory for it."""
        end = ServerEnd.create(self._channel, generation=handle.generation + 1, platform=self._platform)
        handle.generation += 1
        handle.begin(end, self._now_ms())
        return end

    def drain(self, handle: WorkerHandle) -> None:
        """Deliver what the worker has published; stays within a bounded share of a loop turn."""
        touched: dict[int, StreamOwner] = {}
        generation = handle.generation
        try:
            is_empty = self._deliver(handle, touched, _BURSTS_PER_DRAIN)
        except RingCorrupt as error:
            self._owners.tick(touched)
            self.end_worker(handle)
            self.bury(handle, "worker_lost")
            self.report("ring_corrupt", handle, error=str(error))
            return
        if not is_empty:
            self._call_soon(lambda: self._drain_again(handle, generation))
        handle.push_closes()
        self._offer_ring_room(handle, touched)
        self._owners.tick(touched)

    def bury(self, handle: WorkerHandle, reason: LossReason) -> None:
        """The worker is dead: the one crash path. Idempotent."""
        end = handle.end
        if end is None:
            return
        touched: dict[int, StreamOwner] = {}
        try:
            self._deliver(handle, touched, None)
        except RingCorrupt as error:
            self.report("ring_corrupt", handle, error=str(error))
        if handle.last_words == "out_of_memory":
            reason = "worker_memory"
        now_ms = self._now_ms()
        flight = end.flight()
        suspects = {handle.streams[s].key for s in flight.streams if s in handle.streams} - {""}
        guilty = set() if self._is_stopping else self.quarantine.record_crash(suspects, now_ms)
        lost = list(handle.streams.values())
        handle.streams.clear()
        handle.finish(now_ms)
        is_meant = self._is_stopping or (handle.is_trial and not lost)
        if is_meant:
            handle.state = WorkerState.DEAD
        why = "stopped" if is_meant else reason
        self.restarts += not is_meant
        for stream in lost:
            told: LossReason = "quarantined" if stream.key in guilty else reason
            if handle.is_trial and guilty and stream.key not in guilty:
                told = "moved"  # they have had their hiccup
            touched[id(stream.owner)] = stream.owner
            self._owners.call(stream.lose, self.stage, told)
        if suspects - guilty:
            self._call_soon(partial(self._start_trials, len(suspects - guilty)))
        self._owners.tick(touched)
        # Callers are told first.
        event = "worker_stopped" if is_meant else "worker_lost"
        self.report(event, handle, reason=why, batch=flight.batch_size, streams=len(lost))
        for key in guilty:
            self.report("quarantined", handle, key=key)

    def sweep(self) -> None:
        """Everything that no event announces: hangs, due respawns, room that came without a result."""
        now_ms, now_ns = self._now_ms(), self._clock_ns()
        for handle in self.all_handles():
            if handle.state is WorkerState.BACKOFF and now_ms >= handle.respawn_ms and not self._is_stopping:
                self.spawn(handle)
            elif handle.state is WorkerState.READY:
                handle.measure()
                is_silent = handle.is_silent(now_ns, int(self._config.step_timeout_ms * 1e6))
                if self.is_hung(handle, now_ns, is_silent=is_silent):
                    self._hang(handle)
                elif handle.wants_room or handle.unsent_closes:
                    self.drain(handle)
                elif handle.is_trial:
                    self._retire_idle(handle, now_ms)
        if len(self._queue):
            self._offer_places()

    @abstractmethod
    def spawn(self, handle: WorkerHandle) -> None:
        """Start a worker for the lane (``begin``)."""

    @abstractmethod
    def end_worker(self, handle: WorkerHandle) -> None:
        """Kill the lane's worker. Does not wait and does not bury."""

    def is_hung(self, handle: WorkerHandle, now_ns: int, *, is_silent: bool) -> bool:
        """The verdict on a ready worker. ``is_silent``: its step, or its silence, lasts too long."""
        return is_silent

    def on_ready(self, handle: WorkerHandle) -> None:
        """A worker said hello."""
        took_ms = self._now_ms() - handle.started_ms
        self.report("worker_ready", handle, took_ms=round(took_ms, 1))

    def on_bad_engine(self, handle: WorkerHandle | None, message: str) -> None:
        """A worker could not make its engine. None: its module cannot be loaded."""
        self.report("bad_engine", handle, message=message)

    def report(self, event: str, handle: WorkerHandle | None, **fields: object) -> None:
        """Tell ``on_event`` what became of a worker, or of the stage."""
        whose: dict[str, object] = {"stage": self.stage}
        if handle is not None:
            whose |= {"worker": handle.index, "pid": handle.pid, "generation": handle.generation}
        self._on_event(event, {**whose, **fields})

    # Inside

    def _candidates(self, is_on_trial: bool, now_ms: float) -> list[WorkerHandle]:
        """Lanes with a place for a new stream, the best first."""
        handles = sorted(filter(WorkerHandle.has_place, self.handles), key=lambda handle: len(handle.streams))
        if not is_on_trial:
            return handles
        trials = sorted(
            filter(WorkerHandle.has_place, self.trial_handles), key=lambda handle: len(handle.streams)
        )
        if not trials or trials[0].streams:
            busy = sum(handle.state is not WorkerState.DEAD for handle in self.trial_handles)
            self._start_trials(busy + 1)
            # Worth a short wait; an engine that loads for long must not keep its callers waiting.
            if any(
                handle.state is not WorkerState.READY and now_ms - handle.started_ms < TRIAL_WAIT_MS
                for handle in self.trial_handles
            ):
                return []
        return [*trials, *handles]

    def _start_trials(self, count: int) -> None:
        for handle in self.trial_handles[:count]:
            if handle.state is WorkerState.DEAD and not self._is_stopping:
                self.spawn(handle)

    def _retire_idle(self, handle: WorkerHandle, now_ms: float) -> None:
        if handle.streams:
            handle.idle_since_ms = now_ms
        elif now_ms - handle.idle_since_ms > TRIAL_IDLE_MS:
            self.end_worker(handle)
            self.bury(handle, "worker_lost")

    def _now_ms(self) -> float:
        return self._clock_ns() / 1e6

    def _hang(self, handle: WorkerHandle) -> None:
        handle.state = WorkerState.HUNG
        self.end_worker(handle)
        self.report("worker_hung", handle)
        self.bury(handle, "worker_hung")

    def _drain_again(self, handle: WorkerHandle, generation: int) -> None:
        if handle.end is not None and handle.generation == generation:
            self.drain(handle)

    def _deliver(self, handle: WorkerHandle, touched: dict[int, StreamOwner], bursts: int | None) -> bool:
        """Hand out results; ``bursts`` None: until there are none. False: more may be waiting."""
        end = handle.end
        while end is not None and (bursts is None or bursts > 0):
            records = end.receive(_BURST)
            if records:
                self._dispatch(handle, records, touched)
                if bursts is not None:
                    bursts -= 1
            elif not end.rearm():
                return True
            end = handle.end
        return end is None

    def _dispatch(
        self, handle: WorkerHandle, records: Sequence[Record], touched: dict[int, StreamOwner]
    ) -> None:  # hot
        find, stage = handle.streams.get, self.stage
        turn_end = _FINAL if stage == "stt" else 0
        for record in records:
            stream = find(record.stream)
            if stream is None:
                if record.stream == CONTROL_STREAM:
                    self._hear(handle, record)
                continue
            owner = stream.owner
            try:
                if owner.on_result(stage, record) is not False:
                    touched[id(owner)] = owner
            except Exception as error:
                touched[id(owner)] = owner
                self.on_owner_error(error)
            if record.kind == turn_end:
                self._end_turn(handle, stream, record.seq)

    def _end_turn(self, handle: WorkerHandle, stream: WorkerStream, seq: int) -> None:
        """A turn was recognised up to ``seq``. Its place is offered again if somebody waits who comes before this caller."""
        heard_ms = stream.heard_ms(seq)
        if (
            self._queue.waiting
            and stream.handle is handle
            and not handle.is_trial
            and self._queue.is_before(
                stream.owner,
                sum(len(one.streams) for one in self.handles),
                is_live=stream.is_live,
                heard_ms=heard_ms,
            )
        ):
            self.close_stream(handle, stream)
            self._owners.call(stream.lose, self.stage, "moved")

    def _hear(self, handle: WorkerHandle, record: Record) -> None:
        if record.kind == ResultKind.FAILED:
            failure = decode_failure(record.payload)
            handle.last_words = failure.code
            if failure.code == "bad_engine":
                self.on_bad_engine(handle, failure.message)
        elif record.kind == ResultKind.OPENED and handle.state is WorkerState.STARTING:
            hello = decode_hello(record.payload)
            limits = [limit for limit in (self._config.streams_per_worker, hello.max_streams) if limit]
            handle.max_streams = min(limits, default=0)
            handle.state = WorkerState.READY
            self._options, self._voices = frozenset(hello.options), frozenset(hello.voices)
            if handle.end is not None:
                handle.pid = handle.end.flight().worker_pid  # the hello may overtake the forkserver's answer
            self.on_ready(handle)
            if handle.is_trial:
                self._call_soon(partial(self._offer_places, to_all=True))
            else:
                self._offer_places_soon()

    def _refuse(self, owner: StreamOwner, is_live: bool, *, is_on_trial: bool) -> Refusal:
        self._queue.wait(owner, is_live=is_live)
        if not self.is_ready() or is_on_trial:
            return Refusal("no_worker", self._next_worker_ms(), self.stage)
        return Refusal("full", self._turnover.retry_ms(len(self._queue), RESPAWN_MS), self.stage)

    def _next_worker_ms(self) -> float:
        now_ms = self._now_ms()
        waits = [handle.respawn_ms - now_ms for handle in self.handles if handle.state is WorkerState.BACKOFF]
        return RESPAWN_MS + max(0.0, min(waits, default=0.0))

    def _free_places(self) -> int | None:
        ready = [handle for handle in self.handles if handle.state is WorkerState.READY]
        if any(not handle.max_streams for handle in ready):
            return None
        return sum(handle.max_streams - len(handle.streams) for handle in ready)

    def _offer_places_soon(self) -> None:
        if len(self._queue) and not self._is_offer_due:
            self._is_offer_due = True
            self._call_soon(self._offer_places)

    def _offer_places(self, *, to_all: bool = False) -> None:
        self._is_offer_due = False
        left = len(self._queue)
        while left:  # some may want none any more
            free = self._free_places() if self.is_ready() else 0
            called = self._queue.call(left if to_all or free is None else min(free, left))
            if not called:
                return
            left -= len(called)
            for owner in called.values():
                self._owners.call(owner.on_room, self.stage)
            self._owners.tick(called)
            self._queue.done()

    def _offer_ring_room(self, handle: WorkerHandle, touched: dict[int, StreamOwner]) -> None:
        """Wake those that found the ring full, in their order, once there is room for more than a single record."""
        if handle.end is None or not handle.wants_room:
            return
        free = handle.end.free_slots()
        if free < handle.end.config.request_slots // 4:
            return
        for _ in range(min(free, len(handle.wants_room))):
            key = next(iter(handle.wants_room))
            owner = handle.wants_room.pop(key).owner
            touched[id(owner)] = owner
            self._owners.call(owner.on_room, self.stage)

    def on_owner_error(self, error: Exception) -> None:
        """An owner's callback raised: one session's bug must not stop the others. Tests let it raise."""
        raise error
