"""A stage that computes: worker processes behind shared-memory channels, on the running event loop.

    try_open, send --ring--> worker --ring, doorbell--> drain -> owners
    sentinel (pidfd, or the lifeline's end of file) ---> bury  -> owners, respawn
    forkserver --forked, exited-----------------------> pid, exit status

Rule R6: nothing here waits for a worker; ``start`` waits for the first answer of the engine, within limits, and ``stop``
for the end of processes it has told to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from voiceserver.config.schema import StageConfig
from voiceserver.errors import ConfigError, engine_error
from voiceserver.pool import OnEvent, ignore_event
from voiceserver.pool.channel_pool import ChannelPool
from voiceserver.pool.forkserver_handle import ForkServerHandle
from voiceserver.pool.hang_detector import HangDetector, Limits
from voiceserver.pool.quarantine import Quarantine
from voiceserver.pool.worker_handle import WorkerHandle, WorkerState
from voiceserver_workers import registry
from voiceserver_workers.ipc.messages import CONTROL_STREAM, RequestKind, WorkerSpec
from voiceserver_workers.ipc.platform import PORTABLE, Platform, choose_platform

SWEEP_MS = 50.0
# How long start() waits to hear that an engine is no good; loading may go on longer. A busy machine needs 15 s to import torch.
FIRST_ANSWER_MS = 60_000.0
LOAD_TIMEOUT_MS = 300_000.0
STOP_GRACE_MS = 1_000.0
# Idle workers beat every 100 ms.
MIN_STEP_TIMEOUT_MS = 300
FORKSERVER_BACKOFF_MS = 1_000.0
SUSPICIOUS_MS = 150.0  # without a beat, after which the kernel is asked what became of a worker


@dataclass(slots=True)
class _Process:
    """One incarnation's process. ``lifeline``: the server's end. ``sentinel_fd``: turns readable at its death."""

    generation: int
    lifeline: socket.socket
    pid: int = 0
    pidfd: int | None = None
    sentinel_fd: int | None = None


class ProcessPool(ChannelPool):
    """The workers of one stage. ``platform``: for tests. ``output_fd``: their stdout and stderr; None: those of this process.

    on_event(name, fields): worker_ready, worker_lost, worker_hung, worker_stopped, worker_exited, quarantined, bad_engine,
    no_memory, forkserver_lost, ring_corrupt.
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
        self._processes: dict[int, _Process] = {}  # by lane index
        self._hang_detectors = [HangDetector(config.step_timeout_ms) for _ in self.all_handles()]
        self._make_forkserver = partial(ForkServerHandle, owner=self, spec=spec, output_fd=output_fd)
        self._forkserver: ForkServerHandle | None = None
        self._is_preloaded = False
        self._restart_ms = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._first_answer: asyncio.Future[None] | None = None
        self._old_forkservers: list[ForkServerHandle] = []

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
        self._start_forkserver()
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
        await self._wait_for_ends(STOP_GRACE_MS)
        for handle in self.all_handles():
            if handle.end is not None:
                self.end_worker(handle)
                self.bury(handle, "worker_lost")
        if self._forkserver is not None:
            self._forkserver.close()
            self._old_forkservers.append(self._forkserver)
            self._forkserver = None
        for forkserver in self._old_forkservers:
            await forkserver.wait_closed()

    def forkserver_pid(self) -> int | None:
        """``None`` while there is none."""
        return None if self._forkserver is None else self._forkserver.pid

    async def _wait_for_ends(self, grace_ms: float) -> None:
        deadline = self._loop.time() + grace_ms / 1000 if self._processes else 0.0
        while self._processes and self._loop.time() < deadline:
            await asyncio.sleep(0.002)

    # Workers

    def spawn(self, handle: WorkerHandle) -> None:
        forkserver = self._forkserver
        if forkserver is None or not self._is_preloaded:
            handle.state = WorkerState.STARTING  # on_preloaded comes back to it
            return
        try:
            end = self.begin(handle)
        except OSError as error:
            self._on_event("no_memory", self._fields(handle, error=str(error)))
            handle.state = WorkerState.BACKOFF
            handle.respawn_ms = self._now_ms() + FORKSERVER_BACKOFF_MS
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._processes[handle.index] = _Process(handle.generation, ours)
        with theirs:
            forkserver.fork(self._request(handle), [*end.worker_fds(), theirs.fileno()])
        end.close_worker_fds()
        self._loop.add_reader(end.result_fd(), self.drain, handle)
        if end.rearm():  # the worker was ready before we listened, and rings for a sleeper only
            self._loop.call_soon(self.drain, handle)

    def end_worker(self, handle: WorkerHandle) -> None:
        process = self._processes.get(handle.index)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if process.pidfd is not None:
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            elif process.pid:
                os.kill(process.pid, signal.SIGKILL)

    def bury(self, handle: WorkerHandle, reason: Any) -> None:
        end, process = handle.end, self._processes.pop(handle.index, None)
        if end is not None:
            self._loop.remove_reader(end.result_fd())
        if process is not None:
            if process.sentinel_fd is not None:
                self._loop.remove_reader(process.sentinel_fd)
            if process.pidfd is not None:
                os.close(process.pidfd)
            process.lifeline.close()
        super().bury(handle, reason)
        if end is not None and not self._is_stopping and handle.respawn_ms <= self._now_ms():
            self._loop.call_soon(self._respawn, handle)

    def is_hung(self, handle: WorkerHandle, now_ns: int, *, is_silent: bool) -> bool:
        quiet_ms = (now_ns - handle.beat_ns) / 1e6
        if not handle.pid or quiet_ms < SUSPICIOUS_MS:
            return is_silent
        # What any worker of the stage has shown of the engine counts, also for one that is new.
        steps = max(one.totals()[0] for one in self.all_handles())
        longest_ms = max(one.longest_step_ms for one in self.all_handles())
        limits = Limits.of(steps, longest_ms, self._config.stall_timeout_ms)
        found = self._hang_detectors[handle.index].feel(handle.pid, handle.beat_ns, quiet_ms, limits)
        return found in ("stopped", "stalled", "spinning") or (is_silent and found != "starved")

    def on_ready(self, handle: WorkerHandle) -> None:
        super().on_ready(handle)
        if self._first_answer is not None and not self._first_answer.done():
            self._first_answer.set_result(None)

    def on_bad_engine(self, handle: WorkerHandle, message: str) -> None:
        super().on_bad_engine(handle, message)
        self._fail_start(engine_error(self.stage, message))

    def sweep(self) -> None:
        now_ms = self._now_ms()
        for handle in self.all_handles():
            is_loading = handle.state is WorkerState.STARTING and handle.end is not None
            if is_loading and now_ms - handle.started_ms > LOAD_TIMEOUT_MS:
                self._hang(handle)
        super().sweep()
        if self._forkserver is None and not self._is_stopping and now_ms >= self._restart_ms:
            self._start_forkserver()

    def on_owner_error(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"{self.stage}: an owner failed", "exception": error})

    # Forkserver

    def on_preloaded(self) -> None:
        self._is_preloaded = True
        for handle in self.all_handles():
            if handle.state is WorkerState.STARTING and handle.end is None:
                self.spawn(handle)

    def on_preload_failed(self, message: str) -> None:
        self._on_event("bad_engine", {"stage": self.stage, "message": message})
        self._fail_start(engine_error(self.stage, message, "engine"))
        if self._forkserver is not None:
            self._forkserver.close()
            self.on_forkserver_lost()

    def on_forked(self, request: int, pid: int, pidfd: int | None) -> None:
        handles = self.all_handles()
        generation, index = divmod(request, len(handles))
        handle, process = handles[index], self._processes.get(index)
        if process is None or process.generation != generation:
            # Buried before it was born; its lifeline is closed, so it ends by itself.
            if pidfd is not None:
                os.close(pidfd)
            return
        process.pid = handle.pid = pid
        process.pidfd = pidfd
        process.sentinel_fd = process.lifeline.fileno() if pidfd is None else pidfd
        self._loop.add_reader(process.sentinel_fd, self._on_death, handle, generation)

    def on_exited(self, pid: int, status: int) -> None:
        self._on_event("worker_exited", {"stage": self.stage, "pid": pid, "status": status})

    def on_forkserver_lost(self) -> None:
        """Its workers die with it, each by its own sentinel."""
        self._on_event("forkserver_lost", {"stage": self.stage})
        if self._forkserver is not None:
            self._old_forkservers = [*self._old_forkservers[-1:], self._forkserver]
        self._forkserver = None
        self._is_preloaded = False
        now_ms = self._now_ms()
        is_first = now_ms > self._restart_ms + FORKSERVER_BACKOFF_MS
        self._restart_ms = now_ms if is_first else now_ms + FORKSERVER_BACKOFF_MS
        for handle in self.all_handles():
            process = self._processes.get(handle.index)
            if process is not None and process.sentinel_fd is None:
                self._loop.call_soon(self.bury, handle, "worker_lost")  # asked for, and nobody will answer

    # Inside

    def _soon(self, callback: Any) -> None:
        self._loop.call_soon(callback)

    def _request(self, handle: WorkerHandle) -> int:
        return handle.generation * len(self.all_handles()) + handle.index

    def _respawn(self, handle: WorkerHandle) -> None:
        if handle.state is WorkerState.BACKOFF and not self._is_stopping:
            self.spawn(handle)

    def _on_death(self, handle: WorkerHandle, generation: int) -> None:
        if handle.generation == generation:
            self.bury(handle, "worker_lost")

    def _start_forkserver(self) -> None:
        self._restart_ms = self._now_ms() + FORKSERVER_BACKOFF_MS
        try:
            self._forkserver = self._make_forkserver(self._loop)
        except OSError as error:
            self._on_event("forkserver_lost", {"stage": self.stage, "error": str(error)})

    def _fail_start(self, error: ConfigError) -> None:
        if self._first_answer is not None and not self._first_answer.done():
            self._first_answer.set_exception(error)

    def _sweep_again(self) -> None:
        if not self._is_stopping:
            self._sweeper = self._loop.call_later(SWEEP_MS / 1000, self._sweep_again)
            self.sweep()
