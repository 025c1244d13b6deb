"""The server's handle on one forkserver process (``voiceserver_workers.forkserver``). Never waits for it.

The socket is the life of the forkserver: it ends when this end closes, and its end of file says that it has died. Every
request has a time limit (``is_hung``): a forkserver that is stopped, or does not answer, is replaced by its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final, Protocol

from voiceserver.config.environment import environment
from voiceserver.pool.hang_detector import HangDetector
from voiceserver_workers.ipc.frames import Frame, FrameReader, send_frame
from voiceserver_workers.ipc.messages import (
    Exited,
    Fork,
    Forked,
    ForkFailed,
    Ping,
    Preload,
    Preloaded,
    PreloadFailed,
    WorkerSpec,
    decode_forkserver_answer,
    encode,
)

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
EXIT_WAIT_MS = 2_000.0
_EXIT_POLL_MS = 5.0
PING_MS: Final = 5_000.0
# Of processor time for a fork or a ping; a forkserver that gets no processor has longer.
ANSWER_TIMEOUT_MS: Final = 3_000.0
# For the import of an engine.
PRELOAD_TIMEOUT_MS: Final = 300_000.0
_LOOK_AFTER_MS: Final = 150.0


class ForkServerOwner(Protocol):
    """All calls come from the loop."""

    def on_preloaded(self) -> None: ...

    def on_preload_failed(self, message: str) -> None: ...

    def on_forked(self, request: int, pid: int, pidfd: int | None) -> None:
        """``pidfd`` belongs to the owner. None: there is none, or no descriptor was free for it."""

    def on_fork_failed(self, request: int, message: str) -> None:
        """There is no worker of this request, and all others live on."""

    def on_exited(self, pid: int, status: int) -> None:
        """A worker was reaped; ``status`` is its exit code, or minus the signal that killed it."""

    def on_lost(self, forkserver: ForkServerHandle) -> None:
        """The process has died, and its workers die with it."""


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
        self._is_preloaded = False
        # Requests for workers that were not answered.
        self.unanswered: set[int] = set()
        # When the oldest request that is not answered was sent; 0: all are.
        self._asked_ns = time.monotonic_ns()
        self._answered_ns = 0
        self._was_late = False
        self._hang_detector = HangDetector(ANSWER_TIMEOUT_MS)
        loop.add_reader(ours.fileno(), self._on_readable)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, request: int, fds: Sequence[int]) -> bool:
        """Ask for a worker. False: it was not asked for. Where the forkserver is gone, ``on_lost`` follows."""
        if self._sock is None:
            return False
        if not self._send(Fork(request, self._spec), fds):
            return False
        self.unanswered.add(request)
        return True

    def is_hung(self, now_ns: int) -> bool:
        """It owes an answer for too long. Call a few times in a second; it is asked now and then whether it is there. Late is
        one that was late twice, because its answer may wait to be read when this process itself was held up."""
        is_late = self._sock is not None and self._is_late(now_ns)
        was_late, self._was_late = self._was_late, is_late
        return is_late and was_late

    def _is_late(self, now_ns: int) -> bool:
        if not self._asked_ns:
            if now_ns - self._answered_ns > PING_MS * 1e6:
                self._send(Ping(), ())
            return False
        quiet_ms = (now_ns - self._asked_ns) / 1e6
        if quiet_ms < _LOOK_AFTER_MS:
            return False
        limit_ms = ANSWER_TIMEOUT_MS if self._is_preloaded else PRELOAD_TIMEOUT_MS
        verdict = self._hang_detector.feel(self.pid, self._asked_ns, quiet_ms)
        return verdict == "stopped" or (quiet_ms > limit_ms and verdict != "starved")

    def kill(self) -> None:
        """End it at once, and its workers with it. Idempotent."""
        self.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """Let go: it ends, and its workers with it. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            self._reader.close()
            sock.close()

    def is_reaped(self) -> bool:
        """Reap the process if it has ended. False: it has not."""
        return self._process.poll() is not None

    async def wait_closed(self) -> None:
        """Reap the process after ``close``. Gives up on one that cannot be killed."""
        waited_ms = 0.0
        while not self.is_reaped() and waited_ms < 2 * EXIT_WAIT_MS:
            if waited_ms >= EXIT_WAIT_MS:
                self._process.kill()
            await asyncio.sleep(_EXIT_POLL_MS / 1000)
            waited_ms += _EXIT_POLL_MS

    def _send(self, request: Fork | Ping, fds: Sequence[int]) -> bool:
        assert self._sock is not None
        try:
            send_frame(self._sock, encode(request), fds)
        except ConnectionError:
            self._loop.call_soon(self._lose)
            return False
        except OSError:  # it takes nothing now: the socket is full, or too many descriptors are on their way
            return False
        self._asked_ns = self._asked_ns or time.monotonic_ns()
        return True

    def _on_readable(self) -> None:
        try:
            frames = self._reader.read()
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._lose()
            return
        self._answered_ns = time.monotonic_ns()
        # Any answer is a sign of life, and what is still owed has its time anew.
        for frame in frames:
            self._receive(frame)
        self._asked_ns = self._answered_ns if self.unanswered or not self._is_preloaded else 0

    def _receive(self, frame: Frame) -> None:
        answer = decode_forkserver_answer(frame.body)
        if isinstance(answer, Forked):
            self.unanswered.discard(answer.id)
            self._owner.on_forked(answer.id, answer.pid, frame.fds[0] if frame.fds else None)
        elif isinstance(answer, ForkFailed):
            self.unanswered.discard(answer.id)
            self._owner.on_fork_failed(answer.id, answer.message)
        elif isinstance(answer, Exited):
            self._owner.on_exited(answer.pid, answer.status)
        elif isinstance(answer, Preloaded):
            self._is_preloaded = True
            self._owner.on_preloaded()
        elif isinstance(answer, PreloadFailed):
            self._owner.on_preload_failed(answer.message)

    def _lose(self) -> None:
        if self._sock is None:
            return
        self.kill()  # no doubt about it
        self._owner.on_lost(self)


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
