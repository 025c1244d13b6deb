"""A stage that computes: worker processes behind shared-memory channels, on the running event loop.

    try_open, send --ring--> worker --ring, doorbell--> drain -> owners
    sentinel (pidfd, or the lifeline's end of file) ---> bury  -> owners, respawn
    forkserver --forked, fork_failed, exited----------> pid, exit status

Rule R6: nothing here waits for a worker; ``start`` waits for the first answer of the engine, within limits, and ``stop``
for the end of processes it has told to end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec

from voiceserver.config.schema import StageConfig
from voiceserver.errors import ConfigError, engine_error
from voiceserver.pool import OnEvent, ignore_event
from voiceserver.pool.duty import Duty
from voiceserver.pool.pool_context import PoolContext
from voiceserver.pool.worker_pool import WorkerPool
from voiceserver.pool.worker_processes import WorkerProcesses
from voiceserver.pool.worker_set import WorkerSet
from voiceserver_workers import registry
from voiceserver_workers.ipc.platform import PORTABLE, Platform, choose_platform

SWEEP_MS = 50.0
# How long start() waits to hear that an engine is no good; loading may go on longer. A busy machine needs 15 s to import torch.
FIRST_ANSWER_MS = 60_000.0
STOP_GRACE_MS = 1_000.0
# A worker with streams beats every 100 ms.
MIN_STEP_TIMEOUT_MS = 300


class ProcessPool(WorkerPool):
    """The workers of one stage. ``platform``: for tests. ``output_fd``: their stdout and stderr; None: those of this process.

    on_event(name, fields): worker_ready, worker_lost, worker_hung, worker_stopped, worker_exited, quarantined, bad_engine,
    no_channel, fork_failed, forkserver_lost, ring_corrupt.
    """

    def __init__(
        self,
        stage: str,
        config: StageConfig,
        *,
        on_event: OnEvent = ignore_event,
        platform: Platform | None = None,
        output_fd: int | None = None,
    ) -> None:
        platform = platform or choose_platform()
        if config.step_timeout_ms < MIN_STEP_TIMEOUT_MS:
            config = msgspec.structs.replace(config, step_timeout_ms=MIN_STEP_TIMEOUT_MS)
        context = PoolContext(
            stage,
            config,
            report_owner=self._report_owner,
            call_soon=self._soon,
            clock_ns=time.monotonic_ns,
            on_event=self._waking(on_event),
        )
        self._loop: asyncio.AbstractEventLoop
        self._first_answer = _FirstAnswer(stage)
        self._processes: WorkerProcesses

        def run(workers: WorkerSet) -> WorkerProcesses:
            self._processes = WorkerProcesses(
                workers, context, is_portable=platform is PORTABLE, output_fd=output_fd
            )
            return self._processes

        workers = WorkerSet(context, self._first_answer, run, platform=platform)
        super().__init__(context, workers)

    async def start(self) -> None:
        """Returns when the first worker is ready, or after 60 s of loading. Raises ConfigError."""
        try:
            registry.check(self.context.config.engine)
        except registry.EngineLookupError as error:
            raise ConfigError(f"stages.{self.stage}.engine", str(error)) from error
        self._loop = asyncio.get_running_loop()
        self.workers.use(self._loop.call_soon)
        self._processes.start(self._loop)
        for handle in self.workers.handles:
            self._processes.spawn(handle)
        self.sweeper = Duty(self._loop, SWEEP_MS, self.workers.sweep, self.workers.is_idle)
        self.sweeper.start()
        try:
            await self._first_answer.wait(FIRST_ANSWER_MS)
        except ConfigError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See ``Pool``."""
        if self.context.is_stopping:
            return
        self.context.begin_stop()
        if self.sweeper is not None:
            self.sweeper.stop()
        self._first_answer.cancel()
        self.workers.ask_to_end()
        await self._processes.wait_for_ends(STOP_GRACE_MS)
        self.workers.end_all()
        await self._processes.close()

    def forkserver_pid(self) -> int | None:
        """``None`` while there is none."""
        return self._processes.forkserver_pid

    def _waking(self, on_event: OnEvent) -> OnEvent:
        """What becomes of a worker is looked after at once."""

        def wake_and_report(name: str, fields: Mapping[str, object]) -> None:
            if self.sweeper is not None:
                self.sweeper.wake()
            on_event(name, fields)

        return wake_and_report

    def _soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def _report_owner(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"{self.stage}: an owner failed", "exception": error})


class _FirstAnswer:
    """The first word of an engine: it can be used, or why not."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._answer: asyncio.Future[None] | None = None

    async def wait(self, timeout_ms: float) -> None:
        """Returns when a worker is ready, and when the time is over: ``is_ready`` will tell. Raises ConfigError."""
        self._answer = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(asyncio.shield(self._answer), timeout_ms / 1000)
        except TimeoutError:
            return
        finally:
            self._answer = None

    def cancel(self) -> None:
        if self._answer is not None:
            self._answer.cancel()

    def on_ready(self) -> None:
        """See ``Starter``."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def on_bad_engine(self, message: str, *, is_made: bool) -> None:
        """See ``Starter``."""
        error = engine_error(self._stage, message, "params" if is_made else "engine")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
