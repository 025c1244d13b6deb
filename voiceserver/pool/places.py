"""The places of one stage: which caller has a stream on which worker, and who waits for one.

- A stream goes to the least loaded live worker, and stays there, because engines keep state per stream.
- Streams that were in the batch of a crash go to workers of their own kind (trials), each to one of its own as far as there are
  some, so that a second crash of the same input meets none of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from voiceserver.errors import Refusal
from voiceserver.pool import Stream, StreamOwner
from voiceserver.pool.place_queue import PlaceQueue, Turnover
from voiceserver.pool.pool_context import PoolContext
from voiceserver.pool.quarantine import Quarantine
from voiceserver.pool.worker_handle import WorkerHandle, WorkerState, WorkerStream
from voiceserver_workers.ipc.messages import CONTROL_STREAM, RequestKind, StreamParams

RESPAWN_MS = 50.0  # what to promise while no worker is ready: a fork and the engine's constructor
DEFAULT_TURNOVER_MS = 2_000.0  # between two places becoming free, before it was measured
TRIAL_WAIT_MS = 500.0


class Places:
    """``handles``: the stage's workers; ``trials``: those for suspects, which ``start`` starts."""

    def __init__(
        self,
        context: PoolContext,
        handles: Sequence[WorkerHandle],
        trials: Sequence[WorkerHandle],
        quarantine: Quarantine,
        start: Callable[[WorkerHandle], None],
    ) -> None:
        self.queue = PlaceQueue()
        self._context = context
        self._handles = handles
        self._trials = trials
        self._quarantine = quarantine
        self._start = start
        self._next_stream = CONTROL_STREAM + 1
        self._is_offer_due = False
        self._turnover = Turnover(DEFAULT_TURNOVER_MS)
        # What the engine takes of a session, as a worker's hello says.
        self._options: frozenset[str] = frozenset()

    def try_open(
        self, owner: StreamOwner, params: StreamParams, key: str, is_lighter: bool
    ) -> Stream | Refusal:
        """See ``Pool``."""
        context, queue, is_live = self._context, self.queue, params.is_live
        now_ms = context.now_ms()
        left_ms = self._quarantine.left_ms(key, now_ms) if key else 0.0
        if left_ms:
            return Refusal("quarantined", left_ms, context.stage)
        trial_items = self._quarantine.trial_items(key, now_ms) if key else 0
        if not trial_items and queue.waiting and not queue.may_take(owner, self.free(), is_live=is_live):
            return self._refuse(owner, is_live, is_on_trial=False)
        payload = self._taken_by_engine(params).to_bytes()
        for handle in self._candidates(trial_items > 0, now_ms):
            stream = self._next_stream
            if handle.try_send(RequestKind.OPEN, stream, 0, trial_items, payload, context.clock_ns()):
                self._next_stream += 1
                opened = WorkerStream(self, handle, stream, owner, key, is_lighter, params)
                handle.streams[stream] = opened
                queue.admit(owner, is_live=is_live)
                handle.ring_soon()
                return opened
        return self._refuse(owner, is_live, is_on_trial=trial_items > 0)

    def close_stream(self, handle: WorkerHandle, stream: WorkerStream) -> None:
        """For ``WorkerStream.close``."""
        if handle.streams.pop(stream.id, None) is None:
            return
        handle.close_stream(stream.id)
        self._turnover.freed(self._context.now_ms())
        self.offer_soon()

    def end_turn(self, handle: WorkerHandle, stream: WorkerStream, seq: int) -> None:
        """A turn was recognised up to ``seq``. Its place is offered again if somebody waits who comes before this caller."""
        heard_ms = stream.heard_ms(seq)
        if not self.queue.waiting or stream.handle is not handle or handle.is_trial:
            return
        taken = sum(len(one.streams) for one in self._handles)
        if self.queue.is_before(stream.owner, taken, is_live=stream.is_live, heard_ms=heard_ms):
            self.close_stream(handle, stream)
            self._context.owners.call(stream.lose, self._context.stage, "moved")

    def is_ready(self) -> bool:
        return any(handle.state is WorkerState.READY for handle in self._handles)

    def next_worker_ms(self) -> float:
        """When there may be another worker."""
        now_ms = self._context.now_ms()
        waits = [
            handle.life.respawn_ms - now_ms for handle in self._handles if handle.state is WorkerState.BACKOFF
        ]
        return RESPAWN_MS + max(0.0, min(waits, default=0.0))

    def free(self) -> int | None:
        """Places for more streams; None for no limit."""
        ready = [handle for handle in self._handles if handle.state is WorkerState.READY]
        if any(not handle.max_streams for handle in ready):
            return None
        return sum(handle.max_streams - len(handle.streams) for handle in ready)

    def add_worker(self, handle: WorkerHandle, options: frozenset[str]) -> None:
        """It said hello: it has places, and its engine takes these options."""
        self._options = options
        if handle.is_trial:
            self._context.call_soon(self._offer_to_all)
        else:
            self.offer_soon()

    def start_trials(self, count: int) -> None:
        """Have so many workers for suspects."""
        for handle in self._trials[:count]:
            if handle.state is WorkerState.DEAD and not self._context.is_stopping:
                self._start(handle)

    def offer_soon(self) -> None:
        if self.queue.waiting and not self._is_offer_due:
            self._is_offer_due = True
            self._context.call_soon(self.offer)

    def offer(self) -> None:
        """Call those who wait, as many as there are places."""
        self._is_offer_due = False
        left = len(self.queue)
        while left:  # some may want none any more
            free = self.free() if self.is_ready() else 0
            called = self.queue.call(left if free is None else min(free, left))
            if not called:
                return
            left -= len(called)
            self._call(called)

    # Inside

    def _offer_to_all(self) -> None:
        """There is a worker for suspects, and only a suspect knows that it is one."""
        called = self.queue.call(len(self.queue))
        if called:
            self._call(called)

    def _call(self, called: dict[int, StreamOwner]) -> None:
        owners = self._context.owners
        for owner in called.values():
            owners.call(owner.on_room, self._context.stage)
        owners.tick(called)
        self.queue.done()

    def _taken_by_engine(self, params: StreamParams) -> StreamParams:
        """Without the options that the engine does not name: a session wishes, and not every engine can."""
        options = {name: value for name, value in params.options.items() if name in self._options}
        if len(options) == len(params.options):
            return params
        return msgspec.structs.replace(params, options=options)

    def _candidates(self, is_on_trial: bool, now_ms: float) -> list[WorkerHandle]:
        """Workers with a place for a new stream, the best first."""
        handles = sorted(
            filter(WorkerHandle.has_place, self._handles), key=lambda handle: len(handle.streams)
        )
        if not is_on_trial:
            return handles
        trials = sorted(filter(WorkerHandle.has_place, self._trials), key=lambda handle: len(handle.streams))
        if not trials or trials[0].streams:
            busy = sum(handle.state is not WorkerState.DEAD for handle in self._trials)
            self.start_trials(busy + 1)
            # Worth a short wait; an engine that loads for long must not keep its callers waiting.
            if any(
                handle.state is not WorkerState.READY and now_ms - handle.life.started_ms < TRIAL_WAIT_MS
                for handle in self._trials
            ):
                return []
        return [*trials, *handles]

    def _refuse(self, owner: StreamOwner, is_live: bool, *, is_on_trial: bool) -> Refusal:
        self.queue.wait(owner, is_live=is_live)
        stage = self._context.stage
        if not self.is_ready() or is_on_trial:
            return Refusal("no_worker", self.next_worker_ms(), stage)
        return Refusal("full", self._turnover.retry_ms(len(self.queue), RESPAWN_MS), stage)
