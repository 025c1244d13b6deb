"""The processes of one stage's workers: forked, watched, killed.

    fork ---forkserver---> pid, pidfd        sentinel (pidfd, or the lifeline's end of file) ---> ``bury``

Rule: whatever cannot be had now (a process, memory, a descriptor) is tried again soon, and nobody else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from typing import Final

from voiceserver.pool.forkservers import ForkServers
from voiceserver.pool.hang_detector import HangDetector, Limits
from voiceserver.pool.pool_context import PoolContext
from voiceserver.pool.worker_handle import WorkerHandle, WorkerState
from voiceserver.pool.worker_set import WorkerSet
from voiceserver_workers.ipc.channel import ServerEnd
from voiceserver_workers.ipc.messages import WorkerSpec

LOAD_TIMEOUT_MS: Final = 300_000.0
# A worker for whose channel there was no memory or descriptor is tried again.
NO_CHANNEL_RETRY_MS: Final = 1_000.0
# Without a beat, after which the kernel is asked what became of a worker.
SUSPICIOUS_MS: Final = 150.0


@dataclass(slots=True)
class _Process:
    """One incarnation's process. ``lifeline``: the server's end. ``sentinel_fd``: turns readable at its death."""

    generation: int
    lifeline: socket.socket
    pid: int = 0
    pidfd: int | None = None
    sentinel_fd: int | None = None


class WorkerProcesses:
    """The ``Runner`` of ``workers``. is_portable: without what only Linux has. output_fd: see ``ForkServerHandle``. ``start``
    comes first, on the loop to be used."""

    def __init__(
        self,
        workers: WorkerSet,
        context: PoolContext,
        *,
        is_portable: bool,
        output_fd: int | None = None,
    ) -> None:
        config = context.config
        self._workers = workers
        self._context = context
        self._spec = WorkerSpec(
            config.engine,
            config.params,
            config.max_batch_size,
            config.max_wait_ms,
            config.step_timeout_ms,
            is_portable=is_portable,
        )
        self._output_fd = output_fd
        self._loop: asyncio.AbstractEventLoop
        self._forkservers: ForkServers
        self._processes: dict[int, _Process] = {}  # by index of the handle
        self._hang_detectors: list[HangDetector] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the forkserver; workers can be asked for at once, and come when it has loaded the engine."""
        self._loop = loop
        self._hang_detectors = [HangDetector(self._spec.step_timeout_ms) for _ in self._workers.all_handles()]
        self._forkservers = ForkServers(loop, self, self._spec, self._output_fd)
        self._forkservers.start()

    @property
    def forkserver_pid(self) -> int | None:
        """None while there is none."""
        return self._forkservers.pid

    def spawn(self, handle: WorkerHandle) -> None:
        """Ask for a process for this handle."""
        if not self._forkservers.can_fork:
            handle.state = WorkerState.STARTING  # on_can_fork comes back to it
            return
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                end = self._begin(handle, ours)
                request = [*end.worker_fds(), theirs.fileno()]
                is_asked = self._forkservers.fork(self._request(handle), request)
        except OSError as error:
            self._context.report("no_channel", handle, error=str(error))
            handle.put_off(time.monotonic_ns() / 1e6 + NO_CHANNEL_RETRY_MS)
            return
        end.close_worker_fds()
        self._loop.add_reader(end.result_fd(), self._workers.drain, handle)
        if not is_asked:
            self._loop.call_soon(self.on_unborn, self._request(handle))
        elif end.rearm():  # the worker was ready before we listened, and rings for a sleeper only
            self._loop.call_soon(self._workers.drain, handle)

    def kill(self, handle: WorkerHandle) -> None:
        """Does not wait, and does not bury."""
        process = self._processes.get(handle.index)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if process.pidfd is not None:
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            elif process.pid:
                os.kill(process.pid, signal.SIGKILL)

    def forget(self, handle: WorkerHandle) -> None:
        """The worker of this handle is dead, and its channel about to be closed. Idempotent."""
        if handle.end is not None:
            self._loop.remove_reader(handle.end.result_fd())
            self._loop.call_soon(self._respawn_if_due, handle)
        process = self._processes.pop(handle.index, None)
        if process is None:
            return
        self._forkservers.release(self._request(handle))
        if process.sentinel_fd is not None:
            self._loop.remove_reader(process.sentinel_fd)
        if process.pidfd is not None:
            os.close(process.pidfd)
        process.lifeline.close()

    def is_hung(self, handle: WorkerHandle, now_ns: int, *, is_silent: bool) -> bool:
        """The verdict on a ready worker. ``is_silent``: its step, or its silence, lasts too long."""
        sign_ns = handle.sign_ns(now_ns)
        quiet_ms = (now_ns - sign_ns) / 1e6
        if handle.pid and sign_ns == now_ns:
            return self._hang_detectors[handle.index].is_stopped(handle.pid, now_ns / 1e6)
        if not handle.pid or quiet_ms < SUSPICIOUS_MS:
            return is_silent
        # What any worker of the stage has shown of the engine counts, also for one that is new.
        handles = self._workers.all_handles()
        steps = max(one.totals()[0] for one in handles)
        longest_ms = max(one.meter.longest_step_ms for one in handles)
        limits = Limits.of(steps, longest_ms, self._context.config.stall_timeout_ms)
        found = self._hang_detectors[handle.index].feel(handle.pid, sign_ns, quiet_ms, limits)
        return found in ("stopped", "stalled", "spinning") or (is_silent and found != "starved")

    def is_stuck(self, handle: WorkerHandle, now_ns: int) -> bool:
        """The verdict on a worker that loads its engine: it is stopped, or takes too long."""
        loads_ms = now_ns / 1e6 - handle.life.started_ms
        if not handle.pid or loads_ms < SUSPICIOUS_MS:
            return False
        began_ns = int(handle.life.started_ms * 1e6)
        verdict = self._hang_detectors[handle.index].feel(handle.pid, began_ns, loads_ms)
        return verdict == "stopped" or loads_ms > LOAD_TIMEOUT_MS

    def look(self) -> None:
        """Find a forkserver that hangs. Call a few times in a second."""
        self._forkservers.look()

    async def wait_for_ends(self, grace_ms: float) -> None:
        """Until each worker is buried, or the time is over."""
        deadline = self._loop.time() + grace_ms / 1000 if self._processes else 0.0
        while self._processes and self._loop.time() < deadline:
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        """End the forkservers. Idempotent."""
        await self._forkservers.close()

    # For the forkservers

    def on_can_fork(self) -> None:
        """See ``WorkerOwner``."""
        for handle in self._workers.all_handles():
            if handle.state is WorkerState.STARTING and handle.end is None:
                self.spawn(handle)

    def on_preload_failed(self, message: str) -> None:
        """See ``WorkerOwner``."""
        self._workers.on_bad_engine(None, message)

    def on_forked(self, request: int, pid: int, pidfd: int | None) -> None:
        """See ``WorkerOwner``."""
        handle, process = self._asked_for(request)
        if process is None:
            # Buried before it was born; its lifeline is closed, so it ends by itself.
            if pidfd is not None:
                os.close(pidfd)
            return
        process.pid = handle.life.pid = pid
        process.pidfd = pidfd
        process.sentinel_fd = process.lifeline.fileno() if pidfd is None else pidfd
        self._loop.add_reader(process.sentinel_fd, self._on_death, handle, process.generation)

    def on_fork_failed(self, request: int, message: str) -> None:
        """See ``WorkerOwner``. Like every worker that dies young, it is tried again after a while."""
        handle, process = self._asked_for(request)
        if process is not None:
            self._context.report("fork_failed", handle, error=message)
            self._workers.bury(handle, "worker_lost")

    def on_unborn(self, request: int) -> None:
        """See ``WorkerOwner``."""
        handle, process = self._asked_for(request)
        if process is not None and process.sentinel_fd is None:
            self._workers.bury(handle, "worker_lost")

    def on_exited(self, pid: int, status: int) -> None:
        """See ``WorkerOwner``."""
        self._context.report("worker_exited", None, pid=pid, status=status)

    def on_forkserver_lost(self, reason: str) -> None:
        """See ``WorkerOwner``."""
        self._context.report("forkserver_lost", None, reason=reason)

    # Inside

    def _begin(self, handle: WorkerHandle, lifeline: socket.socket) -> ServerEnd:
        """A channel for the handle's next process. Owns the lifeline. Raises OSError."""
        try:
            lifeline.setblocking(False)
            end = self._workers.begin(handle)
        except OSError:
            lifeline.close()
            raise
        self._processes[handle.index] = _Process(handle.generation, lifeline)
        return end

    def _request(self, handle: WorkerHandle) -> int:
        """The number of a request for this incarnation."""
        return handle.generation * len(self._hang_detectors) + handle.index

    def _asked_for(self, request: int) -> tuple[WorkerHandle, _Process | None]:
        """None: that process was given up."""
        generation, index = divmod(request, len(self._hang_detectors))
        process = self._processes.get(index)
        is_current = process is not None and process.generation == generation
        return self._workers.all_handles()[index], process if is_current else None

    def _respawn_if_due(self, handle: WorkerHandle) -> None:
        """At once after a first death; the others wait for the sweep."""
        if handle.life.respawn_ms <= self._context.now_ms():
            self._workers.respawn(handle)

    def _on_death(self, handle: WorkerHandle, generation: int) -> None:
        if handle.generation == generation:
            self._workers.bury(handle, "worker_lost")
