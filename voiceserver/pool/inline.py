"""Workers in the same thread, stepped by hand on a manual clock: for tests and the simulation.

Everything but the process is real: rings, doorbells, batcher, worker, dispatch, crash path. A *crash* drops the worker where it
stands, as a kill would; a *hang* stops polling it until the pool finds out. The worker comes from ``make_worker``, so that
this module needs nothing that computes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from voiceserver.config.schema import StageConfig
from voiceserver.errors import engine_error
from voiceserver.pool import OnEvent, ignore_event
from voiceserver.pool.pool_context import PoolContext
from voiceserver.pool.quarantine import Quarantine
from voiceserver.pool.worker_handle import WorkerHandle, WorkerState
from voiceserver.pool.worker_pool import WorkerPool
from voiceserver.pool.worker_set import WorkerSet
from voiceserver_workers.ipc.channel import WorkerEnd
from voiceserver_workers.ipc.messages import OUT_OF_MEMORY, ResultKind, encode

DRIVE_MS = 1.0
ONE_WORKER = StageConfig(engine="inline", request_slots=64, result_slots=128)
_ROUNDS = 1_000


class Pollable(Protocol):
    """``voiceserver_workers.worker.Worker`` is one."""

    @property
    def is_stopping(self) -> bool: ...

    def start(self) -> None: ...

    def poll(self, now_ms: float) -> bool: ...


class SimulatedDeath(BaseException):
    """Raise it inside a worker (an engine, a wrapped channel) to die there and then, like a SIGKILL."""


@dataclass(slots=True)
class _Incarnation:
    end: WorkerEnd
    born_ms: float
    worker: Pollable | None = None
    is_hung: bool = False


class InlineWorkers:
    """The ``Runner`` of ``workers``, in the same thread. ``make_worker``: see ``InlinePool``."""

    def __init__(
        self,
        workers: WorkerSet,
        context: PoolContext,
        make_worker: Callable[[WorkerEnd], Pollable],
        fork_ms: float,
    ) -> None:
        self._workers = workers
        self._context = context
        self._make_worker = make_worker
        self._fork_ms = fork_ms
        self._incarnations: dict[int, _Incarnation] = {}

    def is_alive(self, handle: WorkerHandle) -> bool:
        """As far as nobody knows better."""
        return handle.index in self._incarnations

    def step(self, now_ms: float) -> bool:
        """One ``poll`` of every worker that is neither hung nor still being started."""
        is_busy = False
        for handle in self._workers.all_handles():
            incarnation = self._incarnations.get(handle.index)
            if incarnation is not None and not incarnation.is_hung and now_ms >= incarnation.born_ms:
                is_busy = self._poll(handle, incarnation, now_ms) or is_busy
        return is_busy

    def crash(self, index: int) -> None:
        """The worker dies now."""
        incarnation = self._incarnations.pop(index, None)
        if incarnation is not None:
            incarnation.end.close()

    def hang(self, index: int) -> None:
        """The worker stops moving."""
        self._incarnations[index].is_hung = True

    def spawn(self, handle: WorkerHandle) -> None:
        """See ``Runner``."""
        server = self._workers.begin(handle)
        end = WorkerEnd.attach(server.worker_fds(), clock_ns=self._context.clock_ns)
        server.close_worker_fds()
        server.rearm()
        self._incarnations[handle.index] = _Incarnation(end, self._context.now_ms() + self._fork_ms)

    def kill(self, handle: WorkerHandle) -> None:
        """See ``Runner``."""
        self.crash(handle.index)

    def forget(self, handle: WorkerHandle) -> None:
        """See ``Runner``."""

    def is_hung(self, handle: WorkerHandle, now_ns: int, *, is_silent: bool) -> bool:
        """See ``Runner``."""
        return is_silent

    def is_stuck(self, handle: WorkerHandle, now_ns: int) -> bool:
        """See ``Runner``."""
        return False

    def look(self) -> None:
        """See ``Runner``."""

    def _poll(self, handle: WorkerHandle, incarnation: _Incarnation, now_ms: float) -> bool:
        try:
            if incarnation.worker is None:
                incarnation.worker = self._make_worker(incarnation.end)
                incarnation.worker.start()
                return True
            return incarnation.worker.poll(now_ms)
        except ValueError as error:
            if handle.state is not WorkerState.STARTING:
                raise
            raise engine_error(self._context.stage, str(error)) from error
        except SimulatedDeath:
            self._context.report("worker_exited", handle, status=-9)
        except MemoryError:
            incarnation.end.try_send(ResultKind.FAILED, 0, 0, 0, encode(OUT_OF_MEMORY))
            self._context.report("worker_exited", handle, status=71)
        self.crash(handle.index)
        return True


class _NobodyWaits:
    """A ``Starter`` of a pool whose ``start`` does not wait for its engine."""

    def on_ready(self) -> None:
        """See ``Starter``."""

    def on_bad_engine(self, message: str, *, is_made: bool) -> None:
        """See ``Starter``."""


class InlinePool(WorkerPool):
    """``make_worker(end)``: a worker on its end of a fresh channel. ``fork_ms``: how long a (re)start takes. What an owner of
    a stream raises is raised."""

    def __init__(
        self,
        stage: str,
        make_worker: Callable[[WorkerEnd], Pollable],
        config: StageConfig = ONE_WORKER,
        *,
        fork_ms: float = 17.0,
        now_ms: float = 1.0,
        on_event: OnEvent = ignore_event,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.now_ms = now_ms
        self.quarantine = quarantine or Quarantine()
        self._callbacks: deque[Callable[[], None]] = deque()
        context = PoolContext(
            stage,
            config,
            report_owner=_raise,
            call_soon=self._callbacks.append,
            clock_ns=lambda: int(self.now_ms * 1e6),
            on_event=on_event,
        )
        self.inline: InlineWorkers

        def run(workers: WorkerSet) -> InlineWorkers:
            self.inline = InlineWorkers(workers, context, make_worker, fork_ms)
            return self.inline

        super().__init__(context, WorkerSet(context, _NobodyWaits(), run, quarantine=self.quarantine))
        self._driver: asyncio.TimerHandle | None = None

    # By hand

    def step(self, now_ms: float) -> bool:
        """One round of every worker, then one turn of the server's loop. True: something moved."""
        is_busy = self.step_workers(now_ms)
        return self.step_server(now_ms) or is_busy

    def settle(self, now_ms: float) -> None:
        """Step until nothing moves. Raises RuntimeError if that never happens."""
        for _ in range(_ROUNDS):
            if not self.step(now_ms):
                return
        raise RuntimeError("the pool never rests")

    def step_workers(self, now_ms: float) -> bool:
        """One ``poll`` of every worker that is neither hung nor still being started."""
        self.now_ms = now_ms
        return self.inline.step(now_ms)

    def step_server(self, now_ms: float) -> bool:
        """One turn of the loop: callbacks, deaths, results, sweep."""
        self.now_ms = now_ms
        is_busy = bool(self._callbacks)
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()
        for handle in self.workers.all_handles():
            if handle.end is None:
                continue
            if not self.inline.is_alive(handle):
                self.workers.bury(handle, "worker_lost")
                is_busy = True
            else:
                self.workers.drain(handle)
        if not self.context.is_stopping:
            self.workers.sweep()
        return is_busy

    # Faults

    def crash(self, index: int) -> None:
        """The worker dies now; the server learns of it in its next turn."""
        self.inline.crash(index)

    def hang(self, index: int) -> None:
        """The worker stops moving, and beating, until the pool kills it."""
        self.inline.hang(index)

    # Pool

    def start_workers(self) -> None:
        """Start them all, without a loop."""
        for handle in self.workers.handles:
            self.inline.spawn(handle)

    async def start(self) -> None:
        """Raises ConfigError when a worker cannot be made."""
        self.start_workers()

    async def stop(self) -> None:
        """See ``Pool``."""
        self.context.begin_stop()
        if self._driver is not None:
            self._driver.cancel()
        for handle in self.workers.all_handles():
            self.inline.kill(handle)
            self.workers.bury(handle, "worker_lost")

    def drive(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop step the pool, on the loop's clock, until ``stop``."""
        now_ms = loop.time() * 1000
        for _ in range(_ROUNDS):
            if not self.step(now_ms):
                break
        self._driver = loop.call_later(DRIVE_MS / 1000, self.drive, loop)


def _raise(error: Exception) -> None:
    raise error
