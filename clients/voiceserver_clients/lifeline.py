"""A program that ends with the one that started it, however that one ends.

It runs as ``python -m voiceserver_clients.lifeline PARENT_PID COMMAND…``. The kernel is told to send
SIGTERM when the parent dies, and the command takes the place of this process, with its pid. Elsewhere than on Linux there is
no such thing, and a program that is killed may leave behind what it started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def bound(command: Sequence[str]) -> list[str]:
    """``command``, to be started by this thread of this process and to end with it."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-m", __name__, str(os.getpid()), *command]


def end_with(parent: int) -> None:
    """This process ends with ``parent``, which started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was told
            sys.exit(128 + signal.SIGTERM)


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    end_with(parent)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and would hand on
        signal.signal(number, signal.SIG_DFL)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
