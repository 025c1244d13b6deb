"""The pool of a stage that computes, whoever runs its workers: what sessions see of a ``WorkerSet`` and its ``Places``."""

from __future__ import annotations

from voiceserver.errors import Refusal
from voiceserver.pool import Pool, PoolStats, Speech, Stream, StreamOwner
from voiceserver.pool.duty import Duty
from voiceserver.pool.pool_context import PoolContext
from voiceserver.pool.worker_set import WorkerSet
from voiceserver_workers.ipc.messages import StreamParams


class WorkerPool(Pool):
    """``start`` and ``stop`` are left to those who know how workers run. ``sweeper``: where the workers are swept by a duty."""

    sweeper: Duty | None = None

    def __init__(self, context: PoolContext, workers: WorkerSet) -> None:
        self.stage = context.stage
        self.context = context
        self.workers = workers

    @property
    def speech(self) -> Speech:
        """See ``Pool``."""
        return self.workers.speech

    def try_open(
        self, owner: StreamOwner, params: StreamParams, *, key: str = "", is_lighter: bool = False
    ) -> Stream | Refusal:
        """See ``Pool``."""
        if self.sweeper is not None:
            self.sweeper.wake()
        return self.workers.places.try_open(owner, params, key, is_lighter)

    def forget(self, owner: StreamOwner) -> None:
        """See ``Pool``."""
        self.workers.places.queue.forget(owner)

    def set_max_wait_ms(self, max_wait_ms: float) -> None:
        """See ``Pool``."""
        self.workers.set_max_wait_ms(max_wait_ms)

    def is_ready(self) -> bool:
        """See ``Pool``."""
        return self.workers.places.is_ready()

    def is_idle(self) -> bool:
        """See ``Pool``."""
        return self.workers.is_idle()

    def back_in_ms(self) -> float | None:
        """See ``Pool``."""
        return None if self.is_ready() else self.workers.places.next_worker_ms()

    def stats(self) -> PoolStats:
        """See ``Pool``."""
        handles = self.workers.all_handles()
        workers = tuple(one.stats() for one in handles if not one.is_trial or one.end is not None)
        steps = sum(worker.batches for worker in workers)
        items = sum(worker.items for worker in workers)
        return PoolStats(
            stage=self.stage,
            engine=self.context.config.engine,
            workers=workers,
            streams=sum(worker.streams for worker in workers),
            free=self.workers.places.free(),
            lag_ms=max((w.queue_age_ms for w in workers if w.state in ("ready", "hung")), default=0.0),
            restarts=self.workers.restarts,
            mean_batch=items / steps if steps else 0.0,
        )
