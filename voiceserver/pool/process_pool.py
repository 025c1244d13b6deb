"""A stage that computes: worker processes behind shared-memory channels, on the running event loop.

    try_open, send --ring--> worker --ring, doorbell--> drain -> owners
    sentinel (pidfd, or the lifeline's end of file) ---> bury  -> owners, respawn
    forkserver --forked, fork_failed, exited----------> pid, exit status

Rule R6: nothing here waits for a worker; ``start`` waits for the first answer of the engine, within limits, and ``stop``
for the end of processes it has told to end.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from voiceserver.config.schema import StageConfig
from voiceserver.errors import ConfigError, engine_error
from voiceserver.pool import OnEvent, ignore_event
from voiceserver.pool.channel_pool import ChannelPool
from voiceserver.pool.quarantine import Quarantine
from voiceserver.pool.worker_handle import WorkerHandle, WorkerState
from voiceserver.pool.worker_processes import WorkerProcesses
from voiceserver_workers import registry
from voiceserver_workers.ipc.messages import CONTROL_STREAM, RequestKind, WorkerSpec
from voiceserver_workers.ipc.platform import PORTABLE, Platform, choose_platform

SWEEP_MS = 50.0
# How long start() waits to hear that an engine is no good; loading may go on longer. A busy machine needs 15 s to import torch.
FIRST_ANSWER_MS = 60_000.0
STOP_GRACE_MS = 1_000.0
# Idle workers beat every 100 ms.
MIN_STEP_TIMEOUT_MS = 300


class ProcessPool(ChannelPool):
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
        quarantine: Quarantine | None = None,
        platform: Platform | None = None,
        output_fd: int | None = None,
    ) -> None:
        platform = platform or choose_platform()
        if config.step_timeout_ms < MIN_STEP_TIMEOUT_MS:
            config = msgspec.structs.replace(config, step_timeout_ms=MIN_STEP_TIMEOUT_MS)
        super().__init__(
            stage, config, call_soon=self._soon, on_event=on_event, quarantine=quarantine, platform=platform
        )
        spec = WorkerSpec(
            config.engine,
            config.params,
            config.max_batch_size,
            config.max_wait_ms,
            config.step_timeout_ms,
            is_portable=platform is PORTABLE,
        )
        self._processes = WorkerProcesses(self, spec, config.stall_timeout_ms, output_fd)
        self._sweeper: asyncio.TimerHandle | None = None
        self._first_answer: asyncio.Future[None] | None = None

    # Pool

    async def start(self) -> None:
        """Returns when the first worker is ready, or after 60 s of loading. Raises ConfigError."""
        try:
            registry.check(self._config.engine)
        except registry.EngineLookupError as error:
            raise ConfigError(f"stages.{self.stage}.engine", str(error)) from error
        self._loop = asyncio.get_running_loop()
        self._call_soon = self._loop.call_soon
        for handle in self.all_handles():
            handle.call_soon = self._loop.call_soon
        self._first_answer = self._loop.create_future()
        self._processes.start(self._loop)
        for handle in self.handles:
            self.spawn(handle)
        self._sweep_again()
        try:
            await asyncio.wait_for(asyncio.shield(self._first_answer), FIRST_ANSWER_MS / 1000)
        except TimeoutError:
            return  # still loading, and is_ready will tell
        except ConfigError:
            await self.stop()
            raise
        finally:
            self._first_answer = None

    async def stop(self) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._first_answer is not None:
            self._first_answer.cancel()
        for handle in self.all_handles():
            if handle.end is not None:
                handle.try_send(RequestKind.CLOSE, CONTROL_STREAM, 0, 0)
                handle.ring()
        await self._processes.wait_for_ends(STOP_GRACE_MS)
        for handle in self.all_handles():
            if handle.end is not None:
                self.end_worker(handle)
                self.bury(handle, "worker_lost")
        await self._processes.close()

    def forkserver_pid(self) -> int | None:
        """``None`` while there is none."""
        return self._processes.forkserver_pid

    # Workers

    def spawn(self, handle: WorkerHandle) -> None:
        self._processes.spawn(handle)

    def end_worker(self, handle: WorkerHandle) -> None:
        self._processes.kill(handle)

    def bury(self, handle: WorkerHandle, reason: Any) -> None:
        is_alive = handle.end is not None
        self._processes.forget(handle)
        super().bury(handle, reason)
        if is_alive and not self._is_stopping and handle.respawn_ms <= self._now_ms():
            self._loop.call_soon(self._respawn, handle)

    def is_hung(self, handle: WorkerHandle, now_ns: int, *, is_silent: bool) -> bool:
        return self._processes.is_hung(handle, now_ns, is_silent=is_silent)

    def on_ready(self, handle: WorkerHandle) -> None:
        super().on_ready(handle)
        if self._first_answer is not None and not self._first_answer.done():
            self._first_answer.set_result(None)

    def on_bad_engine(self, handle: WorkerHandle | None, message: str) -> None:
        super().on_bad_engine(handle, message)
        error = engine_error(self.stage, message) if handle else engine_error(self.stage, message, "engine")
        if self._first_answer is not None and not self._first_answer.done():
            self._first_answer.set_exception(error)

    def sweep(self) -> None:
        now_ns = self._clock_ns()
        for handle in self.all_handles():
            is_loading = handle.state is WorkerState.STARTING and handle.end is not None
            if is_loading and self._processes.is_stuck(handle, now_ns):
                self._hang(handle)
        super().sweep()
        if not self._is_stopping:
            self._processes.look()

    def on_owner_error(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"{self.stage}: an owner failed", "exception": error})

    # Inside

    def _soon(self, callback: Any) -> None:
        self._loop.call_soon(callback)

    def _respawn(self, handle: WorkerHandle) -> None:
        if handle.state is WorkerState.BACKOFF and not self._is_stopping:
            self.spawn(handle)

    def _sweep_again(self) -> None:
        if not self._is_stopping:
            self._sweeper = self._loop.call_later(SWEEP_MS / 1000, self._sweep_again)
            self.sweep()
