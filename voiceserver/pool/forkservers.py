"""The forkserver of one stage, its successor when it dies or hangs, and those that were replaced while their workers live.

::

    current --died----------------> lost      its workers die with it, each by its own sentinel; a new one starts
    current --hangs, has workers--> retired   its workers serve on; killed when the last of them is gone; a new one starts
    current --hangs, has none-----> killed    a new one starts

Rules: a fault of the forkserver harms no worker that serves. Nothing here waits; ``look`` finds what no event announces.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Protocol

from voiceserver.pool.forkserver_handle import ForkServerHandle
from voiceserver_workers.ipc.messages import WorkerSpec

RESTART_MS: Final = 1_000.0


class WorkerOwner(Protocol):
    """All calls come from the loop. ``request``: the number that ``ForkServers.fork`` was given."""

    def on_can_fork(self) -> None:
        """Workers can be asked for, after a time when they could not."""

    def on_preload_failed(self, message: str) -> None: ...

    def on_forked(self, request: int, pid: int, pidfd: int | None) -> None: ...

    def on_fork_failed(self, request: int, message: str) -> None: ...

    def on_exited(self, pid: int, status: int) -> None: ...

    def on_forkserver_lost(self, reason: str) -> None: ...

    def on_unborn(self, request: int) -> None:
        """This worker was asked for, and no answer will come."""


class ForkServers:
    """``owner`` hears of workers. Must be used on ``loop``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: WorkerOwner,
        spec: WorkerSpec,
        output_fd: int | None = None,
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._spec = spec
        self._output_fd = output_fd
        self._current: ForkServerHandle | None = None
        self._retired: list[ForkServerHandle] = []
        # Closed, not reaped.
        self._ending: list[ForkServerHandle] = []
        # Who was asked for each worker that was asked for and is not buried.
        self._parents: dict[int, ForkServerHandle] = {}
        self._can_fork = False
        self._restart_ms = 0.0

    @property
    def can_fork(self) -> bool:
        """The engine is loaded."""
        return self._can_fork

    @property
    def pid(self) -> int | None:
        """None while there is no forkserver."""
        return None if self._current is None else self._current.pid

    def fork(self, request: int, fds: Sequence[int]) -> bool:
        """Ask for a worker. False: try again later."""
        current = self._current
        if current is None or not current.fork(request, fds):
            return False
        self._parents[request] = current
        return True

    def release(self, request: int) -> None:
        """The worker of this request is buried."""
        parent = self._parents.pop(request, None)
        if parent in self._retired and parent not in self._parents.values():
            self._retired.remove(parent)
            self._end(parent)

    def start(self) -> None:
        """Start a forkserver; one that cannot be started now is due again after ``RESTART_MS``."""
        self._restart_ms = _now_ms() + RESTART_MS
        try:
            self._current = ForkServerHandle(self._loop, self, self._spec, self._output_fd)
        except OSError as error:
            self._owner.on_forkserver_lost(str(error))

    def look(self) -> None:
        """Replace a forkserver that hangs, and one that is gone. Call a few times in a second."""
        current = self._current
        if current is not None and current.is_hung(time.monotonic_ns()):
            self._replace(current)
        self._ending = [one for one in self._ending if not one.is_reaped()]
        if self._current is None and _now_ms() >= self._restart_ms:
            self.start()

    async def close(self) -> None:
        """End all of them, and their workers. Idempotent."""
        current, self._current = self._current, None
        if current is not None:
            current.close()
            self._ending.append(current)
        for one in self._retired:
            self._end(one)
        self._retired.clear()
        for one in self._ending:
            await one.wait_closed()
        self._ending.clear()

    def _replace(self, current: ForkServerHandle) -> None:
        for request in current.unanswered:
            self._parents.pop(request, None)
        if current in self._parents.values():
            self._retired.append(current)
        else:
            self._end(current)
        self._leave(current, "it does not answer")

    def _end(self, forkserver: ForkServerHandle) -> None:
        forkserver.kill()
        self._ending.append(forkserver)

    def _leave(self, current: ForkServerHandle, reason: str) -> None:
        """``current`` starts no more workers."""
        self._current = None
        self._can_fork = False
        now_ms = _now_ms()
        is_first = now_ms > self._restart_ms + RESTART_MS
        self._restart_ms = now_ms if is_first else now_ms + RESTART_MS
        self._owner.on_forkserver_lost(reason)
        for request in tuple(current.unanswered):
            self._loop.call_soon(self._owner.on_unborn, request)

    # For the forkservers

    def on_preloaded(self) -> None:
        self._can_fork = True
        self._owner.on_can_fork()

    def on_preload_failed(self, message: str) -> None:
        self._owner.on_preload_failed(message)
        current = self._current
        if current is not None:
            self._end(current)
            self._leave(current, "its engine cannot be loaded")

    def on_forked(self, request: int, pid: int, pidfd: int | None) -> None:
        self._owner.on_forked(request, pid, pidfd)

    def on_fork_failed(self, request: int, message: str) -> None:
        self._owner.on_fork_failed(request, message)

    def on_exited(self, pid: int, status: int) -> None:
        self._owner.on_exited(pid, status)

    def on_lost(self, forkserver: ForkServerHandle) -> None:
        """Its workers die with it, each by its own sentinel."""
        self._ending.append(forkserver)
        if forkserver is self._current:
            self._leave(forkserver, "it died")
        elif forkserver in self._retired:
            self._retired.remove(forkserver)


def _now_ms() -> float:
    return time.monotonic_ns() / 1e6
