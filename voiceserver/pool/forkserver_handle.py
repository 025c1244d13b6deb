"""The server's handle on one forkserver process (``voiceserver_workers.forkserver``). Never waits for it.

The socket is the life of the forkserver: it ends when this end closes, and its end of file says that it has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

from voiceserver.config.environment import environment
from voiceserver_workers.ipc.frames import Frame, FrameReader, send_frame
from voiceserver_workers.ipc.messages import (
    Exited,
    Fork,
    Forked,
    Preload,
    Preloaded,
    WorkerSpec,
    decode_forkserver_answer,
    encode,
)

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
EXIT_WAIT_MS = 2_000.0
_EXIT_POLL_MS = 5.0


class ForkServerOwner(Protocol):
    """All calls come from the loop."""

    def on_preloaded(self) -> None: ...

    def on_preload_failed(self, message: str) -> None: ...

    def on_forked(self, request: int, pid: int, pidfd: int | None) -> None:
        """``pidfd`` belongs to the owner."""

    def on_exited(self, pid: int, status: int) -> None:
        """A worker was reaped; ``status`` is its exit code, or minus the signal that killed it."""

    def on_forkserver_lost(self) -> None: ...


class ForkServerHandle:
    """Starts the process at once. Raises OSError when it cannot be started. ``output_fd``: stdout and stderr of it and its
    workers; None: those of this process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: ForkServerOwner,
        spec: WorkerSpec,
        output_fd: int | None = None,
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._spec = spec
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs, output_fd)
            ours.setblocking(False)
            send_frame(ours, encode(Preload(spec.engine, spec.params, sys.path)))
        except OSError:
            ours.close()
            raise
        self._sock: socket.socket | None = ours
        self._reader = FrameReader(ours)
        loop.add_reader(ours.fileno(), self._on_readable)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, request: int, fds: Sequence[int]) -> bool:
        """Ask for a worker. False: the forkserver is gone, ``on_forkserver_lost`` follows."""
        if self._sock is None:
            return False
        try:
            send_frame(self._sock, encode(Fork(request, self._spec)), fds)
        except OSError:
            self._loop.call_soon(self._lose)
            return False
        return True

    def close(self) -> None:
        """Let go: it ends, and its workers with it. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            self._reader.close()
            sock.close()

    async def wait_closed(self) -> None:
        """Reap the process after ``close``."""
        waited_ms = 0.0
        while self._process.poll() is None:
            if waited_ms >= EXIT_WAIT_MS:
                self._process.kill()
            await asyncio.sleep(_EXIT_POLL_MS / 1000)
            waited_ms += _EXIT_POLL_MS

    def _on_readable(self) -> None:
        try:
            frames = self._reader.read()
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._lose()
            return
        for frame in frames:
            self._receive(frame)

    def _receive(self, frame: Frame) -> None:
        answer = decode_forkserver_answer(frame.body)
        if isinstance(answer, Forked):
            self._owner.on_forked(answer.id, answer.pid, frame.fds[0] if frame.fds else None)
        elif isinstance(answer, Exited):
            self._owner.on_exited(answer.pid, answer.status)
        elif isinstance(answer, Preloaded):
            self._owner.on_preloaded()
        else:
            self._owner.on_preload_failed(answer.message)

    def _lose(self) -> None:
        if self._sock is None:
            return
        self.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()  # no doubt about it
        self._owner.on_forkserver_lost()


def _start(theirs: socket.socket, output_fd: int | None) -> subprocess.Popen[bytes]:
    spec = importlib.util.find_spec("voiceserver_workers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = os.path.dirname(next(iter(spec.submodule_search_locations)))
    variables = dict(environment())
    path = variables.get("PYTHONPATH")
    variables["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root
    for name in _ONE_THREAD:
        variables.setdefault(name, "1")
    command = [sys.executable, "-m", "voiceserver_workers.forkserver", str(theirs.fileno()), str(os.getpid())]
    return subprocess.Popen(
        command,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=output_fd,
        env=variables,
    )
