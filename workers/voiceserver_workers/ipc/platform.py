"""The one place that knows which system this is.

===========  ============================  =====================================
need         Linux                         elsewhere (macOS)
===========  ============================  =====================================
segment      memfd, sealed                 temporary file, unlinked at once
doorbell     one eventfd                   one socketpair
sentinel     pidfd                         end of file on the lifeline socket
parent died  PR_SET_PDEATHSIG              end of file on the lifeline socket
===========  ============================  =====================================

Rule: nothing here has a name in the file system when the call returns, so nothing outlives its processes.
Everything else in ``voiceserver_workers.ipc`` is the same on both: eight bytes written ring a bell, reading until
"would block" silences it, and both ends of a bell are non-blocking from birth (a reader on the event loop
would make the shared file description so anyway).
"""

from __future__ import annotations

import ctypes
import os
import platform as _platform
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

PREFAULT_FLAG = 0x8000 if sys.platform == "linux" else 0  # MAP_POPULATE: fault all pages in at mmap time

_PR_SET_PDEATHSIG = 1

# x86 keeps the order of stores and of loads; only a store before a load needs a fence there.
IS_STORE_ORDERED = _platform.machine().lower() in {"x86_64", "amd64", "i386", "i686"}


@dataclass(frozen=True, slots=True)
class Platform:
    """How this system makes the three things that differ.

    ``create_segment(size_bytes)`` gives an fd; ``seal(fd)`` forbids resizing; ``create_doorbell()`` gives
    ``(server_fd, worker_fd)``, two separate fds that may share one file description;
    ``open_sentinel(pid, lifeline_fd)`` gives a new fd that turns readable when the worker process has ended.
    """

    name: str
    create_segment: Callable[[int], int]
    seal: Callable[[int], None]
    create_doorbell: Callable[[], tuple[int, int]]
    open_sentinel: Callable[[int, int], int]
    is_store_ordered: bool = IS_STORE_ORDERED


def _create_unlinked_file(size_bytes: int) -> int:
    fd, path = tempfile.mkstemp(prefix="voiceserver-")
    try:
        os.unlink(path)
        os.ftruncate(fd, size_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def _create_socket_doorbell() -> tuple[int, int]:
    server, worker = socket.socketpair()
    server.setblocking(False)
    worker.setblocking(False)
    return server.detach(), worker.detach()


def _watch_lifeline(pid: int, lifeline_fd: int) -> int:
    return os.dup(lifeline_fd)


PORTABLE = Platform(
    name="portable",
    create_segment=_create_unlinked_file,
    seal=lambda fd: None,
    create_doorbell=_create_socket_doorbell,
    open_sentinel=_watch_lifeline,
)

if sys.platform == "linux":
    import fcntl

    def _create_memfd(size_bytes: int) -> int:
        fd = os.memfd_create("voiceserver-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Reserves the memory now: a full machine is an OSError here, not a SIGBUS in the middle of a
            # call.
            os.posix_fallocate(fd, 0, size_bytes)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _seal_memfd(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    def _create_event_doorbell() -> tuple[int, int]:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            return fd, os.dup(fd)
        except OSError:
            os.close(fd)
            raise

    def _open_pidfd(pid: int, lifeline_fd: int) -> int:
        return os.pidfd_open(pid)

    LINUX = Platform(
        name="linux",
        create_segment=_create_memfd,
        seal=_seal_memfd,
        create_doorbell=_create_event_doorbell,
        open_sentinel=_open_pidfd,
    )


def choose_platform() -> Platform:
    """The platform of this machine. The only decision of its kind in the project."""
    if sys.platform == "linux" and hasattr(os, "memfd_create") and hasattr(os, "eventfd"):
        return LINUX
    return PORTABLE


def ring_doorbell(fd: int) -> None:
    """Wake the peer. A full bell is a rung bell, and a dead peer is the sentinel's business."""
    try:
        os.write(fd, _ONE)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return


def silence_doorbell(fd: int) -> None:
    """Take every ring so far; never blocks."""
    try:
        while len(os.read(fd, 4096)) == 4096:
            pass
    except (BlockingIOError, ConnectionResetError):
        return


_ONE = (1).to_bytes(8, sys.byteorder)


def die_with_parent(parent_pid: int) -> bool:
    """Have the kernel kill this process when its parent ends. False: this system cannot."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return False
    if os.getppid() != parent_pid:  # it died before the call
        os._exit(1)
    return True
