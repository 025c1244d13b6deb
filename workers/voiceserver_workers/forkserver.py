"""The process that forks workers: ``python -m voiceserver_workers.forkserver FD``.

It imports what the engine needs once, single-threaded, and forks a ready worker in milliseconds; the workers share its
memory copy-on-write. The other end of socket FD is the server's only handle on it:

==============================================  ====================================================
server says                                     forkserver answers
==============================================  ====================================================
``preload {engine, params, sys_path}``          ``preloaded`` or ``failed {message}``
``fork {id, spec}`` + channel fds, lifeline fd  ``forked {id, pid}`` + a pidfd where there are such, or
                                                ``fork_failed {id, message}``
``ping``                                        ``pong``
(a worker ends)                                 ``exited {pid, status}``, as of ``waitstatus_to_exitcode``
(end of file)                                   it exits, and its workers with it
==============================================  ====================================================

Rule: what one request lacks (a process, memory, a descriptor) is the answer to that request. The other workers live on.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from voiceserver_workers import registry
from voiceserver_workers.ipc.frames import Frame, FrameReader, send_frame
from voiceserver_workers.ipc.messages import (
    Exited,
    Fork,
    Forked,
    ForkFailed,
    ForkServerAnswer,
    Ping,
    Pong,
    Preload,
    Preloaded,
    PreloadFailed,
    WorkerSpec,
    decode_forkserver_request,
    encode,
)
from voiceserver_workers.ipc.platform import die_with_parent
from voiceserver_workers.process import (
    describe_error,
    ignore_terminal_signals,
    limit_torch_threads,
    run_worker,
)

log = logging.getLogger(__name__)


class ForkServer:
    """Serves one server over ``sock`` until it goes away."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader(sock)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        """Returns at end of file."""
        signal.signal(signal.SIGCHLD, _on_child)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._wake_read in ready:
                    self._reap()
                if self._sock.fileno() in ready:
                    for frame in self._reader.read():
                        self._obey(frame)

    def _obey(self, frame: Frame) -> None:
        request = decode_forkserver_request(frame.body)
        if isinstance(request, Preload):
            self._preload(request)
        elif isinstance(request, Ping):
            self._answer(Pong())
        elif frame.is_complete:
            self._fork(request, frame.fds)
        else:
            self._answer(ForkFailed(request.id, "the forkserver has no descriptor free"))

    def _answer(self, answer: ForkServerAnswer, fds: Sequence[int] = ()) -> None:
        send_frame(self._sock, encode(answer), fds)

    def _preload(self, request: Preload) -> None:
        sys.path.extend(path for path in request.sys_path if path not in sys.path)
        try:
            factory = registry.load(request.engine)
            preload = getattr(factory, "preload", None)
            if preload is not None:
                preload(request.params)
        except Exception as error:
            log.debug("preload failed", exc_info=True)
            self._answer(PreloadFailed(describe_error(error)))
            return
        limit_torch_threads()
        # What is loaded now stays for good: out of the collector's way, so that it stays shared.
        gc.collect()
        gc.freeze()
        self._answer(Preloaded())

    def _fork(self, request: Fork, fds: list[int]) -> None:
        spec, parent_pid = request.spec, os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _close_all(fds)
            self._answer(ForkFailed(request.id, str(error)))
            return
        if pid == 0:
            self._become_worker(spec, fds, parent_pid)
        _close_all(fds)
        pidfds = []
        if sys.platform == "linux" and not spec.is_portable:
            # Without a descriptor for it, the server learns of the worker's death by the lifeline.
            with contextlib.suppress(OSError):
                # Not reaped before the next round, so this is certainly the child just made.
                pidfds.append(os.pidfd_open(pid))
        try:
            self._answer(Forked(request.id, pid), pidfds)
        except ConnectionError:
            raise
        except OSError:  # too many descriptors are on their way
            self._answer(Forked(request.id, pid))
        finally:
            _close_all(pidfds)

    def _become_worker(self, spec: WorkerSpec, fds: list[int], parent_pid: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._sock.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        run_worker(spec, fds[:-1], fds[-1], parent_pid)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._answer(Exited(pid, os.waitstatus_to_exitcode(status)))


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _on_child(signum: int, frame: FrameType | None) -> None:
    """The wake-up fd does the work; without a handler the signal would be ignored."""


def main() -> None:
    ignore_terminal_signals()
    die_with_parent(int(sys.argv[2]))
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s worker[%(process)d] %(name)s: %(message)s"
    )
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        sock.setblocking(True)
        ForkServer(sock).run()
    os._exit(0)  # its workers go by their lifelines


if __name__ == "__main__":
    main()
